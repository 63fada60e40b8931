//! Pods come and go by the thousand, and nothing is left of them.

use veth_user::topology::model::HookWish;

use super::{
    host::Host,
    kernel::{Holdings, Process},
    report::Report,
};
use crate::{Random, Running, variant::Build};

/// Pods that stay.
const PODS: usize = 2;

/// The largest batch.
const BATCH: usize = 24;

/// How much kernel memory may differ between two looks, in KiB, whatever the number of pods: slabs are filled and emptied.
const SLACK: u64 = 16 << 10;

/// How much our own may, in KiB.
const OWN_SLACK: u64 = 1 << 10;

/// How many pods come and go.
#[derive(Clone, Copy, Debug)]
pub struct Churn {
    /// Pods that are made and removed.
    pub pods: u64,
    /// Where random numbers begin.
    pub seed: u64,
}

/// Everything that could grow.
struct Look {
    kernel: Holdings,
    processes: Vec<(&'static str, Process)>,
}

impl Look {
    fn take(running: &[(&'static str, &Running)]) -> Self {
        let kernel = Holdings::settled();
        let processes = running.iter().map(|(name, running)| (*name, Process::of(running.pid()))).collect();
        Self { kernel, processes }
    }
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
    let before = Look::take(&running);
    while come_and_go(1) < options.pods / 2 {}
    let half = Holdings::settled().memory;
    while come_and_go(1 + random.below(BATCH)) < options.pods {}
    let after = Look::take(&running);
    let mut report = Report::default();
    report.at_least("pods made and removed", gone, options.pods);
    report.tell("kernel memory after half of them, KiB", half);
    report.flat("kernel memory, KiB", before.kernel.memory, after.kernel.memory, SLACK);
    report.flat("BPF programs, maps and links", before.kernel.objects, after.kernel.objects, 0);
    for ((name, before), (_, after)) in before.processes.iter().zip(&after.processes) {
        report.flat(format!("memory of `{name}`, KiB"), before.memory, after.memory, OWN_SLACK);
        let what = format!("descriptors of `{name}`");
        report.flat(what, before.descriptors, after.descriptors, 0);
    }
    drop((metrics, agent));
    host.leave(&[Build::Own], &empty, &mut report);
    report
}
