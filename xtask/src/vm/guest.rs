//! One virtual machine, from its start to its end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{kernel::Kernel, tools::Tools};

/// How long a guest may take. On a machine with nothing else to do it takes a fifth of it.
const LIMIT: Duration = Duration::from_mins(30);

/// A guest that has ended.
pub(super) struct Ended {
    /// What the tests said.
    pub(super) tests: String,
    /// What the kernel said.
    pub(super) console: PathBuf,
    /// How long it took.
    pub(super) time: Duration,
    /// Whether it ended by itself.
    pub(super) in_time: bool,
}

/// What the processor is: all that QEMU can imitate but `cmpxchg16b`, behind which QEMU 7.2 leaves garbage in the
/// flags now and then, and the kernel dies of a double fault.
const PROCESSOR: &str = "max,cx16=off";

/// What the kernel is told. QEMU translates code by its address: without a new one for each process it translates
/// veth once, and tests take two thirds of the time. Mitigations protect from processors that there are none of here.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 norandmaps mitigations=off";

/// Runs a guest to its end.
pub(super) fn run(tools: &Tools, kernel: &Kernel, initrd: &Path, logs: &Path) -> Result<Ended> {
    let log = |name: &str| logs.join(format!("{}.{name}", kernel.version));
    let (console, tests) = (log("console"), log("tests"));
    let start = Instant::now();
    let mut qemu = tools.qemu();
    qemu.args(["-accel", "tcg", "-cpu", PROCESSOR, "-smp", "1", "-m", "1024", "-nodefaults", "-no-reboot"]);
    qemu.args(["-display", "none", "-append", COMMAND_LINE]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initrd);
    for file in [&console, &tests] {
        qemu.arg("-serial").arg(format!("file:{}", file.display()));
    }
    let mut child = qemu.stdin(Stdio::null()).spawn().with_context(|| format!("run {qemu:?}"))?;
    let in_time = loop {
        if child.try_wait().context("wait for QEMU")?.is_some() {
            break true;
        }
        if start.elapsed() > LIMIT {
            child.kill().and_then(|()| child.wait()).context("stop QEMU")?;
            break false;
        }
        thread::sleep(Duration::from_millis(50));
    };
    let bytes = fs::read(&tests).with_context(|| format!("read {}", tests.display()))?;
    Ok(Ended { tests: String::from_utf8_lossy(&bytes).into_owned(), console, time: start.elapsed(), in_time })
}
