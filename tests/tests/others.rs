//! Veth with real programs of others: xdp-filter of xdp-tools, filters by tc, and Open vSwitch. `cargo xtask test
//! others` finds or gets them, and says where they are.
#![expect(clippy::unwrap_used, reason = "everything in a test panics when it fails")]

use std::{
    net::{IpAddr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use veth_common::Mac;
use veth_tests::{
    Lab,
    behind::Behind,
    foreign::{Foreign, Verdict},
    lab::{eventually, with_netlink},
    topology::{Declared, examples, live},
    traffic::udp,
};
use veth_user::net::{
    Netns,
    ethtool::{Ethtool, Setting},
    ovs::Ovs,
};

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

/// An instance of Open vSwitch that does not outlive its test.
struct Stopped(Ovs);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _unused: veth_user::net::Result<()> = self.0.stop();
    }
}

/// A namespace with an address on `eth0`, and the host's end of it, by number.
fn behind(number: u8) -> (Netns, String) {
    let Behind { namespace, link } = Behind::new(number, 0, &[], &[&format!("172.16.0.{number}/24")]);
    // A switch in user space does not fill checksums in.
    let off = [Setting { feature: "tx-checksum-ip-generic", on: false }];
    let _unused: Vec<Setting> = Ethtool::open_in(&namespace).unwrap().set_features("eth0", &off).unwrap();
    (namespace, link)
}

#[test]
fn an_open_vswitch_of_our_own_switches_and_leaves_nothing() {
    let lab = Lab::new();
    let before = lab.fingerprint();
    lab.run(|| {
        let folder = "/run/veth/lab.ovs";
        let ovs = Stopped(Ovs::new(folder));
        let ovs = &ovs.0;
        assert!(!ovs.is_running().unwrap());
        for _ in 0..2 {
            ovs.start().unwrap();
            assert!(ovs.is_running().unwrap());
            ovs.add_bridge("bridge", Mac::new([2, 0, 0, 0, 0, 9])).unwrap();
        }
        let (one, link) = behind(1);
        let (two, other_link) = behind(2);
        for _ in 0..2 {
            ovs.add_port("bridge", &link).unwrap();
            ovs.add_port("bridge", &other_link).unwrap();
        }
        assert_eq!(ovs.ports("bridge").unwrap(), ["host1", "host2"]);
        let bridge = with_netlink(async |netlink| netlink.link("bridge").await.unwrap());
        assert_eq!(bridge.mac, Some(Mac::new([2, 0, 0, 0, 0, 9])));
        assert_eq!(udp(&one, &two, address(), 100, 20), 0);
        assert!(ovs.add_port("bridge", "no-such-link").unwrap_err().to_string().contains("no-such-link"));
        assert!(ovs.add_port("no-such-bridge", "host1").is_err());
        ovs.remove_port("bridge", "no-such-link").unwrap();
        for _ in 0..2 {
            ovs.remove_port("bridge", "host2").unwrap();
            assert_eq!(ovs.ports("bridge").unwrap(), ["host1"]);
        }
        assert_eq!(udp(&one, &two, address(), 100, 1), 1);
        // One of another mount namespace that has the same name is another.
        Lab::new().run(move || {
            let other = Ovs::new(folder);
            assert!(!other.is_running().unwrap());
            other.stop().unwrap();
        });
        assert!(ovs.is_running().unwrap());
        // Half of it is started again, with what it knew, and a daemon whose pid file is gone is found.
        let pid = |program: &str| std::fs::read_to_string(format!("{folder}/{program}.pid")).unwrap();
        let switch = nix::unistd::Pid::from_raw(pid("ovs-vswitchd").trim().parse().unwrap());
        nix::sys::signal::kill(switch, nix::sys::signal::Signal::SIGKILL).unwrap();
        eventually("the switch dies", || !ovs.is_running().unwrap());
        ovs.start().unwrap();
        assert_eq!(ovs.ports("bridge").unwrap(), ["host1"]);
        std::fs::remove_file(format!("{folder}/ovs-vswitchd.pid")).unwrap();
        for _ in 0..2 {
            ovs.stop().unwrap();
            assert!(!ovs.is_running().unwrap());
        }
        with_netlink(async |netlink| {
            // Those of the switch outlive it.
            for name in [link, other_link, "bridge".to_owned(), veth_user::net::ovs::COMMON_LINK.to_owned()] {
                netlink.delete_link(netlink.link(&name).await.unwrap().index).await.unwrap();
            }
        });
        std::fs::remove_dir("/run/veth").unwrap();
    });
    assert_eq!(lab.fingerprint(), before);
}

#[test]
fn an_open_vswitch_needs_a_short_path() {
    let ovs = Ovs::new(format!("/run/{}", "x".repeat(100)));
    assert!(ovs.start().unwrap_err().source.to_string().contains("107 bytes"));
}

#[test]
fn the_examples_with_an_open_vswitch_come_up_pass_their_check_and_go() {
    let with_ovs = |name: &String| ["ovs", "link"].contains(&name.as_str());
    for (name, file) in examples().filter(|(name, _)| with_ovs(name)) {
        live(&Lab::new(), &name, &file);
    }
}

/// The switch of a topology is killed, and `up` starts it again with what it had.
#[test]
fn an_open_vswitch_that_was_killed_is_started_again() {
    let lab = Lab::new();
    let before = lab.fingerprint();
    let file = Declared::new(
        "name = \"o\"\n[ovs.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\ngateway = true\n",
    );
    lab.ok(&file.args("up"));
    lab.run(|| Ovs::new("/run/veth/o.ovs").end().unwrap());
    let list = lab.ok(&["ls"]);
    assert!(list.contains("the Open vSwitch does not run"), "{list}");
    lab.ok(&file.args("up"));
    assert!(lab.ok(&file.args("plan")).contains("nothing to do"));
    lab.ok(&["check", "--live", "o", "--transfer", "50ms"]);
    lab.ok(&["down"]);
    assert_eq!(lab.fingerprint(), before);
}
