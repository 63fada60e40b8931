//! Topologies that nobody would have thought of: up, nothing left to plan, a live check, a change, and down without a
//! trace. `VETH_RANDOM=2000 cargo xtask test net -- random::` tries more; a failure prints the seed and the file.

use std::{collections::BTreeSet, fmt::Write as _};

use veth_tests::{Lab, Random, need, topology::Declared};

/// How many are tried, of all tests together.
const USUAL: u64 = 100;

/// Tests that share them, to run side by side.
const SHARES: u64 = 4;

/// Pods that a topology has at most.
const PODS: usize = 6;

/// The text of a valid topology file.
fn file(random: &mut Random) -> String {
    let mut text = "name = \"r\"\n".to_owned();
    let is_new = need::is_at_least(6, 6);
    if is_new && random.one_in(3) {
        let hook = ["tcx", "clsact", "xdp"][random.below(3)];
        writeln!(text, "hook = \"{hook}\"").unwrap();
    }
    let mut switches: Vec<String> = Vec::new();
    let mut on_switches: BTreeSet<usize> = BTreeSet::new();
    let mut extra = String::new();
    for number in 0..=random.below(3) {
        let kind = ["switch", "bridge", "switch", "route", "wire", "direct"][random.below(6)];
        let name = format!("p{number}");
        let is_pair = matches!(kind, "wire" | "direct");
        let is_switch = matches!(kind, "switch" | "bridge");
        let is_joined = is_switch && !switches.is_empty() && on_switches.len() < PODS && random.one_in(2);
        // A pod with two ports on one network would answer from the wrong one.
        let mut pods: Vec<usize> = (0..PODS).filter(|pod| !is_joined || !on_switches.contains(pod)).collect();
        let count = if is_pair { 2 } else { 1 + random.below(5) };
        while pods.len() > count {
            pods.remove(random.below(pods.len()));
        }
        if is_switch {
            on_switches.extend(&pods);
        }
        let pods: Vec<String> = pods.iter().map(|pod| format!("\"n{pod}\"")).collect();
        writeln!(text, "\n[{kind}.{name}]\npods = [{}]", pods.join(", ")).unwrap();
        if is_joined {
            let other = &switches[random.below(switches.len())];
            writeln!(extra, "\n[link.l{number}]\nbetween = [\"{other}\", \"{name}\"]").unwrap();
        } else if random.one_in(2) {
            writeln!(text, "subnet = [\"10.{number}.0.0/24\", \"fd00:{number}::/64\"]").unwrap();
        }
        if is_switch {
            if !is_joined && random.one_in(3) {
                writeln!(text, "{}", ["gateway = true", "outside = true"][random.below(2)]).unwrap();
            } else if random.one_in(4) {
                writeln!(extra, "\n[link.h{number}]\nbetween = [\"{name}\", \"host\"]").unwrap();
            }
            switches.push(name.clone());
        }
        if kind == "switch" && random.one_in(3) {
            writeln!(text, "spoof_check = true").unwrap();
        }
        if random.one_in(3) {
            writeln!(text, "counters = true").unwrap();
        }
        if is_switch && random.one_in(3) {
            writeln!(text, "neighbours = true").unwrap();
        }
        if !is_joined && random.one_in(3) && switches.len() < 2 {
            writeln!(text, "mtu = {}", [1_280, 3_000, 9_000][random.below(3)]).unwrap();
        }
        if random.one_in(4) {
            writeln!(text, "tune = {{ gro = true, big_tcp = {} }}", is_new && random.one_in(2)).unwrap();
        }
    }
    text + &extra
}

fn share(number: u64) {
    let count = std::env::var("VETH_RANDOM").map_or(USUAL, |text| text.parse().unwrap());
    let first: u64 = std::env::var("VETH_RANDOM_SEED").map_or(1, |text| text.parse().unwrap());
    for seed in (first..first + count).filter(|seed| seed % SHARES == number) {
        let mut random = Random::new(seed);
        let texts = [file(&mut random), file(&mut random)];
        let tried = std::panic::catch_unwind(|| one(&texts));
        assert!(tried.is_ok(), "seed {seed}:\n{}\nthen\n{}", texts[0], texts[1]);
    }
}

fn one(texts: &[String; 2]) {
    let lab = Lab::new();
    let before = lab.fingerprint();
    let declared = Declared::new(&texts[0]);
    for text in texts {
        declared.write(text);
        lab.ok(&declared.args("up"));
        let plan = lab.ok(&declared.args("plan"));
        assert!(plan.contains("nothing to do"), "{plan}");
        lab.ok(&["check", "--live", "r", "--transfer", "10ms"]);
    }
    lab.ok(&["down"]);
    assert_eq!(lab.fingerprint(), before);
}

#[test]
fn topologies_of_the_first_share() {
    share(0);
}

#[test]
fn topologies_of_the_second_share() {
    share(1);
}

#[test]
fn topologies_of_the_third_share() {
    share(2);
}

#[test]
fn topologies_of_the_fourth_share() {
    share(3);
}
