//! What is said at the head of a file that programs an FPGA: for which hardware it is, and what it makes of it. Files come from users: every
//! byte is hostile, and nothing here reads beyond the bytes that it was given or keeps more than a name of them.
//!
//! * Intel's green bitstream (`.gbs`): a GUID, the length of a JSON text, that text, and the image. Source: OPAE's `packager` and
//!   `libopae-c`, `bitstream.h`.
//! * AMD's `.xclbin` (format 2, `axlf`): a header of fixed layout. Source: `xclbin.h` in Xilinx/XRT. It is only told what it is: XRT programs
//!   such a card for the program that opens it.

use serde::Deserialize;

/// `XeonFPGA\xb7GBSv001`.
const GBS_GUID: [u8; 16] = *b"XeonFPGA\xb7GBSv001";
/// The GUID and the length.
const GBS_HEAD: usize = 20;
/// OPAE takes no longer metadata.
const METADATA_LIMIT: usize = 4096;

const XCLBIN_MAGIC: [u8; 8] = *b"xclbin2\0";
/// Offsets within `struct axlf`.
const XCLBIN_LENGTH: usize = 304;
const XCLBIN_PLATFORM: std::ops::Range<usize> = 352..416;
const XCLBIN_UUID: std::ops::Range<usize> = 416..432;
/// The end of `struct axlf` without its sections.
const XCLBIN_HEAD: usize = 456;

/// Why a file is no bitstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BitstreamError {
    /// Its first bytes are of no known format.
    #[error("it is neither a green bitstream (.gbs) nor an .xclbin")]
    Unknown,
    /// It ends too early.
    #[error("it is cut off: {have} bytes, {need} expected")]
    CutOff {
        /// Bytes that there are.
        have: u64,
        /// Bytes that there should be.
        need: u64,
    },
    /// The metadata are implausibly long or short.
    #[error("its metadata have {0} bytes: 1 to {METADATA_LIMIT} expected")]
    MetadataLength(u32),
    /// The metadata are not what they should be.
    #[error("its metadata can't be read: {0}")]
    Metadata(String),
    /// An id is none.
    #[error("its {what} {id:?} is no UUID")]
    Id {
        /// Which.
        what: &'static str,
        /// What is there.
        id: String,
    },
    /// It programs several functions or none; ports take one.
    #[error("it has {0} accelerator functions: one expected")]
    Functions(usize),
    /// There is nothing behind its head.
    #[error("it has no image")]
    NoImage,
}

/// A file that programs an FPGA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bitstream<'a> {
    /// For a region of an Intel card.
    Green(Green<'a>),
    /// For an AMD card.
    Xclbin(Xclbin),
}

/// A green bitstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Green<'a> {
    /// The interface that the region must have: 32 hexadecimal digits.
    pub interface: String,
    /// The accelerator function that it puts there: 32 hexadecimal digits.
    pub function: String,
    /// What the hardware takes.
    pub image: &'a [u8],
}

/// The head of an `.xclbin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xclbin {
    /// Its own id, 32 hexadecimal digits: what `xclbinuuid` says when it is in a card.
    pub id: String,
    /// The shell that it is made for.
    pub platform: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Metadata {
    afu_image: Image,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    interface_uuid: String,
    accelerator_clusters: Vec<Cluster>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    accelerator_type_uuid: String,
}

/// Reads the head of a file that programs an FPGA.
///
/// # Errors
/// What is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Bitstream<'_>, BitstreamError> {
    if bytes.starts_with(&GBS_GUID) {
        green(bytes).map(Bitstream::Green)
    } else if bytes.starts_with(&XCLBIN_MAGIC) {
        xclbin(bytes).map(Bitstream::Xclbin)
    } else {
        Err(BitstreamError::Unknown)
    }
}

fn green(bytes: &[u8]) -> Result<Green<'_>, BitstreamError> {
    let cut_off = |need: usize| BitstreamError::CutOff { have: bytes.len() as u64, need: need as u64 };
    let (_, rest) = bytes.split_first_chunk::<16>().ok_or_else(|| cut_off(GBS_HEAD))?;
    let (length, rest) = rest.split_first_chunk().ok_or_else(|| cut_off(GBS_HEAD))?;
    let length = u32::from_le_bytes(*length);
    let size = usize::try_from(length).ok().filter(|size| (1..=METADATA_LIMIT).contains(size));
    let size = size.ok_or(BitstreamError::MetadataLength(length))?;
    let (metadata, image) = rest.split_at_checked(size).ok_or_else(|| cut_off(GBS_HEAD + size))?;
    if image.is_empty() {
        return Err(BitstreamError::NoImage);
    }
    // Some tools end the text with a zero.
    let metadata = metadata.split(|byte| *byte == 0).next().unwrap_or_default();
    let metadata: Metadata =
        serde_json::from_slice(metadata).map_err(|error| BitstreamError::Metadata(error.to_string()))?;
    let [function] = metadata.afu_image.accelerator_clusters.as_slice() else {
        return Err(BitstreamError::Functions(metadata.afu_image.accelerator_clusters.len()));
    };
    Ok(Green {
        interface: plain("interface id", &metadata.afu_image.interface_uuid)?,
        function: plain("function id", &function.accelerator_type_uuid)?,
        image,
    })
}

fn xclbin(bytes: &[u8]) -> Result<Xclbin, BitstreamError> {
    let have = bytes.len() as u64;
    let cut_off = |need| BitstreamError::CutOff { have, need };
    let head = bytes.get(..XCLBIN_HEAD).ok_or_else(|| cut_off(XCLBIN_HEAD as u64))?;
    let length = head
        .get(XCLBIN_LENGTH..)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |length| u64::from_le_bytes(*length));
    if length > have || length < XCLBIN_HEAD as u64 {
        return Err(cut_off(length.max(XCLBIN_HEAD as u64)));
    }
    let platform =
        head.get(XCLBIN_PLATFORM).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
    let printable = platform.iter().filter(|byte| byte.is_ascii_graphic());
    let id = head.get(XCLBIN_UUID).and_then(<[u8]>::first_chunk).map_or(0, |id| u128::from_be_bytes(*id));
    Ok(Xclbin { id: format!("{id:032x}"), platform: printable.map(|byte| char::from(*byte)).collect() })
}

/// A UUID as the drivers spell it: digits only, lower case.
fn plain(what: &'static str, uuid: &str) -> Result<String, BitstreamError> {
    let digits: String = uuid.chars().filter(|character| *character != '-').take(33).collect();
    if digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(digits.to_ascii_lowercase())
    } else {
        Err(BitstreamError::Id { what, id: uuid.chars().take(40).collect() })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERFACE: &str = "69528db6-eb31-577a-8c36-68f9faa081f6";
    const FUNCTION: &str = "D8424DC4-A4A3-C413-F89E-433683F9040B";

    /// A green bitstream with these metadata and this image.
    pub(crate) fn gbs(metadata: &str, image: &[u8]) -> Vec<u8> {
        let length = u32::try_from(metadata.len()).unwrap().to_le_bytes();
        [GBS_GUID.as_slice(), &length, metadata.as_bytes(), image].concat()
    }

    /// The metadata of a bitstream, as Intel's packager writes them.
    pub(crate) fn metadata(interface: &str, function: &str) -> String {
        format!(
            r#"{{"version": 1, "platform-name": "DCP", "afu-image": {{"magic-no": 488605312, "interface-uuid": "{interface}", "power": 0,
            "accelerator-clusters": [{{"accelerator-type-uuid": "{function}", "name": "nlb_400", "total-contexts": 1}}]}}}}"#
        )
    }

    #[test]
    fn a_green_bitstream_says_what_it_is_for() {
        let file = gbs(&metadata(INTERFACE, FUNCTION), b"image");
        let expected = Green {
            interface: "69528db6eb31577a8c3668f9faa081f6".to_owned(),
            function: "d8424dc4a4a3c413f89e433683f9040b".to_owned(),
            image: b"image",
        };
        assert_eq!(parse(&file), Ok(Bitstream::Green(expected)));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let check = |bytes: &[u8], part: &str| {
            let error = parse(bytes).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        let good = gbs(&metadata(INTERFACE, FUNCTION), b"image");
        check(b"", "neither");
        check(&[0; 100], "neither");
        check(&good[..18], "cut off: 18 bytes, 20 expected");
        check(&good[..100], "cut off: 100 bytes");
        check(&good[..good.len() - 5], "no image");
        check(&[&GBS_GUID[..], &[0; 4], b"{}"].concat(), "0 bytes");
        check(&[&GBS_GUID[..], &[0xff; 4], b"{}"].concat(), "4294967295 bytes");
        check(&gbs("{}", b"image"), "afu-image");
        check(&gbs(&"[".repeat(4000), b"image"), "metadata can't be read");
        check(&gbs(&metadata("../../etc", FUNCTION), b"image"), "interface id \"../../etc\" is no UUID");
        check(&gbs(&metadata(INTERFACE, "é"), b"image"), "function id");
        let none = r#"{"afu-image": {"interface-uuid": "0", "accelerator-clusters": []}}"#;
        check(&gbs(none, b"image"), "0 accelerator functions");
    }

    /// The head of an `.xclbin` for this shell.
    fn axlf(platform: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 500];
        file[..8].copy_from_slice(&XCLBIN_MAGIC);
        file[XCLBIN_LENGTH..XCLBIN_LENGTH + 8].copy_from_slice(&500_u64.to_le_bytes());
        file[XCLBIN_PLATFORM][..platform.len()].copy_from_slice(platform);
        file[XCLBIN_UUID].copy_from_slice(&[0xab; 16]);
        file
    }

    #[test]
    fn an_xclbin_says_what_it_is_for() {
        let file = axlf(b"xilinx_u250_gen3x16_xdma_shell_4_1");
        let expected =
            Xclbin { id: "ab".repeat(16), platform: "xilinx_u250_gen3x16_xdma_shell_4_1".to_owned() };
        assert_eq!(parse(&file), Ok(Bitstream::Xclbin(expected)));
        assert_eq!(parse(&file[..400]), Err(BitstreamError::CutOff { have: 400, need: 456 }));
        assert_eq!(parse(&file[..499]), Err(BitstreamError::CutOff { have: 499, need: 500 }));
        let Ok(Bitstream::Xclbin(odd)) = parse(&axlf(&[b'a', b'\n', 0xff, b'b', 0, b'c'])) else { panic!() };
        assert_eq!(odd.platform, "ab");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            head in prop_oneof![Just(GBS_GUID.to_vec()), Just(XCLBIN_MAGIC.to_vec()), Just(Vec::new())],
            length in prop_oneof![0..200_u32, any::<u32>()],
            rest in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let _ = parse(&[head, length.to_le_bytes().to_vec(), rest].concat());
        }

        #[test]
        fn a_file_with_a_broken_byte_is_refused_or_says_the_same_or_another_plain_id(
            place in 0..400_usize, value: u8,
        ) {
            let mut file = gbs(&metadata(INTERFACE, FUNCTION), b"image");
            if let Some(byte) = file.get_mut(place) {
                *byte = value;
            }
            if let Ok(Bitstream::Green(green)) = parse(&file) {
                for id in [green.interface, green.function] {
                    prop_assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
                }
            }
        }
    }
}
