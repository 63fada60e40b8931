//! `veth init`.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;

use super::print;
use crate::topology::file::init::{self, Example};

/// Write an example of a topology file, with a comment on each line
///
/// It works as it is: `veth up -f FILE`. A file that is there is left alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  veth init switch                 writes switch.toml
  veth init tutorial --output lab.toml
  veth init link --output -        prints it")]
pub(super) struct Args {
    /// What it is an example of
    #[arg(value_enum, value_name = "KIND")]
    kind: Example,

    /// Where to [default: KIND.toml]; `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn main(args: &Args) -> Result<ExitCode> {
    let text = init::example(args.kind);
    let kind = args.kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let path = args.output.clone().unwrap_or_else(|| format!("{kind}.toml").into());
    if path.as_os_str() == "-" {
        print(text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let shown = path.display();
    super::output()
        .create_new(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {shown}, which must not be there yet"))?;
    print(&format!("wrote {shown}; next: sudo veth up -f {shown}\n"))?;
    Ok(ExitCode::SUCCESS)
}
