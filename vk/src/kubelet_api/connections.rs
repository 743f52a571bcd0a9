//! Who holds the kubelet API's connections. Each begins as a stranger's, and is a known client's from the first request on that the guard
//! passes. One stranger too many ends the oldest one's connection: so whoever proves at once who they are always gets in, and no stranger takes
//! the place of those who did.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Strangers at a time: in their handshake, or without a request that was passed.
pub(super) const MAX_STRANGERS: usize = 256;
/// Known clients' connections at a time. Each `kubectl logs -f` and each exec holds one.
pub(super) const MAX_KNOWN: usize = 1024;

/// All open connections.
pub(super) struct Connections {
    strangers: Mutex<Strangers>,
    /// Slots of known clients.
    known: Arc<Semaphore>,
    /// How many are open, upgraded ones included.
    open: Gauge,
}

#[derive(Default)]
struct Strangers {
    /// What ends each of them, the oldest first.
    by_age: BTreeMap<u64, CancellationToken>,
    next: u64,
}

/// An open connection: it is, until the last who holds it lets go. An upgraded stream does longer than the server.
pub(super) struct Connection {
    all: Arc<Connections>,
    number: u64,
    evicted: CancellationToken,
    /// Taken when it became known.
    slot: OnceLock<OwnedSemaphorePermit>,
}

impl Connections {
    /// None yet. `open` is told how many there are.
    pub(super) fn new(open: Gauge) -> Arc<Self> {
        Arc::new(Self { strangers: Mutex::default(), known: Arc::new(Semaphore::new(MAX_KNOWN)), open })
    }

    /// A connection that was accepted just now. Ends the oldest stranger's when there is one too many.
    pub(super) fn begin(self: &Arc<Self>) -> Arc<Connection> {
        let evicted = CancellationToken::new();
        let mut strangers = self.strangers();
        let number = strangers.next;
        strangers.next += 1;
        strangers.by_age.insert(number, evicted.clone());
        if strangers.by_age.len() > MAX_STRANGERS
            && let Some((_, oldest)) = strangers.by_age.pop_first()
        {
            oldest.cancel();
        }
        drop(strangers);
        self.open.inc();
        Arc::new(Connection { all: Arc::clone(self), number, evicted, slot: OnceLock::new() })
    }

    fn strangers(&self) -> MutexGuard<'_, Strangers> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// To be called when the guard has passed a request of it: from the first one on its client is known. Whether there is a slot for it.
    pub(super) fn admit(&self) -> bool {
        // A connection's requests come one after the other, so nobody else takes a slot for it meanwhile.
        if self.slot.get().is_none() {
            let Ok(slot) = Arc::clone(&self.all.known).try_acquire_owned() else { return false };
            let _ = self.slot.set(slot);
            self.all.strangers().by_age.remove(&self.number);
        }
        true
    }

    /// Waits until it has to go because it is the oldest of too many strangers.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.strangers().by_age.remove(&self.number);
        self.all.open.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stranger_makes_room_and_who_is_known_stays() {
        let all = Connections::new(Gauge::default());
        let known = all.begin();
        assert!(known.admit());
        let oldest = all.begin();
        let mut others: Vec<_> = (1..MAX_STRANGERS).map(|_| all.begin()).collect();
        assert!(!oldest.evicted.is_cancelled());
        others.push(all.begin());
        assert!(oldest.evicted.is_cancelled());
        assert!(!known.evicted.is_cancelled());
        // One that has left by itself makes room, too.
        drop(others.pop());
        others.push(all.begin());
        assert!(others.iter().all(|other| !other.evicted.is_cancelled()));
    }

    #[test]
    fn known_clients_slots_come_back() {
        let open = Gauge::default();
        let all = Connections::new(open.clone());
        let mut known: Vec<_> = (0..MAX_KNOWN).map(|_| all.begin()).collect();
        assert!(known.iter().all(|one| one.admit()));
        let late = all.begin();
        assert!(!late.admit(), "all are taken");
        assert!(known[0].admit(), "a next request takes no other slot");
        known.pop();
        assert!(late.admit());
        assert_eq!(usize::try_from(open.get()), Ok(MAX_KNOWN));
        drop((known, late));
        assert_eq!(open.get(), 0);
    }
}
