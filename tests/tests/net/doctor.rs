//! `veth doctor`: says nothing bad of a good host, finds what is planted, and fixes what it says it can.

use std::{any::Any, fs, os::unix::fs::OpenOptionsExt as _, process::Command};

use aya::maps::{Array, MapData};
use rtnetlink::LinkMessageBuilder;
use serde_json::Value;
use veth_common::{LAYOUT_VERSION, Mac};
use veth_tests::{
    Finished, Lab,
    foreign::{Foreign, Place, Verdict},
    hook,
    lab::{add_qdisc, delete_link, set_link, with_netlink},
    nft,
};
use veth_user::{
    datapath::{Hook, INGRESS},
    net::{
        Netns,
        ethtool::{Ethtool, Setting},
        tc::Direction,
    },
    probe::{Kernel, Peer, Scratch},
};

/// What `veth doctor --json` printed. It ends with what the worst finding asks for.
fn read(finished: &Finished) -> Vec<Value> {
    let findings: Vec<Value> =
        serde_json::from_str(&finished.out).unwrap_or_else(|error| panic!("{error}: {finished:?}"));
    let has = |level: &str| findings.iter().any(|finding| finding["level"] == level);
    let expected = if has("fail") {
        11
    } else if has("warn") {
        10
    } else {
        0
    };
    assert_eq!(finished.status.code(), Some(expected), "{finished:?}");
    for finding in &findings {
        let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        assert!(!text("id").is_empty() && !text("seen").is_empty(), "{finding}");
        let is_ok = finding["level"] == "ok";
        assert_eq!((text("why").is_empty(), text("fix").is_empty()), (is_ok, is_ok), "{finding}");
    }
    findings
}

fn doctor(lab: &Lab) -> Vec<Value> {
    read(&lab.veth(&["doctor", "--json"]))
}

fn find<'a>(findings: &'a [Value], id: &str, subject: Option<&str>) -> Vec<&'a Value> {
    let is = |finding: &&Value| finding["id"] == id && finding["subject"].as_str() == subject;
    findings.iter().filter(is).collect()
}

/// The level of the one finding about something.
#[track_caller]
fn level<'a>(findings: &'a [Value], id: &str, subject: Option<&str>) -> &'a str {
    match find(findings, id, subject).as_slice() {
        [finding] => finding["level"].as_str().unwrap(),
        found => panic!("{id} {subject:?}: {found:?}"),
    }
}

/// Something must be told: at this level, and with what to do.
#[track_caller]
fn expect(findings: &[Value], id: &str, subject: Option<&str>, level: &str, fix: &str) {
    let found = find(findings, id, subject);
    let is = |finding: &&&Value| {
        finding["level"] == level && finding["fix"].as_str().unwrap_or_default().contains(fix)
    };
    assert!(found.iter().any(|finding| is(&finding)), "{id} {subject:?} {level} {fix}: {found:#?}");
}

/// Whether the kernel has a hook, for tests that go on without.
fn has(hook: Hook) -> bool {
    let needs = match hook {
        Hook::Tcx => Kernel(6, 6, 0),
        Hook::Clsact => Kernel(5, 10, 0),
        Hook::Xdp | Hook::XdpGeneric => Kernel(6, 2, 0),
    };
    Kernel::current().unwrap() >= needs
}

#[test]
fn a_good_host_has_no_failure_and_stays_as_it_is() {
    for (hook, args) in [(Hook::Clsact, &["--pods", "3"][..]), (Hook::Tcx, &[]), (Hook::Xdp, &[])] {
        if !has(hook) {
            continue;
        }
        let lab = Lab::new();
        lab.up(hook, args);
        let before = lab.fingerprint();
        let findings = doctor(&lab);
        assert!(findings.iter().all(|finding| finding["level"] != "fail"), "{hook}: {findings:#?}");
        let topology = if args.is_empty() { "wire" } else { "switch" };
        for id in [
            "topology",
            "port-up",
            "port-mtu",
            "port-mac",
            "port-features",
            "ingress",
            "egress",
            "peer-hazard",
        ] {
            assert_eq!(level(&findings, id, Some(topology)), "ok", "{hook}");
        }
        assert_eq!(level(&findings, "leftover", None), "ok");
        assert_eq!(lab.fingerprint(), before);
        // For people, the same.
        let text = lab.veth(&["doctor"]).out;
        assert!(text.contains(" 0 fail\n") && text.contains(topology) && !text.contains('\x1b'), "{text}");
    }
}

/// What is wrong on a host, and what must be said of it.
struct Row {
    up: &'static [&'static str],
    plant: fn(&Lab) -> Box<dyn Any + Send>,
    id: &'static str,
    subject: Option<&'static str>,
    level: &'static str,
    fix: &'static str,
}

/// Plants it and asks.
#[track_caller]
fn check(row: &Row) {
    let lab = Lab::new();
    if !row.up.is_empty() {
        lab.ok(row.up);
    }
    let planted = (row.plant)(&lab);
    expect(&doctor(&lab), row.id, row.subject, row.level, row.fix);
    drop(planted);
}

/// Does something on the host, of which nothing has to be held.
fn on_host(lab: &Lab, work: fn()) -> Box<dyn Any + Send> {
    lab.run(work);
    Box::new(())
}

/// The same in the first pod of a wire.
fn in_pod(lab: &Lab, work: fn()) -> Box<dyn Any + Send> {
    lab.pod("ns1").run(work).unwrap();
    Box::new(())
}

const PORT: Option<&str> = Some("wire/ns1/eth0");

fn features(lab: &Lab, settings: &'static [Setting]) -> Box<dyn Any + Send> {
    let set = || Ethtool::open().unwrap().set_features("eth0", settings).unwrap();
    Box::new(lab.pod("ns1").run(set).unwrap())
}

#[test]
fn features_that_xdp_needs() {
    if !hook::is_there(Hook::Xdp) {
        return;
    }
    let mut row = Row {
        up: &["up", "--hook", "xdp"],
        plant: |lab| features(lab, &[Setting { feature: "rx-gro", on: false }]),
        id: "port-features",
        subject: PORT,
        level: "fail",
        fix: "veth up --hook xdp, or veth exec wire/ns1 -- ethtool -K eth0 rx-gro on",
    };
    check(&row);
    row.plant = |lab| features(lab, &[Setting { feature: "tx-checksum-ip-generic", on: true }]);
    row.fix = "tx-checksum-ip-generic off";
    check(&row);
}

#[test]
fn features_that_make_tc_slow() {
    check(&Row {
        up: &["up"],
        plant: |lab| features(lab, &[Setting { feature: "tx-checksum-ip-generic", on: false }]),
        id: "port-features",
        subject: PORT,
        level: "warn",
        fix: "ethtool -K eth0 tx-checksum-ip-generic on",
    });
}

#[test]
fn a_filter_behind_our_tcx_program() {
    if !hook::is_there(Hook::Tcx) {
        return;
    }
    check(&Row {
        up: &["up", "--hook", "tcx"],
        plant: |lab| {
            let index = lab.link("wire-ns1").index;
            Box::new(lab.run(move || Foreign::clsact(index, Direction::Ingress, 1, Verdict::Next)))
        },
        id: "ingress",
        subject: PORT,
        level: "warn",
        fix: "veth down wire && veth up --hook clsact",
    });
}

#[test]
fn a_filter_before_ours_is_in_order() {
    let lab = Lab::new();
    lab.ok(&["up", "--hook", "clsact"]);
    let index = lab.link("wire-ns1").index;
    let _theirs = lab.run(move || Foreign::clsact(index, Direction::Ingress, 1, Verdict::Next));
    let findings = doctor(&lab);
    assert_eq!(level(&findings, "ingress", PORT), "ok");
    assert!(
        find(&findings, "ingress", PORT)[0]["seen"]
            .as_str()
            .unwrap()
            .contains("theirs by clsact runs before")
    );
}

#[test]
fn a_tcx_program_behind_ours_and_one_before() {
    if !hook::is_there(Hook::Tcx) {
        return;
    }
    let mut row = Row {
        up: &["up", "--hook", "tcx"],
        plant: |lab| {
            let index = lab.link("wire-ns1").index;
            Box::new(lab.run(move || Foreign::tcx(index, Place::Last, Verdict::Next)))
        },
        id: "ingress",
        subject: PORT,
        level: "warn",
        fix: "puts ours last again",
    };
    check(&row);
    row.level = "ok";
    row.fix = "";
    row.plant = |lab| {
        let index = lab.link("wire-ns1").index;
        Box::new(lab.run(move || Foreign::tcx(index, Place::First, Verdict::Next)))
    };
    check(&row);
}

#[test]
fn a_filter_that_peer_redirect_goes_past() {
    check(&Row {
        up: &["up"],
        plant: |lab| {
            let index = lab.link("wire-ns1").index;
            Box::new(lab.run(move || Foreign::clsact(index, Direction::Egress, 1, Verdict::Next)))
        },
        id: "egress",
        subject: PORT,
        level: "warn",
        fix: "veth up --redirect host",
    });
}

#[test]
fn a_qdisc_that_redirects_go_past() {
    let mut row = Row {
        up: &["up"],
        plant: |lab| on_host(lab, || add_qdisc("wire-ns1", "pfifo")),
        id: "egress",
        subject: PORT,
        level: "warn",
        fix: "veth up --redirect host",
    };
    check(&row);
    (row.up, row.level, row.fix) = (&["up", "--redirect", "host"], "ok", "");
    check(&row);
}

#[test]
fn a_wrong_mtu_and_a_wrong_address() {
    let mut row = Row {
        up: &["up"],
        plant: |lab| in_pod(lab, || set_link("eth0", |link| link.mtu(1_400))),
        id: "port-mtu",
        subject: PORT,
        level: "fail",
        fix: "veth exec wire/ns1 -- ip link set dev eth0 mtu 1500",
    };
    check(&row);
    row.plant = |lab| on_host(lab, || set_link("wire-ns1", |link| link.mtu(9_000)));
    row.fix = "ip link set dev wire-ns1 mtu 1500";
    check(&row);
    row.plant = |lab| {
        in_pod(lab, || {
            let mac = Mac::new([2, 0, 0, 0, 0, 9]);
            set_link("eth0", move |link| link.address(mac.bytes().to_vec()));
        })
    };
    row.id = "port-mac";
    row.fix = "veth exec wire/ns1 -- ip link set dev eth0 address 0";
    check(&row);
}

#[test]
fn a_port_that_is_down_or_gone() {
    let mut row = Row {
        up: &["up"],
        plant: |lab| on_host(lab, || set_link("wire-ns1", LinkMessageBuilder::down)),
        id: "port-up",
        subject: PORT,
        level: "fail",
        fix: "ip link set dev wire-ns1 up",
    };
    check(&row);
    (row.id, row.subject, row.fix) = ("topology", Some("wire"), "veth up");
    check(&row);
    row.plant = |lab| on_host(lab, || delete_link("wire-ns1"));
    check(&row);
    (row.id, row.subject) = ("port-up", PORT);
    check(&row);
}

#[test]
fn our_filter_was_removed() {
    check(&Row {
        up: &["up", "--hook", "clsact"],
        plant: |lab| {
            on_host(lab, || {
                with_netlink(async |netlink| {
                    let index = netlink.link("wire-ns1").await.unwrap().index;
                    let filters = netlink.filters(index, Direction::Ingress).await.unwrap();
                    let ours = filters.iter().find(|filter| filter.name.as_deref() == Some(INGRESS)).unwrap();
                    netlink.delete_filter(index, ours.position).await.unwrap();
                });
            })
        },
        id: "topology",
        subject: Some("wire"),
        level: "fail",
        fix: "veth up --hook clsact",
    });
}

#[test]
fn a_pod_with_an_xdp_program_of_its_own() {
    let mut row = Row {
        up: &["up"],
        plant: |lab| {
            let foreign = || {
                let index = with_netlink(async |netlink| netlink.link("eth0").await.unwrap().index);
                Foreign::xdp(index, Verdict::Next)
            };
            Box::new(lab.pod("ns1").run(foreign).unwrap())
        },
        id: "peer-hazard",
        subject: PORT,
        level: "warn",
        fix: "through its host end",
    };
    check(&row);
    (row.id, row.subject, row.level, row.fix) = ("topology", Some("wire"), "fail", "veth up");
    check(&row);
}

#[test]
fn what_nobody_remembers() {
    let mut row = Row {
        up: &[],
        plant: |lab| {
            on_host(lab, || {
                let folder = format!("/sys/fs/bpf/veth/v{LAYOUT_VERSION}/lost");
                fs::create_dir_all(&folder).unwrap();
                Array::<MapData, u32>::create(1, 0).unwrap().pin(format!("{folder}/map_FDB")).unwrap();
            })
        },
        id: "leftover",
        subject: Some("lost"),
        level: "warn",
        fix: "veth down lost",
    };
    check(&row);
    row.up = &["up"];
    row.plant = |lab| {
        on_host(lab, || {
            fs::remove_file("/run/veth/wire.json").unwrap();
            fs::remove_dir_all("/sys/fs/bpf/veth").unwrap();
        })
    };
    (row.subject, row.fix) = (Some("wire"), "veth down wire");
    check(&row);
    row.plant = |lab| {
        on_host(lab, || {
            let text = fs::read_to_string("/run/veth/wire.json").unwrap();
            let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
            fs::write("/run/veth/wire.json", text.replace(boot.trim(), "another")).unwrap();
        })
    };
    row.id = "topology";
    check(&row);
    row.plant = |lab| on_host(lab, || fs::write("/run/veth/wire.json", "{").unwrap());
    (row.id, row.level, row.fix) = ("record", "fail", "veth down --all");
    check(&row);
    row.plant = |lab| {
        on_host(lab, || {
            fs::OpenOptions::new().create_new(true).write(true).mode(0o444).open("/run/netns/ns9").unwrap();
        })
    };
    (row.id, row.subject, row.level, row.fix) = ("stale-namespace", Some("ns9"), "warn", "ip netns del ns9");
    check(&row);
    row.plant = |lab| on_host(lab, || fs::write("/run/veth/old.lock", "").unwrap());
    (row.id, row.subject, row.fix) = ("state-file", Some("/run/veth/old.lock"), "rm /run/veth/old.lock");
    check(&row);
}

#[test]
fn a_strict_reverse_path_filter() {
    let mut row = Row {
        up: &["up"],
        plant: |lab| on_host(lab, || fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap()),
        id: "rp-filter",
        subject: Some("net.ipv4.conf.all.rp_filter"),
        level: "warn",
        fix: "sysctl -w net.ipv4.conf.all.rp_filter=2",
    };
    check(&row);
    row.plant = |lab| in_pod(lab, || fs::write("/proc/sys/net/ipv4/conf/eth0/rp_filter", "1").unwrap());
    (row.subject, row.fix) = (PORT, "veth exec wire/ns1 -- sysctl -w net.ipv4.conf.eth0.rp_filter=2");
    check(&row);
}

#[test]
fn more_pods_than_the_neighbour_table_takes() {
    let lab = Lab::new();
    lab.ok(&["up", "--pods", "40"]);
    let findings = doctor(&lab);
    for family in ["ipv4", "ipv6"] {
        let fix = format!("net.{family}.neigh.default.gc_thresh3=2048");
        expect(&findings, "neighbour-table", Some(family), "warn", &fix);
    }
}

#[test]
fn rules_of_the_packet_filter() {
    let lab = Lab::new();
    lab.ok(&["up", "--pods", "2"]);
    if !lab.run(nft::forward_rule) {
        println!("skipped: the kernel has no nftables, or no module of it");
        return;
    }
    // Not everywhere: it is a module.
    let bridged = lab.run(|| {
        let switch = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        fs::exists(switch).unwrap() && fs::write(switch, "1").is_ok()
    });
    let findings = doctor(&lab);
    expect(&findings, "netfilter-rules", None, "warn", "--redirect host neither");
    assert!(
        find(&findings, "netfilter-rules", None)[0]["seen"]
            .as_str()
            .unwrap()
            .contains("inet theirs forward (1 rules)")
    );
    if bridged {
        expect(&findings, "bridge-netfilter", None, "warn", "net.bridge.bridge-nf-call-iptables=0");
    }
}

#[test]
fn a_missing_capability() {
    let lab = Lab::new();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-net_admin", "sh", "-c"]);
    command.arg("exec \"$VETH_BIN\" doctor --json");
    let findings = read(&lab.spawn(command).finish());
    expect(&findings, "capability", Some("CAP_NET_ADMIN"), "fail", "CAP_NET_ADMIN");
    assert_eq!(level(&findings, "capability", Some("CAP_NET_RAW")), "ok");
    // What cannot be seen without is said, and not taken for bad or good.
    for id in ["redirect-peer-arrives", "netfilter-rules"] {
        expect(&findings, id, None, "warn", "sudo veth doctor");
    }
}

#[test]
fn without_root_it_says_what_it_cannot_see() {
    let lab = Lab::new();
    lab.ok(&["up"]);
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c"]);
    // The binary may stand in a folder that only root can enter.
    command.arg("exec /proc/self/fd/3 doctor --json");
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "exec 3<\"$VETH_BIN\"; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    let findings = read(&lab.spawn(shell).finish());
    assert!(findings.iter().all(|finding| finding["level"] != "fail"), "{findings:#?}");
    expect(&findings, "root", None, "warn", "sudo veth doctor");
    let hidden = [
        ("program", Some(INGRESS)),
        ("topology", Some("wire")),
        ("ingress", Some("wire")),
        ("leftover", None),
    ];
    for (id, subject) in hidden {
        let found = find(&findings, id, subject);
        assert!(found[0]["seen"].as_str().unwrap().starts_with("needs root to see"), "{found:?}");
    }
}

#[test]
fn a_bpffs_that_is_not_mounted() {
    let lab = Lab::without_bpffs();
    expect(&doctor(&lab), "bpffs", None, "fail", "mount -t bpf bpf /sys/fs/bpf");
    let before = lab.fingerprint();
    // A process namespace of its own makes this mount namespace the first one, as on a machine.
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount", "--mount-proc", "--propagation", "private", "sh", "-c"]);
    command.arg(
        "mounts() { echo $(grep -c ' /sys/fs/bpf bpf ' /proc/mounts) mounts $1; }; mounts before
         \"$VETH_BIN\" doctor --json | grep -q '\"id\":\"bpffs\",\"subject\":null,\"level\":\"warn\"' || exit 1
         \"$VETH_BIN\" doctor --fix; mounts fixed; \"$VETH_BIN\" up && \"$VETH_BIN\" down && mounts down && find /run",
    );
    let finished = lab.spawn(command).finish();
    assert!(finished.status.success(), "{finished:?}");
    let mounts = |when: &str| {
        let line = finished.out.lines().find_map(|line| line.strip_suffix(&format!(" mounts {when}")));
        line.unwrap_or_else(|| panic!("{when}: {finished:?}")).parse::<u32>().unwrap()
    };
    assert_eq!(mounts("fixed"), mounts("before") + 1, "{finished:?}");
    assert_eq!(mounts("down"), mounts("before"), "until the last `down`: {finished:?}");
    assert!(
        finished.out.contains("umount /sys/fs/bpf") && !finished.out.contains("/run/veth"),
        "{finished:?}"
    );
    assert_eq!(lab.fingerprint(), before);
}

#[test]
fn what_can_be_fixed_is_and_can_be_undone() {
    let lab = Lab::new();
    let xdp = has(Hook::Xdp);
    lab.up(if xdp { Hook::Xdp } else { Hook::Clsact }, &[]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    one.run(|| set_link("eth0", |link| link.mtu(1_400))).unwrap();
    one.run(|| fs::write("/proc/sys/net/ipv4/conf/eth0/rp_filter", "1")).unwrap().unwrap();
    lab.run(|| set_link("wire-ns2", LinkMessageBuilder::down));
    if xdp {
        let set =
            |feature, on| move || Ethtool::open().unwrap().set_features("eth0", &[Setting { feature, on }]);
        one.run(set("rx-gro", false)).unwrap().unwrap();
        two.run(set("tx-checksum-ip-generic", true)).unwrap().unwrap();
    }
    let fixed = read(&lab.veth(&["doctor", "--fix", "--json"]));
    let done = |id: &str, subject: &str, undo: &str| {
        let is = |finding: &Value| {
            let has = |key: &str, part: &str| finding[key].as_str().unwrap_or_default().contains(part);
            finding["id"] == id
                && finding["subject"] == subject
                && finding["level"] == "ok"
                && has("fixed", "fixed")
                && has("undo", undo)
        };
        assert!(fixed.iter().any(is), "{id} {subject}: {fixed:#?}");
    };
    done("port-mtu", "wire/ns1/eth0", "veth exec wire/ns1 -- ip link set dev eth0 mtu 1400");
    done("rp-filter", "wire/ns1/eth0", "veth exec wire/ns1 -- sysctl -w net.ipv4.conf.eth0.rp_filter=\"1\"");
    done("port-up", "wire/ns2/eth0", "ip link set dev wire-ns2 down");
    if xdp {
        done("port-features", "wire/ns1/eth0", "veth exec wire/ns1 -- ethtool -K eth0 rx-gro off");
        done("port-features", "wire/ns2/eth0", "tx-checksum-ip-generic on");
    }
    let findings = doctor(&lab);
    assert!(findings.iter().all(|finding| finding["level"] != "fail"), "{findings:#?}");
    for id in ["port-mtu", "port-up", "port-features", "topology"] {
        assert_eq!(level(&findings, id, Some("wire")), "ok");
    }
    assert!(find(&findings, "rp-filter", PORT).is_empty());
    let mtu = |pod: &Netns| {
        pod.run(|| with_netlink(async |netlink| netlink.link("eth0").await.unwrap().mtu)).unwrap()
    };
    assert_eq!((mtu(&one), mtu(&two)), (1_500, 1_500));
}

#[test]
fn drift_is_repaired_in_place() {
    let lab = Lab::new();
    lab.ok(&["up", "--hook", "clsact"]);
    let index = lab.link("wire-ns1").index;
    lab.remove_filters("wire-ns1");
    assert_eq!(level(&doctor(&lab), "topology", Some("wire")), "fail");
    let text = lab.veth(&["doctor", "--fix"]).out;
    assert!(text.contains("our program is not on wire-ns1 by clsact any more; fixed"), "{text}");
    assert_eq!(level(&doctor(&lab), "topology", Some("wire")), "ok");
    assert_eq!(lab.link("wire-ns1").index, index, "nothing was made anew");
}

/// What can be tried on this kernel must be told as it is.
#[test]
fn truths_of_this_kernel() {
    let lab = Lab::new();
    let findings = doctor(&lab);
    assert_eq!(level(&findings, "hook", Some("clsact")), "ok");
    assert_eq!(level(&findings, "hook", Some("tcx")), "ok", "not having it is no fault");
    assert_eq!(level(&findings, "netkit", None), "ok", "nor is this");
    assert_eq!(level(&findings, "redirect-peer-arrives", None), "ok");
    assert_eq!(level(&findings, "program", Some(INGRESS)), "ok");
    assert_eq!(level(&findings, "jit", None), "ok");
    let seen = |id: &str, subject| find(&findings, id, subject)[0]["seen"].as_str().unwrap().to_owned();
    if has(Hook::Tcx) {
        assert_eq!(seen("hook", Some("tcx")), "there");
        assert!(seen("selection", None).starts_with("tcx: "));
    }
    if has(Hook::Xdp) {
        assert_eq!(level(&findings, "hook", Some("xdp")), "ok");
        assert_eq!(level(&findings, "program", Some("veth_xdp")), "ok");
        assert_eq!(level(&findings, "xdp-on-veth", None), "ok");
    }
    // Since then on every branch.
    if Kernel::current().unwrap() >= Kernel(6, 15, 0) {
        assert_eq!(level(&findings, "redirect-peer-scrubs", None), "ok");
        assert_eq!(level(&findings, "redirect-peer-counts", None), "ok");
    }
    // Whatever the version: as an experiment of our own has it.
    let peer =
        lab.run(|| with_netlink(async |_| Scratch::new().await.unwrap().redirect_peer().await.unwrap()));
    let Peer { arrives, scrubs, counts } = peer;
    assert!(arrives);
    let word = |good| if good { "ok" } else { "warn" };
    assert_eq!(level(&findings, "redirect-peer-scrubs", None), word(scrubs));
    assert_eq!(level(&findings, "redirect-peer-counts", None), word(counts));
    let stalls = (Kernel(6, 16, 0)..Kernel(6, 17, 10)).contains(&Kernel::current().unwrap());
    assert_eq!(level(&findings, "cve-2025-68232", None), word(!stalls));
}
