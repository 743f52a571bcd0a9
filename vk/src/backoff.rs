//! Waiting between tries: doubled each time up to a limit, with some chance in it.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

/// One series of tries.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    limit: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits `first`, then twice that, and so on up to `limit`.
    pub(crate) fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, next: first }
    }

    /// The last try succeeded.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }

    /// How long to wait before the next try: up to a fifth more than the series says.
    pub(crate) fn delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.limit);
        delay.mul_f64(1.0 + 0.2 * random())
    }

    /// Waits that long.
    pub(crate) async fn sleep(&mut self) {
        tokio::time::sleep(self.delay()).await;
    }
}

/// Uniform in 0..1. The standard library seeds its hashers from the system; nothing here needs more than that.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn random() -> f64 {
    (RandomState::new().build_hasher().finish() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_its_limit_and_starts_over() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new(seconds(1), seconds(5));
        for expected in [1, 2, 4, 5, 5] {
            let delay = backoff.delay();
            assert!((seconds(expected)..seconds(expected).mul_f64(1.2)).contains(&delay), "{delay:?}");
        }
        backoff.reset();
        assert!(backoff.delay() < seconds(2));
    }
}
