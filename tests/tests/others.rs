//! Veth beside real programs of others: xdp-filter of xdp-tools, and filters by tc. `cargo xtask test others` finds or
//! gets them, and says where they are.
#![expect(clippy::unwrap_used, reason = "everything in a test panics when it fails")]

use std::{
    net::{IpAddr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use veth_tests::{
    Lab,
    foreign::{Foreign, Verdict},
    lab::eventually,
    traffic::udp,
};
use veth_user::net::Netns;

/// The port that xdp-filter is told to drop.
const FILTERED: u16 = 9_999;

fn address() -> IpAddr {
    "172.16.0.2".parse().unwrap()
}

/// A program of others, wherever it was unpacked.
fn other(name: &str) -> Command {
    let root: PathBuf =
        std::env::var_os("VETH_OTHERS").expect("run this by `cargo xtask test others`").into();
    let program = ["usr/sbin", "sbin", "usr/bin", "bin"].map(|folder| root.join(folder).join(name));
    let mut command = Command::new(program.iter().find(|path| path.exists()).expect("it was unpacked"));
    if root != Path::new("/") {
        let libraries = ["usr/lib", "lib"].map(|folder| root.join(folder).join("x86_64-linux-gnu"));
        command.env("LD_LIBRARY_PATH", std::env::join_paths(&libraries).unwrap());
        for variable in ["LIBXDP_OBJECT_PATH", "LIBBPF_OBJECT_PATH"] {
            command.env(variable, libraries[0].join("bpf"));
        }
    }
    command
}

/// Runs one on the host, successfully, and returns what it printed.
fn ok(lab: &Lab, name: &str, args: &[&str]) -> String {
    let mut command = other(name);
    command.args(args);
    let finished = lab.spawn(command).finish();
    assert!(finished.status.success(), "{name} {args:?}: {finished:?}");
    finished.out
}

/// Whether a datagram from one pod reaches a port of the other.
fn reaches(from: &Netns, to: &Netns, port: u16) -> bool {
    let receiver = to.run(|| UdpSocket::bind((address(), port))).unwrap().unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let sender = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    sender.send_to(b"hello", (address(), port)).unwrap();
    receiver.recv(&mut [0; 10]).is_ok()
}

#[test]
fn xdp_filter_on_a_host_end_drops_before_us() {
    let lab = Lab::new();
    lab.ok(&["up"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    assert_eq!(udp(&one, &two, address(), 100, 5), 0);
    ok(&lab, "xdp-filter", &["load", "-m", "native", "-f", "udp", "wire-ns1"]);
    ok(&lab, "xdp-filter", &["port", "-m", "dst", "-p", "udp", &FILTERED.to_string()]);
    assert!(!reaches(&one, &two, FILTERED), "dropped by it");
    assert!(reaches(&one, &two, FILTERED + 1), "redirected by us");
    assert!(lab.ok(&["ls"]).contains(" up\n"), "nothing of ours is wrong");
    ok(&lab, "xdp-filter", &["unload", "wire-ns1"]);
    assert!(reaches(&one, &two, FILTERED));
}

#[test]
fn xdp_filter_in_a_pod_is_not_gone_past() {
    let lab = Lab::new();
    lab.ok(&["up"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    assert_eq!(udp(&one, &two, address(), 100, 5), 0);
    // In the pod, and with the host's file systems: xdp-filter keeps pins.
    let in_pod = |args: &[&str]| {
        let filter = other("xdp-filter");
        let mut command = Command::new("nsenter");
        command.arg("--net=/run/netns/ns2").arg(filter.get_program()).args(args);
        command.envs(filter.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let finished = lab.spawn(command).finish();
        assert!(finished.status.success(), "{args:?}: {finished:?}");
    };
    in_pod(&["load", "-m", "native", "-f", "udp", "eth0"]);
    in_pod(&["port", "-m", "dst", "-p", "udp", &FILTERED.to_string()]);
    assert!(reaches(&one, &two, FILTERED), "peer redirect goes past it");
    let list = lab.ok(&["ls"]);
    assert!(
        list.contains("wire-ns2 should be reached through its host end") && list.contains("XDP"),
        "{list}"
    );
    lab.ok(&["up"]);
    assert!(!reaches(&one, &two, FILTERED), "through the host end it sees every frame");
    assert!(reaches(&one, &two, FILTERED + 1));
    in_pod(&["unload", "eth0"]);
    lab.ok(&["up"]);
    assert!(lab.ok(&["ls"]).contains(" up\n"));
}

#[test]
fn xdp_filter_cannot_replace_our_xdp_program() {
    let lab = Lab::new();
    lab.ok(&["up", "--hook", "xdp"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    let mut command = other("xdp-filter");
    command.args(["load", "-m", "native", "-f", "udp", "wire-ns1"]);
    assert!(!lab.spawn(command).finish().status.success());
    assert_eq!(udp(&one, &two, address(), 100, 20), 0);
    assert!(lab.ok(&["ls"]).contains(" up\n"));
}

#[test]
fn a_filter_by_tc_runs_before_ours_and_goes_without_it() {
    let lab = Lab::new();
    lab.ok(&["up", "--hook", "clsact"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    let pin = Path::new("/sys/fs/bpf/theirs");
    let theirs = lab.run(move || Foreign::pinned(pin, Verdict::Next));
    let filter = ["filter", "add", "dev", "wire-ns1", "ingress", "prio", "10", "bpf", "da", "pinned"];
    ok(&lab, "tc", &[&filter[..], &["/sys/fs/bpf/theirs"]].concat());
    assert_eq!(udp(&one, &two, address(), 100, 20), 0);
    assert!(theirs.seen() >= 20);
    let shown = ok(&lab, "tc", &["filter", "show", "dev", "wire-ns1", "ingress"]);
    let place = |name: &str| shown.find(name).unwrap_or_else(|| panic!("{name} in {shown}"));
    assert!(place("pref 10 ") < place("veth_ingress"), "{shown}");
    ok(&lab, "tc", &["filter", "del", "dev", "wire-ns1", "ingress", "prio", "10"]);
    assert!(lab.ok(&["ls"]).contains(" up\n"), "ours is still there");
    // Whoever removes everything removes ours too; it is told, and put right.
    ok(&lab, "tc", &["filter", "del", "dev", "wire-ns1", "ingress"]);
    assert!(lab.ok(&["ls"]).contains("our program is not on wire-ns1 by clsact any more"));
    lab.ok(&["up", "--hook", "clsact"]);
    assert_eq!(udp(&one, &two, address(), 100, 5), 0);
}

#[test]
fn tc_cannot_remove_a_tcx_attachment() {
    let lab = Lab::new();
    lab.ok(&["up", "--hook", "tcx"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    ok(&lab, "tc", &["qdisc", "add", "dev", "wire-ns1", "clsact"]);
    ok(&lab, "tc", &["filter", "del", "dev", "wire-ns1", "ingress"]);
    ok(&lab, "tc", &["qdisc", "del", "dev", "wire-ns1", "clsact"]);
    eventually("traffic goes on", || udp(&one, &two, address(), 100, 5) == 0);
    assert!(lab.ok(&["ls"]).contains(" up\n"));
}
