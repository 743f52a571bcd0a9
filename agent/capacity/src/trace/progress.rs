//! How much of a trace was read.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use indicatif::{ProgressBar, ProgressFinish};

use crate::terminal;

/// Rows between two looks at the bar.
const STEP: u32 = 8192;

/// Bytes read of all files, and the bar that shows it.
pub(super) struct Progress {
    read: Arc<AtomicU64>,
    bar: ProgressBar,
    rows: u32,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("read", &self.read).finish_non_exhaustive()
    }
}

impl Progress {
    pub(super) fn new(read: Arc<AtomicU64>, total: Option<u64>) -> Self {
        let bar = terminal::progress(total, "bytes").with_finish(ProgressFinish::AndClear);
        Self { read, bar, rows: 0 }
    }

    pub(super) fn silent() -> Self {
        Self { read: Arc::default(), bar: ProgressBar::hidden(), rows: 0 }
    }

    /// Another row was read.
    pub(super) fn row(&mut self) {
        self.rows += 1;
        if self.rows >= STEP {
            self.rows = 0;
            self.bar.set_position(self.read.load(Ordering::Relaxed));
        }
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
