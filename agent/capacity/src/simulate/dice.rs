//! Chance, the same on every machine: PCG64 (XSL-RR 128/64), and nothing that a mathematics library rounds its own way.

use rand_pcg::{Pcg64, rand_core::Rng as _};

/// A stream of chance.
#[derive(Debug, Clone)]
pub(super) struct Dice(Pcg64);

/// What a stream of chance decides: streams of one seed are independent, so that the same jobs come whatever the policy.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stream {
    /// When jobs come.
    Arrivals,
    /// How long they run.
    Durations,
    /// In which order, and which are repeated.
    Shuffle,
    /// Between machines that are equally good.
    Ties,
    /// Whether the provider has a machine.
    Provider,
}

impl Dice {
    pub(super) fn new(seed: u64, stream: Stream) -> Self {
        let mut dice = Self(Pcg64::new(u128::from(seed), stream as u128));
        // Seeds that differ in few bits give first numbers that are alike.
        for _ in 0..8 {
            dice.next();
        }
        dice
    }

    fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform on [0, 1).
    #[expect(clippy::cast_precision_loss, reason = "53 bits")]
    pub(super) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    /// Uniform below `limit`, which is not 0. Biased by less than 2^-32 for limits below 2^32.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    /// Every order is as likely as any other (Fisher and Yates).
    #[expect(clippy::cast_possible_truncation, reason = "below a length")]
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }

    /// Exponential with mean 1. Von Neumann's method: it compares uniform numbers, and needs no logarithm.
    pub(super) fn exponential(&mut self) -> f64 {
        let mut whole = 0.0;
        loop {
            let first = self.next();
            let mut last = first;
            let mut odd = true;
            loop {
                let next = self.next();
                if next >= last {
                    break;
                }
                last = next;
                odd = !odd;
            }
            if odd {
                #[expect(clippy::cast_precision_loss, reason = "53 bits")]
                let part = (first >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0);
                return whole + part;
            }
            whole += 1.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Dice, Stream};

    #[test]
    fn the_same_seed_gives_the_same_numbers_for_ever() {
        let mut dice = Dice::new(1, Stream::Ties);
        let found = [dice.below(1000), dice.below(1000), dice.below(1000)];
        let mut again = Dice::new(1, Stream::Ties);
        assert_eq!(found, [again.below(1000), again.below(1000), again.below(1000)]);
        let mut other = Dice::new(1, Stream::Provider);
        assert_ne!(found, [other.below(1000), other.below(1000), other.below(1000)]);
    }

    #[test]
    fn exponential_numbers_have_mean_variance_and_tail_of_the_law() {
        let mut dice = Dice::new(7, Stream::Arrivals);
        let count = 100_000;
        let numbers: Vec<f64> = (0..count).map(|_| dice.exponential()).collect();
        let mean = numbers.iter().sum::<f64>() / f64::from(count);
        let square = numbers.iter().map(|number| number * number).sum::<f64>() / f64::from(count);
        let tail = numbers.iter().filter(|number| **number > 3.0).count();
        // Five standard errors each.
        assert!((mean - 1.0).abs() < 0.016, "{mean}");
        assert!((square - 2.0).abs() < 0.071, "{square}");
        assert!((4635..5323).contains(&tail), "{tail}");
    }
}
