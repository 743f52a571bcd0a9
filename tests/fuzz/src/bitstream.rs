//! A file that programs an FPGA: what is read of its head, and that nothing is written into a port that it is not made for.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use spillway_device_plugin::{
    bitstream::{Bitstream, parse},
    config::{Config, Overrides},
    device::{DeviceId, ResourceName},
    discovery::{Roots, dfl::Place},
    programming::{Programmer, Programming, ProgrammingError},
    server::PreStart as _,
};
use tokio::sync::watch;

use crate::tree::Tree;

const INTERFACE: &str = "69528db6eb31577a8c3668f9faa081f6";
const FUNCTION: &str = "d8424dc4a4a3c413f89e433683f9040b";
/// Both ids as in the resource's name.
const RESOURCE: &str = "fpga.intel.com/af-695.d84.aVKNtusxV3qMNmj5-qCB9thCTcSko8QT-J5DNoP5BAs";
const PORT: &str = "sys/class/fpga_region/region0/dfl-port.4";

/// Reads the file, and asks for it to be programmed.
pub fn run(bytes: &[u8]) {
    let fits = match parse(bytes) {
        Err(error) => {
            let text = error.to_string();
            return assert!(text.len() < 1000 && !text.contains(char::is_control), "{text:?}");
        }
        Ok(Bitstream::Xclbin(xclbin)) => {
            id(&xclbin.id);
            assert!(
                xclbin.platform.len() <= 64 && xclbin.platform.bytes().all(|byte| byte.is_ascii_graphic())
            );
            None
        }
        Ok(Bitstream::Green(green)) => {
            id(&green.interface);
            id(&green.function);
            assert!(!green.image.is_empty() && bytes.ends_with(green.image));
            (green.interface == INTERFACE && green.function == FUNCTION).then_some(green.image)
        }
    };
    let programmed = asked(bytes);
    assert_eq!(
        programmed.as_slice(),
        fits.map(<[u8]>::to_vec).as_slice(),
        "only what fits is written, and all of it"
    );
}

fn id(id: &str) {
    assert!(id.len() == 32 && id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')), "{id:?}");
}

/// What is written into a port that is to have the function when the file is there as its bitstream.
fn asked(file: &[u8]) -> Vec<Vec<u8>> {
    let mut tree = Tree::new();
    let region = "sys/class/fpga_region/region0";
    tree.set(&format!("{region}/dfl-fme.3/dfl-fme-region.0/fpga_region/region1/compat_id"), INTERFACE);
    tree.set(&format!("{PORT}/id"), "1");
    tree.set(&format!("{PORT}/afu_id"), "00000000000000000000000000000001");
    tree.set(&format!("srv/{INTERFACE}/{FUNCTION}.gbs"), file);
    let recorder = Arc::new(Recorder { afu_id: tree.at(PORT).join("afu_id"), images: Mutex::default() });
    let text = format!(
        "fpga:\n  bitstreamFolder: {}\n  functions: [{{interface: {INTERFACE}, function: {FUNCTION}}}]\n",
        tree.at("srv").display()
    );
    let config =
        Config::load("a target", text.as_bytes(), &Overrides::default()).expect("a sound configuration");
    let configs = watch::Sender::new(Arc::new(config.config));
    let roots = Roots { sys: tree.at("sys"), dev: tree.at("dev"), proc: tree.at("proc") };
    let programming = Programming::new(roots, configs.subscribe(), recorder.clone());
    let resource = ResourceName::new(RESOURCE).expect("a sound name");
    assert!(programming.concerns(&resource));
    let device = DeviceId::new("dfl-port.4").expect("a sound ID");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let result = runtime.block_on(programming.before_start(&resource, &[device]));
    let images = recorder.images.lock().expect("nobody panics with it").clone();
    assert_eq!(result.is_ok(), !images.is_empty(), "{result:?}");
    if let Err(why) = result {
        assert!(!why.contains(char::is_control), "{why:?}");
    }
    images
}

/// A stand-in for the kernel's side.
#[derive(Debug)]
struct Recorder {
    afu_id: PathBuf,
    images: Mutex<Vec<Vec<u8>>>,
}

impl Programmer for Recorder {
    fn program(&self, _: &Place, image: &[u8]) -> Result<(), ProgrammingError> {
        self.images.lock().expect("nobody panics with it").push(image.to_vec());
        fs::write(&self.afu_id, FUNCTION).expect("the tree is ours");
        Ok(())
    }
}
