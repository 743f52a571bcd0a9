//! The device filter of this machine: two maps and one link, pinned in a bpffs so that they outlive the agent. A new agent takes over
//! what an old one left, and replaces the program without a gap.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use super::{
    cgroup::Kubepods,
    kernel::{self, KernelError, Layout, Link, Map, MapKind, Program},
    policy::{Changes, Entries, Owner},
    program::{self, AllowKey, DenyKey, Effect, Maps, Place, Rules, TooManyRules},
};

/// The folder of the pins, in the bpffs.
const FOLDER: &str = "spillway";
/// The names carry the version of what the entries mean: another version is not adopted, but replaced.
const ALLOWED: Layout = Layout { kind: MapKind::Hash, name: "spillway_allow1", entries: 1 << 16 };
const DENIED: Layout = Layout { kind: MapKind::LruHash, name: "spillway_deny1", entries: 1 << 12 };
const PROGRAM: &str = "spillway_devs";

/// Why the filter does not work.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The folder is no bpffs.
    #[error("{} is no bpffs: mount one there (mount -t bpf bpf {}), or name another folder by --bpf-dir", .0.display(), .0.display())]
    NoBpffs(PathBuf),
    /// The folder of the pins can't be used.
    #[error("can't {what} {}", path.display())]
    Folder {
        /// What was tried.
        what: &'static str,
        /// The folder, or what is in it.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// There is more to protect than fits.
    #[error(transparent)]
    Rules(#[from] TooManyRules),
}

/// What the filter was made from: with the same, the program is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// What is protected.
    pub rules: Rules,
    /// Where.
    pub kubepods: Kubepods,
    /// What happens to what isn't allowed.
    pub effect: Effect,
}

#[derive(Debug)]
struct Held {
    link: Link,
    program: Program,
    recipe: Recipe,
}

/// What putting the filter in force came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is attached now, and was not.
    Attached,
    /// An earlier agent's was taken over.
    Adopted,
    /// Its program was replaced.
    Replaced,
    /// It was as it should be.
    Unchanged,
}

/// The filter.
#[derive(Debug)]
pub struct Filter {
    folder: PathBuf,
    allowed: Map<{ AllowKey::SIZE }, { Owner::SIZE }>,
    denied: Map<{ DenyKey::SIZE }, 8>,
    held: Option<Held>,
}

impl Filter {
    /// Opens the maps that are pinned below `bpffs`, or makes them.
    ///
    /// # Errors
    /// When the folder is no bpffs, or the kernel refuses.
    pub fn open(bpffs: &Path) -> Result<Self, FilterError> {
        if !kernel::is_bpffs(bpffs)? {
            return Err(FilterError::NoBpffs(bpffs.to_owned()));
        }
        let folder = bpffs.join(FOLDER);
        make(&folder)?;
        let allowed = open_map(&folder.join("allowed"), ALLOWED)?;
        let denied = open_map(&folder.join("denied"), DENIED)?;
        Ok(Self { folder, allowed, denied, held: None })
    }

    /// Whether the kernel takes our programs: loads one, and attaches it nowhere.
    ///
    /// # Errors
    /// What is missing.
    pub fn probe(&self) -> Result<(), FilterError> {
        let mut rules = Rules::default();
        rules.protect_major(1);
        self.load(&rules, Place { cgroup: 1, level: 1 }, Effect::Audit).map(drop)
    }

    fn load(&self, rules: &Rules, place: Place, effect: Effect) -> Result<Program, FilterError> {
        let maps = Maps { allowed: self.allowed.raw(), denied: self.denied.raw() };
        Ok(Program::load(&program::compile(rules, place, effect, maps)?, PROGRAM)?)
    }

    fn pin(&self) -> PathBuf {
        self.folder.join("link")
    }

    /// Everything that is allowed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn entries(&self) -> Result<Entries, FilterError> {
        let mut entries = Entries::new();
        for key in self.allowed.keys()? {
            if let Some(owner) = self.allowed.get(&key)? {
                entries.insert(AllowKey::from_bytes(key), Owner(owner));
            }
        }
        Ok(entries)
    }

    /// Takes away, then gives.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn apply(&self, changes: &Changes) -> Result<(), FilterError> {
        for key in &changes.revoke {
            self.allowed.remove(&key.to_bytes())?;
        }
        for (key, owner) in &changes.allow {
            self.allowed.set(&key.to_bytes(), &owner.0)?;
        }
        Ok(())
    }

    /// Denials since the last time this was asked, whichever agent ran then.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn denials(&self) -> Result<BTreeMap<DenyKey, u64>, FilterError> {
        let mut denials = BTreeMap::new();
        for key in self.denied.keys()?.into_iter().collect::<BTreeSet<_>>() {
            if let Some(count) = self.denied.take(&key)? {
                denials.insert(DenyKey::from_bytes(key), u64::from_ne_bytes(count));
            }
        }
        Ok(denials)
    }

    /// Puts the filter in force, by attaching it, by taking over an earlier agent's, or by replacing its program.
    ///
    /// # Errors
    /// When the kernel refuses; what was in force stays.
    pub fn enforce(&mut self, recipe: Recipe) -> Result<Outcome, FilterError> {
        if let Some(held) = &self.held
            && held.recipe.kubepods == recipe.kubepods
        {
            if held.recipe == recipe {
                return Ok(Outcome::Unchanged);
            }
            let program = self.program(&recipe)?;
            held.link.replace(&program)?;
            self.held = self.held.take().map(|held| Held { program, recipe, ..held });
            return Ok(Outcome::Replaced);
        }
        let program = self.program(&recipe)?;
        if let Some(link) = self.left_behind(recipe.kubepods.id)? {
            link.replace(&program)?;
            self.held = Some(Held { link, program, recipe });
            return Ok(Outcome::Adopted);
        }
        let path = &recipe.kubepods.path;
        let cgroup = File::open(path).map_err(|source| FilterError::Folder {
            what: "open the cgroup",
            path: path.clone(),
            source,
        })?;
        make(&self.folder)?;
        let link = Link::attach(&program, &cgroup)?;
        remove(&self.pin())?;
        link.pin(&self.pin())?;
        self.held = Some(Held { link, program, recipe });
        Ok(Outcome::Attached)
    }

    fn program(&self, recipe: &Recipe) -> Result<Program, FilterError> {
        let place = Place { cgroup: recipe.kubepods.id, level: recipe.kubepods.level };
        self.load(&recipe.rules, place, recipe.effect)
    }

    /// The pinned link, if it holds a program to this cgroup. One that holds another cgroup is detached: kubepods is elsewhere now.
    fn left_behind(&self, cgroup: u64) -> Result<Option<Link>, FilterError> {
        let link = match Link::open(&self.pin()) {
            Ok(Some(link)) => link,
            Ok(None) => return Ok(None),
            Err(error) if error.is_absent() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let state = link.state()?;
        if state.cgroup == cgroup {
            return Ok(Some(link));
        }
        if state.cgroup != 0 {
            link.detach()?;
        }
        Ok(None)
    }

    /// Whether the filter is as this agent put it; if not, what somebody did to it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn tampered(&self) -> Result<Option<&'static str>, FilterError> {
        let Some(held) = &self.held else { return Ok(None) };
        let state = held.link.state()?;
        if state.cgroup != held.recipe.kubepods.id {
            return Ok(Some("the device program was detached"));
        }
        if state.program != held.program.id {
            return Ok(Some("the device program was replaced"));
        }
        match Link::open(&self.pin()) {
            Ok(Some(link)) if link.state()?.id == state.id => {}
            Err(error) if !error.is_absent() => return Err(error.into()),
            _ => return Ok(Some("the pin of the device program was removed")),
        }
        let at = |name: &str| self.folder.join(name);
        for found in [self.allowed.is_at(&at("allowed")), self.denied.is_at(&at("denied"))] {
            match found {
                Ok(true) => {}
                Err(error) if error.is_absent() => return Ok(Some("the pin of a map was removed")),
                // Whatever it is: the next agent would take it for ours.
                Ok(false) | Err(_) => return Ok(Some("the pin of a map was replaced")),
            }
        }
        Ok(None)
    }

    /// Puts back what [`Filter::tampered`] found: everything is pinned and attached anew.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn restore(&mut self) -> Result<(), FilterError> {
        let Some(held) = &self.held else { return Ok(()) };
        let (recipe, attached) = (held.recipe.clone(), held.link.state()?.cgroup == held.recipe.kubepods.id);
        remove(&self.pin())?;
        if attached {
            held.link.replace(&held.program)?;
            held.link.pin(&self.pin())?;
        } else {
            self.held = None;
            self.enforce(recipe)?;
        }
        for name in ["allowed", "denied"] {
            make(&self.folder)?;
            remove(&self.folder.join(name))?;
        }
        self.allowed.pin(&self.folder.join("allowed"))?;
        self.denied.pin(&self.folder.join("denied"))?;
        Ok(())
    }

    /// Whether it is in force, as far as this agent knows.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }
}

fn open_map<const K: usize, const V: usize>(path: &Path, layout: Layout) -> Result<Map<K, V>, FilterError> {
    match Map::open(path, layout) {
        Ok(Some(map)) => return Ok(map),
        Ok(None) => {
            tracing::warn!(path = %path.display(), "what is pinned there is of another version: made anew");
            remove(path)?;
        }
        Err(error) if error.is_absent() => {}
        Err(error) => return Err(error.into()),
    }
    let map = Map::create(layout)?;
    map.pin(path)?;
    Ok(map)
}

fn make(folder: &Path) -> Result<(), FilterError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|source| FilterError::Folder {
        what: "make the folder",
        path: folder.to_owned(),
        source,
    })
}

fn remove(path: &Path) -> Result<(), FilterError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FilterError::Folder { what: "remove the pin", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Detaches what is pinned below `bpffs` and removes every pin. Tells whether there was anything.
///
/// # Errors
/// When something can't be removed.
pub fn uninstall(bpffs: &Path) -> Result<bool, FilterError> {
    let folder = bpffs.join(FOLDER);
    if !folder.is_dir() {
        return Ok(false);
    }
    match Link::open(&folder.join("link")) {
        // Somebody else may hold it open: the program goes in any case.
        Ok(Some(link)) => link.detach()?,
        Err(error) if !error.is_absent() => return Err(error.into()),
        _ => {}
    }
    for name in ["link", "allowed", "denied"] {
        remove(&folder.join(name))?;
    }
    fs::remove_dir(&folder).map_err(|source| FilterError::Folder {
        what: "remove the folder",
        path: folder.clone(),
        source,
    })?;
    Ok(true)
}
