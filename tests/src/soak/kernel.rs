//! What the kernel says of itself.

use std::{fs, thread, time::Duration};

use aya::{
    maps::loaded_maps,
    programs::{loaded_links, loaded_programs},
};
use veth_user::net::Netns;

use super::report::Report;
use crate::Running;

/// Datagrams that sockets of a pod had no room for.
pub(super) fn receive_errors(pod: &Netns) -> u64 {
    snmp(pod, "Udp", "RcvbufErrors")
}

/// TCP segments that a pod sent again, and how many of those had arrived before, as the receiver said (RFC 2883): a sender
/// that does not run in time takes for lost what is not.
pub(super) fn retransmissions(pod: &Netns) -> [u64; 2] {
    [snmp(pod, "Tcp", "RetransSegs"), counter(pod, "netstat", "TcpExt", "TCPDSACKRecvSegs")]
}

fn snmp(pod: &Netns, protocol: &str, name: &str) -> u64 {
    counter(pod, "snmp", protocol, name)
}

/// A counter of a file in `/proc/net`: a line of names, then one of numbers.
fn counter(pod: &Netns, file: &str, protocol: &str, name: &str) -> u64 {
    let path = format!("/proc/thread-self/net/{file}");
    let text = pod.run(|| fs::read_to_string(path)).unwrap().unwrap();
    let prefix = format!("{protocol}:");
    let mut lines = text.lines().filter(|line| line.starts_with(&prefix));
    let (names, numbers) = (lines.next().unwrap(), lines.next().unwrap());
    let mut columns = names.split_whitespace().zip(numbers.split_whitespace());
    columns.find(|(column, _)| *column == name).unwrap().1.parse().unwrap()
}

/// Frames that the backlogs of all CPUs had no room for, since the machine was started.
#[must_use]
pub fn softnet_drops() -> u64 {
    let text = fs::read_to_string("/proc/net/softnet_stat").unwrap();
    let dropped = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
    text.lines().map(dropped).sum()
}

/// What the kernel holds for everybody on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holdings {
    /// Unreclaimable slab and memory by processor, in KiB.
    pub(super) memory: u64,
    /// BPF programs, maps and links.
    pub(super) objects: u64,
}

/// How long the kernel may take to free what nobody uses any more.
const SETTLE: Duration = Duration::from_secs(3);

impl Holdings {
    /// Once what is freed later has been freed.
    pub(super) fn settled() -> Self {
        thread::sleep(SETTLE);
        Self::now()
    }

    pub(super) fn now() -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap();
        let value = |name: &str| -> u64 {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let objects = loaded_programs().count() + loaded_maps().count() + loaded_links().count();
        Self {
            memory: value("SUnreclaim:") + value("Percpu:") + value("VmallocUsed:"),
            objects: objects.try_into().unwrap(),
        }
    }
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    /// Memory that is its own, in KiB.
    memory: u64,
    /// Open descriptors.
    descriptors: u64,
}

impl Process {
    fn of(pid: u32) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        // Some are open for a moment only.
        let descriptors = (0..5).map(|_| {
            thread::sleep(Duration::from_millis(100));
            fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
        });
        Self {
            memory: line.split_whitespace().nth(1).unwrap().parse().unwrap(),
            descriptors: descriptors.min().unwrap().try_into().unwrap(),
        }
    }
}

/// Everything that could grow.
pub(super) struct Look {
    kernel: Holdings,
    processes: Vec<(&'static str, Process)>,
}

/// How much memory may grow between two looks, in KiB.
#[derive(Clone, Copy)]
pub(super) struct Slack {
    pub(super) kernel: u64,
    pub(super) own: u64,
}

impl Look {
    /// Once what is freed later has been freed.
    pub(super) fn settled(running: &[(&'static str, &Running)]) -> Self {
        let kernel = Holdings::settled();
        let processes = running.iter().map(|(name, running)| (*name, Process::of(running.pid()))).collect();
        Self { kernel, processes }
    }

    /// Tells what has grown since.
    pub(super) fn tell_since(&self, before: &Self, slack: Slack, report: &mut Report) {
        let (old, new) = (before.kernel, self.kernel);
        report.flat("kernel memory, KiB", old.memory, new.memory, slack.kernel);
        report.flat("BPF programs, maps and links", old.objects, new.objects, 0);
        for ((name, old), (_, new)) in before.processes.iter().zip(&self.processes) {
            report.flat(format!("memory of `{name}`, KiB"), old.memory, new.memory, slack.own);
            report.flat(format!("descriptors of `{name}`"), old.descriptors, new.descriptors, 0);
        }
    }
}
