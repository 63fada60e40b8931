//! Processes that are measured, and signals that end a measurement in an orderly way.

use std::{
    fs::{self, File},
    io,
    ops::AddAssign,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction},
    unistd::Pid,
};

/// Whether a signal has asked us to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What processes print, in the folder that only the throw-away host has.
const OUTPUT: &str = "/run/bench.out";

/// What a process took, or several one after the other.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// From before its start until after its end.
    pub(super) wall: Duration,
    /// The peak of resident memory, in bytes: of the largest process if it had children.
    pub(super) memory: u64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, Self { wall, memory }: Self) {
        self.wall += wall;
        self.memory = self.memory.max(memory);
    }
}

/// From now on, signals that ask to end only make the next [`check`] fail.
///
/// What is being measured is not killed: veth rolls back and puts the machine's settings back when it is asked to
/// end. Everything else that it made is gone with the throw-away host.
pub(super) fn listen() -> Result<()> {
    extern "C" fn note(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    // No SA_RESTART: waiting for a process must end, to hand the signal on.
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler stores to an atomic, which is safe at any point.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("listen for {signal}"))?;
    }
    Ok(())
}

/// Fails after a signal.
pub(super) fn check() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted; nothing is left behind");
    Ok(())
}

/// Runs a command, which must succeed, and measures it.
pub(super) fn measure(command: &mut Command) -> Result<Usage> {
    measure_and_read(command).map(|(usage, _)| usage)
}

/// Runs a command, which must succeed, measures it, and returns what it printed.
pub(super) fn measure_and_read(command: &mut Command) -> Result<(Usage, String)> {
    check()?;
    // A file, not a pipe, so that nobody has to read while the process runs.
    let output = File::create(OUTPUT).with_context(|| format!("create {OUTPUT}"))?;
    let errors = output.try_clone().with_context(|| format!("open {OUTPUT} again"))?;
    command.stdout(output).stderr(errors);
    // What this is for is that std forks where it would call `posix_spawn`: the kernel counts the memory that a
    // process has when it executes a program, and one that is spawned has all of ours until then. One that is
    // forked has a copy without mapped files.
    // SAFETY: it does nothing.
    unsafe { command.pre_exec(|| Ok(())) };
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("run {command:?}"))?;
    let (status, memory) = wait(child.id()).with_context(|| format!("wait for {command:?}"))?;
    let wall = start.elapsed();
    check()?;
    let printed = fs::read_to_string(OUTPUT).with_context(|| format!("read {OUTPUT}"))?;
    if !status.success() {
        bail!("{command:?}: {status}: {}", printed.trim());
    }
    Ok((Usage { wall, memory }, printed))
}

/// A command whose input is a file.
pub(super) fn fed(program: impl AsRef<Path>, input: &Path) -> Result<Command> {
    let mut command = Command::new(program.as_ref());
    command.stdin(File::open(input).with_context(|| format!("open {}", input.display()))?);
    Ok(command)
}

/// What a process that does nothing is said to need at its peak: it begins as a copy of our own memory.
pub(super) fn least_memory() -> Result<u64> {
    Ok(measure(Command::new("true").stdin(Stdio::null()))?.memory)
}

/// Waits for a child; returns how it ended and its peak memory in bytes.
fn wait(child: u32) -> Result<(ExitStatus, u64)> {
    let pid = Pid::from_raw(child.try_into().context("the process has no number")?);
    let (mut status, mut told) = (0, false);
    // SAFETY: all its fields are integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live values of the types that the kernel fills.
        let result = unsafe { libc::wait4(pid.as_raw(), &raw mut status, 0, &raw mut usage) };
        match Errno::result(result) {
            Ok(_) => break,
            Err(Errno::EINTR) => {
                // Ctrl-C has reached it already; other signals have not.
                if !told && check().is_err() {
                    told = true;
                    let _unused: nix::Result<()> = kill(pid, Signal::SIGTERM);
                }
            }
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
    let kibibytes = u64::try_from(usage.ru_maxrss).unwrap_or_default();
    Ok((ExitStatus::from_raw(status), kibibytes * 1024))
}
