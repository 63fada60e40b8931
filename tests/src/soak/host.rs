//! A throw-away host with one switch, and traffic on it.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use veth_user::{datapath::Hook, net::Netns, topology::model::HookWish};

use super::{
    flow::{Account, Flow},
    kernel,
    report::Report,
    stream::Stream,
};
use crate::{
    Finished, Lab, Running,
    topology::Declared,
    variant::{Build, Builds},
};

/// How long a command may take on a machine that may be busy with anything.
const PATIENCE: Duration = Duration::from_mins(3);

/// The topology that traffic is on.
pub(super) const NAME: &str = "soak";

/// What is sent while something is done.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Sending {
    /// Datagrams to send at least
    #[arg(long, default_value_t = 10_000_000)]
    pub datagrams: u64,
    /// Datagrams a second
    #[arg(long, default_value_t = 60_000)]
    pub rate: u64,
    /// Where programs are attached
    #[arg(long, value_enum, default_value_t)]
    pub hook: HookWish,
}

/// A host with a switch of pods `p1`, `p2`, …, of which the first do not change.
pub(super) struct Host {
    pub(super) lab: Lab,
    builds: Builds,
    hook: &'static str,
}

/// Traffic between the first pods.
pub(super) struct Traffic {
    flows: Vec<Flow>,
    streams: Vec<Stream>,
    senders: Vec<String>,
    softnet: u64,
    retransmissions: [u64; 2],
}

impl Host {
    pub(super) fn new(hook: HookWish) -> Self {
        let hook = Option::<Hook>::from(hook).map_or("auto", Hook::name);
        Self { lab: Lab::alone(), builds: Builds::new(), hook }
    }

    /// The file of the switch with so many pods.
    pub(super) fn switch(&self, pods: usize) -> Declared {
        let names: Vec<String> = (1..=pods).map(|pod| format!("\"p{pod}\"")).collect();
        Declared::new(&format!(
            "name = \"{NAME}\"\nhook = \"{}\"\n[switch.lan]\nsubnet = \"10.9.0.0/20\"\npods = [{}]\n",
            self.hook,
            names.join(", ")
        ))
    }

    /// Starts a command of a build.
    pub(super) fn start(&self, build: Build, args: &[&str]) -> Running {
        let env = self.builds.env(build);
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.lab.start(args, &env)
    }

    /// Runs a command of a build to its end.
    pub(super) fn run(&self, build: Build, args: &[&str]) -> Finished {
        self.start(build, args).finish_within(PATIENCE)
    }

    /// Runs a command that must succeed.
    pub(super) fn ok(&self, build: Build, args: &[&str]) -> String {
        let finished = self.run(build, args);
        assert!(finished.status.success(), "veth {args:?} of {build:?}: {finished:?}");
        finished.out
    }

    /// Takes everything down by builds, and tells what is there beside what was.
    pub(super) fn leave(&self, builds: &[Build], before: &[String], report: &mut Report) {
        for build in builds {
            // What another build has interrupted may be for that one to remove.
            let _unused: Finished = self.run(*build, &["down", "--all"]);
        }
        let left = self.lab.fingerprint();
        let more: Vec<&String> = left.iter().filter(|thing| !before.contains(thing)).collect();
        report.must("things left after `down --all`", format!("{more:?}"), "[]", more.is_empty());
    }

    /// The name of a pod's namespace.
    pub(super) fn namespace(pod: usize) -> String {
        format!("{NAME}-p{pod}")
    }

    /// The counters of all ports, by a veth of a build.
    pub(super) fn stats(&self, build: Build) -> Value {
        let all: Value = serde_json::from_str(&self.ok(build, &["stats", NAME, "--json"])).unwrap();
        all[0].clone()
    }

    /// Starts flows of datagrams (1 to 2, 3 to 4, …) at a rate each, and TCP flows between the pods behind those.
    pub(super) fn traffic(&self, flows: usize, rate: u64, streams: usize) -> Traffic {
        let address = |pod: usize| -> IpAddr { format!("10.9.0.{pod}").parse().unwrap() };
        let pod = |pod: usize| self.lab.pod(&Self::namespace(pod));
        let senders: Vec<usize> = (0..flows + streams).map(|flow| 2 * flow + 1).collect();
        let names = senders.iter().map(|sender| Self::namespace(*sender)).collect();
        let retransmissions = again(senders.iter().map(|sender| pod(*sender)));
        Traffic {
            softnet: kernel::softnet_drops(),
            retransmissions,
            senders: names,
            streams: senders[flows..]
                .iter()
                .map(|from| Stream::start(&pod(*from), &pod(from + 1), address(from + 1)))
                .collect(),
            flows: senders[..flows]
                .iter()
                .map(|from| Flow::start(&pod(*from), pod(from + 1), address(from + 1), rate))
                .collect(),
        }
    }

    /// Looks whether it is whole, and whether counters say what was sent and received.
    pub(super) fn check(&self, build: Build, accounts: &[Account], report: &mut Report) {
        let list: Value = serde_json::from_str(&self.ok(build, &["ls", NAME, "--json"])).unwrap();
        let status = list[0]["status"].as_str().unwrap_or("not there").to_owned();
        report.must("status at the end", &status, "up", status == "up");
        let counters = self.stats(build);
        let (mut counted, mut sent, mut dropped) = (0, 0, 0);
        let ports = counters["ports"].as_array().unwrap();
        for (flow, account) in accounts.iter().enumerate() {
            let sender = format!("p{}", 2 * flow + 1);
            let port = ports.iter().find(|port| port["pod"] == sender.as_str()).unwrap();
            counted += datagrams_of(port).abs_diff(account.sent);
            sent += account.sent;
        }
        // What a bridge keeps from the host is no loss of a pod's.
        for port in ports.iter().filter(|port| !port["pod"].is_null()) {
            let reasons = port["dropped"].as_object().unwrap().values();
            dropped += reasons.map(|sum| sum["packets"].as_u64().unwrap()).sum::<u64>();
        }
        report.none(format!("difference of counters to {sent} datagrams sent"), counted);
        report.none("frames of pods dropped by us", dropped);
    }
}

/// How many datagrams of UDP over IPv4 came from a port, as its JSON says.
pub(super) fn datagrams_of(port: &Value) -> u64 {
    let udp = &port["protocols"]["ipv4_udp"];
    let count = |way: &str| udp[way]["packets"].as_u64().unwrap_or_default();
    count("redirected") + count("passed")
}

/// What pods sent again by TCP, and how much of it for nothing.
fn again(pods: impl Iterator<Item = Netns>) -> [u64; 2] {
    pods.map(|pod| kernel::retransmissions(&pod)).fold([0, 0], |[a, b], [c, d]| [a + c, b + d])
}

impl Traffic {
    /// How many datagrams were sent until now.
    pub(super) fn sent(&self) -> u64 {
        self.flows.iter().map(Flow::sent).sum()
    }

    /// Waits until so many datagrams were sent.
    pub(super) fn wait_for(&self, datagrams: u64) {
        let mut before = (self.sent(), Instant::now());
        while self.sent() < datagrams {
            thread::sleep(Duration::from_millis(100));
            if self.sent() > before.0 {
                before = (self.sent(), Instant::now());
            }
            assert!(before.1.elapsed() < crate::lab::PATIENCE, "nothing is sent any more");
        }
    }

    /// Ends it, and accounts for all of it.
    pub(super) fn finish(self, host: &Host, least: u64, report: &mut Report) -> Vec<Account> {
        let streams = self.streams.len();
        let bytes: u64 = self.streams.into_iter().map(Stream::finish).sum();
        let accounts: Vec<Account> = self.flows.into_iter().map(Flow::finish).collect();
        let mut all = Account::default();
        for account in &accounts {
            all.add(*account);
        }
        all.tell(report, least, kernel::softnet_drops() - self.softnet);
        report.tell(format!("bytes over {streams} TCP flows, all as they were sent"), bytes);
        let [sent, doubled] = again(self.senders.iter().map(|sender| host.lab.pod(sender)));
        let [sent_before, doubled_before] = self.retransmissions;
        let (sent, doubled) = (sent - sent_before, doubled - doubled_before);
        report.tell("TCP segments sent again", sent);
        report.none("of them not for nothing: lost before", sent.saturating_sub(doubled));
        accounts
    }
}
