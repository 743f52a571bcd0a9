//! Links to containers' logs, where log collectors look for them: `<pod>_<namespace>_<container>-<id>.log` in the folder `containers` beside
//! the log root, as a kubelet makes them (`pkg/kubelet/kuberuntime/legacy.go`).
//!
//! The folder may be others' too: nothing is touched in it but links that lead below our own log root, and none is followed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::provider::observed::PodRef;

/// File systems allow names of 255 bytes.
const MAX_NAME: usize = 255;
const SUFFIX: &str = ".log";

/// The links of one log root.
#[derive(Debug, Clone)]
pub(in crate::provider::cri) struct Links {
    log_root: PathBuf,
    folder: PathBuf,
}

/// A link that there shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::provider::cri) struct Link {
    name: String,
    pub(in crate::provider::cri) log: PathBuf,
}

impl Link {
    pub(in crate::provider::cri) fn new(pod: &PodRef, container: &str, id: &str, log: PathBuf) -> Self {
        let name = format!("{}{container}-{id}", beginning(&pod.name, &pod.namespace));
        Self { name: format!("{}{SUFFIX}", cut(&name)), log }
    }
}

impl Links {
    pub(in crate::provider::cri) fn new(log_root: &Path) -> Self {
        let folder = log_root.parent().unwrap_or(log_root).join("containers");
        Self { log_root: log_root.to_owned(), folder }
    }

    pub(in crate::provider::cri) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the link if there is a log. What somebody has put there stays.
    pub(in crate::provider::cri) fn put(&self, link: &Link) -> io::Result<()> {
        let path = self.folder.join(&link.name);
        if fs::symlink_metadata(&path).is_ok() || fs::symlink_metadata(&link.log).is_err() {
            return Ok(());
        }
        fs::create_dir_all(&self.folder)?;
        match std::os::unix::fs::symlink(&link.log, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the link of a log that is about to go.
    pub(in crate::provider::cri) fn remove(&self, link: &Link) -> io::Result<()> {
        self.remove_if(&link.name, |log| log == link.log)
    }

    /// Removes the links of a pod whose folder of logs is about to go.
    pub(in crate::provider::cri) fn remove_pod(&self, folder: &Path) -> io::Result<()> {
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // Namespace, name and UID: none of them has such a character.
        let mut parts = name.split('_');
        let (Some(namespace), Some(pod)) = (parts.next(), parts.next()) else { return Ok(()) };
        let beginning = beginning(pod, namespace);
        let names = self.names()?.into_iter().filter(|name| name.starts_with(cut(&beginning)));
        names.into_iter().try_for_each(|name| self.remove_if(&name, |log| log.starts_with(folder)))
    }

    /// Removes links to logs of pods that are gone. While a log is rotated it is missing, too, but not its folder.
    pub(in crate::provider::cri) fn sweep(&self) -> io::Result<()> {
        let is_left = |log: &Path| {
            log.starts_with(&self.log_root)
                && log.parent().is_some_and(|folder| fs::symlink_metadata(folder).is_err())
        };
        self.names()?.iter().try_for_each(|name| self.remove_if(name, is_left))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry?.file_name().into_string().ok();
            names.extend(name.filter(|name| name.ends_with(SUFFIX)));
        }
        Ok(names)
    }

    /// Removes what is a link and leads to what is meant.
    fn remove_if(&self, name: &str, is_meant: impl Fn(&Path) -> bool) -> io::Result<()> {
        let path = self.folder.join(name);
        if !fs::read_link(&path).is_ok_and(|log| is_meant(&log)) {
            return Ok(());
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// What the names of a pod's links begin with.
fn beginning(pod: &str, namespace: &str) -> String {
    format!("{pod}_{namespace}_")
}

/// What of a name there is room for.
fn cut(name: &str) -> &str {
    let room = MAX_NAME - SUFFIX.len();
    &name[..name.floor_char_boundary(room)]
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Machine {
        root: tempfile::TempDir,
        links: Links,
    }

    impl Machine {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let links = Links::new(&root.path().join("pods"));
            Self { root, links }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.root.path().join(path)
        }

        /// A container of pod `name` with a log.
        fn link(&self, name: &str, id: &str) -> Link {
            let log = self.at(&format!("pods/ns_{name}_u-{name}/main/{id}.log"));
            fs::create_dir_all(log.parent().unwrap()).unwrap();
            fs::write(&log, id).unwrap();
            let pod = PodRef { uid: format!("u-{name}"), namespace: "ns".into(), name: name.into() };
            Link::new(&pod, "main", id, log)
        }

        fn names(&self) -> Vec<String> {
            let mut names = self.links.names().unwrap();
            names.sort();
            names
        }
    }

    #[test]
    fn a_log_is_found_by_the_name_that_a_kubelet_gives_it() {
        let machine = Machine::new();
        let link = machine.link("web", "c0ffee");
        machine.links.put(&link).unwrap();
        machine.links.put(&link).unwrap();
        let path = machine.at("containers/web_ns_main-c0ffee.log");
        assert_eq!(fs::read_to_string(path).unwrap(), "c0ffee");
        machine.links.remove(&link).unwrap();
        machine.links.remove(&link).unwrap();
        assert_eq!(machine.names(), [""; 0]);
        assert!(link.log.exists());
        fs::remove_file(&link.log).unwrap();
        machine.links.put(&link).unwrap();
        assert_eq!(machine.names(), [""; 0], "there is no log");
    }

    #[test]
    fn long_names_are_cut_where_a_kubelet_cuts_them() {
        let pod = PodRef { uid: "u".into(), namespace: "n".repeat(63), name: "p".repeat(253) };
        let link = Link::new(&pod, "main", "c0ffee", "/log".into());
        assert_eq!(link.name, format!("{}.log", "p".repeat(251)));
        let pod = PodRef { name: "p".repeat(180), ..pod };
        let link = Link::new(&pod, "main", "c0ffee", "/log".into());
        assert_eq!(link.name, format!("{}_{}_main-c.log", pod.name, pod.namespace));
    }

    #[test]
    fn what_others_put_there_stays_and_is_not_followed() {
        let machine = Machine::new();
        let link = machine.link("web", "c0ffee");
        fs::create_dir(machine.at("containers")).unwrap();
        let path = machine.at("containers/web_ns_main-c0ffee.log");
        symlink(machine.at("theirs"), &path).unwrap();
        machine.links.put(&link).unwrap();
        machine.links.remove(&link).unwrap();
        machine.links.remove_pod(link.log.parent().unwrap().parent().unwrap()).unwrap();
        machine.links.sweep().unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), machine.at("theirs"));
        assert!(!machine.at("theirs").exists());
    }

    #[test]
    fn with_a_pod_go_its_links_and_with_its_folder_those_that_are_left() {
        let machine = Machine::new();
        let links = ["web", "web2", "gone", "rotating"].map(|name| machine.link(name, "c0ffee"));
        for link in &links {
            machine.links.put(link).unwrap();
        }
        let named = |names: &[&str]| {
            names.iter().map(|name| format!("{name}_ns_main-c0ffee.log")).collect::<Vec<_>>()
        };
        machine.links.remove_pod(&machine.at("pods/ns_web_u-web")).unwrap();
        assert_eq!(machine.names(), named(&["gone", "rotating", "web2"]));
        fs::remove_dir_all(machine.at("pods/ns_gone_u-gone")).unwrap();
        fs::remove_file(&links[3].log).unwrap();
        machine.links.sweep().unwrap();
        assert_eq!(machine.names(), named(&["rotating", "web2"]));
    }
}
