//! Short forms of what `cargo xtask soak` does for long, but for those that measure how long something takes.

use clap::ValueEnum as _;
use veth_tests::{
    for_each_hook,
    soak::{self, Churn, Kill, Report, Sending, Upgrade},
};
use veth_user::{datapath::Hook, topology::model::HookWish};

for_each_hook!(nothing_is_lost_over_kills, nothing_is_lost_over_upgrades);

/// As much as any machine gets through.
fn sending(hook: Hook) -> Sending {
    let hook = HookWish::from_str(hook.name(), false).unwrap();
    Sending { datagrams: 20_000, rate: 10_000, hook }
}

fn assert_is_met(report: &Report) {
    assert!(report.is_met(), "{report}");
}

fn nothing_is_lost_over_kills(hook: Hook) {
    assert_is_met(&soak::kill(&Kill { count: 25, sending: sending(hook), seed: 1 }, &|_, _| {}));
}

fn nothing_is_lost_over_upgrades(hook: Hook) {
    assert_is_met(&soak::upgrade(&Upgrade { count: 8, sending: sending(hook) }, &|_, _| {}));
}

#[test]
fn nothing_grows_by_pods_that_come_and_go() {
    assert_is_met(&soak::churn(&Churn { pods: 60, seed: 1 }, &|_, _| {}));
}
