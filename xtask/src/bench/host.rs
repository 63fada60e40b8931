//! A throw-away host: a network namespace and a mount namespace, with an empty `/run`, a `/sys` of its own and an
//! empty bpffs. Everything that is made in it ends with the last process in it, however that ends.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// How long the machine is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Moves this thread, and the processes and threads that it starts, to a new one.
pub(super) fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("make namespaces of our own (this needs root)")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)
        .context("keep mounts to ourselves")?;
    for (kind, place) in [("tmpfs", "/run"), ("sysfs", "/sys"), ("bpf", "/sys/fs/bpf")] {
        mount(Some(kind), place, Some(kind), MsFlags::empty(), none)
            .with_context(|| format!("mount a {kind} on {place}"))?;
    }
    Ok(())
}

/// The machine that all hosts share, before anything is measured.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// The release of its kernel.
    pub(super) kernel: String,
    pub(super) cpus: usize,
    /// The share of its CPUs' time that others take, in percent.
    pub(super) busy: u64,
}

impl Machine {
    /// Looks at it for a while.
    pub(super) fn now() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        let times = || cpu_times(&read("/proc/stat")?).context("understand /proc/stat");
        let (idle, all) = times()?;
        thread::sleep(LOOK);
        let (later_idle, later_all) = times()?;
        let (idle, all) = (later_idle.saturating_sub(idle), later_all.saturating_sub(all).max(1));
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cpus: thread::available_parallelism().context("count the CPUs")?.get(),
            busy: 100 - 100 * idle.min(all) / all,
        })
    }

    /// Whether others take so much of it that times say little.
    pub(super) const fn is_busy(&self) -> bool {
        self.busy > 10
    }
}

/// Ticks that all CPUs were idle, and all ticks, from the first line of `/proc/stat`.
fn cpu_times(stat: &str) -> Option<(u64, u64)> {
    let ticks: Vec<u64> =
        stat.lines().next()?.split_whitespace().skip(1).map_while(|ticks| ticks.parse().ok()).collect();
    // User, nice, system, idle, waiting for a disk, …; guests are counted in user.
    Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().take(8).sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_counts() {
        assert_eq!(cpu_times("cpu  10 0 20 60 5 0 5 0 7 0\ncpu0 1 2\n"), Some((65, 100)));
        assert_eq!(cpu_times("cpu  10 0"), None);
    }
}
