//! Resources of a node: names that a pod can ask for and amounts that the API server takes. A name that it takes and that no pod can ask for
//! is a mistake, too.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;

use super::metadata::is_qualified_name;
use crate::pod::resources;

/// Those of Kubernetes that every node has.
const USUAL: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pods"];

/// Amounts by resource.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(try_from = "BTreeMap<Name, Amount>")]
pub(super) struct Resources(BTreeMap<String, Quantity>);

impl TryFrom<BTreeMap<Name, Amount>> for Resources {
    type Error = String;

    fn try_from(amounts: BTreeMap<Name, Amount>) -> Result<Self, String> {
        let checked = amounts.into_iter().map(|(Name(name), amount)| {
            let amount = Quantity::from(amount);
            if is_counted(&name) && !is_whole(&amount) {
                return Err(format!(
                    "{name}: {:?} is no whole number, and a pod gets whole ones only",
                    amount.0
                ));
            }
            Ok((name, amount))
        });
        checked.collect::<Result<_, _>>().map(Self)
    }
}

impl Resources {
    /// What holds for all nodes, and one's own over it.
    pub(super) fn with(&self, own: &Self) -> BTreeMap<String, Quantity> {
        self.0.iter().chain(&own.0).map(|(name, amount)| (name.clone(), amount.clone())).collect()
    }
}

/// The name of a resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
struct Name(String);

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        // As of a container's resources: `validateContainerResourceName` in pkg/apis/core/validation.
        let of_kubernetes = if name.contains('/') {
            name.contains("kubernetes.io/") && is_qualified_name(&name)
        } else {
            USUAL.contains(&name.as_str())
                || name.strip_prefix("hugepages-").is_some_and(is_size)
                || (name.starts_with("attachable-volumes-") && is_qualified_name(&name))
        };
        if of_kubernetes || is_extended(&name) {
            return Ok(Self(name));
        }
        Err(format!(
            "{name:?} is no resource that a pod can ask for: {}, hugepages-SIZE, or one with a domain, such as example.com/gpu",
            USUAL.join(", ")
        ))
    }
}

/// `IsExtendedResourceName` in pkg/apis/core/helper: a domain outside Kubernetes', and room for what a quota puts before it.
pub(super) fn is_extended(name: &str) -> bool {
    name.contains('/')
        && !name.contains("kubernetes.io/")
        && !name.starts_with("requests.")
        && is_qualified_name(&format!("requests.{name}"))
}

/// `IsIntegerResourceName` there.
fn is_counted(name: &str) -> bool {
    name == "pods" || is_extended(name)
}

fn is_whole(amount: &Quantity) -> bool {
    resources::whole(amount).map(|whole| whole.saturating_mul(1000)) == resources::milli(amount)
}

/// Of a huge page.
fn is_size(text: &str) -> bool {
    resources::whole(&Quantity(text.to_owned())).is_some_and(|bytes| bytes > 0)
}

/// A Kubernetes quantity that can be a capacity: not negative, well formed.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Amount(String);

impl TryFrom<String> for Amount {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
        let suffix = &text[number.len()..];
        let well_formed = number.bytes().any(|byte| byte.is_ascii_digit())
            && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
            && number.bytes().filter(|&byte| byte == b'.').count() <= 1
            && ["", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].contains(&suffix);
        if well_formed {
            Ok(Self(text))
        } else {
            Err(format!("{text:?} is no quantity, such as 8, 500m or 32Gi"))
        }
    }
}

impl From<Amount> for Quantity {
    fn from(amount: Amount) -> Self {
        Self(amount.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_a_pod_can_ask_for() {
        let name = |name: &str| Name::try_from(name.to_owned());
        // A quota writes `requests.` before it.
        let longest = format!("{}/gpu", ["a"; 122].join("."));
        for good in [
            "cpu",
            "pods",
            "hugepages-2Mi",
            "attachable-volumes-csi-x.example.com",
            "example.com/gpu",
            "vendor/Fpga_1",
            "kubernetes.io/batch-cpu",
            &longest,
        ] {
            assert!(name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "gpu",
            "CPU",
            "mem ory",
            "hugepages-",
            "hugepages-big",
            "example.com/",
            "/gpu",
            "a/b/c",
            "Example.com/gpu",
            "example.com/g,pu",
            "requests.example.com/gpu",
            &("x.y".to_owned() + &longest),
        ] {
            let error = name(bad).unwrap_err();
            assert!(error.contains(&format!("{bad:?} is no resource")), "{error}");
        }
    }

    #[test]
    fn what_is_counted_comes_in_whole_numbers() {
        let amount = |name: &str, amount: &str| {
            let amounts = [(Name(name.to_owned()), Amount(amount.to_owned()))];
            Resources::try_from(BTreeMap::from(amounts)).map(|resources| resources.0[name].0.clone())
        };
        for (name, good) in [("cpu", "1500m"), ("pods", "1k"), ("x.y/gpu", "2000m"), ("x.y/gpu", "9E")] {
            assert_eq!(amount(name, good).as_deref(), Ok(good), "{name}");
        }
        for (name, bad) in [("pods", "1500m"), ("x.y/gpu", "0.5")] {
            let error = amount(name, bad).unwrap_err();
            assert!(error.starts_with(&format!("{name}: {bad:?} is no whole number")), "{error}");
        }
    }
}
