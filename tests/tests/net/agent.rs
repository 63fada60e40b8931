//! What happens to links while an agent follows, and while none does.

use std::{cell::Cell, os::fd::AsRawFd as _};

use rtnetlink::{LinkBridge, LinkMacVlan, LinkMessageBuilder, packet_route::link::MacVlanMode};
use serde_json::Value;
use veth_common::{FdbKey, Mac};
use veth_tests::{
    Lab, Running,
    fingerprint::assert_same,
    for_each_hook,
    foreign::{Foreign, Verdict},
    hook,
    lab::{add_link, add_namespace, delete_link, eventually, set_link, with_netlink},
    need,
    topology::Declared,
    traffic::udp,
};
use veth_user::{
    datapath::Hook,
    net::{
        ethtool::{Ethtool, Setting},
        link::Link,
    },
};

/// An agent that has looked at everything.
fn agent(lab: &Lab) -> Running {
    let mut agent = lab.start(&["agent"], &[]);
    agent.wait_for("following");
    agent
}

/// The address of a pod of a switch, as the programs look it up.
fn key(lab: &Lab, pod: usize) -> FdbKey {
    FdbKey { domain: 1, mac: Mac::new(declared(lab, pod)) }
}

/// The address that a pod was declared with.
fn declared(lab: &Lab, pod: usize) -> [u8; 6] {
    let list: Value = serde_json::from_str(&lab.ok(&["ls", "switch", "--json"])).unwrap();
    let text = list[0]["topology"]["pods"][pod]["ports"][0]["mac"].as_str().unwrap().to_owned();
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// Whether frames for a pod go straight to it.
fn is_fast(lab: &Lab, hook: Hook, key: FdbKey) -> bool {
    lab.datapath(hook, "switch", move |datapath| datapath.fdb(key).is_some())
}

/// Each thing that can be done to a pod and taken back, and who does it.
#[expect(clippy::type_complexity, reason = "a table of what is done and how it is taken back")]
fn events() -> Vec<(&'static str, fn(&Lab, Hook), fn(&Lab, Hook))> {
    vec![
        (
            "the host end is set down",
            |lab, _| lab.run(|| set_link("switch-pod2", LinkMessageBuilder::down)),
            |lab, _| lab.run(|| set_link("switch-pod2", LinkMessageBuilder::up)),
        ),
        (
            "the pod's end is set down",
            |lab, _| lab.pod("switch-pod2").run(|| set_link("eth0", LinkMessageBuilder::down)).unwrap(),
            |lab, _| lab.pod("switch-pod2").run(|| set_link("eth0", LinkMessageBuilder::up)).unwrap(),
        ),
        (
            "the host end leaves its bridge",
            |lab, _| lab.run(|| set_link("switch-pod2", LinkMessageBuilder::nocontroller)),
            |lab, hook| lab.up(hook, &["--pods", "3"]),
        ),
        (
            "the pod changes its address",
            |lab, _| {
                let change = || set_link("eth0", |link| link.address(vec![2, 0, 0, 0, 0, 9]));
                lab.pod("switch-pod2").run(change).unwrap();
            },
            |lab, _| {
                let mac = declared(lab, 1).to_vec();
                lab.pod("switch-pod2").run(move || set_link("eth0", |link| link.address(mac))).unwrap();
            },
        ),
        (
            "the host end is renamed",
            |lab, _| lab.run(|| rename("switch-pod2", "renamed")),
            |lab, _| lab.run(|| rename("renamed", "switch-pod2")),
        ),
        (
            "the host end is deleted",
            |lab, _| lab.run(|| delete_link("switch-pod2")),
            |lab, hook| lab.up(hook, &["--pods", "3"]),
        ),
        (
            "the bridge is deleted",
            |lab, _| {
                let is_bridge = |link: &Link| link.kind.as_deref() == Some("bridge");
                let bridge = lab.links().into_iter().find(is_bridge).unwrap().name;
                lab.run(move || delete_link(&bridge));
            },
            |lab, hook| lab.up(hook, &["--pods", "3"]),
        ),
    ]
}

/// Down it goes before, for kernels that rename no link that is up.
fn rename(link: &str, name: &str) {
    set_link(link, LinkMessageBuilder::down);
    set_link(link, |link| link.name(name.to_owned()));
    set_link(name, LinkMessageBuilder::up);
}

fn a_port_that_is_not_what_it_was_takes_the_slow_path(hook: Hook) {
    let lab = Lab::new();
    lab.up(hook, &["--pods", "3"]);
    let mut agent = agent(&lab);
    let key = key(&lab, 1);
    for (what, do_it, undo) in events() {
        assert!(is_fast(&lab, hook, key), "before {what}");
        do_it(&lab, hook);
        agent.wait_for("pod2/eth0: left to the slow path");
        // One change may be told of more than once: that was perhaps the one before.
        eventually(&format!("slow after {what}"), || !is_fast(&lab, hook, key));
        assert!(lab.ok(&["ls"]).contains("drifted"), "{what} is told");
        undo(&lab, hook);
        eventually(&format!("fast again after {what}"), || is_fast(&lab, hook, key));
    }
    let (one, three) = (lab.pod("switch-pod1"), lab.pod("switch-pod3"));
    assert_eq!(udp(&one, &three, "10.200.0.3".parse().unwrap(), 100, 10), 0);
}

/// Nothing has to run for that: the kernel empties the target's entry itself.
fn a_pod_that_goes_with_its_namespace_leaves_no_target(hook: Hook) {
    let lab = Lab::new();
    lab.up(hook, &["--pods", "2"]);
    let index = lab.link("switch-pod2").index;
    let slot = lab.datapath(hook, "switch", move |datapath| datapath.port(index).unwrap().slot);
    lab.run(|| veth_user::net::netns::remove("switch-pod2").unwrap());
    eventually("the kernel empties the entry", || {
        lab.datapath(hook, "switch", move |datapath| datapath.target(slot).is_none())
    });
}

/// The same for a host end that is moved to another namespace: to the kernel it is unregistered here.
fn a_host_end_that_is_moved_leaves_no_target(hook: Hook) {
    let lab = Lab::new();
    lab.up(hook, &["--pods", "2"]);
    let index = lab.link("switch-pod2").index;
    let slot = lab.datapath(hook, "switch", move |datapath| datapath.port(index).unwrap().slot);
    lab.run(|| {
        add_namespace("away");
        let away = std::fs::File::open("/run/netns/away").unwrap();
        set_link("switch-pod2", |link| link.setns_by_fd(away.as_raw_fd()));
    });
    assert_eq!(lab.datapath(hook, "switch", move |datapath| datapath.target(slot)), None);
    assert!(lab.ok(&["ls"]).contains("link switch-pod2 is gone"));
}

for_each_hook!(
    a_host_end_that_is_moved_leaves_no_target,
    a_port_that_is_not_what_it_was_takes_the_slow_path,
    a_pod_that_goes_with_its_namespace_leaves_no_target,
);

/// The index of a pod's end, in its namespace.
fn index_of_end() -> u32 {
    with_netlink(async |netlink| netlink.link("eth0").await.unwrap().index)
}

#[test]
fn frames_do_not_go_past_what_a_pod_does_with_its_link() {
    let lab = Lab::new();
    lab.up(Hook::Clsact, &["--pods", "2"]);
    let mut agent = agent(&lab);
    let key = key(&lab, 1);
    let redirect =
        |lab: &Lab| lab.datapath(Hook::Clsact, "switch", move |datapath| datapath.fdb(key).unwrap().redirect);
    let usual = redirect(&lab);
    let pod = lab.pod("switch-pod2");
    let mut with = |change: &dyn Fn(), undo: &dyn Fn()| {
        change();
        agent.wait_for("reached through its host end");
        assert_ne!(redirect(&lab), usual);
        undo();
        agent.wait_for("reached by peer redirect");
        assert_eq!(redirect(&lab), usual);
    };
    let bridge = || {
        add_link(LinkBridge::new("br0").build());
        let bridge = with_netlink(async |netlink| netlink.link("br0").await.unwrap().index);
        set_link("eth0", |link| link.controller(bridge));
    };
    with(&|| pod.run(bridge).unwrap(), &|| pod.run(|| delete_link("br0")).unwrap());
    let macvlan = || add_link(LinkMacVlan::new("mv0", index_of_end(), MacVlanMode::Bridge).build());
    with(&|| pod.run(macvlan).unwrap(), &|| pod.run(|| delete_link("mv0")).unwrap());
    let program = Cell::new(None);
    let attach = || program.set(Some(pod.run(|| Foreign::xdp(index_of_end(), Verdict::Next)).unwrap()));
    with(&attach, &|| drop(program.take()));
}

/// Without GRO or a program of its own, a pod's end takes no frames from XDP.
#[test]
fn a_pod_that_takes_away_what_xdp_needs_takes_the_slow_path() {
    if !hook::is_there(Hook::Xdp) {
        return;
    }
    let lab = Lab::new();
    lab.up(Hook::Xdp, &["--pods", "2"]);
    let mut agent = agent(&lab);
    let (one, two, key) = (lab.pod("switch-pod1"), lab.pod("switch-pod2"), key(&lab, 1));
    let gro = |on: bool| {
        let setting = Setting { feature: "rx-gro", on };
        two.run(|| Ethtool::open().unwrap().set_features("eth0", &[setting]).map(drop)).unwrap().unwrap();
    };
    gro(false);
    agent.wait_for("left to the slow path");
    assert!(!is_fast(&lab, Hook::Xdp, key));
    assert_eq!(udp(&one, &two, "10.200.0.2".parse().unwrap(), 100, 10), 0);
    gro(true);
    eventually("it is fast again", || is_fast(&lab, Hook::Xdp, key));
}

/// A wire has no slow path: its frames go out through the host end, where they meet what is there.
#[test]
fn a_wire_whose_far_end_is_down_goes_through_the_host_end() {
    let lab = Lab::new();
    let file =
        "name = \"wire\"\nhook = \"clsact\"\n[wire.cable]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\n";
    lab.ok(&Declared::new(file).args("up"));
    let mut agent = agent(&lab);
    let index = lab.link("wire-a").index;
    let redirect = |lab: &Lab| {
        lab.datapath(Hook::Clsact, "wire", move |datapath| datapath.port(index).unwrap().target.redirect)
    };
    let usual = redirect(&lab);
    lab.run(|| set_link("wire-b", LinkMessageBuilder::down));
    agent.wait_for("b/eth0: left to the slow path");
    assert_ne!(redirect(&lab), usual);
    lab.run(|| set_link("wire-b", LinkMessageBuilder::up));
    agent.wait_for("b/eth0: reached by peer redirect");
    assert_eq!(redirect(&lab), usual);
    let (a, b) = (lab.pod("wire-a"), lab.pod("wire-b"));
    assert_eq!(udp(&a, &b, "10.1.0.2".parse().unwrap(), 100, 10), 0);
}

#[test]
fn a_filter_that_was_removed_is_attached_again() {
    let lab = Lab::new();
    lab.up(Hook::Clsact, &["--pods", "2"]);
    let mut agent = agent(&lab);
    lab.remove_filters("switch-pod1");
    agent.wait_for("our program was not on switch-pod1 any more; it is again");
    assert!(lab.ok(&["ls"]).contains(" up"));
}

#[test]
fn an_agent_that_is_killed_changes_nothing() {
    let lab = Lab::new();
    lab.ok(&["up", "--pods", "2"]);
    let agent = agent(&lab);
    let before = lab.fingerprint();
    let (one, two) = (lab.pod("switch-pod1"), lab.pod("switch-pod2"));
    agent.signal(nix::sys::signal::Signal::SIGKILL);
    assert!(agent.finish().was_killed());
    assert_same(&before, &lab.fingerprint(), "the host");
    assert_eq!(udp(&one, &two, "10.200.0.2".parse().unwrap(), 100, 10), 0);
}

/// Topologies come, change and go under it, and it holds nothing of those that are gone.
#[test]
fn an_agent_follows_what_comes_and_lets_go_of_what_goes() {
    let lab = Lab::alone();
    let empty = lab.fingerprint();
    let programs = || aya::programs::loaded_programs().count() + aya::maps::loaded_maps().count();
    let before = programs();
    let mut agent = agent(&lab);
    for _ in 0..3 {
        lab.up(Hook::Clsact, &["--pods", "2"]);
        let key = key(&lab, 1);
        lab.run(|| set_link("switch-pod2", LinkMessageBuilder::down));
        agent.wait_for("left to the slow path");
        assert!(!is_fast(&lab, Hook::Clsact, key));
        lab.ok(&["down"]);
    }
    eventually("it lets go", || programs() <= before);
    drop(agent);
    assert_same(&empty, &lab.fingerprint(), "the host");
}

#[test]
fn a_foreign_program_in_a_pod_is_not_gone_past() {
    if !need::kernel(6, 6, "TCX") {
        return;
    }
    let lab = Lab::new();
    lab.ok(&["up", "--pods", "2"]);
    let (one, two) = (lab.pod("switch-pod1"), lab.pod("switch-pod2"));
    let foreign =
        two.run(|| Foreign::tcx(index_of_end(), veth_tests::foreign::Place::Last, Verdict::Next)).unwrap();
    assert_eq!(udp(&one, &two, "10.200.0.2".parse().unwrap(), 100, 10), 0);
    assert!(foreign.seen() >= 10, "the pod's own TC programs see what is redirected");
}
