//! `cargo xtask test vm`: the tests on kernels of distributions, each in a virtual machine without hardware
//! support, so that it works wherever there is a processor.

mod binaries;
mod elf;
mod guest;
mod initrd;
mod kernel;
mod log;
mod report;
mod tools;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};

use self::{
    binaries::Binaries,
    guest::Ended,
    initrd::Contents,
    kernel::Kernel,
    log::{Log, Outcome, Test},
    report::Column,
    tools::Tools,
};
use crate::{apt, build::Objects, workspace::Workspace};

/// All that is not ours and has to be fetched: QEMU and kernels.
pub(crate) struct Machines {
    tools: Tools,
    kernels: Vec<Kernel>,
    /// Where they are, and logs.
    folder: PathBuf,
}

impl Machines {
    /// Finds or gets QEMU and the newest kernel of each series; of the usual ones if none are named.
    pub(crate) fn find_or_get(workspace: &Workspace, series: &[String]) -> Result<Self> {
        ensure!(cfg!(target_arch = "x86_64"), "virtual machines run x86-64 kernels only, on x86-64 only");
        for name in series {
            ensure!(
                name.split('.').all(|number| number.parse::<u16>().is_ok()),
                "`{name}` is no series of kernels: name one like 6.12, or 7 for the newest that starts so"
            );
        }
        let series: Vec<&str> = if series.is_empty() {
            kernel::DEFAULT.into()
        } else {
            series.iter().map(String::as_str).collect()
        };
        let folder = workspace.target.join("vm");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let tools = Tools::find_or_get(workspace, &folder)?;
        let kernels = kernel::find_or_get(workspace, &folder, &series)?;
        Ok(Self { tools, kernels, folder })
    }

    /// Runs the tests on each kernel, prints what came of it, and fails unless all passed that can.
    pub(crate) fn test(&self, workspace: &Workspace, objects: &Objects, harness: &[OsString]) -> Result<()> {
        let Self { tools: _, kernels, folder } = self;
        let binaries = Binaries::build(workspace, objects)?;
        let tests = binaries.list(harness)?;
        ensure!(!tests.is_empty(), "no test is left by the filter");
        let logs = folder.join("logs");
        apt::remove(&logs)?;
        fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
        let start = Instant::now();
        let mut columns = self.run(&binaries, &tests, harness, &logs)?;
        columns.sort_by_key(|(number, _)| *number);
        let columns: Vec<Column> = columns.into_iter().map(|(_, column)| column).collect();
        print!("{}", report::render(&tests, &columns, start.elapsed()));
        let problems = report::problems(&tests, &columns);
        if problems.is_empty() {
            return Ok(());
        }
        let count = problems.len();
        bail!(
            "{}\n{count} {} on {} kernels; logs are in {}",
            problems.join("\n"),
            if count == 1 { "problem" } else { "problems" },
            kernels.len(),
            logs.display()
        )
    }

    /// Runs the guests and returns each with its kernel's number.
    fn run(
        &self,
        binaries: &Binaries,
        tests: &[Test],
        harness: &[OsString],
        logs: &Path,
    ) -> Result<Vec<(usize, Column)>> {
        let Self { tools, kernels, folder: _ } = self;
        let contents = Contents { busybox: &tools.busybox, binaries, harness };
        let queue = Mutex::new(kernels.iter().enumerate());
        let next = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
        let worker = || {
            let mut columns = Vec::new();
            while let Some((number, kernel)) = next() {
                columns.push((number, one(tools, kernel, &contents, tests, logs)?));
            }
            Ok(columns)
        };
        // Guests wait more than they work: for links, for timeouts, for counters to come to rest.
        let count = 2 * thread::available_parallelism().map_or(1, usize::from) + 1;
        thread::scope(|scope| {
            let workers: Vec<_> = (0..count.min(kernels.len())).map(|_| scope.spawn(worker)).collect();
            let mut columns = Vec::new();
            for worker in workers {
                let result: Result<Vec<_>> =
                    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                columns.extend(result?);
            }
            Ok(columns)
        })
    }
}

/// More failures than this are none of the machine's.
const SECOND_CHANCES: usize = 3;

/// A kernel whose guests die more often than this does not die of QEMU.
const DEATHS: usize = 2;

/// Tests one kernel. If its guest dies amid the tests, as one in some hundreds does, another guest runs those that
/// have no result; if that dies in the same test, it is no accident. A test that fails among all others, in a guest
/// that shares a processor with other guests, is run again in a guest with nothing else to do. The table tells of
/// both.
fn one(
    tools: &Tools,
    kernel: &Kernel,
    contents: &Contents<'_>,
    tests: &[Test],
    logs: &Path,
) -> Result<Column> {
    let version = &kernel.version;
    let mut column = guest(tools, kernel, contents, logs)?;
    let mut is_to_go_on = column.died.is_some();
    while is_to_go_on {
        let left: Vec<Test> =
            tests.iter().filter(|test| column.log.outcome(test) == Outcome::Missing).cloned().collect();
        eprintln!("kernel {version}: another guest runs the {} tests that have no result", left.len());
        for log in ["tests", "console"] {
            keep(logs, version, log, &format!("death-{}", column.deaths.len() + 1))?;
        }
        let harness = exactly(&left);
        let next = guest(tools, kernel, &Contents { harness: &harness, ..*contents }, logs)?;
        column.time += next.time;
        let words = std::mem::replace(&mut column.died, next.died).unwrap_or_default();
        column.deaths.push(format!("{}; it said: {words}", column.log.place()));
        is_to_go_on =
            column.died.is_some() && next.log.last != column.log.last && column.deaths.len() < DEATHS;
        column.log.go_on(next.log);
    }
    let failed = column.log.failed();
    if column.log.is_complete && (1..=SECOND_CHANCES).contains(&failed.len()) {
        eprintln!("kernel {version}: {} failed and run again by themselves", failed.len());
        keep(logs, version, "tests", "first")?;
        let harness = exactly(&failed);
        let second = guest(tools, kernel, &Contents { harness: &harness, ..*contents }, logs)?;
        column.log.second(&second.log);
        column.time += second.time;
    }
    Ok(column)
}

/// The arguments by which test binaries run just some tests.
fn exactly(tests: &[Test]) -> Vec<OsString> {
    std::iter::once("--exact".into()).chain(tests.iter().map(|test| test.name.clone().into())).collect()
}

/// Saves a log of a guest from being overwritten by the next.
fn keep(logs: &Path, version: &str, log: &str, which: &str) -> Result<()> {
    let (from, to) = (logs.join(format!("{version}.{log}")), logs.join(format!("{version}.{which}-{log}")));
    fs::rename(&from, &to).with_context(|| format!("rename {} to {}", from.display(), to.display()))
}

/// Runs one guest.
fn guest(tools: &Tools, kernel: &Kernel, contents: &Contents<'_>, logs: &Path) -> Result<Column> {
    let Kernel { version, image: _, modules } = kernel;
    let context = || format!("test kernel {version}");
    let initrd = logs.join(format!("{version}.initrd"));
    fs::write(&initrd, contents.archive(modules).with_context(context)?)
        .with_context(|| format!("write {}", initrd.display()))?;
    let mut is_second = false;
    loop {
        eprintln!("kernel {version} starts");
        let Ended { tests, console, time, in_time } =
            guest::run(tools, kernel, &initrd, logs).with_context(context)?;
        let log = Log::parse(&tests);
        let seconds = time.as_secs();
        let mut died = None;
        match (in_time, log.is_complete) {
            (true, true) => eprintln!("kernel {version} has ended after {seconds} s"),
            (true, false) => {
                let words = last_words(&console)?;
                eprintln!("kernel {version} died after {seconds} s, {}: {words}", log.place());
                died = Some(words);
            }
            (false, _) => eprintln!("kernel {version} took too long and was stopped after {seconds} s"),
        }
        if log.has_begun || is_second {
            let died = died.filter(|_| log.has_begun);
            return Ok(Column { version: version.clone(), log, time, died, deaths: Vec::new() });
        }
        keep(logs, version, "console", "first")?;
        eprintln!("kernel {version} had not begun a test and gets a second chance");
        is_second = true;
    }
}

/// The last thing of weight that a kernel said.
fn last_words(console: &Path) -> Result<String> {
    let bytes = fs::read(console).with_context(|| format!("read {}", console.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rfind(|line| line.contains("panic") || line.contains("PANIC"));
    Ok(line.or_else(|| text.lines().last()).unwrap_or("nothing was said").trim().to_owned())
}
