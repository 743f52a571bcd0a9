//! What happened over time, in constant memory: means over steps of equal length, which doubles whenever there are too many.

use serde::Serialize;

/// Means over one step of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Point {
    /// When it begins, in seconds since the first job was submitted.
    pub at_s: f64,
    /// Dedicated GPUs in use.
    pub dedicated_gpus: f64,
    /// Serverless GPUs in use.
    pub serverless_gpus: f64,
    /// GPUs that waiting jobs ask for.
    pub waiting_gpus: f64,
    /// Dedicated GPUs that are free, but not usable by the job that comes next, on average over the jobs that usually come; as at the end of the step.
    pub fragmented_gpus: f64,
}

/// What is in use from one event to the next, in thousandths of GPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[expect(clippy::struct_field_names, reason = "units are part of names")]
pub(super) struct Level {
    pub(super) dedicated_milli: u64,
    pub(super) serverless_milli: u64,
    pub(super) waiting_milli: u64,
}

/// No more points than this.
const POINTS: usize = 512;

/// Integrals over steps of time.
#[derive(Debug, Clone)]
pub(super) struct Series {
    step_s: f64,
    /// Where the current step ends.
    until_s: f64,
    /// Integral over the current step, in GPU-milli-seconds.
    current: [f64; 3],
    points: Vec<Point>,
}

impl Series {
    pub(super) fn new() -> Self {
        Self { step_s: 1.0, until_s: 1.0, current: [0.0; 3], points: Vec::with_capacity(POINTS) }
    }

    /// Whether `to_s` is beyond the current step, so that [`Series::step`] is due.
    pub(super) fn ends_before(&self, to_s: f64) -> bool {
        self.until_s <= to_s
    }

    /// Adds what was in use for `length_s` within the current step.
    pub(super) fn add(&mut self, length_s: f64, level: &Level) {
        self.current[0] += milli(level.dedicated_milli) * length_s;
        self.current[1] += milli(level.serverless_milli) * length_s;
        self.current[2] += milli(level.waiting_milli) * length_s;
    }

    /// Ends the current step, which went on at `level` from `from_s`, and begins the next; tells where it begins.
    pub(super) fn step(&mut self, from_s: f64, level: &Level, fragmented_milli: f64) -> f64 {
        self.add(self.until_s - from_s, level);
        let from_s = self.until_s;
        self.push(fragmented_milli, self.step_s);
        if self.points.len() == POINTS {
            for index in 0..POINTS / 2 {
                self.points[index] = merged(self.points[2 * index], self.points[2 * index + 1]);
            }
            self.points.truncate(POINTS / 2);
            self.step_s *= 2.0;
        }
        self.until_s = from_s + self.step_s;
        from_s
    }

    fn push(&mut self, fragmented_milli: f64, length_s: f64) {
        let mean = |integral: f64| integral / length_s / 1000.0;
        self.points.push(Point {
            at_s: self.until_s - self.step_s,
            dedicated_gpus: mean(self.current[0]),
            serverless_gpus: mean(self.current[1]),
            waiting_gpus: mean(self.current[2]),
            fragmented_gpus: fragmented_milli / 1000.0,
        });
        self.current = [0.0; 3];
    }

    /// Ends at `end_s`, up to which all was added.
    pub(super) fn finish(mut self, end_s: f64, fragmented_milli: f64) -> Vec<Point> {
        let length_s = end_s - (self.until_s - self.step_s);
        if length_s > 0.0 {
            self.push(fragmented_milli, length_s);
        }
        self.points
    }
}

fn merged(first: Point, second: Point) -> Point {
    Point {
        at_s: first.at_s,
        dedicated_gpus: f64::midpoint(first.dedicated_gpus, second.dedicated_gpus),
        serverless_gpus: f64::midpoint(first.serverless_gpus, second.serverless_gpus),
        waiting_gpus: f64::midpoint(first.waiting_gpus, second.waiting_gpus),
        fragmented_gpus: second.fragmented_gpus,
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn milli(amount: u64) -> f64 {
    amount as f64
}

#[cfg(test)]
mod tests {
    use super::{Level, POINTS, Series};

    #[test]
    fn no_time_and_no_gpu_is_lost_when_steps_double() {
        let mut series = Series::new();
        let mut now = 0.0;
        let mut integral = 0.0;
        for event in 0..3000_u32 {
            let level = Level { dedicated_milli: u64::from(event % 7) * 1000, ..Level::default() };
            let next = now + f64::from(event % 5);
            integral += f64::from(event % 7) * (next - now);
            while series.ends_before(next) {
                now = series.step(now, &level, 0.0);
            }
            series.add(next - now, &level);
            now = next;
        }
        let points = series.finish(now, 0.0);
        assert!(points.len() <= POINTS && points.len() > POINTS / 4);
        let step = points[1].at_s - points[0].at_s;
        let mut found = 0.0;
        for (index, point) in points.iter().enumerate() {
            let end = points.get(index + 1).map_or(now, |next| next.at_s);
            assert!(end - point.at_s <= step + 1e-9);
            found += point.dedicated_gpus * (end - point.at_s);
        }
        assert!((found / integral - 1.0).abs() < 1e-9, "{found} for {integral}");
    }
}
