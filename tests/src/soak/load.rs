//! A busy host for a long time: many pods, mixed traffic, a pod that comes or goes every second, upgrades.

use std::{
    thread,
    time::{Duration, Instant},
};

use veth_user::topology::model::HookWish;

use super::{
    host::{Host, NAME},
    kernel::{Look, Slack},
    report::Report,
};
use crate::variant::Build;

/// Pods, all with traffic.
const PODS: usize = 32;

/// Flows of datagrams, between half of the pods; the others carry TCP.
const FLOWS: usize = 8;

/// How often a pod comes or goes.
const CHURN: Duration = Duration::from_secs(1);

/// How much memory may grow.
const SLACK: Slack = Slack { kernel: 64 << 10, own: 2 << 10 };

/// How long, and how busy.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Load {
    /// How long
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    pub duration: Duration,
    /// Datagrams a second, all flows together
    #[arg(long, default_value_t = 20_000)]
    pub rate: u64,
    /// How often the programs are replaced
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    pub upgrade_every: Duration,
}

/// Keeps a host busy, and accounts for everything.
#[must_use]
pub fn load(options: &Load, progress: &dyn Fn(u64, u64)) -> Report {
    let host = Host::new(HookWish::Auto);
    let empty = host.lab.fingerprint();
    let (usual, more) = (host.switch(PODS), host.switch(PODS + 1));
    let (usual, more) = (usual.args("up"), more.args("up"));
    host.ok(Build::Own, &usual);
    let metrics = host.start(Build::Own, &["metrics", "--listen", "127.0.0.1:0"]);
    let agent = host.start(Build::Own, &["agent"]);
    let traffic = host.traffic(FLOWS, options.rate / u64::try_from(FLOWS).unwrap(), PODS / 2 - FLOWS);
    // Everybody has what he needs by then, and follows what he can read.
    let warm = options.duration.min(Duration::from_mins(1)) / 8;
    let running = [("metrics", &metrics), ("agent", &agent)];
    let (start, mut last) = (Instant::now(), Instant::now());
    let (mut churned, mut upgrades, mut before) = (0, 0, None);
    while start.elapsed() < options.duration {
        let begun = Instant::now();
        host.ok(build_of(upgrades), if churned % 2 == 0 { &more } else { &usual });
        churned += 1;
        if last.elapsed() >= options.upgrade_every {
            upgrades += 1;
            last = Instant::now();
            let out = host.ok(build_of(upgrades), &["upgrade", NAME]);
            assert!(out.contains("is upgraded"), "{out}");
        }
        let is_usual = churned % 2 == 0 && build_of(upgrades) == Build::Own;
        if before.is_none() && start.elapsed() >= warm && is_usual {
            before = Some(Look::settled(&running));
        }
        progress(start.elapsed().as_secs(), options.duration.as_secs());
        thread::sleep(CHURN.saturating_sub(begun.elapsed()));
    }
    host.ok(Build::Own, &usual);
    let mut report = Report::default();
    report.tell("seconds", start.elapsed().as_secs());
    report.tell("pods that came or went", churned);
    report.tell("upgrades and downgrades", upgrades);
    let before = before.expect("it lasts longer than it takes to become warm");
    let wanted = options.rate * options.duration.as_secs() * 8 / 10;
    let accounts = traffic.finish(&host, wanted, &mut report);
    Look::settled(&running).tell_since(&before, SLACK, &mut report);
    host.check(Build::Own, &accounts, &mut report);
    drop((metrics, agent));
    host.leave(&[Build::Own], &empty, &mut report);
    report
}

/// Which build runs after so many upgrades.
fn build_of(upgrades: usize) -> Build {
    [Build::Own, Build::Next, Build::Own, Build::Other][upgrades % 4]
}
