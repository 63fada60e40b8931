//! Veth with real programs of others: xdp-filter of xdp-tools, filters by tc, Open vSwitch, tmux, tshark and Prometheus.
//! `cargo xtask test others` finds or gets them, and says where they are.
#![expect(clippy::unwrap_used, reason = "everything in a test panics when it fails")]

use std::{
    net::{IpAddr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use veth_common::Mac;
use veth_tests::{
    Lab,
    behind::Behind,
    fingerprint::assert_same,
    foreign::{Foreign, Verdict},
    forged::{Attempts, Pod, Who},
    lab::{eventually, with_netlink},
    planted::Planted,
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

/// The host's stack hears what comes in at an Open vSwitch's ports beside the switch.
#[test]
fn a_pod_of_an_open_vswitch_does_not_reach_the_host() {
    let lab = Lab::new();
    let text = "name = \"lab\"\n[ovs.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\n";
    let file = Declared::new(text);
    lab.ok(&file.args("up"));
    let a = Pod::open(&lab, "lab-a", "10.1.0.1", "fe80::1");
    let b = Pod::open(&lab, "lab-b", "10.1.0.2", "fe80::2");
    let socket = lab.run(|| {
        with_netlink(async |netlink| {
            let index = netlink.link("lo").await.unwrap().index;
            netlink.add_address(index, "192.0.2.1/32".parse().unwrap()).await.unwrap();
        });
        UdpSocket::bind("192.0.2.1:9").unwrap()
    });
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let host =
        Who { mac: Mac::new([0xff; 6]), v4: "192.0.2.1".parse().unwrap(), v6: "fe80::3".parse().unwrap() };
    let macs: Vec<Mac> = lab.links().into_iter().filter_map(|link| link.mac).collect();
    let mut attempts = Attempts::default();
    for mac in macs.into_iter().chain([host.mac]) {
        attempts.add_all(mac, a.who.mac, a.who, host, host);
    }
    let _heard = attempts.send(&a, &b, b.who.mac, &[]);
    assert!(socket.recv(&mut [0; 100]).is_err(), "the host heard a pod");
    // Nor does it say that it is there.
    let said = a.ear.socket.drain();
    assert!(said.iter().all(|frame| frame.bytes[6..12] == b.who.mac.bytes()), "{said:02x?}");
    lab.ok(&["down", "lab"]);
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
        let switch = Pid::from_raw(pid("ovs-vswitchd").trim().parse().unwrap());
        kill(switch, Signal::SIGKILL).unwrap();
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

/// Killed after each step of making, changing and removing it, `down` leaves no daemon of it and nothing else.
#[test]
fn of_an_open_vswitch_whose_topology_was_killed_nothing_is_left() {
    let lab = Lab::new();
    let others = Planted::plant(&lab, "o");
    let before = lab.fingerprint();
    let text = "name = \"o\"\n[ovs.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\"]\ngateway = true\n";
    let file = Declared::new(text);
    let changed = Declared::new(&text.replace("\"a\"", "\"b\""));
    for (prepare, args) in
        [(None, file.args("up")), (Some(&file), changed.args("up")), (Some(&file), ["down", "--all", "-v"])]
    {
        for step in 1.. {
            if let Some(file) = prepare {
                lab.ok(&file.args("up"));
            }
            let finished = lab.start(&args, &[("VETH_STOP_AFTER", &step.to_string())]).finish();
            lab.ok(&["down", "--all"]);
            assert!(!lab.run(|| Ovs::new("/run/veth/o.ovs").is_running().unwrap()), "{args:?}, step {step}");
            assert_same(&before, &lab.fingerprint(), &format!("{args:?}, killed after step {step}"));
            if !finished.was_killed() {
                assert!(finished.status.success() && step > 4, "{args:?}, step {step}: {finished:?}");
                break;
            }
        }
    }
    others.check();
}

/// A tmux server of its own, with one window that runs a command. It ends with this value.
struct Tmux<'a> {
    lab: &'a Lab,
    socket: tempfile::TempDir,
}

impl<'a> Tmux<'a> {
    fn start(lab: &'a Lab, command: &str) -> Self {
        let tmux = Self { lab, socket: tempfile::tempdir().unwrap() };
        tmux.run(&["-f", "/dev/null", "new-session", "-d", "-x", "130", "-y", "40", command]);
        tmux
    }

    fn run(&self, args: &[&str]) -> String {
        let mut command = other("tmux");
        command.arg("-S").arg(self.socket.path().join("tmux")).args(args).env("TERM", "xterm");
        let finished = self.lab.spawn(command).finish();
        assert!(finished.status.success(), "tmux {args:?}: {finished:?}");
        finished.out
    }

    fn press(&self, keys: &[&str]) {
        self.run(&[&["send-keys"], keys].concat());
    }

    /// Waits until the screen shows something.
    fn shows(&self, what: &str) -> String {
        let mut screen = String::new();
        eventually(what, || {
            screen = self.run(&["capture-pane", "-p"]);
            screen.contains(what)
        });
        screen
    }
}

impl Drop for Tmux<'_> {
    fn drop(&mut self) {
        let mut command = other("tmux");
        command.arg("-S").arg(self.socket.path().join("tmux")).arg("kill-server");
        let _unused = self.lab.spawn(command).finish();
    }
}

#[test]
fn top_is_driven_by_keys_follows_the_window_and_gives_the_terminal_back() {
    let lab = Lab::new();
    lab.ok(&["up", "--pods", "30"]);
    lab.ok(&["up"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    let veth = std::env::var("VETH_BIN").unwrap();
    let tmux = Tmux::start(
        &lab,
        &format!("echo before; {veth} top --interval 200ms; echo ended $?; exec sleep 1000"),
    );
    let screen = tmux.shows("33 ports in 2 topologies");
    assert!(screen.contains("RX bit/s▼") && !screen.contains("before"), "{screen}");
    assert_eq!(udp(&one, &two, address(), 100, 200), 0);
    tmux.press(&["/", "wire", "Enter"]);
    let screen = tmux.shows("2 of 33 ports");
    assert!(screen.contains("wire/ns1") && !screen.contains("switch/pod1"), "{screen}");
    tmux.press(&["Enter"]);
    tmux.shows("tcx veth_ingress");
    let screen = tmux.shows("ipv4_udp");
    assert!(screen.contains("frames from the pod by cpu"), "{screen}");
    tmux.press(&["Right"]);
    tmux.shows("TX bit/s▼");
    tmux.press(&["?"]);
    tmux.shows("sort by another column");
    tmux.press(&["x", "Enter"]);
    // Alone: with another key right behind it, a terminal takes it for that key with Alt.
    tmux.press(&["Escape"]);
    tmux.shows("q end");
    tmux.press(&["p"]);
    tmux.shows("stands still");
    tmux.run(&["resize-window", "-x", "80", "-y", "20"]);
    tmux.press(&["p"]);
    let screen = tmux.shows("switch/pod1 ");
    assert_eq!(screen.lines().count(), 20, "{screen}");
    assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    tmux.press(&["q"]);
    let screen = tmux.shows("ended 0");
    assert!(screen.contains("before") && !screen.contains("RX/s"), "the screen is as it was:\n{screen}");
    drop(tmux);

    // However it ends, the terminal is given back: cooked, and with an echo.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let process = tempfile::NamedTempFile::new().unwrap();
        let path = process.path().display();
        let command =
            format!("sh -c 'echo $$ > {path}; exec {veth} top'; stty -a; echo over; exec sleep 1000");
        let tmux = Tmux::start(&lab, &command);
        tmux.shows("33 ports");
        let process: i32 = std::fs::read_to_string(process.path()).unwrap().trim().parse().unwrap();
        kill(Pid::from_raw(process), signal).unwrap();
        let screen = tmux.shows("over");
        assert!(screen.contains(" echo ") && screen.contains(" icanon "), "{signal}:\n{screen}");
    }
    assert!(lab.refused(&["top"]).contains("needs a terminal"));
}

#[test]
fn tshark_reads_both_directions_and_finds_no_wrong_checksum() {
    let lab = Lab::new();
    lab.ok(&["up"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.pcapng");
    let file = path.to_str().unwrap();
    let running = lab.start(&["capture", "ns1", "-w", file, "udp"], &[]);
    eventually("something was captured", || {
        assert_eq!(udp(&one, &two, address(), 100, 10), 0);
        std::fs::metadata(&path).is_ok_and(|file| file.len() > 4_000)
    });
    running.signal(Signal::SIGINT);
    assert!(running.finish().status.success());
    let fields =
        ["-e", "frame.interface_name", "-e", "frame.comment", "-e", "ip.src", "-e", "udp.checksum.status"];
    let args = [
        &["-n", "-r", file, "-o", "udp.check_checksum:TRUE", "-T", "fields", "-E", "separator=|"],
        &fields[..],
    ]
    .concat();
    let text = ok(&lab, "tshark", &args);
    let count = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
    let (there, back) = (
        count("wire/ns1 eth0|redirected to wire/ns2 eth0 (peer)|172.16.0.1|1"),
        count("wire/ns2 eth0|redirected to wire/ns1 eth0 (peer)|172.16.0.2|1"),
    );
    assert!(there >= 10 && back >= 10, "{there} there and {back} back, with good checksums:\n{text}");
    assert_eq!(there + back, text.lines().count(), "{text}");
}

#[test]
fn prometheus_scrapes_it_and_evaluates_dashboard_and_alerts() {
    let contrib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib");
    let lab = Lab::new();
    lab.ok(&["up", "--pods", "3"]);
    let (one, two) = (lab.pod("switch-pod1"), lab.pod("switch-pod2"));
    let mut metrics = lab.start(&["metrics", "--detail", "--listen", "127.0.0.1:0"], &[]);
    let said = metrics.wait_for("/metrics\n");
    let target =
        said.trim().strip_prefix("serving http://").unwrap().strip_suffix("/metrics").unwrap().to_owned();
    let text = get(&lab, &target, "/metrics");
    let folder = tempfile::tempdir().unwrap();
    let (rules, series) = (contrib.join("prometheus/alerts.yml"), folder.path().join("metrics"));
    std::fs::write(&series, older(&text)).unwrap();
    let mut check = Command::new("sh");
    check
        .args(["-c", "exec \"$0\" check metrics < \"$1\""])
        .arg(other("promtool").get_program())
        .arg(&series);
    let finished = lab.spawn(check).finish();
    assert!(
        !finished.err.contains("error while linting") && !finished.err.contains("parsing error"),
        "{finished:?}"
    );
    ok(&lab, "promtool", &["check", "rules", rules.to_str().unwrap()]);

    std::fs::write(
        folder.path().join("prometheus.yml"),
        std::fs::read_to_string(contrib.join("prometheus/prometheus.yml"))
            .unwrap()
            .replace("127.0.0.1:9464", &target)
            .replace("15s", "1s")
            .replace("alerts.yml", rules.to_str().unwrap()),
    )
    .unwrap();
    let mut command = other("prometheus");
    command.arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()));
    command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
    command.args([
        "--web.listen-address=127.0.0.1:9090",
        "--web.console.templates=/",
        "--web.console.libraries=/",
    ]);
    let prometheus = lab.spawn(command);
    let query = |expression: &str| -> serde_json::Value {
        let body = get(&lab, "127.0.0.1:9090", &format!("/api/v1/query?query={}", percent(expression)));
        serde_json::from_str(&body).unwrap_or_default()
    };
    let value = |expression: &str| -> Option<f64> {
        query(expression)["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    };
    eventually("it scrapes", || value("veth_topology_readable{topology=\"switch\"}") == Some(1.0));
    let received = "veth_port_receive_packets_total{pod=\"pod1\"}";
    let before = std::cell::Cell::new(0.0);
    eventually("it knows what was received", || value(received).map(|now| before.set(now)).is_some());
    let before = before.get();
    assert_eq!(udp(&one, &two, [10, 200, 0, 2].into(), 100, 500), 0);
    eventually("it has seen the traffic", || value(received).is_some_and(|now| now >= before + 500.0));
    let stats = lab.quiet_stats("switch");
    let expected = stats["ports"][0]["rx"]["packets"].as_u64().unwrap();
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let expected = expected as f64;
    eventually("it knows as many as stats", || value(received) == Some(expected));

    let dashboard: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(contrib.join("grafana/veth.json")).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut expressions = 0;
    for target in panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap()) {
        let expression = target["expr"].as_str().unwrap();
        let filled = expression.replace("$__rate_interval", "5s").replace("$topology", "switch");
        // Drops there may be none of; everything else is a series that exists, though a scrape may not have been in time.
        eventually(&filled, || {
            let answer = query(&filled);
            assert_eq!(answer["status"], "success", "{filled}: {answer}");
            filled.contains("dropped") || !answer["data"]["result"].as_array().unwrap().is_empty()
        });
        expressions += 1;
    }
    assert!(expressions >= 13);
    let rules: serde_json::Value =
        serde_json::from_str(&get(&lab, "127.0.0.1:9090", "/api/v1/rules")).unwrap();
    for rule in rules["data"]["groups"][0]["rules"].as_array().unwrap() {
        eventually("every rule is evaluated", || {
            let rules: serde_json::Value =
                serde_json::from_str(&get(&lab, "127.0.0.1:9090", "/api/v1/rules")).unwrap();
            let groups = &rules["data"]["groups"][0]["rules"];
            groups.as_array().unwrap().iter().any(|now| now["name"] == rule["name"] && now["health"] == "ok")
        });
    }
    prometheus.signal(Signal::SIGKILL);
    assert!(prometheus.finish().was_killed());
}

/// OpenMetrics as the older text format, which is all that this promtool can check: a counter is called as its samples are,
/// and there is nothing that informs.
fn older(text: &str) -> String {
    let kinds: std::collections::HashMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let line = |line: &str| -> Option<String> {
        let mut words = line.splitn(4, ' ');
        let (hash, what, name, rest) = (words.next()?, words.next(), words.next(), words.next());
        if hash != "#" {
            return Some(line.to_owned());
        }
        let (what, name, rest) = (what?, name?, rest?);
        let (ending, kind) = match kinds.get(name) {
            Some(&"counter") => ("_total", "counter"),
            Some(&"info") => ("_info", "gauge"),
            Some(kind) => ("", *kind),
            None => return None,
        };
        match what {
            "TYPE" => Some(format!("# TYPE {name}{ending} {kind}")),
            "HELP" => Some(format!("# HELP {name}{ending} {rest}")),
            _ => None,
        }
    };
    text.lines().filter_map(line).map(|line| line + "\n").collect()
}

/// The body of what is answered to a request on the host.
fn get(lab: &Lab, address: &str, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let (address, path) = (address.to_owned(), path.to_owned());
    lab.run(move || {
        let Ok(mut stream) = std::net::TcpStream::connect(address) else { return String::new() };
        let request = format!("GET {path} HTTP/1.0\r\nHost: veth\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
    })
}

/// Text as a part of an address.
fn percent(text: &str) -> String {
    text.bytes().flat_map(|byte| ["%".to_owned(), format!("{byte:02x}")]).collect()
}
