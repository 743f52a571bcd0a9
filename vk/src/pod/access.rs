//! Who may use an image that the machine has: an image that only a secret opened is for pods that have that secret, or can pull it
//! themselves (KEP-2535, a kubelet's default since 1.35). What was there before is everybody's. Who pulled what is also how it is known
//! which images are this node's to remove.
//!
//! On record are UIDs of secrets, and nothing of what is in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::pull;
use crate::durable;

/// By then whoever looks at what is used has seen it.
const TOUCHED_LASTS: Duration = Duration::from_hours(1);

/// Who may use one image under one name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Who {
    /// It was pulled without credentials.
    anyone: bool,
    /// UIDs of secrets that it was pulled with.
    secrets: BTreeSet<String>,
}

/// What was pulled here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Known {
    /// By image ID and repository: what one registry gives to anybody, another may not.
    images: BTreeMap<String, BTreeMap<String, Who>>,
    /// Names of images that are being pulled, or were when we ended: what came of it nobody noted.
    pulling: BTreeSet<String>,
    /// The record was lost, so that nothing is known to be everybody's.
    lost: bool,
}

/// Images that were pulled here.
pub(crate) struct Access {
    path: PathBuf,
    known: Mutex<Known>,
    /// When a pod was last given an image, by ID. Not for ever: only so that it is not removed before the pod uses it.
    touched: Mutex<BTreeMap<String, Instant>>,
}

impl Access {
    /// As on record below `root`.
    pub(crate) fn new(root: &Path) -> Self {
        let path = root.join("images.json");
        let known = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Known::default()),
            Err(error) => Err(error.to_string()),
            Ok(text) => serde_json::from_slice(&text).map_err(|error| error.to_string()),
        };
        let known = known.unwrap_or_else(|error| {
            tracing::warn!(
                path = %path.display(), error,
                "who may use which image is not known any more: every pod has to pull its images again; remove the file to let all pods use \
                 whatever is there"
            );
            Known { lost: true, ..Known::default() }
        });
        Self { path, known: Mutex::new(known), touched: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody may use the image under this name.
    pub(crate) fn is_open(&self, image: &str, name: &str) -> bool {
        let known = self.known();
        match known.images.get(image) {
            Some(names) => names.get(&pull::repository(name)).is_some_and(|who| who.anyone),
            None => !known.lost && !known.pulling.contains(name),
        }
    }

    /// Whether who has one of these secrets may use the image under this name.
    pub(crate) fn opens<'a>(
        &self,
        image: &str,
        name: &str,
        mut secrets: impl Iterator<Item = &'a str>,
    ) -> bool {
        let known = self.known();
        let who = known.images.get(image).and_then(|names| names.get(&pull::repository(name)));
        who.is_some_and(|who| secrets.any(|secret| who.secrets.contains(secret)))
    }

    /// A pod is given the image, and will use it in a moment.
    pub(crate) fn touch(&self, image: &str) {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        touched.retain(|_, at| at.elapsed() < TOUCHED_LASTS);
        touched.insert(image.to_owned(), Instant::now());
    }

    /// When a pod was last given the image.
    pub(crate) fn touched(&self, image: &str) -> Option<Instant> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).get(image).copied()
    }

    /// Images that were pulled here, by ID.
    pub(crate) fn pulled_here(&self) -> BTreeSet<String> {
        self.known().images.keys().cloned().collect()
    }

    /// The image is about to be pulled. Should we end before [`Access::pulled`], it must not pass for one that was always there.
    pub(crate) fn begin(&self, name: &str) -> io::Result<()> {
        let mut known = self.known();
        if known.pulling.insert(name.to_owned()) { self.save(&known) } else { Ok(()) }
    }

    /// The pull failed. Nothing else pulls this name meanwhile.
    pub(crate) fn failed(&self, name: &str) -> io::Result<()> {
        let mut known = self.known();
        if known.pulling.remove(name) { self.save(&known) } else { Ok(()) }
    }

    /// The image was pulled with this secret, or without any.
    pub(crate) fn pulled(&self, image: &str, name: &str, secret: Option<&str>) -> io::Result<()> {
        let mut known = self.known();
        let who =
            known.images.entry(image.to_owned()).or_default().entry(pull::repository(name)).or_default();
        let news = match secret {
            None => !std::mem::replace(&mut who.anyone, true),
            Some(secret) => who.secrets.insert(secret.to_owned()),
        };
        if known.pulling.remove(name) || news { self.save(&known) } else { Ok(()) }
    }

    /// The image was removed: should it come back, it is as any other that was there before.
    pub(crate) fn forget(&self, image: &str) -> io::Result<()> {
        let mut known = self.known();
        if known.images.remove(image).is_some() { self.save(&known) } else { Ok(()) }
    }

    /// Settles at the start, when nothing is pulled, what was left open: of an image that is gone nothing is kept, and one whose pull was
    /// not seen to its end is nobody's until it is pulled again. `present` has the names of each image by its ID.
    pub(crate) fn settle(&self, present: &BTreeMap<String, Vec<String>>) -> io::Result<()> {
        let mut known = self.known();
        let before = known.clone();
        known.images.retain(|image, _| present.contains_key(image));
        let pulling = std::mem::take(&mut known.pulling);
        for name in pulling {
            let full = pull::full_name(&name);
            for (image, _) in present.iter().filter(|(_, names)| names.contains(&full)) {
                known.images.entry(image.clone()).or_default();
            }
        }
        if *known == before { Ok(()) } else { self.save(&known) }
    }

    /// Whole and on the disk, or as it was.
    fn save(&self, known: &Known) -> io::Result<()> {
        durable::replace(&self.path, &serde_json::to_vec(known)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "r.example/app:1";

    #[test]
    fn an_image_that_was_removed_and_comes_back_otherwise_is_everybodys_and_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let access = Access::new(folder.path());
        access.begin(NAME).unwrap();
        access.pulled("private", NAME, Some("s1")).unwrap();
        access.forget("private").unwrap();
        for access in [access, Access::new(folder.path())] {
            assert!(access.is_open("private", NAME) && access.pulled_here().is_empty());
        }
    }

    #[test]
    fn an_image_is_for_those_who_could_pull_it() {
        let folder = tempfile::tempdir().unwrap();
        let access = Access::new(folder.path());
        assert!(access.is_open("preloaded", NAME));
        access.begin(NAME).unwrap();
        access.pulled("private", NAME, Some("s1")).unwrap();
        assert!(!access.is_open("private", NAME));
        assert!(access.opens("private", "r.example/app@sha256:1", ["s0", "s1"].into_iter()));
        assert!(!access.opens("private", NAME, ["s0"].into_iter()));
        assert!(
            !access.opens("private", "other.example/app:1", ["s1"].into_iter()),
            "another registry's word"
        );

        let again = Access::new(folder.path());
        assert!(!again.is_open("private", NAME) && again.opens("private", NAME, ["s1"].into_iter()));
        again.pulled("private", "open.example/app:1", None).unwrap();
        assert!(again.is_open("private", "open.example/app:2"));
        assert!(!again.is_open("private", NAME), "what one registry gives to anybody, another may not");
        assert_eq!(again.pulled_here(), ["private".to_owned()].into());
    }

    #[test]
    fn a_pull_that_nobody_saw_end_opens_nothing() {
        let folder = tempfile::tempdir().unwrap();
        Access::new(folder.path()).begin("app").unwrap();
        let again = Access::new(folder.path());
        assert!(!again.is_open("new", "app"));
        assert!(again.is_open("new", "other"));
        let present = [("new".to_owned(), vec!["docker.io/library/app:latest".to_owned()])].into();
        again.settle(&present).unwrap();
        assert!(!again.is_open("new", "app") && !again.is_open("new", "other"), "it is the same image");
        again.pulled("new", "app", None).unwrap();
        assert!(again.is_open("new", "app"));
        again.begin("late").unwrap();
        again.failed("late").unwrap();
        again.settle(&BTreeMap::new()).unwrap();
        assert_eq!(
            fs::read_to_string(folder.path().join("images.json")).unwrap(),
            r#"{"images":{},"pulling":[],"lost":false}"#
        );
    }

    #[test]
    fn a_lost_record_opens_nothing_and_stays_lost() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("images.json"), "garbage").unwrap();
        let access = Access::new(folder.path());
        assert!(!access.is_open("private", NAME));
        access.pulled("other", NAME, None).unwrap();
        assert!(!Access::new(folder.path()).is_open("private", NAME));
        fs::remove_file(folder.path().join("images.json")).unwrap();
        assert!(Access::new(folder.path()).is_open("private", NAME));
    }
}
