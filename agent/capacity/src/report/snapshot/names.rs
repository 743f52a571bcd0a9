//! Texts that many objects share, and amounts of resources by their names: kept once, and small.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::Labels;

/// A resource's name, as a number that [`Names`] knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId(u32);

impl ResourceId {
    /// CPU, in thousandths of a core.
    pub const CPU: Self = Self(0);
    /// Memory, in bytes.
    pub const MEMORY: Self = Self(1);
    /// Pods.
    pub const PODS: Self = Self(2);
}

/// Texts that many objects share, each kept once.
#[derive(Debug)]
pub struct Names {
    resources: Vec<Arc<str>>,
    ids: HashMap<Arc<str>, ResourceId>,
    words: HashSet<Arc<str>>,
    labels: HashSet<Arc<Labels>>,
}

impl Default for Names {
    fn default() -> Self {
        let mut names = Self {
            resources: Vec::new(),
            ids: HashMap::new(),
            words: HashSet::new(),
            labels: HashSet::from([Arc::default()]),
        };
        for known in ["cpu", "memory", "pods"] {
            names.resource(known);
        }
        names
    }
}

impl Names {
    /// The number of a resource's name; a new one where it has none yet.
    pub fn resource(&mut self, name: &str) -> ResourceId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = ResourceId(u32::try_from(self.resources.len()).unwrap_or(u32::MAX));
        let name: Arc<str> = name.into();
        self.resources.push(name.clone());
        self.ids.insert(name, id);
        id
    }

    /// A resource's name.
    pub fn name(&self, id: ResourceId) -> &str {
        usize::try_from(id.0).ok().and_then(|at| self.resources.get(at)).map_or("", |name| name)
    }

    /// All resources that anything has or asks for.
    pub fn resources(&self) -> impl Iterator<Item = (ResourceId, &str)> {
        (0..).map(ResourceId).zip(self.resources.iter().map(|name| &**name))
    }

    /// The one copy of a text.
    pub fn word(&mut self, text: &str) -> Arc<str> {
        if let Some(word) = self.words.get(text) {
            return word.clone();
        }
        let word: Arc<str> = text.into();
        self.words.insert(word.clone());
        word
    }

    /// The one copy of a set of labels.
    pub fn labels(&mut self, labels: &BTreeMap<String, String>) -> Arc<Labels> {
        let labels: Labels = labels.iter().map(|(key, value)| (self.word(key), self.word(value))).collect();
        if let Some(known) = self.labels.get(&labels) {
            return known.clone();
        }
        let labels = Arc::new(labels);
        self.labels.insert(labels.clone());
        labels
    }
}

/// How much of each resource: CPU in thousandths of a core, memory in bytes, all others counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Amounts(Vec<(ResourceId, i64)>);

impl Amounts {
    /// How much of `resource`; 0 where it isn't named.
    pub fn get(&self, resource: ResourceId) -> i64 {
        self.find(resource).map_or(0, |at| self.0[at].1)
    }

    /// The place of `resource` among what is named.
    pub fn place(&self, resource: ResourceId) -> Option<usize> {
        self.find(resource).ok()
    }

    fn find(&self, resource: ResourceId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&resource, |(id, _)| *id)
    }

    /// Sets how much of `resource`.
    pub fn set(&mut self, resource: ResourceId, amount: i64) {
        match self.find(resource) {
            Ok(at) => self.0[at].1 = amount,
            Err(at) => self.0.insert(at, (resource, amount)),
        }
    }

    /// What is named, by resource.
    pub fn iter(&self) -> impl Iterator<Item = (ResourceId, i64)> {
        self.0.iter().copied()
    }

    fn each(&mut self, other: &Self, change: impl Fn(i64, i64) -> i64) {
        for (resource, amount) in other.iter() {
            self.set(resource, change(self.get(resource), amount));
        }
    }

    /// Adds all of `other`.
    pub fn add(&mut self, other: &Self) {
        self.each(other, i64::saturating_add);
    }

    /// Takes all of `other` away; what is less than nothing is so, too.
    pub fn subtract(&mut self, other: &Self) {
        self.each(other, i64::saturating_sub);
    }

    /// Of each resource the larger amount.
    pub fn raise(&mut self, other: &Self) {
        self.each(other, i64::max);
    }
}
