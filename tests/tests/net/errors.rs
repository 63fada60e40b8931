//! Bad input and bad circumstances: a clear message, exit code 1 or 2, and nothing left behind.

use std::process::Command;

use aya::maps::{Array, MapData};
use rtnetlink::LinkBridge;
use veth_common::LAYOUT_VERSION;
use veth_tests::{
    Lab,
    lab::{add_link, add_namespace, pins},
};
use veth_user::probe::Kernel;

#[test]
fn not_root() {
    let lab = Lab::new();
    for args in
        ["up", "down", "run", "stats", "metrics", "trace", "top", "drops", "why x y", "capture x -w x"]
    {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c"]);
        // The binary may stand in a folder that only root can enter.
        command.arg(format!("exec /proc/self/fd/3 {args}"));
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "exec 3<\"$VETH_BIN\"; exec \"$@\"", "sh"])
            .arg(command.get_program())
            .args(command.get_args());
        let finished = lab.spawn(shell).finish();
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        assert!(
            finished.err.contains(&format!("sudo veth {}", args.split(' ').next().unwrap())),
            "{finished:?}"
        );
    }
}

#[test]
fn a_taken_namespace() {
    let lab = Lab::new();
    lab.run(|| add_namespace("ns2"));
    let error = lab.refused(&["up"]);
    for part in ["network namespace ns2 exists", "not made by veth", "ip netns del ns2", "--name"] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn a_taken_link() {
    let lab = Lab::new();
    lab.run(|| add_link(LinkBridge::new("wire-ns2").build()));
    let error = lab.refused(&["up"]);
    assert!(error.contains("link wire-ns2 exists") && error.contains("ip link del wire-ns2"), "{error}");
}

#[test]
fn too_many_pods_and_other_nonsense() {
    let lab = Lab::new();
    for (args, part) in [
        (&["up", "--pods", "1001"][..], "2 to 1000 pods, not 1001"),
        (&["up", "--pods", "1"], "not 1"),
        (&["up", "--mtu", "70000"], "MTU of 70000"),
        (&["up", "--name", "../etc"], "`../etc` cannot be the name of a topology"),
        (&["down", "../etc"], "cannot be the name"),
        (&["stats", "nothing"], "there is no topology nothing; nothing is up"),
        (&["ls", "nothing"], "there is no topology nothing"),
    ] {
        let error = lab.refused(args);
        assert!(error.contains(part), "{part} in {error}");
    }
    for args in [&["up", "--pods", "many"][..], &["frobnicate"], &["run", "--for", "0s"], &["exec", "ns1"]] {
        assert_eq!(lab.veth(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_hook_that_the_kernel_lacks() {
    let lab = Lab::new();
    for (hook, minimum) in [
        ("clsact", Kernel(5, 10, 0)),
        ("xdp", Kernel(6, 2, 0)),
        ("xdp-generic", Kernel(6, 2, 0)),
        ("tcx", Kernel(6, 6, 0)),
    ] {
        if Kernel::current().unwrap() >= minimum {
            lab.ok(&["up", "--hook", hook]);
            lab.ok(&["down"]);
        } else {
            let error = lab.refused(&["up", "--hook", hook]);
            let Kernel(major, minor, _) = minimum;
            assert!(error.contains(&format!("needs {major}.{minor} or newer")), "{error}");
            assert!(error.contains("--hook"), "and what to do: {error}");
        }
    }
}

#[test]
fn an_unknown_pod() {
    let lab = Lab::new();
    let error = lab.refused(&["exec", "ns1", "--", "true"]);
    assert!(error.contains("there is no pod ns1; nothing is up"), "{error}");
    lab.ok(&["up"]);
    lab.ok(&["up", "--name", "other"]);
    let error = lab.refused(&["exec", "ns9", "--", "true"]);
    assert!(error.contains("there is no pod ns9") && error.contains("wire/ns1"), "{error}");
    let error = lab.refused(&["exec", "ns1", "--", "true"]);
    assert!(error.contains("other/ns1, wire/ns1"), "{error}");
    lab.ok(&["exec", "wire/ns1", "--", "true"]);
}

#[test]
fn run_does_not_take_over_what_is_up() {
    let lab = Lab::new();
    lab.ok(&["up", "--pods", "2"]);
    assert!(lab.refused(&["run", "--pods", "2"]).contains("up already"));
}

#[test]
fn another_layout() {
    let lab = Lab::new();
    let before = lab.fingerprint();
    lab.ok(&["up"]);
    // As if a veth of the next layout had made it.
    lab.run(|| {
        let text = std::fs::read_to_string("/run/veth/wire.json").unwrap();
        let version = |number: u32| format!("\"layout_version\": {number}");
        // Records of other layouts may not have what ours have.
        let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
        record
            .as_object_mut()
            .unwrap()
            .retain(|field, _| field != "selection" && field != "changed_features");
        record["topology"].as_object_mut().unwrap().retain(|field, _| field != "hook" && field != "place");
        let text = serde_json::to_string_pretty(&record).unwrap();
        let text = text.replace(&version(LAYOUT_VERSION), &version(LAYOUT_VERSION + 1));
        // Counters that mean something else cannot be carried over.
        let text = text.replace("\"counters_version\": 1", "\"counters_version\": 2");
        std::fs::write("/run/veth/wire.json", text).unwrap();
        let folder = |number: u32| format!("/sys/fs/bpf/veth/v{number}");
        std::fs::rename(folder(LAYOUT_VERSION), folder(LAYOUT_VERSION + 1)).unwrap();
    });
    let error = lab.refused(&["up"]);
    assert!(
        error.contains("are of version 2") && error.contains("version 1") && error.contains("veth down wire"),
        "{error}"
    );
    assert!(lab.refused(&["stats"]).contains("layout"), "another layout's counters are not read as ours");
    lab.ok(&["down"]);
    assert_eq!(lab.fingerprint(), before);
}

#[test]
fn a_pinned_map_that_is_not_ours() {
    let lab = Lab::new();
    lab.ok(&["up"]);
    // A map of another shape under the name of the counters: aya would open it without a word.
    lab.run(|| {
        let folder = pins("wire");
        std::fs::remove_file(folder.join("map_COUNTERS")).unwrap();
        std::fs::rename(folder.join("map_PORTS"), folder.join("map_COUNTERS")).unwrap();
    });
    let error = lab.refused(&["stats"]);
    let expected = format!("map_COUNTERS is not of layout {LAYOUT_VERSION}: the value's size is 40");
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn another_network_namespace() {
    let lab = Lab::new();
    lab.ok(&["up"]);
    lab.run(|| {
        // The same state, seen from a pod.
        let error = Command::new(std::env::var_os("VETH_BIN").unwrap())
            .args(["exec", "ns1", "--"])
            .arg(std::env::var_os("VETH_BIN").unwrap())
            .arg("down")
            .output()
            .unwrap();
        let text = String::from_utf8(error.stderr).unwrap();
        assert!(text.contains("lives in another network namespace"), "{text}");
    });
    assert!(lab.ok(&["ls"]).contains(" up\n"));
}

#[test]
fn a_failing_step_is_rolled_back_and_told() {
    let lab = Lab::new();
    // No room for pins: the folder of the layout is a map's name already.
    lab.run(|| std::fs::create_dir_all("/sys/fs/bpf/veth").unwrap());
    lab.run(|| Array::<MapData, u32>::create(1, 0).unwrap().pin(pins("wire").parent().unwrap()).unwrap());
    let error = lab.refused(&["up"]);
    assert!(
        error.contains("load the eBPF programs failed; everything made before was removed again"),
        "{error}"
    );
}
