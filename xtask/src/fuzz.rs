//! `cargo xtask fuzz`: inputs that nobody would write, found by `libFuzzer`, for what reads what others write.
//!
//! The targets are functions of `tests/src/fuzz.rs`. `tests/fuzz` makes programs of them, and keeps inputs: `cargo xtask test`
//! tries all of those again.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{command, toolchain::Version, workspace::Workspace};

/// What the compiler must do for `libFuzzer` to see which ways a run takes. A stable one can; only for sanitizers, which safe
/// code has little need of, it takes a nightly one.
const COVERAGE: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// What to feed, and for how long.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// One target only; all if none is named
    target: Option<Target>,
    /// For how long, each
    #[arg(long = "for", value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Keep what is new in the repository, for the tests
    #[arg(long)]
    keep: bool,
}

/// What can be fed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// The topology file: reading it, and planning and drawing what it says
    Topology,
    /// A frame: the decision, and who may send what
    Frame,
}

impl Target {
    /// Its program in `tests/fuzz`, and its folder there.
    const fn name(self) -> &'static str {
        match self {
            Self::Topology => "topology",
            Self::Frame => "frame",
        }
    }

    /// The longest input, in bytes.
    const fn longest(self) -> usize {
        match self {
            Self::Topology => 1_024,
            Self::Frame => 2_048,
        }
    }
}

/// Builds the targets and feeds them.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let Arguments { target, time, keep } = arguments;
    let host = Version::of(&mut workspace.command("rustc")).context("ask rustc for the host")?.host;
    let (own, built) = (workspace.root.join("tests/fuzz"), workspace.target.join("fuzz"));
    // The same versions as in the workspace, and libFuzzer.
    let lock = own.join("Cargo.lock");
    fs::copy(workspace.root.join("Cargo.lock"), &lock)
        .with_context(|| format!("write {}", lock.display()))?;
    let mut cargo = workspace.command("cargo");
    cargo.args(["build", "--release", "--manifest-path"]).arg(own.join("Cargo.toml"));
    // With a target named, flags are not for build scripts and macros, which run without libFuzzer.
    cargo.args(["--target", &host, "--target-dir"]).arg(&built).env("RUSTFLAGS", COVERAGE.join(" "));
    command::run(&mut cargo)?;

    for target in Target::value_variants().iter().filter(|each| target.is_none_or(|wanted| wanted == **each))
    {
        let name = target.name();
        let program = built.join(&host).join("release").join(name);
        let (found, kept) = (built.join("corpus").join(name), own.join("corpus").join(name));
        fs::create_dir_all(&found).with_context(|| format!("make {}", found.display()))?;
        let mut fuzzer = workspace.command(&program);
        fuzzer.args([&found, &kept]);
        // What crashes is kept beside the rest, where the tests find it.
        fuzzer.arg(format!("-artifact_prefix={}/", kept.display()));
        fuzzer.arg(format!("-max_len={}", target.longest()));
        fuzzer.arg(format!("-max_total_time={}", time.as_secs().max(1)));
        fuzzer.args(["-timeout=10", "-print_final_stats=1"]);
        if *target == Target::Topology {
            fuzzer.arg(workspace.root.join("examples"));
            fuzzer.arg(format!("-dict={}", own.join("topology.dict").display()));
        }
        command::run(&mut fuzzer)?;
        if *keep {
            // As few as go every way that any goes.
            let mut merger = workspace.command(&program);
            merger.args(["-set_cover_merge=1", "-use_counters=0"]).args([&kept, &found]);
            command::run(&mut merger)?;
        }
    }
    Ok(())
}
