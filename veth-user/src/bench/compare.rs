//! Two reports: did a path become slower?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Document,
    spec::{Placement, Workload},
    statistics::{Estimate, ratios},
};

/// What may be said of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval is above the limit.
    Pass,
    /// The limit is in the interval: more rounds would tell.
    Inconclusive,
    /// The whole interval is below the limit.
    Fail,
}

/// How a path is to what it was, under one workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// What the ends did.
    pub workload: Workload,
    /// Where they ran.
    pub placement: Placement,
    /// The path.
    pub path: String,
    /// The new ratio to `direct`, by the old one: so that another machine, or another day, is no change.
    pub change: Estimate,
    /// What that means.
    pub verdict: Verdict,
}

/// Compares what is in both reports. A path under a workload that only one has is left out.
#[must_use]
pub fn compare(old: &Document, new: &Document, limit: f64) -> Vec<Change> {
    let mut changes = Vec::new();
    for after in &new.results {
        let same = |cell: &&super::report::CellResult| {
            (cell.workload, cell.placement, cell.size) == (after.workload, after.placement, after.size)
        };
        let Some(before) = old.results.iter().find(same) else { continue };
        for row in &after.rows {
            let baseline = &new.method.baseline;
            let of = |cell: &super::report::CellResult, baseline: &str| {
                Some(ratios(&cell.row(&row.path)?.rates(), &cell.row(baseline)?.rates()))
            };
            let (Some(then), Some(now)) = (of(before, &old.method.baseline), of(after, baseline)) else {
                continue;
            };
            if row.path == *baseline {
                continue;
            }
            let Some(change) = Estimate::of_change(&then, &now, new.seed) else { continue };
            changes.push(Change {
                workload: after.workload,
                placement: after.placement,
                path: row.path.clone(),
                change,
                verdict: verdict(&change, limit),
            });
        }
    }
    changes
}

fn verdict(change: &Estimate, limit: f64) -> Verdict {
    if change.low >= limit {
        Verdict::Pass
    } else if change.high < limit {
        Verdict::Fail
    } else {
        Verdict::Inconclusive
    }
}

/// The worst of all: nothing at all is inconclusive.
#[must_use]
pub fn overall(changes: &[Change]) -> Verdict {
    changes.iter().map(|change| change.verdict).max().unwrap_or(Verdict::Inconclusive)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ratios of a path that is measured with 2 % of noise.
    fn noisy(around: f64, seed: u64) -> Vec<f64> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..25).map(|_| around * (1.0 + 0.04 * (random.f64() - 0.5))).collect()
    }

    #[test]
    fn equal_runs_are_not_different() {
        for seed in 0..50 {
            let change = Estimate::of_change(&noisy(0.96, seed), &noisy(0.96, seed + 1_000), seed).unwrap();
            assert_eq!(verdict(&change, 0.97), Verdict::Pass, "{change:?}");
        }
    }

    #[test]
    fn a_slower_path_is_found_and_a_doubt_is_none() {
        let change = Estimate::of_change(&noisy(0.96, 1), &noisy(0.90, 2), 3).unwrap();
        assert_eq!(verdict(&change, 0.97), Verdict::Fail, "{change:?}");
        let change = Estimate::of_change(&[1.0, 0.8, 1.2], &[0.95, 1.1, 0.7], 3).unwrap();
        assert_eq!(verdict(&change, 0.97), Verdict::Inconclusive, "{change:?}");
    }

    #[test]
    fn the_worst_counts() {
        let of = |verdict| Change {
            workload: Workload::TcpRr,
            placement: Placement::One,
            path: "switch".to_owned(),
            change: Estimate { median: 1.0, low: 1.0, high: 1.0 },
            verdict,
        };
        assert_eq!(
            overall(&[of(Verdict::Pass), of(Verdict::Fail), of(Verdict::Inconclusive)]),
            Verdict::Fail
        );
        assert_eq!(overall(&[of(Verdict::Pass), of(Verdict::Inconclusive)]), Verdict::Inconclusive);
        assert_eq!(overall(&[of(Verdict::Pass)]), Verdict::Pass);
        assert_eq!(overall(&[]), Verdict::Inconclusive);
    }
}
