//! `veth why`: what is foretold is what happens.

use serde_json::Value;
use veth_common::FdbKey;
use veth_tests::{
    Lab, for_each_hook,
    lab::{delete_link, pod_link_stats, silence},
    need,
    pair::mac,
    topology::Declared,
    traffic::udp,
};
use veth_user::datapath::Hook;

for_each_hook!(what_is_foretold_is_what_happens);

const LAN: &str = "\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\", \"c\"]\n";

fn why(lab: &Lab, from: &str, to: &str) -> Value {
    serde_json::from_str(&lab.ok(&["why", from, to, "--json"])).unwrap()
}

fn step<'a>(answer: &'a Value, what: &str) -> &'a str {
    let steps = answer["steps"].as_array().unwrap();
    steps.iter().find(|step| step["what"] == what).map_or("", |step| step["found"].as_str().unwrap())
}

fn what_is_foretold_is_what_happens(hook: Hook) {
    let lab = Lab::new();
    let file = Declared::new(&format!("name = \"lab\"\nhook = \"{hook}\"\n{LAN}"));
    lab.ok(&file.args("up"));
    let (a, b) = (lab.pod("lab-a"), lab.pod("lab-b"));
    silence(&a);
    silence(&b);
    let answer = why(&lab, "lab/a", "b");
    assert!(step(&answer, "neighbour").contains("not known yet"), "{answer}");
    assert_eq!(answer["verdict"], "redirected", "{answer}");
    assert_eq!(udp(&a, &b, "10.1.0.2".parse().unwrap(), 100, 3), 0);
    let answer = why(&lab, "a", "lab/b");
    assert!(step(&answer, "neighbour").contains("learned"), "{answer}");
    assert!(step(&answer, "programs").contains("veth_"), "{answer}");
    assert!(step(&answer, "interface").contains("lab-b"), "{answer}");
    let conclusion = answer["conclusion"].as_str().unwrap();
    assert!(conclusion.contains("handed to b eth0"), "{answer}");
    assert_eq!(conclusion.contains("bpf_redirect_peer"), !hook.is_xdp(), "{answer}");

    // The map forgets an address: the bridge decides, and both say so.
    let key = FdbKey { domain: 1, mac: mac(&b) };
    lab.datapath(hook, "lab", move |datapath| datapath.remove_fdb(key).unwrap());
    let before = lab.quiet_stats("lab");
    let answer = why(&lab, "a", "10.1.0.2");
    assert_eq!(answer["conclusion"], "left to the slow path: unknown_destination", "{answer}");
    assert_eq!(udp(&a, &b, "10.1.0.2".parse().unwrap(), 100, 3), 0);
    let after = lab.quiet_stats("lab");
    let passed = |stats: &Value| stats["ports"][0]["passed_for"]["unknown_destination"].as_u64().unwrap();
    assert_eq!(passed(&after) - passed(&before), 3, "{hook}");

    // The far host end goes: its pod has no other end any more.
    lab.run(|| delete_link("lab-c"));
    let answer = why(&lab, "a", "c");
    assert!(step(&answer, "interface").contains("its host end is gone"), "{answer}");
    assert_eq!(answer["conclusion"], "left to the slow path: target_gone", "{answer}");
}

#[test]
fn every_kind_of_path_and_what_leads_nowhere() {
    let lab = Lab::new();
    let kinds = ["direct", "bridge", "route"];
    for (number, kind) in kinds.iter().enumerate() {
        let file = Declared::new(&format!(
            "name = \"{kind}\"\n\n[{kind}.p]\nsubnet = \"10.{number}.0.0/24\"\npods = [\"x\", \"y\"]\n"
        ));
        lab.ok(&file.args("up"));
    }
    for (kind, words) in
        kinds.iter().zip(["straight into", "the Linux bridge decides", "the host's routes decide"])
    {
        let answer = why(&lab, &format!("{kind}/x"), &format!("{kind}/y"));
        assert_eq!(answer["verdict"], "kernel", "{answer}");
        assert!(answer["conclusion"].as_str().unwrap().contains(words), "{answer}");
    }
    lab.ok(&["up"]);
    let answer = why(&lab, "ns1", "ns2");
    assert!(step(&answer, "target").contains("the other end of the wire"), "{answer}");
    assert_eq!(answer["verdict"], "redirected", "{answer}");
    let answer = why(&lab, "ns1", "192.0.2.1");
    assert_eq!(answer["verdict"], "not sent", "{answer}");
    assert!(step(&answer, "route").contains("unreachable"), "{answer}");
    let text = lab.ok(&["why", "ns1", "172.16.0.2"]);
    assert!(
        text.starts_with("wire/ns1 to 172.16.0.2 at 172.16.0.2\n") && text.contains("redirected"),
        "{text}"
    );
    for (args, expected) in [
        (["why", "ns1", "nobody"], "nobody is neither a pod that is up nor an IP address"),
        (["why", "nobody", "ns1"], "there is no pod nobody"),
        (["why", "x", "y"], "direct/x"),
    ] {
        let error = lab.refused(&args);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_probe_is_sent_and_seen() {
    if !need::kernel(6, 6, "TCX, by which a probe is seen") {
        return;
    }
    let lab = Lab::new();
    lab.ok(&["up"]);
    let two = lab.pod("ns2");
    // So that nothing answers.
    let _discard = two.run(|| std::net::UdpSocket::bind(("172.16.0.2", 9))).unwrap().unwrap();
    let before = pod_link_stats(&two, "eth0").rx_packets;
    let text = lab.ok(&["why", "ns1", "ns2", "--probe"]);
    let sent = text.split_once("sent a datagram:").unwrap().1;
    assert!(sent.contains("> 172.16.0.2:9 udp: redirected to wire/ns2 eth0 (peer)"), "{text}");
    if lab.redirect_peer().counts {
        assert!(pod_link_stats(&two, "eth0").rx_packets > before);
    }
    let answer: Value = serde_json::from_str(&lab.ok(&["why", "ns1", "ns2", "--probe", "--json"])).unwrap();
    assert_eq!(answer["probe"].as_array().unwrap().len(), 1, "{answer}");
}
