//! Who may use an image that the machine has: an image that only a secret opened is for pods that have that secret, or can pull it
//! themselves (KEP-2535, a kubelet's default since 1.35). What was there before is everybody's.
//!
//! On record are UIDs of secrets, and nothing of what is in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

/// Who may use one image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Who {
    /// It was pulled without credentials.
    anyone: bool,
    /// UIDs of secrets that it was pulled with.
    secrets: BTreeSet<String>,
}

/// By image ID.
type Known = BTreeMap<String, Who>;

/// Images that were pulled here.
pub(crate) struct Access {
    path: PathBuf,
    known: Mutex<Known>,
}

impl Access {
    /// As on record below `root`.
    pub(crate) fn new(root: &Path) -> Self {
        let path = root.join("images.json");
        let read = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Self { path, known: Mutex::new(read.unwrap_or_default()) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody may use the image.
    pub(crate) fn is_open(&self, image: &str) -> bool {
        self.known().get(image).is_none_or(|who| who.anyone)
    }

    /// Whether who has one of these secrets may use the image.
    pub(crate) fn opens<'a>(&self, image: &str, mut secrets: impl Iterator<Item = &'a str>) -> bool {
        self.known().get(image).is_some_and(|who| secrets.any(|secret| who.secrets.contains(secret)))
    }

    /// The image was pulled with this secret, or without any.
    pub(crate) fn pulled(&self, image: &str, secret: Option<&str>) -> io::Result<()> {
        let mut known = self.known();
        let who = known.entry(image.to_owned()).or_default();
        let news = match secret {
            None => !std::mem::replace(&mut who.anyone, true),
            Some(secret) => who.secrets.insert(secret.to_owned()),
        };
        if !news {
            return Ok(());
        }
        let fresh = self.path.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(&*known)?)?;
        fs::rename(&fresh, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_for_those_who_could_pull_it() {
        let folder = tempfile::tempdir().unwrap();
        let access = Access::new(folder.path());
        assert!(access.is_open("preloaded"));
        access.pulled("private", Some("s1")).unwrap();
        assert!(!access.is_open("private"));
        assert!(access.opens("private", ["s0", "s1"].into_iter()));
        assert!(!access.opens("private", ["s0"].into_iter()));

        let again = Access::new(folder.path());
        assert!(!again.is_open("private") && again.opens("private", ["s1"].into_iter()));
        again.pulled("private", None).unwrap();
        assert!(again.is_open("private"));
        fs::write(folder.path().join("images.json"), "garbage").unwrap();
        assert!(Access::new(folder.path()).is_open("private"));
    }
}
