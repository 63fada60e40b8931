//! Killed after any step of any command that changes something, the next `up` or `down` repairs, and what others have
//! beside ours stays as it is.

use std::{thread, time::Duration};

use nix::sys::signal::Signal;
use rtnetlink::LinkMessageBuilder;
use veth_tests::{
    Lab, fingerprint::assert_same, for_each_hook, lab::set_link, need, planted::Planted, topology::Declared,
};
use veth_user::datapath::Hook;

/// More steps than any command has.
const STEPS_MAX: u32 = 300;

/// Kills a command after each of its steps, lets `repair` loose on what is left, and says how many steps there were.
fn kill_after_every_step<T>(
    lab: &Lab,
    args: &[&str],
    prepare: impl Fn(&Lab) -> T,
    repair: impl Fn(&Lab, u32),
) -> u32 {
    let before = lab.fingerprint();
    for step in 1..STEPS_MAX {
        let _prepared: T = prepare(lab);
        let finished = lab.start(args, &[("VETH_STOP_AFTER", &step.to_string())]).finish();
        let killed = finished.was_killed();
        // 10: the doctor has found something that could be better.
        let is_done = matches!(finished.status.code(), Some(0 | 10));
        assert!(killed || is_done, "{args:?} step {step}: {finished:?}");
        repair(lab, step);
        assert_same(&before, &lab.fingerprint(), &format!("{args:?}, killed after step {step}"));
        if !killed {
            return step - 1;
        }
    }
    panic!("{args:?} has more than {STEPS_MAX} steps");
}

/// Every kind of path but an Open vSwitch, a cable, and all that belongs to forwarding.
const EVERYTHING: &str = r#"
name = "lab"

[wire.patch]
subnet = "10.1.0.0/24"
pods = ["a", "b"]

[switch.lan]
subnet = ["10.2.0.0/24", "fd00:2::/64"]
pods = ["a", "c"]
spoof_check = true
outside = true

[route.fabric]
subnet = ["10.3.0.0/24", "fd00:3::/64"]
pods = ["b"]

[direct.pair]
subnet = "10.4.0.0/24"
pods = ["b", "c"]
counters = true

[bridge.back]
subnet = "10.5.0.0/24"
pods = ["c"]

[link.leg]
between = ["back", "host"]
"#;

#[test]
fn down_repairs_a_killed_up_of_everything() {
    let lab = Lab::new();
    let others = Planted::plant(&lab, "lab");
    let file = Declared::new(EVERYTHING);
    let down = |lab: &Lab, _: u32| drop(lab.ok(&["down", "--all"]));
    let steps = kill_after_every_step(&lab, &file.args("up"), |_| {}, down);
    assert!(steps > 40, "{steps}");
    others.check();
}

for_each_hook!(down_repairs_a_killed_up);

fn down_repairs_a_killed_up(hook: Hook) {
    let lab = Lab::new();
    let others = Planted::plant(&lab, "wire");
    let down = |lab: &Lab, _: u32| drop(lab.ok(&["down", "--all"]));
    let steps = kill_after_every_step(&lab, &["up", "--hook", hook.name()], |_| {}, down);
    assert!(steps > 10, "{steps}");
    others.check();
}

/// A panic is no kill: what had been done is undone by the process itself.
#[test]
fn a_panic_amid_up_is_undone() {
    let lab = Lab::new();
    let others = Planted::plant(&lab, "lab");
    let (old, new) = (Declared::new(LAN), Declared::new(CHANGED));
    let (empty, whole_old, whole_new) = (lab.shape(), shape_of(&lab, &old), shape_of(&lab, &new));
    for (file, before, after) in [(&old, &empty, &whole_old), (&new, &whole_old, &whole_new)] {
        let mut undone = 0;
        for step in 1..STEPS_MAX {
            let finished = lab.start(&file.args("up"), &[("VETH_PANIC_AFTER", &step.to_string())]).finish();
            assert_eq!(finished.status.code(), Some(101), "step {step}: {finished:?}");
            let there = lab.shape();
            // After the last step there is nothing to undo.
            if there == *after {
                break;
            }
            assert_eq!(there, *before, "a panic after step {step}: {}", finished.err);
            undone += 1;
        }
        assert!(undone > 15, "{undone}");
    }
    lab.ok(&["down", "--all"]);
    assert_eq!(lab.shape(), empty);
    others.check();
}

#[test]
fn down_repairs_a_killed_down() {
    let lab = Lab::new();
    let others = Planted::plant(&lab, "lab");
    let file = Declared::new(EVERYTHING);
    let up = |lab: &Lab| {
        lab.ok(&file.args("up"));
        lab.ok(&["up"]);
        Planted::cling(lab, "lab-a")
    };
    let repair = |lab: &Lab, _: u32| drop(lab.ok(&["down", "--all"]));
    for args in [&["down", "lab"][..], &["down", "--all"]] {
        let steps = kill_after_every_step(&lab, args, up, repair);
        assert!(steps > 5, "{args:?}: {steps}");
    }
    others.check();
}

/// They change nothing that stays, and are killed at their most sensitive moments: grace periods are hurried for more than
/// eight ports.
#[test]
fn nothing_is_left_of_killed_watchers() {
    if !need::kernel(6, 6, "TCX, by which watching ends with its process") {
        return;
    }
    let lab = Lab::alone();
    let (empty, machine) = (lab.fingerprint(), lab.machine());
    lab.ok(&["up", "--pods", "9"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pcapng").display().to_string();
    let up = lab.fingerprint();
    let with_pods = lab.machine();
    for args in [
        &["trace", "--for", "10ms"][..],
        &["capture", "pod1", "-w", &file, "--for", "10ms"],
        &["why", "pod1", "pod2", "--probe"],
    ] {
        let steps = kill_after_every_step(
            &lab,
            args,
            |_| {},
            |lab, _| {
                // It changes nothing, and finds what was left.
                assert!(lab.ok(&["up", "--pods", "9"]).contains("up already"));
                lab.wait_for_machine(&with_pods);
            },
        );
        assert!(steps > 10, "{args:?}: {steps}");
    }
    assert_eq!(lab.fingerprint(), up);
    // And `down` finds it as well.
    let finished = lab.start(&["trace", "--for", "10ms"], &[("VETH_STOP_AFTER", "3")]).finish();
    assert!(finished.was_killed() && lab.machine().contains("rcu_expedited 1"), "{finished:?}");
    lab.ok(&["down"]);
    assert_eq!(lab.fingerprint(), empty);
    lab.wait_for_machine(&machine);
}

#[test]
fn a_killed_doctor_has_done_a_part() {
    let lab = Lab::new();
    let others = Planted::plant(&lab, "wire");
    let harm = |lab: &Lab| {
        lab.ok(&["up"]);
        lab.run(|| set_link("wire-ns1", LinkMessageBuilder::down));
        lab.run(|| set_link("wire-ns2", |link| link.mtu(1_300)));
        lab.pod("ns1").run(|| set_link("eth0", LinkMessageBuilder::down)).unwrap();
    };
    let steps = kill_after_every_step(&lab, &["doctor", "--fix"], harm, |lab, _| {
        // 11: it leaves a change that was killed to `up`.
        let code = lab.veth(&["doctor", "--fix"]).status.code();
        assert!(matches!(code, Some(0 | 10 | 11)), "{code:?}");
        lab.ok(&["up"]);
        assert!(lab.ok(&["ls"]).contains(" up\n"));
        lab.ok(&["down"]);
    });
    assert!(steps >= 2, "{steps}");
    others.check();
}

/// They make nothing on the host, or nothing that outlives them: wherever they are.
#[test]
fn commands_that_are_killed_at_any_moment() {
    let lab = Lab::new();
    let others = Planted::plant(&lab, "lab");
    lab.ok(&Declared::new(LAN).args("up"));
    let up = lab.fingerprint();
    for args in
        [&["check", "--live", "lab", "--transfer", "50ms"][..], &["bench", "--rounds", "1", "--time", "20ms"]]
    {
        for moment in 0..8 {
            let running = lab.start(args, &[]);
            thread::sleep(Duration::from_millis(20 + 70 * moment));
            running.signal(Signal::SIGKILL);
            drop(running.finish());
            assert_same(&up, &lab.fingerprint(), &format!("{args:?}"));
        }
    }
    others.check();
}

#[test]
fn up_repairs_a_killed_up() {
    let lab = Lab::new();
    let steps = kill_after_every_step(
        &lab,
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
    assert!(steps > 10, "{steps}");
}

#[test]
fn down_repairs_a_killed_run_and_no_bpf_object_is_left() {
    let lab = Lab::alone();
    let (machine, host) = (lab.machine(), lab.fingerprint());
    for step in [4, 9, 12, 15, 17, 18, 19, 20, 22, 24] {
        let finished = lab.start(&["run"], &[("VETH_STOP_AFTER", &step.to_string())]).finish();
        assert!(finished.was_killed(), "{finished:?}");
        lab.ok(&["down", "--all"]);
        assert_same(&host, &lab.fingerprint(), &format!("step {step}"));
        lab.wait_for_machine(&machine);
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

/// Two of them gone, one other, and a path of another kind, with all that belongs to forwarding.
const CHANGED: &str = "name = \"lab\"\n\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"d\"]\n\
                       \n[bridge.other]\nsubnet = \"10.2.0.0/24\"\npods = [\"a\", \"e\"]\ngateway = true\noutside = true\n";

/// How the host is with a topology that was just made.
fn shape_of(lab: &Lab, file: &Declared) -> Vec<String> {
    lab.ok(&file.args("up"));
    let shape = lab.shape();
    lab.ok(&["down"]);
    shape
}

/// What each of them was about is still known to be ours.
#[test]
fn changes_that_are_killed_one_after_the_other_leave_nothing() {
    let lab = Lab::new();
    let empty = lab.fingerprint();
    let third = LAN.replace("\"b\", \"c\"", "\"f\"");
    let [old, new, third] = [LAN, CHANGED, &third].map(Declared::new);
    let whole = shape_of(&lab, &third);
    for stop in [2, 12, 20, 30] {
        lab.ok(&old.args("up"));
        for (file, stop) in
            [(&new, stop), (&old, 1), (&third, 3), (&third, 1), (&new, 1), (&old, stop), (&old, 1)]
        {
            let finished = lab.start(&file.args("up"), &[("VETH_STOP_AFTER", &stop.to_string())]).finish();
            assert!(finished.was_killed() || finished.status.success(), "{finished:?}");
        }
        lab.ok(&third.args("up"));
        assert_eq!(lab.shape(), whole, "killed after step {stop}");
        lab.ok(&["down"]);
        assert_same(&empty, &lab.fingerprint(), &format!("killed after step {stop}"));
    }
}

/// Killed after each step of a change, the next `up` reaches what is declared, or what was, and `down` nothing.
#[test]
fn a_killed_change_is_finished_undone_or_removed() {
    let lab = Lab::new();
    let others = Planted::plant(&lab, "lab");
    let empty = lab.fingerprint();
    let (old, new) = (Declared::new(LAN), Declared::new(CHANGED));
    // Programs on the link that somebody else's are on as well.
    let is_shared = |line: &String| line.starts_with("program on lab-a ") || line.starts_with("qdisc lab-a ");
    let ours_of = |file: &Declared| {
        let shape = shape_of(&lab, file);
        shape.into_iter().filter(|line| !is_shared(line)).collect::<Vec<_>>()
    };
    let (whole_old, whole_new) = (ours_of(&old), ours_of(&new));
    for step in 1..STEPS_MAX {
        lab.ok(&old.args("up"));
        // What somebody else has on a link of ours stays as long as the link.
        let _theirs = Planted::cling(&lab, "lab-a");
        let finished = lab.start(&new.args("up"), &[("VETH_STOP_AFTER", &step.to_string())]).finish();
        let killed = finished.was_killed();
        assert!(killed || finished.status.success(), "step {step}: {finished:?}");
        let check = |file: &Declared, whole: &[String], what: &str| {
            lab.ok(&file.args("up"));
            let (shared, ours): (Vec<_>, Vec<_>) = lab.shape().into_iter().partition(is_shared);
            assert_eq!(ours, whole, "{what} after step {step}");
            let theirs = shared.iter().filter(|line| line.starts_with("program") && !line.contains("veth_"));
            assert_eq!(
                theirs.count(),
                1 + usize::from(need::is_at_least(6, 6)),
                "after step {step}: {shared:?}"
            );
            assert!(lab.ok(&file.args("plan")).contains("nothing to do"), "after step {step}");
        };
        match step % 3 {
            0 => check(&new, &whole_new, "finished"),
            1 => check(&old, &whole_old, "undone"),
            _ => {}
        }
        lab.ok(&["down", "--all"]);
        assert_same(&empty, &lab.fingerprint(), &format!("after step {step}"));
        if !killed {
            assert!(step > 20, "a change has steps");
            others.check();
            return;
        }
    }
    panic!("a change has more than {STEPS_MAX} steps");
}
