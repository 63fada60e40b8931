//! `veth doctor`.

use std::{io::IsTerminal as _, process::ExitCode};

use anyhow::{Context as _, Result};
use comfy_table::{Cell, Color, ContentArrangement};

use super::{print, print_json};
use crate::{
    doctor::{self, AS_ROOT, Finding, Level},
    state::Roots,
    text::plain_table,
};

/// Tell what of this host matters to the datapath, with evidence and the way out
///
/// Looks at permissions, the kernel, its hooks and helpers (by trying them in throw-away namespaces), settings, the
/// packet filter, programs of others, every port of every topology, and what was left behind. Changes nothing
/// without --fix. Needs no root, but says what cannot be seen without. The checks are listed in docs/doctor.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth doctor
  sudo veth doctor --fix
  sudo veth doctor --json | jq '.[] | select(.level != \"ok\")'")]
pub(super) struct Args {
    /// Print JSON: an array of findings
    #[arg(long)]
    json: bool,

    /// Do what is safe and can be taken back, say how, and look again
    #[arg(long)]
    fix: bool,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    let Args { json, fix } = args;
    let findings = doctor::run(roots, fix).await.context("look at this host")?;
    if json {
        print_json(&findings)?;
    } else {
        print(&render(&findings))?;
    }
    Ok(match doctor::worst(&findings) {
        Level::Ok => ExitCode::SUCCESS,
        Level::Warn => ExitCode::from(10),
        Level::Fail => ExitCode::from(11),
    })
}

/// A table of everything, and what to do about what is not ok.
fn render(findings: &[Finding]) -> String {
    let mut table = plain_table(&["LEVEL", "CHECK", "SUBJECT", "SEEN"]);
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    for Finding { id, subject, level, seen, .. } in findings {
        // Colours are left out where there is no terminal.
        let word = Cell::new(level.name());
        let word = match level {
            Level::Ok => word,
            Level::Warn => word.fg(Color::Yellow),
            Level::Fail => word.fg(Color::Red),
        };
        let subject = subject.as_deref().unwrap_or_default();
        table.add_row(vec![word, Cell::new(id), Cell::new(subject), Cell::new(seen)]);
    }
    let advice: String = findings.iter().filter_map(advice).collect();
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let [ok, warn, fail] = [Level::Ok, Level::Warn, Level::Fail].map(count);
    format!("{}\n{advice}\n{ok} ok, {warn} warn, {fail} fail\n", table.trim_fmt())
}

/// Why something matters and what to do; what was done about it.
fn advice(finding: &Finding) -> Option<String> {
    let Finding { id, subject, level, seen: _, why, fix, undo, fixed, repair } = finding;
    if *level == Level::Ok && fixed.is_none() {
        return None;
    }
    // The finding `root` says it for all that cannot be seen.
    if fix.as_deref() == Some(AS_ROOT) && *id != "root" {
        return None;
    }
    let subject = subject.as_deref().map(|subject| format!(" {subject}")).unwrap_or_default();
    let mut text = format!("\n{} {id}{subject}\n", level.name());
    let lines = [
        ("why", Some(why).filter(|why| !why.is_empty())),
        ("fix", fix.as_ref()),
        ("--fix", fixed.as_ref()),
        ("undo", undo.as_ref().filter(|_| fixed.is_some())),
    ];
    for (name, line) in lines {
        if let Some(line) = line {
            text = format!("{text}  {name:5} {line}\n");
        }
    }
    if repair.is_some() && fixed.is_none() {
        text.push_str("  --fix does it\n");
    }
    Some(text)
}
