//! `veth show`.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};

use super::print;
use crate::{show, state::Roots, topology};

/// Draw a topology: paths, pods, links and addresses
///
/// Draws what was declared, as a tree; how it is at this moment is what `veth ls` says. For programs there is
/// `veth ls NAME --json`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  veth show switch
  veth show switch --svg switch.svg
  veth show switch --dot | dot -Tpdf > switch.pdf")]
pub(super) struct Args {
    /// The topology
    name: String,

    /// Print a graph for Graphviz
    #[arg(long, conflicts_with = "svg")]
    dot: bool,

    /// Write a picture to this file; `-` is standard output
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

pub(super) fn main(args: &Args, roots: &Roots) -> Result<ExitCode> {
    let Args { name, dot, svg } = args;
    let topology = topology::record(roots, name)?.topology;
    match svg {
        Some(file) if file.as_os_str() == "-" => print(&show::svg(&topology))?,
        Some(file) => super::output()
            .truncate(true)
            .open(file)
            .and_then(|mut file| file.write_all(show::svg(&topology).as_bytes()))
            .with_context(|| format!("write the picture {}", file.display()))?,
        None if *dot => print(&show::dot(&topology))?,
        None => print(&show::text(&topology))?,
    }
    Ok(ExitCode::SUCCESS)
}
