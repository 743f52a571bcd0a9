//! Whether the machine can do what `AppArmor` profiles ask of it, as `pkg/security/apparmor` of a kubelet asks. A runtime would refuse the
//! containers again and again.

use std::{fs, path::Path};

use k8s_openapi::api::core::v1::{AppArmorProfile, PodSpec};

use super::Refusal;
use crate::pod::ephemeral;

/// `enabled`: the kernel's file that says whether it enforces profiles.
pub(super) fn refuse(spec: &PodSpec, enabled: &Path) -> Option<Refusal> {
    let is_enabled = || fs::read(enabled).is_ok_and(|text| text.starts_with(b"Y"));
    (wants_profile(spec) && !is_enabled()).then(|| Refusal {
        reason: "AppArmor".to_owned(),
        message: "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned(),
    })
}

fn wants_profile(spec: &PodSpec) -> bool {
    let confines = |profile: Option<&AppArmorProfile>| profile.is_some_and(|p| p.type_ != "Unconfined");
    let ephemeral = ephemeral::all(spec);
    let mut containers =
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).chain(&ephemeral);
    confines(spec.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref()))
        || containers.any(|container| {
            confines(container.security_context.as_ref().and_then(|own| own.app_armor_profile.as_ref()))
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn profiles_need_a_kernel_that_enforces_them() {
        let folder = tempfile::tempdir().unwrap();
        let (on, off) = (folder.path().join("on"), folder.path().join("off"));
        fs::write(&on, "Y\n").unwrap();
        fs::write(&off, "N\n").unwrap();
        let refused = |pod: Value, container: Value, enabled: &Path| {
            let of = |profile: Value| json!({ "appArmorProfile": profile });
            let spec = json!({ "securityContext": of(pod),
                "containers": [{ "name": "c", "securityContext": of(container) }] });
            refuse(&serde_json::from_value(spec).unwrap(), enabled).is_some()
        };
        let (default, none) = (json!({ "type": "RuntimeDefault" }), json!({ "type": "Unconfined" }));
        let missing = folder.path().join("missing");
        for enabled in [&off, &missing] {
            assert!(refused(default.clone(), none.clone(), enabled));
            assert!(refused(Value::Null, json!({ "type": "Localhost", "localhostProfile": "p" }), enabled));
            assert!(!refused(none.clone(), none.clone(), enabled));
            assert!(!refused(Value::Null, Value::Null, enabled));
        }
        assert!(!refused(default.clone(), default, &on));
    }
}
