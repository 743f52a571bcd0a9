//! What the configuration says of health: ours, and NVIDIA's newer section of the same name.

use serde::{Deserialize, Deserializer, de::Error};

use super::Gpu;

/// Which XIDs make a GPU Unhealthy, apart from those that are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CriticalXids {
    /// Each.
    #[default]
    All,
    /// These.
    Only(Vec<u64>),
}

impl<'de> Deserialize<'de> for CriticalXids {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Spelling {
            Word(String),
            List(Vec<u64>),
        }
        match Spelling::deserialize(input) {
            Ok(Spelling::Word(word)) if word.eq_ignore_ascii_case("all") => Ok(Self::All),
            Ok(Spelling::List(xids)) => Ok(Self::Only(xids)),
            _ => Err(Error::custom("expected \"all\" or a list of XIDs")),
        }
    }
}

/// When a device counts as sick, and what follows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Health {
    /// Whether XIDs are left out of account altogether. What the driver says at a look is not.
    pub disabled: bool,
    event_types: Vec<String>,
    #[serde(rename = "ignoredXIDs")]
    ignored_xids: Option<Vec<u64>>,
    #[serde(rename = "criticalXIDs")]
    critical_xids: Option<CriticalXids>,
    /// Whether a container that is restarted in place on a sick device waits until the device is well.
    pub hold_back_sick_restarts: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            disabled: false,
            event_types: Vec::new(),
            ignored_xids: None,
            critical_xids: None,
            hold_back_sick_restarts: true,
        }
    }
}

impl Health {
    /// Moves what NVIDIA's section says of XIDs to where it is looked for.
    pub(super) fn settle(&mut self, gpu: &mut Gpu) -> Result<(), String> {
        let default = Gpu::default();
        if let Some(xids) = self.ignored_xids.take() {
            if gpu.ignored_xids != default.ignored_xids {
                return Err("health.ignoredXIDs and gpu.ignoredXids are the same thing: say one".to_owned());
            }
            gpu.ignored_xids = xids;
        }
        if let Some(xids) = self.critical_xids.take() {
            if gpu.critical_xids != default.critical_xids {
                return Err("health.criticalXIDs and gpu.criticalXids are the same thing: say one".to_owned());
            }
            gpu.critical_xids = xids;
        }
        if let CriticalXids::Only(critical) = &gpu.critical_xids
            && let Some(xid) = critical.iter().find(|xid| gpu.ignored_xids.contains(xid))
        {
            return Err(format!("XID {xid} is both critical and ignored"));
        }
        Ok(())
    }

    /// Whether it says which kinds of NVML's events matter: all of them do.
    pub(super) fn has_event_types(&self) -> bool {
        !self.event_types.is_empty()
    }
}

/// What `DP_DISABLE_HEALTHCHECKS` and `DP_ENABLE_HEALTHCHECKS` say, as NVIDIA's plugin reads them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overridden {
    /// XIDs are left out of account.
    pub disabled: bool,
    /// XIDs that are ignored besides those of the file.
    pub ignored: Vec<u64>,
    /// XIDs that are not, even if the file, or the default, says so.
    pub heeded: Vec<u64>,
}

impl Overridden {
    /// Reads both variables. `all` and `xids` switch XIDs off, and on again.
    ///
    /// # Errors
    /// What is neither of the words nor a list of numbers.
    pub fn read(disable: &str, enable: &str) -> Result<Self, String> {
        let words = |text: &str| -> Result<(bool, Vec<u64>), String> {
            let mut all = false;
            let mut xids = Vec::new();
            for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
                match word.to_ascii_lowercase().as_str() {
                    "all" | "xids" => all = true,
                    number => xids.push(
                        number
                            .parse()
                            .map_err(|_| format!("{word:?} is neither an XID nor \"all\" nor \"xids\""))?,
                    ),
                }
            }
            Ok((all, xids))
        };
        let ((disabled, ignored), (enabled, heeded)) = (words(disable)?, words(enable)?);
        Ok(Self { disabled: disabled && !enabled && heeded.is_empty(), ignored, heeded })
    }

    pub(super) fn apply(&self, gpu: &mut Gpu, health: &mut Health) {
        health.disabled |= self.disabled;
        gpu.ignored_xids.extend(&self.ignored);
        gpu.ignored_xids.retain(|xid| !self.heeded.contains(xid));
        gpu.ignored_xids.dedup();
    }
}
