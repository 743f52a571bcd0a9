//! Traces made for the measurements, the same ones each time.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::Context as _;

/// When they begin.
const BEGIN_S: u64 = 1_767_225_600;
const MINUTE_S: u64 = 60;

/// Numbers that look like chance and never change: the generator of Knuth's MMIX.
struct Chance(u64);

impl Chance {
    /// From 0 up to, but not including, 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from((self.0 >> 33) as u32) / f64::from(1_u32 << 31)
    }

    /// How long until the next of so many per second.
    fn until_next(&mut self, per_s: f64) -> f64 {
        -(1.0 - self.next()).ln() / per_s
    }
}

/// Demand of a pool of some 1,000 GPUs: one row a minute, with days, weeks and weather.
pub(super) fn demand(path: &Path, rows: u64) -> anyhow::Result<()> {
    write(path, |out| {
        writeln!(out, "at,gpus")?;
        let (mut chance, mut weather) = (Chance(1), 0.0);
        for row in 0..rows {
            let day = (row % 1440) as f64 / 1440.0;
            let weekend = if row / 1440 % 7 < 5 { 1.0 } else { 0.6 };
            weather = weather * 0.999 + (chance.next() - 0.5) * 12.0;
            let wave = (day * std::f64::consts::TAU).sin();
            let gpus = (600.0 * weekend + 120.0 * wave * weekend + weather).clamp(0.0, 1000.0);
            writeln!(out, "{},{gpus:.0}", BEGIN_S + row * MINUTE_S)?;
        }
        Ok(())
    })
}

/// Jobs of 1 to 8 GPUs that come by chance and ask for some 400 GPUs on average.
pub(super) fn jobs(path: &Path, rows: u64) -> anyhow::Result<()> {
    write(path, |out| {
        writeln!(out, "submit,duration,gpus")?;
        let (mut chance, mut at_s) = (Chance(2), BEGIN_S as f64);
        for _ in 0..rows {
            at_s += chance.until_next(0.2);
            let duration_s = chance.until_next(0.001).max(1.0);
            let gpus = [1, 1, 1, 1, 2, 2, 4, 8][(chance.next() * 8.0) as usize % 8];
            writeln!(out, "{at_s:.0},{duration_s:.0},{gpus}")?;
        }
        Ok(())
    })
}

fn write(path: &Path, rows: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("can't create {}", path.display()))?;
    let mut out = BufWriter::new(file);
    rows(&mut out).and_then(|()| out.flush()).with_context(|| format!("can't write {}", path.display()))
}
