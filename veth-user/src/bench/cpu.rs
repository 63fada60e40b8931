//! What the CPUs do meanwhile: by the kernel's own accounting.

use std::{fs, io, path::Path, time::Duration};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::{Pid, SysconfVar, sysconf},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The time that CPUs spent, all together, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spent {
    /// In user space.
    pub user: f64,
    /// In the kernel, for a process.
    pub system: f64,
    /// In the kernel, for interrupts and what they leave to do.
    pub softirq: f64,
    /// That the hypervisor gave to others.
    pub steal: f64,
}

impl Spent {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        let Self { user, system, softirq, steal } = other;
        self.user += user;
        self.system += system;
        self.softirq += softirq;
        self.steal += steal;
    }

    /// The part that somebody worked.
    #[must_use]
    pub fn busy(&self) -> f64 {
        self.user + self.system + self.softirq
    }
}

/// A moment in the life of all CPUs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    all: Spent,
    /// What this process and the kernel's own network threads took.
    own: Duration,
}

/// The kernel threads that do what is left of our own work.
#[derive(Clone, Debug)]
pub(super) struct Accounting {
    helpers: Vec<i32>,
    ticks: f64,
}

impl Accounting {
    pub(super) fn new() -> io::Result<Self> {
        let mut helpers = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name();
            if let Some(pid) = name.to_str().and_then(|name| name.parse().ok())
                && let Ok(command) = fs::read_to_string(entry.path().join("comm"))
                && command.starts_with("ksoftirqd/")
            {
                helpers.push(pid);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "it is 100")]
        let ticks = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100) as f64;
        Ok(Self { helpers, ticks })
    }

    pub(super) fn now(&self) -> io::Result<Moment> {
        let stat = fs::read_to_string("/proc/stat")?;
        let all = parse(&stat, self.ticks).ok_or_else(|| io::Error::other("/proc/stat is not understood"))?;
        let mut own = Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?);
        own += self.helpers.iter().filter_map(|pid| self.helper(*pid)).sum();
        Ok(Moment { all, own })
    }

    fn helper(&self, pid: i32) -> Option<Duration> {
        let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
        // Behind the name, which may hold anything: the state, ten fields, user and system time.
        let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(12)?.parse().ok()?;
        Some(Duration::from_secs_f64(ticks / self.ticks))
    }
}

impl Moment {
    /// What was spent from an earlier moment to this, and how much of it by others than us.
    pub(super) fn since(&self, earlier: &Self) -> (Spent, f64) {
        let (now, then) = (&self.all, &earlier.all);
        let spent = Spent {
            user: now.user - then.user,
            system: now.system - then.system,
            softirq: now.softirq - then.softirq,
            steal: now.steal - then.steal,
        };
        let own = self.own.saturating_sub(earlier.own).as_secs_f64();
        (spent, spent.busy() - own + spent.steal)
    }
}

/// The first line of `/proc/stat`.
fn parse(stat: &str, ticks: f64) -> Option<Spent> {
    let numbers: Vec<f64> =
        stat.lines().next()?.split_whitespace().skip(1).map_while(|number| number.parse().ok()).collect();
    let [user, nice, system, _idle, _waiting, irq, softirq, steal, ..] = numbers[..] else { return None };
    let seconds = |number: f64| number / ticks;
    Some(Spent {
        user: seconds(user + nice),
        system: seconds(system),
        softirq: seconds(irq + softirq),
        steal: seconds(steal),
    })
}

/// Binds the calling thread to a CPU.
pub(super) fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// The CPUs that this process may use, in order.
pub(super) fn allowed() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_counts() {
        let spent = parse("cpu  10 1 20 60 5 2 3 7 0 0\ncpu0 1 2\n", 100.0).unwrap();
        assert_eq!(spent, Spent { user: 0.11, system: 0.2, softirq: 0.05, steal: 0.07 });
        assert_eq!(parse("cpu  10 0", 100.0), None);
    }

    #[test]
    fn own_work_is_not_outside_load_and_that_of_others_is() {
        let moment =
            |user, own| Moment { all: Spent { user, ..Spent::default() }, own: Duration::from_secs_f64(own) };
        let (spent, outside) = moment(13.0, 3.5).since(&moment(10.0, 1.0));
        assert!((spent.busy() - 3.0).abs() < 1e-9 && (outside - 0.5).abs() < 1e-9);
    }

    #[test]
    fn this_machine_is_understood() {
        let accounting = Accounting::new().unwrap();
        let before = accounting.now().unwrap();
        let ours = || Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap());
        let start = ours();
        while ours() < start + Duration::from_millis(200) {}
        let (spent, outside) = accounting.now().unwrap().since(&before);
        assert!(spent.busy() > 0.1, "{spent:?}");
        assert!(outside < spent.busy() + spent.steal, "{outside} of {spent:?}");
        assert!(!allowed().unwrap().is_empty());
    }
}
