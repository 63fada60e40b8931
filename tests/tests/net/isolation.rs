//! What belongs to others stays as it is, and keeps working beside ours.

use rtnetlink::{LinkBridge, LinkVeth};
use veth_tests::{
    Lab,
    foreign::{Foreign, Place, Verdict},
    lab::{add_link, add_namespace, set_link},
    need,
    traffic::udp,
};
use veth_user::{net::netns, topology::Topology};

#[test]
fn a_tcx_program_behind_ours_still_runs() {
    if !need::kernel(6, 6, "TCX") {
        return;
    }
    let lab = Lab::new();
    lab.ok(&["up", "--pods", "2"]);
    let (one, two) = (lab.pod("switch-pod1"), lab.pod("switch-pod2"));
    let index = lab.link("switch-pod1").index;
    let foreign = lab.run(move || Foreign::tcx(index, Place::Last, Verdict::Next));
    // First: what comes in between was seen by it, too.
    let seen = foreign.seen();
    let before = lab.quiet_stats("switch")["ports"][0].clone();
    assert_eq!(udp(&one, &two, "10.200.0.2".parse().unwrap(), 100, 5), 0);
    let after = lab.quiet_stats("switch")["ports"][0].clone();
    let passed = |port: &serde_json::Value| port["passed"]["packets"].as_u64().unwrap();
    assert!(passed(&after) > passed(&before), "the first exchange needs a broadcast");
    // TC_ACT_OK instead of TCX_NEXT would end the chain before it.
    assert!(foreign.seen() - seen >= passed(&after) - passed(&before));
}

#[test]
fn a_tcx_program_before_ours_sees_everything() {
    if !need::kernel(6, 6, "TCX") {
        return;
    }
    let lab = Lab::new();
    lab.ok(&["up"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    let index = lab.link("wire-ns1").index;
    let foreign = lab.run(move || Foreign::tcx(index, Place::First, Verdict::Next));
    assert_eq!(udp(&one, &two, "172.16.0.2".parse().unwrap(), 100, 50), 0);
    assert!(foreign.seen() >= 50);
}

#[test]
fn things_of_others_survive_up_and_down() {
    let lab = Lab::new();
    let group = Topology::wire("wire", 1_500).unwrap().group();
    lab.run(move || {
        add_namespace("theirs");
        add_link(LinkVeth::new("theirs0", "theirs1").build());
        add_link(LinkBridge::new("theirbr").build());
        // In the very group that ours will be deleted by.
        set_link("theirs0", |link| link.link_group(group).alias("mine".to_owned()).up());
        std::fs::create_dir("/sys/fs/bpf/theirs").unwrap();
    });
    let before = lab.fingerprint();
    lab.ok(&["up"]);
    lab.ok(&["down"]);
    assert_eq!(lab.fingerprint(), before);
    lab.ok(&["up"]);
    lab.ok(&["down", "--all"]);
    assert_eq!(lab.fingerprint(), before);
}

#[test]
fn a_namespace_that_was_replaced_by_somebody_else_is_not_removed() {
    let lab = Lab::new();
    lab.run(|| add_namespace("ns1"));
    let expected = lab.shape();
    lab.run(|| netns::remove("ns1").unwrap());
    lab.ok(&["up"]);
    lab.run(|| {
        netns::remove("ns1").unwrap();
        add_namespace("ns1");
    });
    let theirs = lab.pod("ns1").inode().unwrap();
    lab.ok(&["down"]);
    assert_eq!(lab.shape(), expected);
    assert_eq!(lab.pod("ns1").inode().unwrap(), theirs);
}

#[test]
fn other_roots_are_another_host() {
    let lab = Lab::new();
    let roots = &["--state-dir", "/run/other", "--pin-dir", "/sys/fs/bpf/other"];
    lab.run(|| {
        std::fs::create_dir("/run/other").unwrap();
        std::fs::create_dir("/sys/fs/bpf/other").unwrap();
    });
    let before = lab.fingerprint();
    lab.ok(&[&roots[..], &["up", "--name", "theirs"]].concat());
    let up = lab.fingerprint();
    assert!(lab.ok(&["down", "theirs"]).contains("theirs is not up"));
    assert!(lab.ok(&["down", "--all"]).contains("nothing is up"));
    assert_eq!(lab.fingerprint(), up, "not ours to remove");
    lab.ok(&[&roots[..], &["down"]].concat());
    assert_eq!(lab.fingerprint(), before, "and the folders stay, which are the user's");
}

#[test]
fn two_topologies_live_side_by_side() {
    let lab = Lab::new();
    let before = lab.fingerprint();
    lab.ok(&["up"]);
    lab.ok(&["up", "--pods", "3"]);
    lab.ok(&["up", "--name", "other"]);
    let list = lab.ok(&["ls"]);
    for name in ["wire", "switch", "other"] {
        assert!(list.contains(name), "{list}");
    }
    assert!(lab.refused(&["down"]).contains("several topologies"));
    let (one, two) = (lab.pod("other-ns1"), lab.pod("other-ns2"));
    lab.ok(&["down", "switch"]);
    assert_eq!(udp(&one, &two, "172.16.0.2".parse().unwrap(), 100, 10), 0, "not concerned");
    lab.ok(&["down", "--all"]);
    drop((one, two));
    assert_eq!(lab.fingerprint(), before);
}
