use std::fs;

use super::*;
use crate::{
    bitstream::tests::{gbs, metadata},
    config::Overrides,
};

const INTERFACE: &str = "69528db6eb31577a8c3668f9faa081f6";
const FUNCTION: &str = "d8424dc4a4a3c413f89e433683f9040b";
const OTHER: &str = "00000000000000000000000000000001";

/// A stand-in for the kernel's side: it keeps what it was given, and shows the function that it was told to.
#[derive(Debug)]
struct Recorder {
    afu_id: PathBuf,
    shows: &'static str,
    images: Mutex<Vec<(Place, Vec<u8>)>>,
}

impl Programmer for Recorder {
    fn program(&self, place: &Place, image: &[u8]) -> Result<(), ProgrammingError> {
        self.images.lock().unwrap().push((place.clone(), image.to_vec()));
        fs::write(&self.afu_id, self.shows).unwrap();
        Ok(())
    }
}

/// A machine with one port, an empty function in it, and a folder for bitstreams.
struct Machine {
    folder: tempfile::TempDir,
    recorder: Arc<Recorder>,
    programming: Programming,
    configs: watch::Sender<Arc<Config>>,
}

impl Machine {
    fn showing(shows: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let region = folder.path().join("sys/class/fpga_region/region0");
        let set = |path: &str, value: &str| {
            fs::create_dir_all(region.join(path).parent().unwrap()).unwrap();
            fs::write(region.join(path), value).unwrap();
        };
        set("dfl-fme.3/dfl-fme-region.0/fpga_region/region1/compat_id", INTERFACE);
        set("dfl-port.4/id", "1");
        set("dfl-port.4/afu_id", OTHER);
        let recorder =
            Arc::new(Recorder { afu_id: region.join("dfl-port.4/afu_id"), shows, images: Mutex::default() });
        let roots = Roots {
            sys: folder.path().join("sys"),
            dev: folder.path().join("dev"),
            proc: folder.path().join("proc"),
        };
        let text = format!(
            "fpga:\n  bitstreamFolder: {}\n  functions: [{{interface: {INTERFACE}, function: {FUNCTION}}}]\n",
            folder.path().join("bitstreams").display()
        );
        let config = Config::load("a test", text.as_bytes(), &Overrides::default()).unwrap().config;
        let configs = watch::Sender::new(Arc::new(config));
        let programming = Programming::new(roots, configs.subscribe(), recorder.clone());
        Self { folder, recorder, programming, configs }
    }

    fn put_file(&self, bytes: &[u8]) {
        let file = self.folder.path().join(format!("bitstreams/{INTERFACE}/{FUNCTION}.gbs"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }

    async fn start(&self) -> Result<(), String> {
        let resource = function_resource(INTERFACE, FUNCTION).unwrap();
        assert!(self.programming.concerns(&resource));
        self.programming.before_start(&resource, &[DeviceId::new("dfl-port.4").unwrap()]).await
    }

    fn programmed(&self) -> Vec<(Place, Vec<u8>)> {
        self.recorder.images.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_port_gets_the_function_once() {
    let machine = Machine::showing(FUNCTION);
    machine.put_file(&gbs(&metadata(INTERFACE, FUNCTION), b"image"));
    machine.start().await.unwrap();
    let place = Place {
        port: "dfl-port.4".to_owned(),
        engine: "dfl-fme.3".to_owned(),
        number: 1,
        interface: INTERFACE.to_owned(),
        function: Some(OTHER.to_owned()),
    };
    assert_eq!(machine.programmed(), [(place, b"image".to_vec())]);
    machine.start().await.unwrap();
    assert_eq!(machine.programmed().len(), 1, "it is there already");
}

#[tokio::test]
async fn nothing_is_written_that_does_not_fit() {
    let machine = Machine::showing(FUNCTION);
    let error = machine.start().await.unwrap_err();
    assert!(error.contains(".gbs") && error.contains("No such file"), "{error}");
    for (file, part) in [
        (gbs(&metadata(OTHER, FUNCTION), b"image"), format!("interface {OTHER}, expected {INTERFACE}")),
        (gbs(&metadata(INTERFACE, OTHER), b"image"), format!("function {OTHER}, expected {FUNCTION}")),
        (gbs(&metadata(INTERFACE, FUNCTION), b""), "it has no image".to_owned()),
        (b"#!/bin/sh\n".to_vec(), "neither a green bitstream".to_owned()),
    ] {
        machine.put_file(&file);
        let error = machine.start().await.unwrap_err();
        assert!(error.contains(&part), "{error}");
    }
    assert_eq!(machine.programmed(), []);
}

#[tokio::test]
async fn no_container_starts_on_another_function() {
    let machine = Machine::showing(OTHER);
    machine.put_file(&gbs(&metadata(INTERFACE, FUNCTION), b"image"));
    let error = machine.start().await.unwrap_err();
    assert_eq!(error, format!("dfl-port.4 was programmed with {FUNCTION}, and now has {OTHER}"));

    let machine = Machine::showing(FUNCTION);
    machine.put_file(&gbs(&metadata(INTERFACE, FUNCTION), b"image"));
    let compat_id = "sys/class/fpga_region/region0/dfl-fme.3/dfl-fme-region.0/fpga_region/region1/compat_id";
    fs::write(machine.folder.path().join(compat_id), OTHER).unwrap();
    let error = machine.start().await.unwrap_err();
    assert!(error.contains(&format!("its interface is {OTHER}")), "{error}");
    fs::remove_dir_all(machine.folder.path().join("sys")).unwrap();
    let error = machine.start().await.unwrap_err();
    assert!(error.contains("shows no port dfl-port.4"), "{error}");
    assert_eq!(machine.programmed(), []);
}

#[tokio::test]
async fn other_resources_and_modes_are_left_alone() {
    let machine = Machine::showing(FUNCTION);
    let region = ResourceName::new(format!("fpga.intel.com/region-{INTERFACE}")).unwrap();
    assert!(!machine.programming.concerns(&region));
    machine.programming.before_start(&region, &[DeviceId::new("dfl-port.4").unwrap()]).await.unwrap();
    machine.configs.send_modify(|config| Arc::make_mut(config).fpga.mode = FpgaMode::Af);
    let function = function_resource(INTERFACE, FUNCTION).unwrap();
    assert!(!machine.programming.concerns(&function), "in mode af a port is what it is");
    assert_eq!(machine.programmed(), []);
}
