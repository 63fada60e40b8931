//! Up, down, run, exec, ls: what they promise, from outside.

use std::{process::Command, thread, time::Duration};

use nix::sys::signal::Signal;
use veth_tests::{
    Lab, Running, for_each_hook,
    lab::{eventually, pins, with_netlink},
    traffic::udp,
};
use veth_user::datapath::{Hook, attach};

for_each_hook!(up_twice_changes_nothing_and_down_twice_succeeds, ls_sees_what_is_missing);

fn up_twice_changes_nothing_and_down_twice_succeeds(hook: Hook) {
    let lab = Lab::new();
    let before = lab.fingerprint();
    lab.up(hook, &[]);
    let up = lab.fingerprint();
    let index = lab.link("wire-ns1").index;
    assert!(lab.ok(&["up", "--hook", hook.name()]).contains("up already"));
    assert_eq!(lab.fingerprint(), up);
    assert_eq!(lab.link("wire-ns1").index, index, "the same link, not a new one");
    assert_eq!(lab.run(|| attached("wire-ns1")), 1, "attached once");
    assert!(lab.ok(&["ls"]).contains(" up\n"));
    assert!(lab.ok(&["down"]).contains("wire is down"));
    assert_eq!(lab.fingerprint(), before);
    assert!(lab.ok(&["down"]).contains("nothing is up"));
    assert!(lab.ok(&["down", "wire"]).contains("wire is not up"));
    assert_eq!(lab.fingerprint(), before);
}

/// Programs of ours on a link, by whatever hook.
fn attached(link: &str) -> usize {
    with_netlink(async |netlink| {
        let link = netlink.link(link).await.unwrap();
        attach::attached(netlink, &link)
            .await
            .unwrap()
            .iter()
            .filter(|attached| attached.is_named_ours())
            .count()
    })
}

#[test]
fn the_datapath_outlives_every_process() {
    let lab = Lab::new();
    lab.ok(&["up"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    assert_eq!(udp(&one, &two, "172.16.0.2".parse().unwrap(), 100, 20), 0);
    let list: serde_json::Value = serde_json::from_str(&lab.ok(&["ls", "--json"])).unwrap();
    assert_eq!(list[0]["status"], "up");
    assert_eq!(list[0]["topology"]["pods"][0]["ports"][0]["addresses"][0], "172.16.0.1/24");
}

#[test]
fn run_checks_shows_and_leaves_nothing() {
    let lab = Lab::new();
    let before = lab.fingerprint();
    let text = lab.ok(&["run"]);
    for expected in [
        "ping ns1 -> ns2 (172.16.0.2): 10/10",
        "ping ns2 -> ns1 (fd00:172:16::1): 10/10",
        "Gbit/s",
        "wire-ns2",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    assert_eq!(lab.fingerprint(), before);
    let result: serde_json::Value =
        serde_json::from_str(&lab.ok(&["run", "--pods", "3", "--json", "--for", "100ms"])).unwrap();
    assert_eq!(result["check"]["pings"].as_array().unwrap().len(), 3 * 2 * 2);
    assert!(result["check"]["tcp"]["bits_per_second"].as_f64().unwrap() > 1e6);
    assert!(result["stats"][0]["ports"][0]["redirected"]["packets"].as_u64().unwrap() > 0);
    assert_eq!(lab.fingerprint(), before);
}

#[test]
fn run_cleans_up_after_signals_and_a_panic() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let lab = Lab::new();
        let before = lab.fingerprint();
        let mut running = lab.start(&["run", "--for", "60s"], &[]);
        running.wait_for("Gbit/s");
        running.signal(signal);
        let finished = running.finish();
        assert_eq!(finished.status.code(), Some(0), "{signal}: {finished:?}");
        assert_eq!(lab.fingerprint(), before, "{signal}");
    }
    let lab = Lab::new();
    let before = lab.fingerprint();
    for step in ["3", "9", "18", "19"] {
        let finished = lab.start(&["run"], &[("VETH_PANIC_AFTER", step)]).finish();
        assert_eq!(finished.status.code(), Some(101), "{finished:?}");
        assert_eq!(lab.fingerprint(), before, "a panic after step {step}");
    }
}

#[test]
fn an_interrupted_up_is_rolled_back() {
    let lab = Lab::new();
    let before = lab.fingerprint();
    let running = lab.start(&["up", "--pods", "300"], &[]);
    eventually("it is in the middle of its work", || lab.links().len() > 20);
    running.signal(Signal::SIGINT);
    let finished = running.finish();
    assert_eq!(finished.status.code(), Some(130), "{finished:?}");
    assert_eq!(lab.fingerprint(), before);
}

#[test]
fn a_second_command_waits_for_the_first() {
    let lab = Lab::new();
    let first = lab.start(&["up", "--pods", "40"], &[]);
    eventually("the first has begun", || lab.links().len() > 5);
    first.signal(Signal::SIGSTOP);
    let second = lab.start(&["up", "--pods", "40"], &[]);
    thread::sleep(Duration::from_secs(1));
    first.signal(Signal::SIGCONT);
    let (first, second) = (first.finish(), second.finish());
    assert!(first.status.success() && second.status.success(), "{first:?} {second:?}");
    assert!(second.err.contains("waiting for another veth command"), "{second:?}");
    assert!(second.out.contains("up already"), "{second:?}");
}

#[test]
fn of_two_runs_at_once_one_is_refused_and_the_other_not_disturbed() {
    let lab = Lab::new();
    let before = lab.fingerprint();
    let args = &["run", "--for", "1s"];
    let runs = [lab.start(args, &[]), lab.start(args, &[])].map(Running::finish);
    let (fine, refused): (Vec<_>, Vec<_>) = runs.iter().partition(|run| run.status.success());
    let [fine] = fine.as_slice() else { panic!("{runs:?}") };
    let [refused] = refused.as_slice() else { panic!("{runs:?}") };
    assert!(fine.out.contains("wire-ns2") && fine.err.is_empty(), "{fine:?}");
    assert!(refused.err.contains("up already") || refused.err.contains("somebody else"), "{refused:?}");
    assert_eq!(lab.fingerprint(), before);
}

#[test]
fn down_goes_on_to_its_end() {
    let lab = Lab::new();
    let before = lab.fingerprint();
    lab.ok(&["up", "--pods", "60"]);
    let running = lab.start(&["down"], &[]);
    eventually("it has begun", || lab.links().len() < 60);
    running.signal(Signal::SIGTERM);
    assert!(running.finish().status.success());
    assert_eq!(lab.fingerprint(), before);
    // Nor does a reader that has gone keep it from the second topology.
    lab.ok(&["up"]);
    lab.ok(&["up", "--pods", "2"]);
    let mut command = Command::new("sh");
    command.args(["-c", "(sleep 0.2; \"$VETH_BIN\" down --all) | true; sleep 1"]);
    assert!(lab.spawn(command).finish().status.success());
    eventually("everything is removed", || lab.fingerprint() == before);
}

fn ls_sees_what_is_missing(hook: Hook) {
    let lab = Lab::new();
    lab.up(hook, &["--pods", "2"]);
    for pin in ["link_switch-pod1", "map_COUNTERS"] {
        let path = pins("switch").join(pin);
        if hook == Hook::Clsact && pin.starts_with("link") {
            assert!(!lab.run(move || path.exists()), "a filter needs no pin");
            continue;
        }
        lab.run(move || std::fs::remove_file(path).unwrap());
        let list = lab.ok(&["ls"]);
        assert!(list.contains("drifted") && list.contains(pin), "{list}");
    }
    lab.up(hook, &["--pods", "2"]);
    assert!(lab.ok(&["ls"]).contains(" up\n"), "`up` repairs");
}

#[test]
fn one_bad_record_does_not_hide_the_others() {
    let lab = Lab::new();
    lab.ok(&["up"]);
    lab.run(|| std::fs::write("/run/veth/bad.json", "{").unwrap());
    assert!(lab.ok(&["ls"]).contains(" up\n"));
    assert!(lab.ok(&["stats"]).contains("wire-ns1"));
    lab.ok(&["exec", "ns1", "--", "true"]);
    assert!(lab.veth(&["ls"]).err.contains("bad.json"));
    assert!(lab.refused(&["ls", "bad"]).contains("bad.json"));
}

#[test]
fn exec_is_the_command_it_runs() {
    let lab = Lab::new();
    lab.ok(&["up"]);
    let link = lab.ok(&["exec", "ns1", "--", "cat", "/proc/net/dev"]);
    assert!(link.contains("eth0") && !link.contains("wire-ns1"), "{link}");
    assert!(
        lab.ok(&["exec", "wire/ns1", "--", "ls", "/sys/fs/bpf"]).contains("veth"),
        "the bpffs stays visible"
    );
    assert_eq!(lab.veth(&["exec", "ns1", "--", "sh", "-c", "exit 42"]).status.code(), Some(42));
    assert_eq!(lab.veth(&["exec", "ns1", "--", "/no/such/command"]).status.code(), Some(127));
    assert_eq!(lab.veth(&["exec", "ns1", "--", "/etc/passwd"]).status.code(), Some(126));
}

#[test]
fn stats_watch_goes_on_until_it_is_told_to_stop() {
    let lab = Lab::new();
    lab.ok(&["up"]);
    let mut running = lab.start(&["stats", "--watch", "50ms", "--json"], &[]);
    for _ in 0..3 {
        let line = running.wait_for("\n");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value[0]["topology"], "wire");
    }
    running.signal(Signal::SIGINT);
    assert!(running.finish().status.success());
    // Whoever reads may stop reading.
    let mut command = Command::new("sh");
    command.args(["-c", "\"$VETH_BIN\" stats --watch 10ms | head -n 3"]);
    assert!(lab.spawn(command).finish().err.is_empty());
}

#[test]
fn the_programs_messages_are_shown_while_somebody_watches() {
    let lab = Lab::new();
    lab.ok(&["up", "--pods", "2", "--ebpf-log", "warn"]);
    let mut running = lab.start(&["stats", "--watch", "100ms"], &[]);
    running.wait_for("pod1");
    // The switch has no gateway: a frame to the host is dropped, and said.
    let pod = lab.pod("switch-pod1");
    let socket = pod.run(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    for _ in 0..5 {
        let _unused: std::io::Result<usize> = socket.send_to(b"x", "10.200.9.9:9");
        thread::sleep(Duration::from_millis(100));
    }
    running.signal(Signal::SIGTERM);
    let finished = running.finish();
    assert!(finished.err.contains("no_gateway"), "{finished:?}");
}

#[test]
fn a_bpffs_is_mounted_for_as_long_as_it_is_needed() {
    let lab = Lab::without_bpffs();
    let before = lab.fingerprint();
    let error = lab.refused(&["up"]);
    assert!(error.contains("mount namespace") && error.contains("nsenter"), "{error}");
    let mut wrapped = Command::new("sh");
    wrapped.args(["-c", "timeout 20 \"$VETH_BIN\" up; exit $?"]);
    assert_eq!(lab.spawn(wrapped).finish().status.code(), Some(1), "nor through a wrapper");
    // A process namespace of its own makes this mount namespace the first one, as on a machine.
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount", "--mount-proc", "--propagation", "private", "sh", "-c"]);
    command.arg("\"$VETH_BIN\" up && ls -d /sys/fs/bpf/veth && \"$VETH_BIN\" down && find /sys/fs/bpf /run");
    let finished = lab.spawn(command).finish();
    assert!(finished.status.success(), "{finished:?}");
    assert!(finished.out.contains("wire is up") && finished.out.contains("wire is down"), "{finished:?}");
    assert!(!finished.out.contains("/run/veth"), "{finished:?}");
    assert_eq!(lab.fingerprint(), before);
}
