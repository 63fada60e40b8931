//! `veth trace` and `veth capture`: what is decided is told, and nobody is held up.

use std::{
    fs::{self, File},
    process::Command,
    time::Duration,
};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::sys::signal::Signal;
use pcap_file::pcapng::{Block, PcapNgReader, blocks::enhanced_packet::EnhancedPacketOption};
use serde_json::Value;
use veth_common::Mac;
use veth_tests::{
    Lab, Pair, Running,
    frame::{ETHERTYPE_EXPERIMENTAL, ethernet},
    hook,
    lab::{eventually, pod_link_stats, silence, with_netlink},
    need,
    topology::Declared,
    traffic::{tcp, udp},
};
use veth_user::datapath::{Hook, attach};

const LAN: &str = "name = \"lab\"\n\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\", \"c\"]\nspoof_check = true\n";

/// Whether the kernel has what watching needs.
fn can_watch() -> bool {
    need::kernel(6, 6, "TCX, by which watching ends with its process")
}

/// Three pods on a switch, silent, by a hook.
fn lab(hook: Hook) -> (Lab, Declared) {
    let lab = Lab::new();
    let file = Declared::new(&LAN.replace("\n\n", &format!("\nhook = \"{hook}\"\n\n")));
    lab.ok(&file.args("up"));
    for pod in ["lab-a", "lab-b", "lab-c"] {
        silence(&lab.pod(pod));
    }
    (lab, file)
}

/// Starts watching, and waits until it does: it comes to the host end of `last` when it is at all others.
fn start(lab: &Lab, args: &[&str], last: &'static str) -> Running {
    let running = lab.start(args, &[]);
    let all = 1 + usize::from(args[0] == "capture");
    eventually("it watches", || watchers(lab, last) == all);
    eventually("it is ready for signals", || running.catches(Signal::SIGINT));
    running
}

/// How many watching programs are on a host end.
fn watchers(lab: &Lab, link: &'static str) -> usize {
    lab.run(move || {
        with_netlink(async |netlink| {
            let link = netlink.link(link).await.unwrap();
            let mut attached = attach::attached(netlink, &link).await.unwrap();
            attached.extend(attach::attached_to_egress(netlink, &link).await.unwrap());
            attached.iter().filter(|attached| attached.name.starts_with("veth_watch")).count()
        })
    })
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_trace_tells_what_was_decided() {
    if !can_watch() {
        return;
    }
    for hook in [Hook::Tcx, Hook::Clsact] {
        let (lab, _file) = lab(hook);
        let (a, b) = (lab.pod("lab-a"), lab.pod("lab-b"));
        assert_eq!(udp(&a, &b, "10.1.0.2".parse().unwrap(), 100, 1), 0, "neighbours are known from here on");
        let running = start(&lab, &["trace", "--of", "lab", "--json"], "br-lab-lan");
        assert_eq!(udp(&a, &b, "10.1.0.2".parse().unwrap(), 100, 5), 0);
        let Pair { a: mac, b: other, out, .. } = Pair::open(&lab, ["lab-a", "lab-b"]);
        out.send(&ethernet(Mac::new([0xff; 6]), mac, ETHERTYPE_EXPERIMENTAL, &[0; 50]));
        out.send(&ethernet(other, Mac::new([2, 9, 9, 9, 9, 9]), ETHERTYPE_EXPERIMENTAL, &[0; 60]));
        std::thread::sleep(Duration::from_millis(100));
        running.signal(Signal::SIGINT);
        let finished = running.finish();
        assert!(finished.status.success() && finished.err.is_empty(), "{}", finished.err);
        let told = lines(&finished.out);
        let count = |wanted: &[(&str, Value)]| {
            told.iter().filter(|line| wanted.iter().all(|(key, value)| line[key] == *value)).count()
        };
        let to_b: &[(&str, Value)] = &[
            ("pod", "a".into()),
            ("verdict", "redirected".into()),
            ("target", "lab/b eth0".into()),
            ("source", "10.1.0.1".into()),
            ("destination", "10.1.0.2".into()),
            ("protocol", "udp".into()),
            ("length", 142.into()),
        ];
        assert_eq!(count(to_b), 5, "{hook}: {}", finished.out);
        assert_eq!(
            count(&[("pod", "a".into()), ("reason", "group".into()), ("length", 64.into())]),
            1,
            "{hook}"
        );
        assert_eq!(
            count(&[("pod", "a".into()), ("verdict", "dropped".into()), ("reason", "spoofed_mac".into())]),
            1,
            "{hook}"
        );
        assert_eq!(
            count(&[("pod", Value::Null), ("reason", "no_gateway".into())]),
            1,
            "the bridge's own: {hook}"
        );
        assert_eq!(watchers(&lab, "lab-a"), 0, "{hook}");
    }
}

#[test]
fn a_trace_is_filtered_sampled_and_limited() {
    if !can_watch() {
        return;
    }
    let (lab, _file) = lab(Hook::Tcx);
    let (a, b, c) = (lab.pod("lab-a"), lab.pod("lab-b"), lab.pod("lab-c"));
    let [to_b, to_c] = ["10.1.0.2", "10.1.0.3"].map(|address| address.parse().unwrap());
    for (args, most, least) in [
        (&["udp", "dst", "host", "10.1.0.3"][..], 20, 20),
        (&["udp", "and", "host", "10.1.0.3"], 40, 40),
        (&["--of", "lab/c", "udp"], 40, 40),
        (&["--of", "c", "--limit", "7"], 7, 7),
        (&["tcp"], 0, 0),
        (&["--sample", "1/4", "udp"], 60, 3),
    ] {
        let args: Vec<&str> = ["trace", "--json"].iter().chain(args).copied().collect();
        let running = start(&lab, &args, "lab-c");
        assert_eq!(udp(&a, &b, to_b, 100, 20), 0);
        assert_eq!(udp(&a, &c, to_c, 100, 20), 0);
        std::thread::sleep(Duration::from_millis(100));
        if !args.contains(&"--limit") {
            running.signal(Signal::SIGTERM);
        }
        let finished = running.finish();
        let told = lines(&finished.out).len();
        assert!(told <= most && told >= least, "{args:?}: {told} of {least} to {most}\n{}", finished.out);
    }
}

/// Fails if the checksum of TCP or UDP in a frame is another than it should be.
fn has_checksum(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { return };
    let ip = ip.header().to_header();
    let (there, expected) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            (tcp.checksum(), tcp.to_header().calc_checksum_ipv4(&ip, tcp.payload()).unwrap())
        }
        Some(TransportSlice::Udp(udp)) => {
            (udp.checksum(), udp.to_header().calc_checksum_ipv4(&ip, udp.payload()).unwrap())
        }
        _ => return,
    };
    assert_eq!(there, expected, "{packet:?}");
}

#[test]
fn a_capture_has_both_directions_and_whole_checksums() {
    if !can_watch() {
        return;
    }
    for hook in [Hook::Tcx, Hook::Clsact] {
        let (lab, _file) = lab(hook);
        let (a, b) = (lab.pod("lab-a"), lab.pod("lab-b"));
        let address = "10.1.0.2".parse().unwrap();
        let capture = tempfile::NamedTempFile::new().unwrap();
        let path = capture.path().to_str().unwrap();
        let running = start(&lab, &["capture", "lab/a", "-w", path], "lab-a");
        tcp(&a, &b, address, 100_000);
        assert_eq!(udp(&a, &b, address, 100, 10), 0);
        std::thread::sleep(Duration::from_millis(100));
        running.signal(Signal::SIGINT);
        let finished = running.finish();
        assert!(finished.status.success() && finished.err.contains(", 0 lost"), "{}", finished.err);

        let (mut from, mut to, mut sent) = (0, 0, 0);
        let mut reader = PcapNgReader::new(File::open(path).unwrap()).unwrap();
        let mut interfaces = Vec::new();
        while let Some(block) = reader.next_block() {
            match block.unwrap().into_owned() {
                Block::InterfaceDescription(interface) => interfaces.push(format!("{:?}", interface.options)),
                Block::EnhancedPacket(packet) => {
                    let comment = packet.options.iter().find_map(|option| match option {
                        EnhancedPacketOption::Comment(comment) => Some(comment.to_string()),
                        _ => None,
                    });
                    let comment = comment.unwrap();
                    let interface = &interfaces[usize::try_from(packet.interface_id).unwrap()];
                    if interface.contains("lab/b") {
                        assert!(comment.contains("redirected to lab/a"), "{interface} {comment}");
                        to += 1;
                    } else if comment == "sent" {
                        sent += 1;
                    } else {
                        assert!(interface.contains("lab/a"), "{interface}");
                        from += usize::from(comment.contains("redirected to lab/b"));
                    }
                    assert_eq!(packet.data.len(), usize::try_from(packet.original_len).unwrap());
                    has_checksum(&packet.data);
                }
                _ => {}
            }
        }
        // Datagrams alone are ten each way; a transfer has at least as many segments and answers.
        assert!(from > 15 && to > 12, "{hook}: {from} from the pod and {to} to it");
        // The answer to a question to all comes by redirect; only the question itself, from b, goes the slow way.
        assert!(sent <= 2, "{hook}: {sent}");
        assert_eq!(watchers(&lab, "lab-a"), 0);
    }
}

#[test]
fn a_capture_sees_paths_that_only_the_kernel_serves() {
    if !can_watch() {
        return;
    }
    let lab = Lab::new();
    let file = Declared::new(
        "name = \"br\"\n\n[bridge.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\nneighbours = true\n",
    );
    lab.ok(&file.args("up"));
    let (a, b) = (lab.pod("br-a"), lab.pod("br-b"));
    silence(&a);
    silence(&b);
    let capture = tempfile::NamedTempFile::new().unwrap();
    let path = capture.path().to_str().unwrap();
    let running = start(&lab, &["capture", "a", "-s", "64", "-w", path, "udp"], "br-a");
    assert_eq!(udp(&a, &b, "10.1.0.2".parse().unwrap(), 100, 10), 0);
    assert_eq!(udp(&b, &a, "10.1.0.1".parse().unwrap(), 100, 5), 0);
    std::thread::sleep(Duration::from_millis(100));
    running.signal(Signal::SIGINT);
    let finished = running.finish();
    assert!(
        finished.err.contains("30 frames of a captured"),
        "ten and five, there and back: {}",
        finished.err
    );
}

#[test]
fn nothing_of_it_is_left_when_it_is_killed() {
    if !can_watch() {
        return;
    }
    let (lab, _file) = lab(Hook::Tcx);
    let before = lab.fingerprint();
    for args in [&["trace"][..], &["capture", "lab/a", "-w", "/dev/null"]] {
        let running = start(&lab, args, "lab-a");
        running.signal(Signal::SIGKILL);
        assert!(running.finish().was_killed());
        eventually("it is gone", || watchers(&lab, "lab-a") == 0);
        assert_eq!(lab.fingerprint(), before, "{args:?}");
        assert!(!lab.ok(&["ls"]).contains("veth_watch"), "{args:?}");
    }
}

#[test]
fn who_does_not_read_loses_events_and_holds_nobody_up() {
    const FRAMES: u64 = 60_000;
    if !can_watch() {
        return;
    }
    let (lab, _file) = lab(Hook::Tcx);
    let Pair { a, b, out, two, .. } = Pair::open(&lab, ["lab-a", "lab-b"]);
    let running = start(&lab, &["trace", "--of", "lab/a"], "lab-c");
    running.signal(Signal::SIGSTOP);
    let before = pod_link_stats(&two, "eth0");
    let frame = ethernet(b, a, ETHERTYPE_EXPERIMENTAL, &[0; 100]);
    let batch = [frame.as_slice(); 32];
    (0..FRAMES / 32).for_each(|_| out.send_all(&batch));
    let after = pod_link_stats(&two, "eth0");
    if lab.redirect_peer().counts {
        assert_eq!(after.rx_packets - before.rx_packets, FRAMES, "all arrived");
    }
    running.signal(Signal::SIGCONT);
    std::thread::sleep(Duration::from_millis(100));
    running.signal(Signal::SIGINT);
    let finished = running.finish();
    let told = u64::try_from(finished.out.lines().count()).unwrap();
    let lost: u64 = finished.err.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    assert!(told < FRAMES && finished.err.contains("were not told of"), "{}", finished.err);
    assert_eq!(told + lost, FRAMES, "each was told of or counted as lost");
}

#[test]
fn readers_that_go_and_places_that_are_full() {
    if !can_watch() {
        return;
    }
    let (lab, _file) = lab(Hook::Tcx);
    let (a, b) = (lab.pod("lab-a"), lab.pod("lab-b"));
    let address = "10.1.0.2".parse().unwrap();
    for command in
        ["\"$VETH_BIN\" trace | head -n 300", "\"$VETH_BIN\" capture lab/a -w - | head -c 30000 | wc -c"]
    {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]);
        let running = lab.spawn(shell);
        eventually("it watches", || watchers(&lab, "lab-a") > 0);
        // It sees that nobody reads any more when it writes again.
        for _ in 0..10 {
            assert_eq!(udp(&a, &b, address, 100, 60), 0);
            std::thread::sleep(Duration::from_millis(20));
        }
        let finished = running.finish();
        assert!(finished.status.success() && !finished.err.contains("veth:"), "{command}: {}", finished.err);
        eventually("it is gone", || watchers(&lab, "lab-a") == 0);
    }
    // The very beginning of the file does not fit.
    let finished = lab.veth(&["capture", "lab/a", "-w", "/dev/full"]);
    assert_eq!(finished.status.code(), Some(1));
    assert!(
        finished.err.contains("write /dev/full") && finished.err.contains("No space left"),
        "{}",
        finished.err
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.pcapng");
    let args = [
        "capture",
        "lab/a",
        "-w",
        path.to_str().unwrap(),
        "--rotate",
        "1",
        "--files",
        "2",
        "--limit",
        "4000",
    ];
    let running = start(&lab, &args, "lab-a");
    assert_eq!(udp(&a, &b, address, 1_000, 2_000), 0);
    assert!(running.finish().status.success());
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["c.1.pcapng", "c.pcapng"], "two are kept");
}

#[test]
fn what_cannot_be_watched_is_told() {
    if !can_watch() {
        return;
    }
    let (lab, _file) = lab(Hook::Tcx);
    let direct =
        Declared::new("name = \"d\"\n\n[direct.p]\nsubnet = \"10.2.0.0/24\"\npods = [\"x\", \"y\"]\n");
    lab.ok(&direct.args("up"));
    for (args, expected) in [
        (&["capture", "lab", "-w", "x"][..], "lab is a topology: name one of its pods, as lab/POD"),
        (&["capture", "lab/z", "-w", "x"], "there is no pod lab/z"),
        (&["trace", "--of", "z"], "there is no topology z"),
        (&["trace", "tcp", "or", "udp"], "`or` is not known: every term must be met"),
        (&["capture", "lab/a", "-w", "x", "port", "http"], "`http` is no port"),
        (&["capture", "lab/a", "-w", "/no/such/folder/x"], "write /no/such/folder/x"),
        (&["capture", "d/x", "-w", "/dev/null"], "both ends of its pairs are in pods"),
        (&["capture", "lab/a", "-w", "-", "--rotate", "1"], "standard output is one file"),
    ] {
        let error = lab.refused(args);
        assert!(error.contains(expected), "{args:?}: {error}");
    }
    let kept = tempfile::NamedTempFile::new().unwrap();
    fs::write(kept.path(), "mine").unwrap();
    let _unused = lab.refused(&["capture", "d/x", "-w", kept.path().to_str().unwrap()]);
    assert_eq!(
        fs::read_to_string(kept.path()).unwrap(),
        "mine",
        "what could not be captured overwrites nothing"
    );
    for args in [&["trace", "--sample", "2"][..], &["trace", "--limit", "0"], &["capture", "lab/a"]] {
        assert_eq!(lab.veth(args).status.code(), Some(2), "{args:?}");
    }
    if hook::is_there(Hook::Xdp) {
        lab.up(Hook::Xdp, &["--name", "x"]);
        let error = lab.refused(&["trace", "--of", "x"]);
        assert!(error.contains("attached by XDP") && error.contains("--hook tcx"), "{error}");
    }
}
