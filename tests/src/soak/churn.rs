//! Pods come and go by the thousand, and nothing is left of them.

use veth_user::topology::model::HookWish;

use super::{
    host::Host,
    kernel::{Holdings, Look, Slack},
    report::Report,
};
use crate::{Random, variant::Build};

/// Pods that stay.
const PODS: usize = 2;

/// The largest batch.
const BATCH: usize = 24;

/// How much memory may differ between two looks, whatever the number of pods: slabs are filled and emptied.
const SLACK: Slack = Slack { kernel: 16 << 10, own: 1 << 10 };

/// How many pods come and go.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Churn {
    /// How many pods are made and removed
    #[arg(long, default_value_t = 10_000)]
    pub pods: u64,
    /// Where random numbers begin
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Half of them come and go one after the other, half in random batches.
#[must_use]
pub fn churn(options: &Churn, progress: &dyn Fn(u64, u64)) -> Report {
    let host = Host::new(HookWish::Auto);
    let empty = host.lab.fingerprint();
    let mut random = Random::new(options.seed);
    let bare = host.switch(PODS);
    let bare = bare.args("up");
    host.ok(Build::Own, &bare);
    let metrics = host.start(Build::Own, &["metrics", "--listen", "127.0.0.1:0"]);
    let agent = host.start(Build::Own, &["agent"]);
    let running = [("metrics", &metrics), ("agent", &agent)];
    let mut gone = 0;
    let mut come_and_go = |batch: usize| {
        let file = host.switch(PODS + batch);
        host.ok(Build::Own, &file.args("up"));
        host.ok(Build::Own, &bare);
        gone += u64::try_from(batch).unwrap();
        progress(gone, options.pods);
        gone
    };
    // The first few fill slabs and caches.
    for _ in 0..3 {
        come_and_go(BATCH);
    }
    let before = Look::settled(&running);
    while come_and_go(1) < options.pods / 2 {}
    let half = Holdings::settled().memory;
    while come_and_go(1 + random.below(BATCH)) < options.pods {}
    let after = Look::settled(&running);
    let mut report = Report::default();
    report.at_least("pods made and removed", gone, options.pods);
    report.tell("kernel memory after half of them, KiB", half);
    after.tell_since(&before, SLACK, &mut report);
    drop((metrics, agent));
    host.leave(&[Build::Own], &empty, &mut report);
    report
}
