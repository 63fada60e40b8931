//! `veth plan`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{options::TopologyArgs, print, print_json};
use crate::{
    state::Roots,
    topology::{
        self, Topology,
        plan::{Sign, Step},
    },
};

/// Steps that are shown; more help nobody.
const SHOWN: usize = 100;

/// Show what `up` would do, and do nothing
///
/// A line a step, in their order: `+` makes something, `-` removes it, `~` changes it. Takes the arguments of `up`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth plan -f lab.toml
  sudo veth plan -f lab.toml --json
  sudo veth plan --pods 16")]
pub(super) struct Args {
    #[command(flatten)]
    topology: TopologyArgs,

    /// Print JSON: all steps
    #[arg(long)]
    json: bool,
}

/// What `up` would do, as JSON.
#[derive(Serialize)]
struct Output<'a> {
    /// The topology.
    topology: &'a str,
    /// Why it would be taken down first, if it would.
    remake: Option<&'a str>,
    /// What is not as it was declared before.
    drift: Vec<&'a str>,
    /// What would be done, in order.
    steps: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    sign: Sign,
    what: String,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    let topology = args.topology.topology()?;
    super::privilege::require("plan")?;
    let plan = topology::plan_up(roots, &topology)
        .await
        .map_err(|error| args.topology.point_out(error))
        .with_context(|| format!("plan the topology {}", topology.name))?;
    let line = |step: &Step, topology: &Topology| Line {
        sign: step.sign(),
        what: step.describe(topology, plan.hook).to_string(),
    };
    // What there is comes to our layout before it is changed.
    let migration = plan.migration().into_iter();
    let migration = migration.flat_map(|(made, steps)| steps.iter().map(|step| line(step, &made.topology)));
    let steps: Vec<Line> =
        migration.chain(plan.steps.iter().map(|step| line(step, &plan.topology))).collect();
    let (topology, remake) = (&plan.topology.name, plan.remake());
    if args.json {
        let drift = plan.drift.iter().map(|drift| drift.what.as_str()).collect();
        print_json(&Output { topology, remake, drift, steps })?;
        return Ok(ExitCode::SUCCESS);
    }
    if plan.is_empty() {
        print(&format!("{topology} is as declared: nothing to do\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines: Vec<String> = plan.drift.iter().map(|drift| format!("! {}", drift.what)).collect();
    if let Some(why) = remake {
        lines.push(format!("- all that there is of {topology}, for {why}"));
    }
    for Line { sign, what } in steps.iter().take(SHOWN) {
        lines.push(format!("{} {what}", sign.symbol()));
    }
    if let Some(more) = steps.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        lines.push(format!("  and {more} more steps; --json has all"));
    }
    let count = |sign: Sign| steps.iter().filter(|line| line.sign == sign).count();
    let (add, change, remove) = (count(Sign::Add), count(Sign::Change), count(Sign::Remove));
    lines.push(format!("{} steps: {add} add, {change} change, {remove} remove\n", steps.len()));
    print(&lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}
