//! Short forms of what `cargo xtask soak` does for long, but for those that measure how long something takes.

use clap::ValueEnum as _;
use veth_tests::{
    for_each_hook,
    soak::{self, Churn, Kill, Report, Upgrade},
};
use veth_user::{datapath::Hook, topology::model::HookWish};

/// Datagrams a second: any machine gets through those.
const RATE: u64 = 10_000;

for_each_hook!(nothing_is_lost_over_kills, nothing_is_lost_over_upgrades);

fn assert_is_met(report: &Report) {
    assert!(report.is_met(), "{report}");
}

fn nothing_is_lost_over_kills(hook: Hook) {
    let hook = HookWish::from_str(hook.name(), false).unwrap();
    assert_is_met(&soak::kill(&Kill { count: 25, datagrams: 20_000, rate: RATE, hook, seed: 1 }, &|_, _| {}));
}

fn nothing_is_lost_over_upgrades(hook: Hook) {
    let hook = HookWish::from_str(hook.name(), false).unwrap();
    assert_is_met(&soak::upgrade(&Upgrade { count: 8, datagrams: 20_000, rate: RATE, hook }, &|_, _| {}));
}

#[test]
fn nothing_grows_by_pods_that_come_and_go() {
    assert_is_met(&soak::churn(&Churn { pods: 60, seed: 1 }, &|_, _| {}));
}
