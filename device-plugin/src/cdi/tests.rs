use serde_json::Value;

use super::*;
use crate::{
    config::Overrides,
    device::{Accelerator, DeviceId},
    inventory::tests::device,
};

fn gpu(index: u32) -> Device {
    let base = device("nvidia.com/gpu", &format!("GPU-{index}"), None);
    let accelerator = Accelerator {
        index: Some(index),
        ..Accelerator::new(DeviceId::new(format!("GPU-{index}")).unwrap())
    };
    Device {
        nodes: [format!("/dev/nvidia{index}").into(), "/dev/nvidiactl".into()].into(),
        listed_in: Some(LISTED_IN),
        accelerator: Arc::new(accelerator),
        ..base
    }
}

fn config(text: &str) -> Config {
    Config::load("a test", text.as_bytes(), &Overrides::default()).unwrap().config
}

/// The rules of the specification's schema (schema.json, defs.json) that a specification of ours could break.
fn assert_valid(spec: &Value) {
    let only = |value: &Value, known: &[&str]| {
        for key in value.as_object().expect("an object").keys() {
            assert!(known.contains(&key.as_str()), "unknown property {key}");
        }
    };
    let edits = |value: &Value| {
        only(value, &["env", "deviceNodes", "mounts", "hooks", "intelRdt", "additionalGids"]);
        for node in value["deviceNodes"].as_array().into_iter().flatten() {
            only(
                node,
                &["path", "hostPath", "type", "major", "minor", "fileMode", "permissions", "uid", "gid"],
            );
            assert!(node["path"].as_str().unwrap().starts_with('/'));
            assert!(node["permissions"].as_str().unwrap().chars().all(|letter| "rwm".contains(letter)));
        }
        for mount in value["mounts"].as_array().into_iter().flatten() {
            only(mount, &["hostPath", "containerPath", "options", "type"]);
            assert!(mount["hostPath"].as_str().unwrap().starts_with('/'));
            assert!(mount["containerPath"].as_str().unwrap().starts_with('/'));
            assert!(mount["options"].as_array().unwrap().iter().all(Value::is_string));
        }
        for variable in value["env"].as_array().into_iter().flatten() {
            assert!(variable.as_str().unwrap().contains('='));
        }
    };
    only(spec, &["cdiVersion", "kind", "devices", "containerEdits", "annotations"]);
    assert_eq!(spec["cdiVersion"], "0.5.0");
    let (vendor, class) = spec["kind"].as_str().unwrap().split_once('/').unwrap();
    assert!(vendor.starts_with(|letter: char| letter.is_ascii_alphanumeric()) && !class.is_empty());
    let devices = spec["devices"].as_array().unwrap();
    assert!(!devices.is_empty());
    for device in devices {
        only(device, &["name", "containerEdits", "annotations"]);
        assert!(is_name(device["name"].as_str().unwrap()));
        assert!(!device["containerEdits"].as_object().unwrap().is_empty());
        edits(&device["containerEdits"]);
    }
    edits(&spec["containerEdits"]);
}

#[test]
fn a_driver_containers_nodes_are_where_the_host_has_them() {
    let base = gpu(0);
    let accelerator =
        Accelerator { dev: Some("/run/nvidia/driver/dev".into()), ..(*base.accelerator).clone() };
    let device = Device { accelerator: Arc::new(accelerator), ..base };
    let spec = serde_json::to_value(spec(&[&device], Common::default()).unwrap()).unwrap();
    assert_valid(&spec);
    let node = |name: &str| {
        serde_json::json!({
            "path": format!("/dev/{name}"), "hostPath": format!("/run/nvidia/driver/dev/{name}"), "permissions": "rw",
        })
    };
    let expected = serde_json::json!([node("nvidia0"), node("nvidiactl")]);
    assert_eq!(spec["devices"][0]["containerEdits"]["deviceNodes"], expected);
}

#[test]
fn the_specification_is_valid_and_has_every_device_by_each_name() {
    let (gpus, root) = ([gpu(0), gpu(1)], tempfile::tempdir().unwrap());
    fs::create_dir_all(root.path().join("usr/lib")).unwrap();
    fs::write(root.path().join("usr/lib/libnvidia-ml.so.1"), "").unwrap();
    let mounts = driver::mounts(root.path(), Path::new("/"));
    let spec = serde_json::to_value(
        spec(&gpus.iter().collect::<Vec<_>>(), Common { mounts, ..Common::default() }).unwrap(),
    )
    .unwrap();
    assert_valid(&spec);
    let devices: Vec<_> = spec["devices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|device| {
            let nodes = device["containerEdits"]["deviceNodes"].as_array().unwrap();
            let paths: Vec<_> = nodes.iter().map(|node| node["path"].as_str().unwrap()).collect();
            format!("{} {}", device["name"].as_str().unwrap(), paths.join(" "))
        })
        .collect();
    assert_eq!(
        devices,
        [
            "0 /dev/nvidia0 /dev/nvidiactl",
            "1 /dev/nvidia1 /dev/nvidiactl",
            "GPU-0 /dev/nvidia0 /dev/nvidiactl",
            "GPU-1 /dev/nvidia1 /dev/nvidiactl",
        ]
    );
    assert_eq!(spec["containerEdits"]["env"], serde_json::json!(["NVIDIA_VISIBLE_DEVICES=void"]));
    assert_eq!(spec["containerEdits"]["mounts"][0]["hostPath"], "/usr/lib/libnvidia-ml.so.1");
}

#[test]
fn names_that_the_specification_refuses_are_left_out() {
    for good in ["GPU-fef8089b-4820", "0", "0:1", "MIG-1.g"] {
        assert!(is_name(good), "{good}");
    }
    for bad in ["", "-GPU", "GPU-", "GPU=0", "GPU 0", "é"] {
        assert!(!is_name(bad), "{bad}");
    }
    let nodeless = Device { nodes: [].into(), ..gpu(0) };
    assert_eq!(spec(&[&nodeless], Common::default()), None, "an entry that changes nothing is not valid");
    assert_eq!(spec(&[], Common::default()), None);
}

#[test]
fn the_file_is_there_while_somebody_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let cdi = folder.path().join("cdi");
    let path = cdi.join(FILE);
    let gpus = [gpu(0)];
    let gpus: Vec<_> = gpus.iter().collect();
    let text = "flags: {nvidiaDriverRoot: /nonexistent, plugin: {deviceListStrategy: [envvar, cdi-cri]}}";
    keep(&cdi, Path::new("/dev"), &config(""), &gpus).unwrap();
    assert!(!path.exists());
    keep(&cdi, Path::new("/dev"), &config(text), &gpus).unwrap();
    assert_valid(&serde_json::from_slice(&fs::read(&path).unwrap()).unwrap());
    let names: Vec<_> = fs::read_dir(&cdi).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [FILE], "nothing is left beside it");
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    keep(&cdi, Path::new("/dev"), &config(text), &gpus).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before, "the same is not written twice");
    keep(&cdi, Path::new("/dev"), &config(text), &[]).unwrap();
    assert!(!path.exists(), "no device, no specification");
    fs::write(&path, "what an earlier agent left").unwrap();
    keep(&cdi, Path::new("/dev"), &config(""), &gpus).unwrap();
    assert!(!path.exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cdi");
    fs::write(&file, "").unwrap();
    let text = "flags: {plugin: {deviceListStrategy: cdi-annotations}}";
    let error = keep(&file, Path::new("/dev"), &config(text), &[&gpu(0)]).unwrap_err();
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
}
