//! Medians, intervals and what may be said by them. Pure: every result follows from the values and a seed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many times the bootstrap draws.
const RESAMPLES: usize = 2_000;

/// The share of its medians that an interval holds.
const CONFIDENCE: f64 = 0.95;

/// An interval that is wider than this share of its median on either side says nothing.
const CONCLUSIVE: f64 = 0.05;

/// A median with its bootstrap 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    /// The median of all rounds.
    pub median: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
}

impl Estimate {
    /// The median of some values, and the 2.5th and 97.5th percentile of the medians of as many values that are drawn
    /// from them with replacement, 2,000 times. Nothing of no values.
    #[must_use]
    pub fn bootstrap(values: &[f64], seed: u64) -> Option<Self> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut draw = vec![0.0; values.len()];
        let medians = (0..RESAMPLES).filter_map(|_| {
            for place in &mut draw {
                *place = values[random.usize(..values.len())];
            }
            median(&draw)
        });
        let median = median(values)?;
        let medians = sorted(&medians.collect::<Vec<_>>());
        let tail = (1.0 - CONFIDENCE) / 2.0;
        Some(Self { median, low: percentile(&medians, tail)?, high: percentile(&medians, 1.0 - tail)? })
    }

    /// What the median of some values is to that of others, each drawn anew as in [`bootstrap`](Self::bootstrap).
    /// Nothing of no values, or where the others may have none.
    #[must_use]
    pub fn of_change(before: &[f64], after: &[f64], seed: u64) -> Option<Self> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut draw = |values: &[f64]| {
            let drawn: Vec<f64> = values.iter().map(|_| values[random.usize(..values.len())]).collect();
            median(&drawn)
        };
        let ratio = |before: f64, after: f64| (before > 0.0).then(|| after / before);
        let median = ratio(median(before)?, median(after)?)?;
        let ratios: Vec<f64> = (0..RESAMPLES).filter_map(|_| ratio(draw(before)?, draw(after)?)).collect();
        let tail = (1.0 - CONFIDENCE) / 2.0;
        let ratios = sorted(&ratios);
        Some(Self { median, low: percentile(&ratios, tail)?, high: percentile(&ratios, 1.0 - tail)? })
    }

    /// Whether it is known well enough to be quoted: within 5 % on both sides.
    #[must_use]
    pub fn is_conclusive(&self) -> bool {
        let Self { median, low, high } = *self;
        let most = CONCLUSIVE * median.abs();
        median - low <= most && high - median <= most
    }
}

/// The ratios of two paths, round by round: what changed between rounds, for both, does not show.
#[must_use]
pub fn ratios(values: &[(u32, f64)], to: &[(u32, f64)]) -> Vec<f64> {
    let of = |round: u32| to.iter().find(|(other, _)| *other == round).map(|(_, value)| *value);
    let ratio = |(round, value): &(u32, f64)| of(*round).filter(|to| *to > 0.0).map(|to| value / to);
    values.iter().filter_map(ratio).collect()
}

/// The middle value, or the mean of both. Nothing of no values.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    percentile(&sorted(values), 0.5)
}

/// A percentile of sorted values, by linear interpolation. Nothing of no values.
#[must_use]
fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    #[expect(clippy::cast_precision_loss, reason = "there are a few thousand values at most")]
    let place = share.clamp(0.0, 1.0) * last as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the last index"
    )]
    let below = place.floor() as usize;
    let (a, b) = (sorted[below], sorted[(below + 1).min(last)]);
    Some(a + (b - a) * place.fract())
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn medians_and_percentiles_are_those_of_the_books() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        let hundred: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.025), Some(2.5));
        assert_eq!(percentile(&hundred, 1.0), Some(100.0));
    }

    #[test]
    fn the_bootstrap_of_equal_values_is_a_point() {
        let estimate = Estimate::bootstrap(&[7.0; 9], 1).unwrap();
        assert_eq!(estimate, Estimate { median: 7.0, low: 7.0, high: 7.0 });
        assert!(estimate.is_conclusive());
        assert_eq!(Estimate::bootstrap(&[], 1), None);
    }

    /// The distribution of the median of three draws from 1, 2, 3 is known: 1 and 3 have 7/27 each.
    #[test]
    fn the_bootstrap_of_three_values_is_known() {
        let estimate = Estimate::bootstrap(&[1.0, 2.0, 3.0], 5).unwrap();
        assert_eq!(estimate, Estimate { median: 2.0, low: 1.0, high: 3.0 });
        assert!(!estimate.is_conclusive());
    }

    /// For a sample of the normal distribution the interval of the median is about ±1.96·1.2533·σ/√n.
    #[test]
    fn the_bootstrap_is_as_wide_as_theory_says() {
        let mut random = fastrand::Rng::with_seed(42);
        let normal: Vec<f64> =
            (0..400).map(|_| (0..12).map(|_| random.f64()).sum::<f64>() - 6.0 + 100.0).collect();
        let Estimate { median, low, high } = Estimate::bootstrap(&normal, 7).unwrap();
        assert!((median - 100.0).abs() < 0.2, "{median}");
        let (width, theory) = (high - low, 2.0 * 1.96 * 1.2533 / 20.0);
        assert!((0.7..1.4).contains(&(width / theory)), "{width} where {theory} is expected");
    }

    #[test]
    fn ratios_are_of_the_same_round_only() {
        let values = [(1, 10.0), (2, 20.0), (4, 40.0)];
        assert_eq!(ratios(&values, &[(2, 10.0), (3, 1.0), (4, 80.0), (1, 0.0)]), [2.0, 0.5]);
    }

    #[test]
    fn an_interval_of_more_than_five_percent_says_nothing() {
        let is = |low, high| Estimate { median: 1.0, low, high }.is_conclusive();
        assert!(is(0.951, 1.049) && !is(0.94, 1.0) && !is(1.0, 1.06));
    }

    proptest! {
        #[test]
        fn an_interval_holds_its_median(values in prop::collection::vec(0.1..1e9_f64, 1..60), seed: u64) {
            let Estimate { median, low, high } = Estimate::bootstrap(&values, seed).unwrap();
            prop_assert!(low <= median && median <= high);
            prop_assert!(values.iter().any(|value| *value <= low) && values.iter().any(|value| *value >= high));
        }
    }
}
