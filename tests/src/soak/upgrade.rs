//! A topology goes from build to build and back while traffic flows.

use serde_json::Value;
use veth_user::topology::model::HookWish;

use super::{
    host::{Host, NAME, datagrams},
    kernel::Holdings,
    report::Report,
};
use crate::variant::Build;

/// Pods: traffic is between them.
const PODS: usize = 8;

/// How many upgrades, and how much to send meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Upgrade {
    /// Upgrades and downgrades, together.
    pub count: u64,
    /// Datagrams to send at least.
    pub datagrams: u64,
    /// Datagrams a second.
    pub rate: u64,
    /// By which programs.
    pub hook: HookWish,
}

/// Upgrades, and accounts for all that was sent.
#[must_use]
pub fn upgrade(options: &Upgrade, progress: &dyn Fn(u64, u64)) -> Report {
    let host = Host::new(options.hook);
    let empty = host.lab.fingerprint();
    let file = host.switch(PODS);
    host.ok(Build::Own, &file.args("up"));
    let objects = Holdings::now().objects;
    let traffic = host.traffic(1, options.rate, 3);
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
    traffic.wait_for(options.datagrams);
    report.at_least("upgrades and downgrades", replaced + migrated, options.count);
    report.tell("of them on the same map layout", replaced);
    report.tell("of them to another map layout", migrated);
    let accounts = traffic.finish(&host, options.datagrams, &mut report);
    report.none("counters that went backwards", backwards.try_into().unwrap());
    host.ok(Build::Own, &["upgrade", NAME]);
    report.flat("BPF programs, maps and links", objects, Holdings::settled().objects, 0);
    host.check(Build::Own, &accounts, &mut report);
    host.leave(&[Build::Own], &empty, &mut report);
    report
}

/// Datagrams of each port.
fn counted(stats: &Value) -> Vec<u64> {
    stats["ports"].as_array().unwrap().iter().map(datagrams).collect()
}
