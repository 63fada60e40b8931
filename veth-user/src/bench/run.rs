//! Rounds: every path takes its turn in each, in another order, so that whatever the machine does meanwhile is done to
//! all.

use std::{
    collections::{BTreeMap, HashSet},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::{
    Error,
    churn::Churn,
    cpu::{Accounting, Spent},
    spec::{Cell, Placement, Workload},
    stage::Stage,
    workload::{self, Setting},
};
use crate::text::with_causes;

/// More of a CPU than this for somebody else, and a round is marked and taken again.
const OUTSIDE_MAX: f64 = 0.08;

/// Rounds are judged together until they have taken so long: the kernel counts in ticks of 10 ms.
const WINDOW: f64 = 1.0;

/// What a sample takes beside itself: threads, a connection, and the first exchanges, which do not count.
const OVERHEAD: Duration = Duration::from_millis(3);

/// The part of the rounds that may be taken again.
const AGAIN: u32 = 6;

/// A path that can be measured.
pub(super) struct Contestant {
    pub(super) name: String,
    /// What it is, in words.
    pub(super) what: String,
    pub(super) stage: Stage,
    /// Whether others work for it, whose CPU time would look like that of a stranger.
    pub(super) has_helpers: bool,
    /// What goes on while it is measured.
    pub(super) churn: Option<Churn>,
}

/// One sample.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) round: u32,
    pub(super) rate: f64,
    pub(super) operations: f64,
    pub(super) spent: Spent,
    pub(super) lost: Option<(u64, u64)>,
    /// The share of a CPU that somebody else had during the round.
    pub(super) outside: f64,
}

impl Sample {
    pub(super) fn is_disturbed(&self) -> bool {
        is_disturbed(self.outside)
    }
}

fn is_disturbed(outside: f64) -> bool {
    outside > OUTSIDE_MAX
}

/// All that was measured of one path by one workload.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    pub(super) samples: Vec<Sample>,
    pub(super) latency: Option<Histogram<u64>>,
    pub(super) failed: Option<String>,
}

/// All that was measured, by cell and contestant.
pub(super) struct Results {
    pub(super) series: BTreeMap<(usize, usize), Series>,
    /// Whether it was interrupted.
    pub(super) is_partial: bool,
}

/// A round of one cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) cell: usize,
    /// 0 is not counted: it warms up what has to be.
    pub(super) round: u32,
}

/// The order of rounds: first one of each cell that does not count, and then all others, mixed.
pub(super) fn schedule(cells: &[Cell], random: &mut fastrand::Rng) -> Vec<Block> {
    let mut counted: Vec<Block> = cells
        .iter()
        .enumerate()
        .flat_map(|(cell, Cell { rounds, .. })| (1..=*rounds).map(move |round| Block { cell, round }))
        .collect();
    random.shuffle(&mut counted);
    (0..cells.len()).map(|cell| Block { cell, round: 0 }).chain(counted).collect()
}

/// How long it takes, but for what is taken again.
pub(super) fn expected(cells: &[Cell], contestants: usize) -> Duration {
    let each = cells.iter().map(|cell| (cell.duration.mul_f64(1.15) + OVERHEAD) * (cell.rounds + 1));
    each.sum::<Duration>() * u32::try_from(contestants).unwrap_or(u32::MAX)
}

/// Who is told how far it has come.
pub trait Watch {
    /// It begins, and will take so long.
    fn begin(&self, total: Duration);
    /// Something begins that takes a moment.
    fn sample(&self, what: &str);
    /// A sample took so long.
    fn took(&self, time: Duration);
    /// It is over.
    fn end(&self);
}

/// Takes all samples, until it is told to stop.
pub(super) fn measure(
    contestants: &[Contestant],
    cells: &[Cell],
    (pairs, seed): (usize, u64),
    cpus: &[usize],
    stop: &AtomicBool,
    watch: &dyn Watch,
) -> Result<Results, Error> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut blocks = schedule(cells, &mut random);
    let mut taking = Taking {
        contestants,
        cells,
        pairs,
        cpus,
        accounting: Accounting::new().map_err(Error::Accounting)?,
        failed: HashSet::new(),
        results: Results { series: BTreeMap::new(), is_partial: false },
        again: cells.iter().map(|cell| (cell.rounds / AGAIN, cell.rounds + 1)).collect(),
        window: Window::default(),
    };
    watch.begin(expected(cells, contestants.len()));
    let mut position = 0;
    while let Some(block) = blocks.get(position).copied() {
        position += 1;
        if taking.block(block, &mut random, stop, watch)? == Told::ToStop {
            taking.results.is_partial = true;
            break;
        }
        if taking.window.elapsed > WINDOW || position == blocks.len() {
            blocks.extend(taking.judge()?);
        }
    }
    taking.judge()?;
    watch.end();
    Ok(taking.results)
}

/// Whether a signal came.
#[derive(PartialEq, Eq)]
enum Told {
    ToGoOn,
    ToStop,
}

/// Rounds that are judged together.
#[derive(Default)]
struct Window {
    taken: Vec<(Block, usize, workload::Outcome, Spent)>,
    /// What others took, and how long it was, in seconds.
    outside: f64,
    elapsed: f64,
}

struct Taking<'a> {
    contestants: &'a [Contestant],
    cells: &'a [Cell],
    pairs: usize,
    cpus: &'a [usize],
    accounting: Accounting,
    /// Cells and contestants that are not tried any more.
    failed: HashSet<(usize, usize)>,
    results: Results,
    /// For each cell how many rounds may be taken again, and the number of the next.
    again: Vec<(u32, u32)>,
    window: Window,
}

impl Taking<'_> {
    /// Lets every path take its turn.
    fn block(
        &mut self,
        block: Block,
        random: &mut fastrand::Rng,
        stop: &AtomicBool,
        watch: &dyn Watch,
    ) -> Result<Told, Error> {
        let cell = &self.cells[block.cell];
        let mut order: Vec<usize> = (0..self.contestants.len()).collect();
        let is_possible = |index: &usize| {
            cell.workload != Workload::XdpPps || self.contestants[*index].stage.injection.is_some()
        };
        order.retain(|index| is_possible(index) && !self.failed.contains(&(block.cell, *index)));
        random.shuffle(&mut order);
        for index in order {
            if stop.load(Ordering::Relaxed) {
                return Ok(Told::ToStop);
            }
            let Contestant { name, stage, has_helpers, churn, what: _ } = &self.contestants[index];
            watch.sample(&format!("{} over {name}", cell.workload.name()));
            let setting = Setting {
                workload: cell.workload,
                cpus: place(self.cpus, cell.placement),
                duration: cell.duration,
                size: cell.size,
                pairs: self.pairs,
            };
            let now = || self.accounting.now().map_err(Error::Accounting);
            let (start, before) = (Instant::now(), now()?);
            let churning = churn.as_ref().map(Churn::begin);
            let outcome = workload::run(&stage.ends, stage.injection.as_ref(), &setting);
            drop(churning);
            let (spent, others) = now()?.since(&before);
            let took = start.elapsed();
            watch.took(took);
            match outcome {
                Ok(outcome) => {
                    if !has_helpers {
                        self.window.outside += others;
                        self.window.elapsed += took.as_secs_f64();
                    }
                    if block.round > 0 {
                        self.window.taken.push((block, index, outcome, spent));
                    }
                }
                Err(error) => {
                    let series = self.results.series.entry((block.cell, index)).or_default();
                    series.failed = Some(with_causes(&error));
                    self.failed.insert((block.cell, index));
                }
            }
        }
        Ok(Told::ToGoOn)
    }

    /// Notes the rounds since the last time, and returns those that are to be taken again.
    fn judge(&mut self) -> Result<Vec<Block>, Error> {
        let Window { taken, outside, elapsed } = std::mem::take(&mut self.window);
        let outside = if elapsed > 0.0 { f64::max(outside / elapsed, 0.0) } else { 0.0 };
        let mut repeated: Vec<(Block, Block)> = Vec::new();
        for (block, index, outcome, spent) in taken {
            let (left, next) = &mut self.again[block.cell];
            if is_disturbed(outside) && *left > 0 && !repeated.iter().any(|(other, _)| *other == block) {
                repeated.push((block, Block { cell: block.cell, round: *next }));
                *left -= 1;
                *next += 1;
            }
            let series = self.results.series.entry((block.cell, index)).or_default();
            let workload::Outcome { rate, operations, latency, lost } = outcome;
            series.samples.push(Sample { round: block.round, rate, operations, spent, lost, outside });
            if let Some(latency) = latency {
                match &mut series.latency {
                    Some(all) => all.add(latency).map_err(|_| Error::Histogram)?,
                    None => series.latency = Some(latency),
                }
            }
        }
        Ok(repeated.into_iter().map(|(_, again)| again).collect())
    }
}

/// The CPU of each end: the last ones, which have less to do for the machine itself.
fn place(cpus: &[usize], placement: Placement) -> [usize; 2] {
    let last = cpus.last().copied().unwrap_or_default();
    let other = cpus.len().checked_sub(2).map_or(last, |index| cpus[index]);
    match placement {
        Placement::One => [last, last],
        Placement::Two => [other, last],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::spec::usual_cells;

    #[test]
    fn every_round_has_its_turn_and_cells_are_mixed() {
        let cells = usual_cells(false);
        let mut random = fastrand::Rng::with_seed(1);
        let blocks = schedule(&cells, &mut random);
        for (number, cell) in cells.iter().enumerate() {
            let mut rounds: Vec<u32> =
                blocks.iter().filter(|block| block.cell == number).map(|block| block.round).collect();
            assert_eq!(rounds.remove(0), 0, "what does not count comes first");
            rounds.sort_unstable();
            assert_eq!(rounds, (1..=cell.rounds).collect::<Vec<_>>());
        }
        let halves = blocks[cells.len()..].split_at(blocks.len() / 2);
        let of = |blocks: &[Block]| blocks.iter().filter(|block| block.cell == 0).count();
        assert!(of(halves.0) > 5 && of(halves.1) > 5, "one cell is not over before another begins");
        assert_eq!(schedule(&cells, &mut fastrand::Rng::with_seed(1)), blocks, "the seed decides");
        assert_ne!(schedule(&cells, &mut fastrand::Rng::with_seed(2)), blocks);
    }

    #[test]
    fn the_usual_run_is_below_its_limit() {
        assert!(expected(&usual_cells(false), 10) < Duration::from_secs(80));
        assert!(expected(&usual_cells(true), 9) < Duration::from_secs(15));
    }

    #[test]
    fn outside_load_marks_a_round() {
        assert!(!is_disturbed(0.05) && is_disturbed(0.09));
    }

    #[test]
    fn ends_are_placed_on_the_last_cpus() {
        assert_eq!(place(&[0, 1, 4, 5], Placement::Two), [4, 5]);
        assert_eq!(place(&[0, 1], Placement::One), [1, 1]);
        assert_eq!(place(&[3], Placement::Two), [3, 3]);
    }
}
