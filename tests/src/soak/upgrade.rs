//! A topology goes from build to build and back while traffic flows.

use serde_json::Value;

use super::{
    host::{Host, NAME, Sending, datagrams_of},
    kernel::Holdings,
    report::Report,
};
use crate::variant::Build;

/// Pods: traffic is between them.
const PODS: usize = 8;

/// How many upgrades, and how much to send meanwhile.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Upgrade {
    /// How many upgrades and downgrades, together
    #[arg(long, default_value_t = 200)]
    pub count: u64,
    /// What is sent meanwhile.
    #[command(flatten)]
    pub sending: Sending,
}

/// Upgrades, and accounts for all that was sent.
#[must_use]
pub fn upgrade(options: &Upgrade, progress: &dyn Fn(u64, u64)) -> Report {
    let Sending { datagrams, rate, hook } = options.sending;
    let host = Host::new(hook);
    let empty = host.lab.fingerprint();
    let file = host.switch(PODS);
    host.ok(Build::Own, &file.args("up"));
    let objects = Holdings::now().objects;
    let traffic = host.traffic(1, rate, 3);
    let mut report = Report::default();
    let (mut replaced, mut migrated, mut backwards, mut before) = (0, 0, 0, Vec::new());
    let mut build = Build::Own;
    for number in 0..options.count {
        // To another layout and back, and to other programs on the same layout and back.
        let next = [Build::Next, Build::Own, Build::Other, Build::Own][usize::try_from(number % 4).unwrap()];
        let out = host.ok(next, &["upgrade", NAME]);
        assert!(out.contains("is upgraded"), "{build:?} to {next:?}: {out}");
        if Build::Next == next || Build::Next == build {
            migrated += 1;
        } else {
            replaced += 1;
        }
        build = next;
        let now = counted(&host.stats(build));
        backwards += before.iter().zip(&now).filter(|(before, now)| now < before).count();
        before = now;
        progress(number + 1, options.count);
    }
    traffic.wait_for(datagrams);
    report.at_least("upgrades and downgrades", replaced + migrated, options.count);
    report.tell("of them on the same map layout", replaced);
    report.tell("of them to another map layout", migrated);
    let accounts = traffic.finish(&host, datagrams, &mut report);
    report.none("counters that went backwards", backwards.try_into().unwrap());
    host.ok(Build::Own, &["upgrade", NAME]);
    report.flat("BPF programs, maps and links", objects, Holdings::settled().objects, 0);
    host.check(Build::Own, &accounts, &mut report);
    host.leave(&[Build::Own], &empty, &mut report);
    report
}

/// Datagrams of each port.
fn counted(stats: &Value) -> Vec<u64> {
    stats["ports"].as_array().unwrap().iter().map(datagrams_of).collect()
}
