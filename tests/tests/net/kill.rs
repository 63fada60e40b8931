//! Killed after any step, the next `up` or `down` repairs.

use std::collections::BTreeSet;

use aya::{
    maps::loaded_maps,
    programs::{loaded_links, loaded_programs},
};
use veth_tests::{Lab, lab::eventually, topology::Declared};

/// More steps than any command has.
const STEPS_MAX: u32 = 200;

/// Kills a command after each of its steps and lets `repair` loose on what is left.
fn kill_after_every_step(args: &[&str], prepare: impl Fn(&Lab), repair: impl Fn(&Lab, u32)) {
    let lab = Lab::new();
    let before = lab.fingerprint();
    for step in 1..STEPS_MAX {
        prepare(&lab);
        let finished = lab.start(args, &[("VETH_STOP_AFTER", &step.to_string())]).finish();
        let killed = finished.was_killed();
        assert!(killed || finished.status.success(), "{args:?} step {step}: {finished:?}");
        repair(&lab, step);
        assert_eq!(lab.fingerprint(), before, "{args:?}, killed after step {step}");
        if !killed {
            assert!(step > 5, "{args:?} has steps");
            return;
        }
    }
    panic!("{args:?} has more than {STEPS_MAX} steps");
}

#[test]
fn down_repairs_a_killed_up() {
    let down = |lab: &Lab, _: u32| drop(lab.ok(&["down", "--all"]));
    kill_after_every_step(&["up"], |_| {}, down);
    kill_after_every_step(&["up", "--pods", "3"], |_| {}, down);
}

#[test]
fn up_repairs_a_killed_up() {
    kill_after_every_step(
        &["up", "--pods", "2"],
        |_| {},
        |lab, step| {
            lab.ok(&["up", "--pods", "2"]);
            let (one, two) = (lab.pod("switch-pod1"), lab.pod("switch-pod2"));
            let lost = veth_tests::traffic::udp(&one, &two, "10.200.0.2".parse().unwrap(), 100, 2);
            assert_eq!(lost, 0, "after step {step}");
            lab.ok(&["down"]);
        },
    );
}

#[test]
fn down_repairs_a_killed_down() {
    let up = |lab: &Lab| drop(lab.ok(&["up", "--pods", "3"]));
    kill_after_every_step(&["down"], up, |lab, _| drop(lab.ok(&["down", "--all"])));
}

#[test]
fn down_repairs_a_killed_run_and_no_bpf_object_is_left() {
    let lab = Lab::alone();
    let objects = || -> BTreeSet<String> {
        let programs = loaded_programs().map(|program| format!("program {}", program.unwrap().id()));
        let maps = loaded_maps().map(|map| format!("map {}", map.unwrap().id()));
        let links = loaded_links().map(|link| format!("link {}", link.unwrap().id()));
        programs.chain(maps).chain(links).collect()
    };
    let (before, host) = (objects(), lab.fingerprint());
    for step in [4, 9, 12, 15, 17, 18, 19, 20, 22, 24] {
        let finished = lab.start(&["run"], &[("VETH_STOP_AFTER", &step.to_string())]).finish();
        assert!(finished.was_killed(), "{finished:?}");
        lab.ok(&["down", "--all"]);
        assert_eq!(lab.fingerprint(), host, "step {step}");
        eventually("the kernel frees BPF objects a little later", || objects().is_subset(&before));
    }
}

#[test]
fn hurried_grace_periods_are_normal_again() {
    let lab = Lab::alone();
    let value = || std::fs::read_to_string("/sys/kernel/rcu_expedited").unwrap();
    let (before, host) = (value(), lab.fingerprint());
    assert_eq!(before.trim(), "0", "the machine hurries always: this test can say nothing");
    let up = &["up", "--pods", "12"];
    lab.ok(up);
    assert_eq!(value(), before, "after up");
    lab.ok(&["down"]);
    assert_eq!(value(), before, "after down");
    // In the middle of attaching, and of removing.
    let finished = lab.start(up, &[("VETH_STOP_AFTER", "57")]).finish();
    assert!(finished.was_killed() && value() != before, "{finished:?}");
    lab.ok(up);
    assert_eq!(value(), before, "up repairs");
    let finished = lab.start(&["down"], &[("VETH_STOP_AFTER", "4")]).finish();
    assert!(finished.was_killed() && value() != before, "{finished:?}");
    lab.ok(&["down", "--all"]);
    assert_eq!(value(), before, "down repairs");
    assert_eq!(lab.fingerprint(), host);
}

#[test]
fn a_lost_state_file_does_not_strand_what_it_spoke_of() {
    let lab = Lab::new();
    let before = lab.fingerprint();
    lab.ok(&["up"]);
    lab.run(|| std::fs::remove_dir_all("/run/veth").unwrap());
    assert!(lab.refused(&["up"]).contains("ns1 exists"), "not known to be ours any more");
    lab.ok(&["down", "wire"]);
    assert_eq!(lab.fingerprint(), before);
}

/// A switch of three pods.
const LAN: &str = "name = \"lab\"\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\", \"c\"]\n";

/// Killed after each step of a change, the next `up` reaches what is declared, or what was, and `down` nothing.
#[test]
fn a_killed_change_is_finished_undone_or_removed() {
    let lab = Lab::new();
    let empty = lab.fingerprint();
    let changed = "name = \"lab\"\n\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"d\"]\n\
                   \n[bridge.other]\nsubnet = \"10.2.0.0/24\"\npods = [\"a\", \"e\"]\ngateway = true\n";
    let (old, new) = (Declared::new(LAN), Declared::new(changed));
    lab.ok(&old.args("up"));
    let whole_old = lab.fingerprint();
    lab.ok(&["down"]);
    lab.ok(&new.args("up"));
    let whole_new = lab.fingerprint();
    lab.ok(&["down"]);
    for step in 1..200 {
        lab.ok(&old.args("up"));
        let finished = lab.start(&new.args("up"), &[("VETH_STOP_AFTER", &step.to_string())]).finish();
        let killed = finished.was_killed();
        assert!(killed || finished.status.success(), "step {step}: {finished:?}");
        match step % 3 {
            0 => {
                lab.ok(&new.args("up"));
                assert_eq!(lab.fingerprint(), whole_new, "finished after step {step}");
                assert!(lab.ok(&new.args("plan")).contains("nothing to do"), "after step {step}");
            }
            1 => {
                lab.ok(&old.args("up"));
                assert_eq!(lab.fingerprint(), whole_old, "undone after step {step}");
                assert!(lab.ok(&old.args("plan")).contains("nothing to do"), "after step {step}");
            }
            _ => {}
        }
        lab.ok(&["down", "--all"]);
        assert_eq!(lab.fingerprint(), empty, "after step {step}");
        if !killed {
            assert!(step > 20, "a change has steps");
            return;
        }
    }
    panic!("a change has more than 200 steps");
}
