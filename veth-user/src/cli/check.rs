//! `veth check`.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};

use super::{print, print_json, progress::Bar};
use crate::{
    check::{self, Options},
    state::Roots,
    topology::{self, Progress as _, file},
};

/// Validate a topology file, or try a topology that is up with real traffic
///
/// A file is only read: every problem in it is told with its place and a hint. With --live: pings from every port to
/// every other in both address families (above 32 ports a ring and random pairs), and one TCP transfer over each path
/// and each link between switches.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  veth check lab.toml
  sudo veth check --live lab
  veth check --schema > veth.schema.json")]
#[command(group = clap::ArgGroup::new("what").required(true).args(["file", "live", "schema"]))]
#[group(skip)]
pub(super) struct Args {
    /// The file to validate
    file: Option<PathBuf>,

    /// The topology to try
    #[arg(long, value_name = "NAME")]
    live: Option<String>,

    /// Print the JSON schema of topology files, by which editors complete and validate them
    #[arg(long)]
    schema: bool,

    /// What random pairs follow from, to try the same ones again [default: another one each time]
    #[arg(long, value_name = "N", requires = "live")]
    seed: Option<u64>,

    /// How long each TCP transfer lasts, like 500ms or 2s
    #[arg(long, value_name = "TIME", requires = "live", value_parser = super::options::period)]
    transfer: Option<std::time::Duration>,

    /// Print JSON: the problems of the file, or the report
    #[arg(long, conflicts_with = "schema")]
    json: bool,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    let Args { file, live, schema: _, seed, transfer, json } = args;
    if let Some(path) = file {
        return validate(&path, json);
    }
    let Some(name) = live else {
        let schema = serde_json::to_string_pretty(&file::schema()).context("write the schema")?;
        print(&format!("{schema}\n"))?;
        return Ok(ExitCode::SUCCESS);
    };
    super::privilege::require("check --live")?;
    let record = topology::record(roots, &name)?;
    topology::check_place(&record)?;
    let usual = Options::default();
    let seed = seed.unwrap_or(usual.seed);
    let options = Options { seed, transfer: transfer.unwrap_or(usual.transfer), ..usual };
    let bar = Bar::new();
    let report = tokio::task::spawn_blocking(move || {
        let report = check::check(&record.topology, &options, |step| {
            if step.done == 0 {
                bar.start(step.total);
            } else {
                bar.step(step.what);
            }
        });
        bar.finish();
        report
    })
    .await
    .context("check the topology")?
    .with_context(|| format!("check the topology {name}"))?;
    if json {
        print_json(&report)?;
    } else {
        print(&check::table(&report))?;
    }
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::from(super::CHECK_FAILED) })
}

/// Reads a file and says what is wrong with it.
fn validate(path: &std::path::Path, json: bool) -> Result<ExitCode> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    match file::parse(&path.to_string_lossy(), &text) {
        Ok(_) if json => print("[]\n")?,
        Ok(topology) => {
            let (pods, paths, links) = (topology.pods.len(), topology.paths.len(), topology.cables.len());
            let name = topology.name;
            print(&format!("{name} is fine: {pods} pods, {paths} paths, {links} links\n"))?;
        }
        Err(problems) if json => {
            print_json(&problems)?;
            return Ok(ExitCode::FAILURE);
        }
        Err(problems) => return Err(problems.into()),
    }
    Ok(ExitCode::SUCCESS)
}
