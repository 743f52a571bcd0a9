use std::sync::Mutex;

use async_trait::async_trait;

use super::*;

fn image(id: &str, size: u64) -> StoredImage {
    StoredImage { id: id.to_owned(), names: vec![format!("r.example/{id}:1")], size, pinned: false }
}

fn ids(candidates: &[Candidate]) -> Vec<&str> {
    candidates.iter().map(|candidate| candidate.id.as_str()).collect()
}

fn used(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_full_disk_is_emptied_down_to_the_low_threshold() {
    let policy = ImageGc::default();
    let room = |available| Share { available, capacity: 1000 };
    assert_eq!(policy.excess(room(160)), None);
    assert_eq!(policy.excess(room(159)), Some(41), "a kubelet rounds what is free down");
    assert_eq!(policy.excess(room(150)), Some(50));
    assert_eq!(policy.excess(room(0)), Some(200));
    assert_eq!(policy.excess(Share { available: 0, capacity: 0 }), None, "nobody knows");
    assert_eq!(policy.excess(Share { available: 2000, capacity: 1000 }), None);
    let huge = Share { available: 0, capacity: u64::MAX };
    assert_eq!(policy.excess(huge), Some(u64::MAX / 5));
    let short = ImageGc { shortage: Some(Threshold::Percent(20.0)), ..policy };
    assert_eq!(short.excess(room(199)), Some(u64::MAX), "all that is unused");
    assert_eq!(short.excess(room(200)), None);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_used_for_longest_goes_first() {
    let mut memory = Memory::new(Instant::now());
    let none = |_: &str| None;
    let all = || ["a", "b", "c", "d"].map(|id| image(id, 1)).to_vec();
    let first = memory.look(all(), &used(&["a", "r.example/b:1"]), none, Instant::now());
    assert_eq!(ids(&first), ["c", "d"], "used by ID or by name");
    tokio::time::advance(Duration::from_mins(5)).await;
    let mut later = all();
    later.push(image("e", 1));
    later.push(StoredImage { pinned: true, ..image("pause", 1) });
    let second = memory.look(later.clone(), &used(&["b"]), none, Instant::now());
    assert_eq!(ids(&second), ["c", "d", "e", "a"], "never used, older first; then last used");
    let touched = Instant::now();
    let third = memory.look(later, &used(&[]), |id| (id == "c").then_some(touched), Instant::now());
    assert_eq!(ids(&third), ["d", "e", "a", "b", "c"]);
    // What went and came again is new.
    memory.look(vec![], &used(&[]), none, Instant::now());
    assert!(memory.seen.is_empty());
}

/// A runtime that has images and room for a thousand bytes.
struct Store {
    images: Mutex<Vec<StoredImage>>,
    in_use: BTreeSet<String>,
    fails: Option<&'static str>,
}

#[async_trait]
impl Images for Store {
    async fn stored(&self) -> Result<Vec<StoredImage>, ProviderError> {
        Ok(self.images.lock().unwrap().clone())
    }

    async fn in_use(&self) -> Result<BTreeSet<String>, ProviderError> {
        Ok(self.in_use.clone())
    }

    async fn room(&self) -> Result<Option<Share>, ProviderError> {
        let full: u64 = self.images.lock().unwrap().iter().map(|image| image.size).sum();
        Ok(Some(Share { available: 1000_u64.saturating_sub(full), capacity: 1000 }))
    }

    async fn remove(&self, id: &str) -> Result<(), ProviderError> {
        if self.fails == Some(id) {
            return Err(ProviderError::Failed { operation: "RemoveImage", message: "busy".to_owned() });
        }
        self.images.lock().unwrap().retain(|image| image.id != id);
        Ok(())
    }
}

struct World {
    store: Store,
    access: Access,
    memory: Memory,
    looked_at: Option<Instant>,
    _folder: tempfile::TempDir,
}

impl World {
    /// All but `foreign` were pulled here.
    fn new(images: &[(&str, u64)], in_use: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let access = Access::new(folder.path());
        for (id, _) in images.iter().filter(|(id, _)| *id != "foreign") {
            access.pulled(id, "r.example/x", None).unwrap();
        }
        let images = images.iter().map(|(id, size)| image(id, *size)).collect();
        Self {
            store: Store { images: Mutex::new(images), in_use: used(in_use), fails: None },
            access,
            memory: Memory::new(Instant::now()),
            looked_at: None,
            _folder: folder,
        }
    }

    async fn round(&mut self, policy: &ImageGc) -> Result<Option<String>, ProviderError> {
        round(&self.store, policy, &self.access, &mut self.memory, &mut self.looked_at).await
    }

    fn left(&self) -> Vec<String> {
        self.store.images.lock().unwrap().iter().map(|image| image.id.clone()).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_is_ours_unused_and_not_young_goes_and_no_more_than_needed() {
    let policy = ImageGc::default();
    let mut world = World::new(&[("used", 300), ("foreign", 200), ("a", 200), ("b", 200)], &["used"]);
    assert!(world.round(&policy).await.unwrap().is_some(), "all are young");
    assert_eq!(world.left().len(), 4);
    tokio::time::advance(Duration::from_mins(2)).await;
    // 900 of 1000: 100 have to go, and the foreign one is older than none.
    assert_eq!(world.round(&policy).await.unwrap(), None);
    assert_eq!(world.left(), ["used", "foreign", "b"]);
    let tight = ImageGc { high_percent: 10, low_percent: 0, ..policy };
    let said = world.round(&tight).await.unwrap().unwrap();
    assert!(said.contains("70% of 1000 bytes used") && said.contains("freed 200 bytes"), "{said}");
    assert_eq!(world.left(), ["used", "foreign"]);
    let all = ImageGc { all_images: true, ..tight };
    world.round(&all).await.unwrap();
    assert_eq!(world.left(), ["used"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_s_new_image_stays_and_one_that_can_t_go_is_told() {
    let policy = ImageGc { high_percent: 0, low_percent: 0, ..ImageGc::default() };
    let mut world = World::new(&[("a", 10), ("b", 10)], &[]);
    world.round(&policy).await.unwrap();
    tokio::time::advance(Duration::from_mins(10)).await;
    world.access.touch("a");
    world.store.fails = Some("b");
    assert_eq!(world.round(&policy).await.unwrap_err().message(), "busy");
    world.store.fails = None;
    world.round(&policy).await.unwrap();
    assert_eq!(world.left(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_used_for_long_goes_although_there_is_room() {
    let policy = ImageGc { maximum_age: Duration::from_hours(1), ..ImageGc::default() };
    let mut world = World::new(&[("a", 1), ("used", 1)], &["used"]);
    world.round(&policy).await.unwrap();
    tokio::time::advance(Duration::from_hours(1)).await;
    world.round(&policy).await.unwrap();
    assert_eq!(world.left(), ["a", "used"]);
    tokio::time::advance(Duration::from_mins(6)).await;
    world.round(&policy).await.unwrap();
    assert_eq!(world.left(), ["used"]);
    tokio::time::advance(Duration::from_hours(2)).await;
    world.store.in_use.clear();
    world.round(&ImageGc::default()).await.unwrap();
    assert_eq!(world.left(), ["used"], "without an age none is too old");
}
