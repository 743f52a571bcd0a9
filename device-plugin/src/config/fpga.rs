//! What the configuration says of programming FPGAs.

use serde::{Deserialize, Deserializer, de::Error};

/// Ports that are offered by an accelerator function, which is put into them before a container starts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FpgaFunction {
    /// The interface that the ports have: 32 hexadecimal digits.
    #[serde(deserialize_with = "id")]
    pub interface: String,
    /// The function: 32 hexadecimal digits.
    #[serde(deserialize_with = "id")]
    pub function: String,
    /// How many ports; all that are left where it is not said.
    #[serde(default = "all")]
    pub ports: usize,
}

fn all() -> usize {
    usize::MAX
}

/// 128 bits as drivers spell them; what people write may have dashes.
fn id<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    let text = String::deserialize(input)?;
    let digits = text.replace('-', "").to_ascii_lowercase();
    if digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(digits)
    } else {
        Err(D::Error::custom(format!("{text:?} is no id: expected 32 hexadecimal digits")))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Overrides};

    #[test]
    fn ids_are_plain_and_nothing_else_is_one() {
        let load = |id: &str| {
            let text =
                format!("fpga:\n  functions:\n  - interface: {id}\n    function: {}\n", "0".repeat(32));
            Config::load("a test", text.as_bytes(), &Overrides::default())
        };
        let loaded = load("69528DB6-eb31-577a-8c36-68f9faa081f6").unwrap();
        let function = &loaded.config.fpga.functions[0];
        assert_eq!(function.interface, "69528db6eb31577a8c3668f9faa081f6");
        assert_eq!(function.ports, usize::MAX);
        for bad in ["../../etc/passwd", "''", "12", "69528db6eb31577a8c3668f9faa081fg"] {
            let error = load(bad).unwrap_err().to_string();
            assert!(error.contains("no id") || error.contains("expected"), "{error}");
        }
    }
}
