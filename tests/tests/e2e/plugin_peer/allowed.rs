//! Where ours differs from NVIDIA's plugin, and why. `agent/README.md` tells users the same.

/// A difference that is meant.
pub(super) struct Allowed {
    /// The case's name; `*` stands for any text.
    pub(super) case: &'static str,
    /// What it is about; `*` as above.
    pub(super) key: &'static str,
    pub(super) why: &'static str,
}

impl Allowed {
    pub(super) fn fits(&self, case: &str, key: &str) -> bool {
        glob(self.case, case) && glob(self.key, key)
    }
}

/// Whether a text is what a pattern says.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, rest)) => text.strip_prefix(before).is_some_and(|text| {
            (0..=text.len()).any(|at| text.is_char_boundary(at) && glob(rest, &text[at..]))
        }),
    }
}

pub(super) const ALLOWED: &[Allowed] = &[];
