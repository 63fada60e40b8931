//! How soon the agent notices that a port is not what it was.

use std::time::{Duration, Instant};

use veth_common::FdbKey;
use veth_user::{datapath::Hook, topology::model::HookWish};

use super::{
    host::{Host, NAME},
    report::Report,
};
use crate::{
    lab::{PATIENCE, set_link},
    pair,
    variant::Build,
};

/// How long it may take.
const WANTED: Duration = Duration::from_millis(100);

/// How often, and among how many pods.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Follow {
    /// How often a link is changed, which is taken back each time
    #[arg(long, default_value_t = 100)]
    pub count: u64,
    /// Pods of the switch
    #[arg(long, default_value_t = 1_000)]
    pub pods: usize,
}

/// Sets a host end down and up again, and measures how long frames for its pod still go fast.
#[must_use]
pub fn follow(options: &Follow, progress: &dyn Fn(u64, u64)) -> Report {
    let host = Host::new(HookWish::Auto);
    let file = host.switch(options.pods);
    host.ok(Build::Own, &file.args("up"));
    let mut agent = host.start(Build::Own, &["agent"]);
    let _heading: String = agent.wait_for("following");
    let link = Host::namespace(2);
    let mac = pair::mac(&host.lab.pod(&link));
    let key = FdbKey { domain: 1, mac };
    // By clsact and TCX maps are the same.
    let hook = Hook::Clsact;
    let mut took = Vec::new();
    for number in 0..options.count {
        for (is_up, is_fast) in [(false, false), (true, true)] {
            let name = link.clone();
            took.push(host.lab.datapath(hook, NAME, move |datapath| {
                let change = Instant::now();
                set_link(&name, |link| if is_up { link.up() } else { link.down() });
                while datapath.fdb(key).is_some() != is_fast {
                    assert!(change.elapsed() < PATIENCE, "the agent does not notice");
                }
                change.elapsed()
            }));
        }
        progress(number + 1, options.count);
    }
    took.sort();
    let milliseconds = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
    let mut report = Report::default();
    report.tell("pods", options.pods);
    report.tell("changes of a link", took.len());
    report.tell("until it is followed, median, ms", milliseconds(took[took.len() / 2]));
    let longest = took[took.len() - 1];
    report.must("until it is followed, longest, ms", milliseconds(longest), "at most 100", longest <= WANTED);
    report
}
