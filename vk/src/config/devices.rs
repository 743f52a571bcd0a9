//! Devices in the configuration: well-formed names, each once, and the node's capacity that follows from them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{ConfigError, resources::is_extended};

/// Adds to the node's capacity as many of each resource as there are devices.
pub(super) fn offer(
    devices: &BTreeMap<String, Vec<String>>,
    capacity: &mut BTreeMap<String, Quantity>,
) -> Result<(), ConfigError> {
    let mut known = BTreeSet::new();
    for (resource, names) in devices {
        let wrong = |why: String| Err(ConfigError::Value(format!("key cri.devices.{resource}: {why}")));
        if !is_extended(resource) {
            return wrong("it is no extended resource, such as example.com/gpu".to_owned());
        }
        for name in names {
            if !is_cdi_name(name) {
                return wrong(format!("{name:?} is no CDI device, such as example.com/gpu=0"));
            }
            if !known.insert(name) {
                return wrong(format!("{name:?} is listed twice, and a device goes to one container only"));
            }
        }
        let count = Quantity(names.len().to_string());
        if let Some(other) = capacity.insert(resource.clone(), count.clone())
            && other != count
        {
            return wrong(format!(
                "it lists {} devices, and capacity says {}: leave it out of capacity",
                names.len(),
                other.0
            ));
        }
    }
    Ok(())
}

/// A device that two nodes offer.
pub(super) fn shared<'a>(
    one: &'a BTreeMap<String, Vec<String>>,
    other: &BTreeMap<String, Vec<String>>,
) -> Option<&'a str> {
    let has = |name: &&String| other.values().flatten().any(|other| other == *name);
    one.values().flatten().find(has).map(String::as_str)
}

/// `vendor.com/class=name`.
fn is_cdi_name(name: &str) -> bool {
    let word = |text: &str, more: &str| {
        text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    name.split_once('=').is_some_and(|(kind, device)| {
        let kind = kind.split_once('/');
        kind.is_some_and(|(vendor, class)| word(vendor, "-_.") && word(class, "-_")) && word(device, "-_.:")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_of_two_nodes_is_found() {
        let node = |names: &[&str]| -> BTreeMap<String, Vec<String>> {
            [("x.y/gpu".to_owned(), names.iter().map(|name| (*name).to_owned()).collect())].into()
        };
        assert_eq!(shared(&node(&["x.y/gpu=0", "x.y/gpu=1"]), &node(&["x.y/gpu=1"])), Some("x.y/gpu=1"));
        assert_eq!(shared(&node(&["x.y/gpu=0"]), &node(&["x.y/gpu=1"])), None);
    }

    #[test]
    fn devices_become_capacity_or_are_refused_by_name() {
        let check = |resource: &str, names: &[&str], given: &[(&str, &str)]| {
            let devices = [(resource.to_owned(), names.iter().map(|name| (*name).to_owned()).collect())];
            let mut capacity = given
                .iter()
                .map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned())))
                .collect();
            let offered = offer(&devices.into(), &mut capacity);
            offered.map(|()| capacity[resource].0.clone()).map_err(|error| error.to_string())
        };
        assert_eq!(check("x.y/gpu", &["x.y/gpu=0", "x.y/gpu=a:b"], &[("cpu", "1")]).as_deref(), Ok("2"));
        assert_eq!(check("x.y/gpu", &["x.y/gpu=0"], &[("x.y/gpu", "1")]).as_deref(), Ok("1"));
        for (resource, names, given) in [
            ("gpu", &["x.y/gpu=0"][..], &[][..]),
            ("x.y/g pu", &["x.y/gpu=0"], &[]),
            ("x.kubernetes.io/gpu", &["x.y/gpu=0"], &[]),
            ("x.y/gpu", &["gpu=0"], &[]),
            ("x.y/gpu", &["x.y/gpu"], &[]),
            ("x.y/gpu", &["x.y/gpu=../0"], &[]),
            ("x.y/gpu", &["x.y/gpu=0", "x.y/gpu=0"], &[]),
            ("x.y/gpu", &["x.y/gpu=0"], &[("x.y/gpu", "2")]),
        ] {
            let error = check(resource, names, given).unwrap_err();
            assert!(error.contains(&format!("cri.devices.{resource}")), "{error}");
        }
    }
}
