//! From build to build and back: nothing is lost, miscounted or left.

use std::{collections::BTreeSet, fs, path::Path};

use aya::programs::ProgramInfo;
use veth_common::Target;
use veth_tests::{
    Lab, Running,
    fingerprint::assert_same,
    for_each_hook,
    foreign::Foreign,
    hook,
    lab::{delete_link, pins, strangers, with_netlink},
    need,
    planted::Planted,
    topology::Declared,
    traffic::{tcp, udp},
    variant::{Build, Builds},
};
use veth_user::{
    datapath::{Hook, attach},
    net::netns,
    state::DEFAULT_PIN_DIR,
};

/// A switch whose pods are checked, a wire, and pairs that are only counted.
const ALL_KINDS: &str = "name = \"all\"\nhook = \"HOOK\"\n\
    [switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\nspoof_check = true\n\
    [wire.cable]\nsubnet = \"10.2.0.0/24\"\npods = [\"c\", \"d\"]\n\
    [bridge.slow]\nsubnet = \"10.3.0.0/24\"\npods = [\"e\", \"f\"]\ncounters = true\n\
    [direct.pair]\nsubnet = \"10.4.0.0/24\"\npods = [\"g\", \"h\"]\ncounters = true\n";

fn start(lab: &Lab, builds: &Builds, build: Build, args: &[&str], more: &[(&str, &str)]) -> Running {
    let env = builds.env(build);
    let env: Vec<(&str, &str)> =
        env.iter().map(|(name, value)| (*name, value.as_str())).chain(more.iter().copied()).collect();
    lab.start(args, &env)
}

fn ok(lab: &Lab, builds: &Builds, build: Build, args: &[&str]) -> String {
    let finished = start(lab, builds, build, args, &[]).finish();
    assert!(finished.status.success(), "veth {args:?} of {build:?}: {finished:?}");
    finished.out
}

/// Everything that was ever counted of every port.
fn counters(lab: &Lab, builds: &Builds, build: Build) -> serde_json::Value {
    let all: serde_json::Value =
        serde_json::from_str(&ok(lab, builds, build, &["stats", "all", "--json"])).unwrap();
    let ports = all[0]["ports"].as_array().unwrap().iter();
    ports
        .map(|port| {
            let mut port = port.clone();
            // How it is spread over processors is not carried over.
            port.as_object_mut().unwrap().remove("cpus");
            port.as_object_mut().unwrap().remove("kernel");
            port
        })
        .collect()
}

/// What the kernel calls the instructions of the pinned programs.
fn programs(lab: &Lab) -> BTreeSet<u64> {
    lab.run(|| {
        let layouts = fs::read_dir(DEFAULT_PIN_DIR).unwrap().map(|layout| layout.unwrap().path().join("all"));
        let pins = layouts.flat_map(|folder| fs::read_dir(folder).into_iter().flatten());
        pins.map(|pin| pin.unwrap())
            .filter(|pin| pin.file_name().to_str().unwrap().starts_with("prog_"))
            .map(|pin| ProgramInfo::from_pin(pin.path()).unwrap().tag())
            .collect()
    })
}

fn exchange(lab: &Lab) {
    for (from, to, address) in
        [("a", "b", "10.1.0.2"), ("c", "d", "10.2.0.2"), ("e", "f", "10.3.0.2"), ("g", "h", "10.4.0.2")]
    {
        let (from, to) = (lab.pod(&format!("all-{from}")), lab.pod(&format!("all-{to}")));
        assert_eq!(udp(&from, &to, address.parse().unwrap(), 100, 20), 0, "to {address}");
        tcp(&from, &to, address.parse().unwrap(), 10_000);
    }
}

/// Pods without anything to say for themselves.
fn quiet(lab: &Lab) {
    for pod in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        veth_tests::lab::silence(&lab.pod(&format!("all-{pod}")));
    }
}

fn counters_go_on_over_every_upgrade_and_back(hook: Hook) {
    let (lab, builds) = (Lab::new(), Builds::new());
    let before = lab.fingerprint();
    let file = Declared::new(&ALL_KINDS.replace("HOOK", hook.name()));
    ok(&lab, &builds, Build::Own, &file.args("up"));
    quiet(&lab);
    exchange(&lab);
    let mut build = Build::Own;
    for next in [Build::Other, Build::Own, Build::Next, Build::Other, Build::Next, Build::Own] {
        let counted = counters(&lab, &builds, build);
        let out = ok(&lab, &builds, next, &["upgrade", "all"]);
        assert!(out.contains("all is upgraded"), "{build:?} to {next:?}: {out}");
        assert_eq!(counters(&lab, &builds, next), counted, "{build:?} to {next:?}");
        let again = ok(&lab, &builds, next, &["upgrade", "all"]);
        assert!(again.contains("runs these programs already"), "{again}");
        assert!(ok(&lab, &builds, next, &file.args("plan")).contains("nothing to do"));
        exchange(&lab);
        build = next;
    }
    ok(&lab, &builds, build, &["down", "all"]);
    assert_same(&before, &lab.fingerprint(), "the host");
}

for_each_hook!(counters_go_on_over_every_upgrade_and_back, a_change_of_another_build_is_to_its_programs);

#[test]
fn up_upgrades_what_it_then_changes() {
    let (lab, builds) = (Lab::new(), Builds::new());
    let before = lab.fingerprint();
    let file = |pods: &str| {
        Declared::new(&format!("name = \"all\"\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [{pods}]\n"))
    };
    let (few, many) = (file("\"a\", \"b\""), file("\"a\", \"b\", \"c\""));
    ok(&lab, &builds, Build::Own, &few.args("up"));
    let plan = ok(&lab, &builds, Build::Next, &many.args("plan"));
    assert!(plan.contains("with maps of layout") && plan.contains("make namespace all-c"), "{plan}");
    assert!(ok(&lab, &builds, Build::Next, &many.args("up")).contains("all is changed"));
    assert!(!lab.run(|| pins("all").exists()), "the maps of the old layout are gone");
    let (a, c) = (lab.pod("all-a"), lab.pod("all-c"));
    assert_eq!(udp(&a, &c, "10.1.0.3".parse().unwrap(), 100, 10), 0);
    // The older one goes back in the same way.
    assert!(ok(&lab, &builds, Build::Own, &few.args("up")).contains("all is changed"));
    assert!(ok(&lab, &builds, Build::Own, &["ls"]).contains(" up"));
    let told = ok(&lab, &builds, Build::Other, &["ls", "all"]);
    assert!(told.contains("runs the programs of another build"), "{told}");
    drop((a, c));
    ok(&lab, &builds, Build::Own, &["down"]);
    assert_same(&before, &lab.fingerprint(), "the host");
}

/// Datagrams that an exchange sends from each pod.
const EXCHANGED: u64 = 20;

/// Killed after each step, traffic flows; either build finishes it, with every count, and nothing is left.
fn a_killed_upgrade_is_finished_by_either_build(hook: Hook, (from, to): (Build, Build)) {
    if !hook::is_there(hook) {
        return;
    }
    let (lab, builds) = (Lab::new(), Builds::new());
    let before = lab.fingerprint();
    let file = Declared::new(&ALL_KINDS.replace("HOOK", hook.name()));
    ok(&lab, &builds, from, &file.args("up"));
    quiet(&lab);
    let of_from = programs(&lab);
    ok(&lab, &builds, to, &["upgrade", "all"]);
    let of_to = programs(&lab);
    assert_ne!(of_from, of_to);
    // One goes on and the other goes back.
    for (build, its) in [(to, &of_to), (from, &of_from)] {
        for step in 1.. {
            ok(&lab, &builds, from, &["upgrade", "all"]);
            let counted = counters(&lab, &builds, from);
            let stop = step.to_string();
            let upgrade = start(&lab, &builds, to, &["upgrade", "all"], &[("VETH_STOP_AFTER", &stop)]);
            let finished = upgrade.finish();
            let killed = finished.was_killed();
            assert!(killed || finished.status.success(), "step {step}: {finished:?}");
            exchange(&lab);
            let up = ok(&lab, &builds, build, &file.args("up"));
            assert!(!up.contains("all is up: "), "step {step}: it was made again");
            exchange(&lab);
            let what = format!("killed after step {step}, finished by {build:?}");
            assert_counted(&counters(&lab, &builds, build), &counted, 2 * EXCHANGED, &what);
            assert!(ok(&lab, &builds, build, &file.args("plan")).contains("nothing to do"), "{what}");
            assert_eq!(programs(&lab), *its, "{what}: its programs, and no others");
            if !killed {
                assert!(step > 10, "an upgrade has steps");
                break;
            }
        }
    }
    let finished = start(&lab, &builds, to, &["upgrade"], &[("VETH_STOP_AFTER", "7")]).finish();
    assert!(finished.was_killed(), "{finished:?}");
    ok(&lab, &builds, from, &["down", "--all"]);
    assert_same(&before, &lab.fingerprint(), "the host");
}

/// Each pod has sent so many datagrams more.
fn assert_counted(after: &serde_json::Value, before: &serde_json::Value, more: u64, what: &str) {
    for (after, before) in after.as_array().unwrap().iter().zip(before.as_array().unwrap()) {
        let count =
            |port: &serde_json::Value| port["protocols"]["ipv4_udp"]["redirected"]["packets"].as_u64();
        let passed = |port: &serde_json::Value| port["protocols"]["ipv4_udp"]["passed"]["packets"].as_u64();
        let udp = |port| count(port).unwrap_or_default() + passed(port).unwrap_or_default();
        if before["pod"].is_null() {
            // A bridge, which nothing is sent to.
            continue;
        }
        assert_eq!(udp(after), udp(before) + more, "{what}: {after} {before}");
    }
}

/// A port of somebody who calls a program as we do is not taken over; others have been by then.
#[test]
fn a_migration_that_fails_half_way_is_finished_by_either_build() {
    if !need::kernel(6, 6, "TCX, by which a namesake is attached") {
        return;
    }
    for (hook, build) in [(Hook::Clsact, Build::Own), (Hook::Clsact, Build::Next), (Hook::Xdp, Build::Own)] {
        let (lab, builds) = (Lab::new(), Builds::new());
        let before = lab.fingerprint();
        let file = Declared::new(&ALL_KINDS.replace("HOOK", hook.name()));
        ok(&lab, &builds, Build::Own, &file.args("up"));
        quiet(&lab);
        let counted = counters(&lab, &builds, Build::Own);
        let index = lab.link("all-d").index;
        let namesake = lab.run(move || Foreign::namesake(index, "veth_ingress"));
        let finished = start(&lab, &builds, Build::Next, &["upgrade", "all"], &[]).finish();
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        for part in ["all-d already carries a veth program by tcx", "`veth up` tries again"] {
            assert!(finished.err.contains(part), "{part}: {finished:?}");
        }
        exchange(&lab);
        drop(namesake);
        ok(&lab, &builds, build, &file.args("up"));
        exchange(&lab);
        let what = format!("{hook}, finished by {build:?}");
        assert_counted(&counters(&lab, &builds, build), &counted, 2 * EXCHANGED, &what);
        assert!(ok(&lab, &builds, build, &file.args("plan")).contains("nothing to do"), "{what}");
        ok(&lab, &builds, build, &["down", "--all"]);
        assert_same(&before, &lab.fingerprint(), &what);
    }
}

#[test]
fn what_is_gone_is_made_again_by_another_layout() {
    let (lab, builds) = (Lab::new(), Builds::new());
    let file = Declared::new(&ALL_KINDS.replace("HOOK", "auto"));
    ok(&lab, &builds, Build::Own, &file.args("up"));
    let bridges: Vec<String> = lab
        .links()
        .into_iter()
        .filter(|link| link.kind.as_deref() == Some("bridge"))
        .map(|link| link.name)
        .collect();
    assert_eq!(bridges.len(), 2, "of the switch and of the bridge: {bridges:?}");
    for (number, build) in [Build::Next, Build::Own].into_iter().enumerate() {
        let bridges = bridges.clone();
        lab.run(move || {
            for namespace in ["all-a", "all-h"] {
                netns::remove(namespace).unwrap();
            }
            delete_link("all-d");
            for bridge in &bridges {
                delete_link(bridge);
            }
        });
        let args = if number == 0 { file.args("up").to_vec() } else { vec!["upgrade", "all"] };
        ok(&lab, &builds, build, &args);
        exchange(&lab);
        let plan = ok(&lab, &builds, build, &file.args("plan"));
        assert!(plan.contains("nothing to do"), "{build:?}: {plan}");
    }
}

/// Its maps stay when the last path that has programs goes, until somebody of another layout comes.
#[test]
fn maps_that_nobody_needs_go_with_their_layout() {
    let (lab, builds) = (Lab::new(), Builds::new());
    let with =
        Declared::new("name = \"all\"\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\n");
    let without =
        Declared::new("name = \"all\"\n[direct.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\n");
    ok(&lab, &builds, Build::Own, &with.args("up"));
    ok(&lab, &builds, Build::Own, &without.args("up"));
    assert!(lab.run(|| pins("all").exists()), "or this shows nothing");
    for build in [Build::Next, Build::Own] {
        ok(&lab, &builds, build, &["upgrade", "all"]);
        assert!(ok(&lab, &builds, build, &without.args("plan")).contains("nothing to do"), "{build:?}");
        assert!(
            !lab.run(|| Path::new(DEFAULT_PIN_DIR).exists()),
            "{build:?}: pins of one layout or the other"
        );
    }
}

/// Killed on the way back, with a third build's programs loaded, and then what it came from goes: it is not taken for what it
/// was before.
#[test]
fn a_way_back_that_leads_to_nothing_is_known_to_do_so() {
    let (lab, builds) = (Lab::new(), Builds::new());
    let file = Declared::new(&ALL_KINDS.replace("HOOK", "clsact"));
    ok(&lab, &builds, Build::Own, &file.args("up"));
    quiet(&lab);
    let its = programs(&lab);
    let killed_after = |build: Build, step: u32| {
        let stop = step.to_string();
        let finished =
            start(&lab, &builds, build, &["upgrade", "all"], &[("VETH_STOP_AFTER", &stop)]).finish();
        assert!(finished.was_killed(), "{build:?} after step {step}: {finished:?}");
    };
    for step in 1..=5 {
        let counted = counters(&lab, &builds, Build::Own);
        // Programs without maps, which the next one removes.
        killed_after(Build::Next, 3);
        killed_after(Build::Other, step);
        killed_after(Build::Next, 2);
        exchange(&lab);
        let up = ok(&lab, &builds, Build::Own, &file.args("up"));
        assert!(!up.contains("all is up: "), "step {step}: it was made again");
        exchange(&lab);
        let what = format!("killed after step {step}");
        assert_counted(&counters(&lab, &builds, Build::Own), &counted, 2 * EXCHANGED, &what);
        assert!(ok(&lab, &builds, Build::Own, &file.args("plan")).contains("nothing to do"), "{what}");
        assert_eq!(programs(&lab), its, "{what}: its programs, and no others");
    }
}

/// A change of another build that also takes something away looks into the maps by the former programs first.
fn a_change_of_another_build_is_to_its_programs(hook: Hook) {
    if !hook::is_there(hook) {
        return;
    }
    let (lab, builds) = (Lab::new(), Builds::new());
    let file = Declared::new(&ALL_KINDS.replace("HOOK", hook.name()));
    let fewer = Declared::new(&ALL_KINDS.replace("HOOK", hook.name()).replace(", \"b\"", ""));
    ok(&lab, &builds, Build::Own, &file.args("up"));
    ok(&lab, &builds, Build::Other, &fewer.args("up"));
    let (attached, pinned) = lab.run(move || {
        let attached = with_netlink(async |netlink| {
            let link = netlink.link("all-a").await.unwrap();
            attach::attached_by(netlink, &link, hook).await.unwrap()
        });
        let name = if hook.is_xdp() { "prog_veth_xdp" } else { "prog_veth_ingress" };
        (attached, ProgramInfo::from_pin(pins("all").join(name)).unwrap().id())
    });
    let [attached] = attached.as_slice() else { panic!("{attached:?}") };
    assert_eq!(attached.program, Some(pinned), "{attached:?}");
}

/// By another build, so that programs are replaced before it fails.
#[test]
fn a_change_of_another_build_that_fails_strands_nobody() {
    let (lab, builds) = (Lab::new(), Builds::new());
    let switch = |pods: &str| {
        Declared::new(&format!(
            "name = \"all\"\nhook = \"clsact\"\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [{pods}]\n"
        ))
    };
    let (small, large) = (switch("\"a\", \"b\""), switch("\"a\", \"b\", \"c\""));
    ok(&lab, &builds, Build::Own, &small.args("up"));
    let refused = lab.datapath(Hook::Clsact, "all", move |datapath| {
        strangers().filter(|key| datapath.set_fdb(*key, &Target::default()).is_err()).count()
    });
    assert!(refused > 0, "the map is not full");
    let failed = start(&lab, &builds, Build::Other, &large.args("up"), &[]).finish();
    assert!(failed.status.code() == Some(1) && failed.err.contains("the map is full"), "{failed:?}");
    lab.datapath(Hook::Clsact, "all", move |datapath| {
        strangers().for_each(|key| datapath.remove_fdb(key).unwrap());
    });
    let (a, b) = (lab.pod("all-a"), lab.pod("all-b"));
    for (build, file) in [(Build::Own, &small), (Build::Other, &large)] {
        assert_eq!(udp(&a, &b, "10.1.0.2".parse().unwrap(), 100, 20), 0);
        ok(&lab, &builds, build, &file.args("up"));
        assert!(ok(&lab, &builds, build, &file.args("plan")).contains("nothing to do"), "{build:?}");
    }
}

/// What keeps pods from the host is a program too, where nothing else is accelerated.
#[test]
fn a_guard_of_another_build_is_told() {
    let (lab, builds) = (Lab::new(), Builds::new());
    let file =
        Declared::new("name = \"all\"\n[bridge.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\n");
    ok(&lab, &builds, Build::Own, &file.args("up"));
    for (build, is_told) in [(Build::Own, false), (Build::Other, true)] {
        let list = ok(&lab, &builds, build, &["ls", "all"]);
        assert_eq!(list.contains("`veth upgrade all` replaces them"), is_told, "{build:?}: {list}");
    }
}

#[test]
fn run_does_not_remove_what_it_finds_half_upgraded() {
    let (lab, builds) = (Lab::new(), Builds::new());
    ok(&lab, &builds, Build::Own, &["up"]);
    let upgrade = start(&lab, &builds, Build::Other, &["upgrade"], &[("VETH_STOP_AFTER", "3")]);
    assert!(upgrade.finish().was_killed());
    let run = lab.veth(&["run", "--for", "1s"]);
    assert!(run.status.code() == Some(1) && run.err.contains("was there before"), "{run:?}");
    assert!(lab.ok(&["ls"]).contains("wire"), "it was removed");
}

/// Nothing of the programs and maps of either build stays either.
#[test]
fn down_repairs_a_killed_upgrade() {
    let (lab, builds) = (Lab::alone(), Builds::new());
    let others = Planted::plant(&lab, "all");
    let (host, machine) = (lab.fingerprint(), lab.machine());
    let file = Declared::new(&ALL_KINDS.replace("HOOK", "auto"));
    for step in 1.. {
        ok(&lab, &builds, Build::Own, &file.args("up"));
        let stop = step.to_string();
        let finished =
            start(&lab, &builds, Build::Next, &["upgrade", "all"], &[("VETH_STOP_AFTER", &stop)]).finish();
        let build = if step % 2 == 0 { Build::Own } else { Build::Next };
        ok(&lab, &builds, build, &["down", "--all"]);
        assert_same(&host, &lab.fingerprint(), &format!("killed after step {step}"));
        lab.wait_for_machine(&machine);
        if !finished.was_killed() {
            assert!(step > 10, "{finished:?}");
            break;
        }
    }
    others.check();
}

#[test]
fn a_killed_replacement_by_tcx() {
    a_killed_upgrade_is_finished_by_either_build(Hook::Tcx, (Build::Own, Build::Other));
}

#[test]
fn a_killed_migration_by_tcx() {
    a_killed_upgrade_is_finished_by_either_build(Hook::Tcx, (Build::Own, Build::Next));
}

#[test]
fn a_killed_replacement_by_clsact() {
    a_killed_upgrade_is_finished_by_either_build(Hook::Clsact, (Build::Own, Build::Other));
}

#[test]
fn a_killed_migration_by_clsact() {
    a_killed_upgrade_is_finished_by_either_build(Hook::Clsact, (Build::Next, Build::Own));
}

#[test]
fn a_killed_migration_by_xdp() {
    a_killed_upgrade_is_finished_by_either_build(Hook::Xdp, (Build::Own, Build::Next));
}

/// Ctrl-C after each step: it goes back, or forward, and counts go on.
#[test]
fn an_interrupted_migration_loses_no_count() {
    let (lab, builds) = (Lab::new(), Builds::new());
    let file = Declared::new(&ALL_KINDS.replace("HOOK", "clsact"));
    ok(&lab, &builds, Build::Own, &file.args("up"));
    quiet(&lab);
    for step in 1.. {
        exchange(&lab);
        let counted = counters(&lab, &builds, Build::Own);
        let env = [("VETH_INTERRUPT_AFTER", step.to_string())];
        let finished = start(&lab, &builds, Build::Next, &file.args("up"), &[(env[0].0, &env[0].1)]).finish();
        // After the last there is nothing to interrupt.
        let is_done = finished.status.success();
        assert!(is_done || finished.status.code() == Some(130), "step {step}: {finished:?}");
        // It is whole, by one build or the other.
        let is_whole =
            |build: &Build| ok(&lab, &builds, *build, &file.args("plan")).contains("nothing to do");
        let build =
            [Build::Own, Build::Next].into_iter().find(is_whole).unwrap_or_else(|| panic!("step {step}"));
        assert_eq!(counters(&lab, &builds, build), counted, "step {step}, {build:?}");
        ok(&lab, &builds, Build::Own, &["upgrade", "all"]);
        assert_eq!(counters(&lab, &builds, Build::Own), counted, "step {step}");
        if is_done {
            assert!(step > 10, "step {step}: {finished:?}");
            break;
        }
    }
}

#[test]
fn what_cannot_be_upgraded_is_refused_and_left_alone() {
    let lab = Lab::new();
    assert!(lab.refused(&["upgrade"]).contains("nothing is up"));
    assert!(lab.refused(&["upgrade", "lab"]).contains("there is no topology lab"));
    lab.ok(&["up"]);
    lab.run(|| fs::remove_file(pins("wire").join("map_PORTS")).unwrap());
    let error = lab.refused(&["upgrade", "wire"]);
    assert!(error.contains("cannot be upgraded in place") && error.contains("veth up"), "{error}");
    lab.ok(&["up", "--pods", "2"]);
    assert!(lab.refused(&["upgrade"]).contains("several topologies"));
}

#[test]
fn a_program_that_the_kernel_refuses_changes_nothing() {
    let lab = Lab::new();
    lab.ok(&["up"]);
    let object = tempfile::NamedTempFile::new().unwrap();
    fs::write(object.path(), b"rubbish").unwrap();
    let before = lab.fingerprint();
    let env = [("VETH_OTHER_OBJECT", object.path().to_str().unwrap())];
    let finished = lab.start(&["upgrade"], &env).finish();
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert_same(&before, &lab.fingerprint(), "the host");
    assert!(lab.ok(&["ls"]).contains(" up"));
}
