//! Images that nobody needs any longer, removed as a kubelet removes them: when their disk is fuller than it should be, those that were
//! not used for longest first; and, if asked for, those that were not used for long.
//!
//! The runtime may serve others, so only what was pulled here goes, unless the configuration says that all of it is ours. What any
//! container uses, whosever it is, stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{access::Access, events::Recorder};
use crate::{
    node::pressure::{self, Threshold},
    provider::{
        ProviderError,
        facts::Share,
        images::{Images, StoredImage},
    },
};

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_secs(30);
/// How often images are looked at, so that it is known when they were last used; a kubelet's `ImageGCPeriod`.
const PERIOD: Duration = Duration::from_mins(5);

/// When images go, by a kubelet's names of settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageGc {
    /// `imageGCHighThresholdPercent`: with so much of the disk in use images go …
    pub high_percent: u8,
    /// `imageGCLowThresholdPercent`: … until it is so much.
    pub low_percent: u8,
    /// `imageMinimumGCAge`: what was pulled or used since stays.
    pub minimum_age: Duration,
    /// `imageMaximumGCAge`: what was not used for so long goes, however much room there is; zero: never.
    pub maximum_age: Duration,
    /// Not only what was pulled here.
    pub all_images: bool,
    /// With so little left all that is unused goes: `evictionHard`'s `imagefs.available`.
    pub shortage: Option<Threshold>,
}

impl Default for ImageGc {
    fn default() -> Self {
        Self {
            high_percent: 85,
            low_percent: 80,
            minimum_age: Duration::from_mins(2),
            maximum_age: Duration::ZERO,
            all_images: false,
            shortage: None,
        }
    }
}

impl ImageGc {
    /// How many bytes shall be freed; `None`: there is room.
    fn excess(&self, room: Share) -> Option<u64> {
        let Share { available, capacity } = room;
        let available = available.min(capacity);
        if capacity == 0 {
            return None;
        }
        if self.shortage.is_some_and(|threshold| pressure::is_short(room, threshold)) {
            return Some(u64::MAX);
        }
        let part = |percent: u8| u128::from(capacity) * u128::from(100_u8.saturating_sub(percent)) / 100;
        let free_percent = u128::from(available) * 100 / u128::from(capacity);
        let used_percent = 100_u128.saturating_sub(free_percent);
        let wanted = part(self.low_percent).saturating_sub(u128::from(available));
        (used_percent >= u128::from(self.high_percent)).then(|| u64::try_from(wanted).unwrap_or(u64::MAX))
    }
}

/// When an image was noticed, and when it was last used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    first: Instant,
    used: Option<Instant>,
}

/// An image that may go.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    id: String,
    names: Vec<String>,
    size: u64,
    seen: Seen,
}

/// What is known of images; it begins anew with each start, as a kubelet's does.
struct Memory {
    began: Instant,
    seen: BTreeMap<String, Seen>,
}

impl Memory {
    fn new(now: Instant) -> Self {
        Self { began: now, seen: BTreeMap::new() }
    }

    /// Takes in what there is; gives what nothing uses, in the order in which it goes. `touched` is when a pod of ours was last given
    /// an image, which it may be about to use.
    fn look(
        &mut self,
        stored: Vec<StoredImage>,
        in_use: &BTreeSet<String>,
        touched: impl Fn(&str) -> Option<Instant>,
        now: Instant,
    ) -> Vec<Candidate> {
        self.seen.retain(|id, _| stored.iter().any(|image| image.id == *id));
        let mut unused = Vec::new();
        for image in stored {
            let touched = touched(&image.id);
            let first = touched.unwrap_or(now);
            let seen = self.seen.entry(image.id.clone()).or_insert(Seen { first, used: None });
            let is_used = std::iter::once(&image.id).chain(&image.names).any(|name| in_use.contains(name));
            seen.used = seen.used.max(touched).max(is_used.then_some(now));
            if !is_used && !image.pinned {
                unused.push(Candidate { id: image.id, names: image.names, size: image.size, seen: *seen });
            }
        }
        unused.sort_by(|one, other| {
            let key = |candidate: &Candidate| (candidate.seen.used, candidate.seen.first);
            key(one).cmp(&key(other)).then_with(|| one.id.cmp(&other.id))
        });
        unused
    }

    /// Whether it was left alone for longer than anything may be.
    fn is_old(&self, policy: &ImageGc, candidate: &Candidate, now: Instant) -> bool {
        let since = candidate.seen.used.unwrap_or(self.began).max(self.began);
        !policy.maximum_age.is_zero() && now.duration_since(since) > policy.maximum_age
    }
}

/// Whether somebody may just be about to use it.
fn is_young(policy: &ImageGc, candidate: &Candidate, now: Instant) -> bool {
    let since = candidate.seen.used.max(Some(candidate.seen.first)).unwrap_or(now);
    now.duration_since(since) < policy.minimum_age
}

/// Removes images when it has to be, for ever.
pub(super) async fn run(
    images: &dyn Images,
    policy: ImageGc,
    access: &Access,
    recorder: &Recorder,
    node: &str,
) {
    let mut memory = Memory::new(Instant::now());
    let mut looked_at: Option<Instant> = None;
    let mut told_at: Option<Instant> = None;
    loop {
        match round(images, &policy, access, &mut memory, &mut looked_at).await {
            Ok(None) => told_at = None,
            Ok(Some(message)) => {
                if told_at.is_none_or(|at| at.elapsed() >= PERIOD) {
                    told_at = Some(Instant::now());
                    tracing::warn!(message, "images were removed, and it was not enough");
                    recorder.node(node, "FreeDiskSpaceFailed", &message);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "unused images can't be removed; it is tried again");
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// One look; says what is wrong if not enough could be freed.
async fn round(
    images: &dyn Images,
    policy: &ImageGc,
    access: &Access,
    memory: &mut Memory,
    looked_at: &mut Option<Instant>,
) -> Result<Option<String>, ProviderError> {
    let room = images.room().await?;
    let excess = room.and_then(|room| policy.excess(room));
    let now = Instant::now();
    if excess.is_none() && looked_at.is_some_and(|at| now.duration_since(at) < PERIOD) {
        return Ok(None);
    }
    // Used by the later list: what comes between them is taken for used rather than for unused.
    let stored = images.stored().await?;
    let in_use = images.in_use().await?;
    *looked_at = Some(now);
    let ours = access.pulled_here();
    let mut freed: u64 = 0;
    let mut failure = None;
    for candidate in memory.look(stored, &in_use, |id| access.touched(id), now) {
        let is_ours = policy.all_images || ours.contains(&candidate.id);
        let is_old = memory.is_old(policy, &candidate, now);
        let is_excess =
            excess.is_some_and(|excess| freed < excess) && !is_young(policy, &candidate, Instant::now());
        // A pod may have been given it since we began.
        let is_wanted = access.touched(&candidate.id).is_some_and(|at| at >= now);
        if !is_ours || is_wanted || !(is_old || is_excess) {
            continue;
        }
        match images.remove(&candidate.id).await {
            Ok(()) => {
                freed = freed.saturating_add(candidate.size);
                let (id, names) = (&candidate.id, candidate.names.join(" "));
                tracing::info!(image.id = id, names, bytes = candidate.size, "an unused image is removed");
                if let Err(error) = access.forget(id) {
                    tracing::warn!(image.id = id, %error, "its removal is not on record");
                }
            }
            Err(error) => failure = Some(error),
        }
    }
    if let Some(error) = failure {
        return Err(error);
    }
    let (Some(excess), Some(room)) = (excess, room) else { return Ok(None) };
    // All that is unused was asked for, and is gone.
    if freed >= excess || excess == u64::MAX {
        return Ok(None);
    }
    let used = 100 - u128::from(room.available.min(room.capacity)) * 100 / u128::from(room.capacity.max(1));
    Ok(Some(format!(
        "Insufficient free disk space on the node's image filesystem ({used}% of {} bytes used). Failed to free sufficient space by \
         deleting unused images (freed {freed} bytes). Investigate disk usage, as it could be used by active images, logs, volumes, or \
         other data.",
        room.capacity
    )))
}

#[cfg(test)]
mod tests;
