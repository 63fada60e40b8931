//! Topologies from files: what is declared comes up, is changed by the smallest change, repaired, and goes.

use std::{
    net::{IpAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::{
    signal::Signal,
    socket::{setsockopt, sockopt::RcvBufForce},
};
use rtnetlink::{LinkMessageBuilder, LinkVeth};
use veth_tests::{
    Finished, Lab,
    behind::Behind,
    lab::{add_link, add_namespace, delete_link, eventually, set_link, with_netlink},
    need,
    topology::{Declared, examples, live},
    traffic::{End, bind, tcp, udp},
};
use veth_user::{
    datapath::Hook,
    net::{Netns, forwarding, netns, route::Route, sysctl},
};

const LAN: &str = "name = \"lab\"\n\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\", \"c\"]\n";

fn with_pods(pods: &str) -> String {
    LAN.replace("\"c\"", pods)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn every_example_comes_up_passes_its_check_and_goes_without_a_trace() {
    // Those with an Open vSwitch are in `others.rs`, which has one.
    for (name, file) in examples().filter(|(name, _)| !["ovs", "link"].contains(&name.as_str())) {
        live(&Lab::new(), &name, &file);
    }
}

#[test]
fn a_file_of_five_lines_is_three_pods_on_a_switch() {
    assert_eq!(LAN.lines().filter(|line| !line.is_empty()).count(), 4);
    let lab = Lab::new();
    let file = Declared::new(LAN);
    live(&lab, "five lines", &file);
}

/// A flow of TCP and one of numbered datagrams, for as long as something else is done. Returns how many datagrams
/// were sent and how many came.
fn while_traffic_flows(from: &Netns, to: &Netns, address: IpAddr, work: impl FnOnce()) -> (usize, usize) {
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = (bind(from, ip("0.0.0.0")), bind(to, address));
    let target = receiver.local_addr().unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    // For as long as the receiving thread may have to wait for a processor.
    setsockopt(&receiver, RcvBufForce, &(8 << 20)).unwrap();
    let count = |receiver: UdpSocket| {
        let mut next = 0_usize;
        let mut bytes = [0_u8; 8];
        while let Ok(8) = receiver.recv(&mut bytes) {
            assert_eq!(usize::from_be_bytes(bytes), next, "lost or out of order");
            next += 1;
        }
        next
    };
    let came = thread::spawn(move || count(receiver));
    let stopped = Arc::clone(&stop);
    let sent = thread::spawn(move || {
        let mut number = 0_usize;
        while !stopped.load(Ordering::Relaxed) {
            sender.send_to(&number.to_be_bytes(), target).unwrap();
            number += 1;
            thread::sleep(Duration::from_micros(500));
        }
        number
    });
    thread::scope(|scope| {
        let flow = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                tcp(from, to, address, 4 << 20);
            }
        });
        let end = End(&stop);
        thread::sleep(Duration::from_millis(200));
        work();
        thread::sleep(Duration::from_millis(200));
        drop(end);
        flow.join().unwrap();
    });
    (sent.join().unwrap(), came.join().unwrap())
}

#[test]
fn a_pod_that_comes_or_goes_costs_no_other_a_packet() {
    let lab = Lab::new();
    let file = Declared::new(LAN);
    lab.ok(&file.args("up"));
    let (a, b) = (lab.pod("lab-a"), lab.pod("lab-b"));
    let index = lab.link("lab-a").index;
    let (sent, came) = while_traffic_flows(&a, &b, ip("10.1.0.2"), || {
        for pods in ["\"c\", \"d\"", "\"d\"", "\"c\", \"d\", \"e\", \"f\"", "\"c\""] {
            file.write(&with_pods(pods));
            assert!(lab.ok(&file.args("up")).contains("changed"));
        }
    });
    assert!(sent > 200, "{sent} datagrams say nothing");
    assert_eq!(sent, came);
    assert_eq!(lab.link("lab-a").index, index, "the same link");
    lab.ok(&["check", "--live", "lab", "--transfer", "50ms"]);
}

#[test]
fn a_pod_that_gets_the_address_of_the_gateway_is_found_there() {
    let lab = Lab::new();
    let file = Declared::new(&LAN.replace("subnet", "gateway = true\nsubnet").replace("\"a\", \"b\", ", ""));
    lab.ok(&file.args("up"));
    let c = lab.pod("lab-c");
    // The pod learns who the gateway is.
    lab.ok(&["check", "--live", "lab", "--transfer", "10ms"]);
    file.write(&LAN.replace("\"b\", ", ""));
    lab.ok(&file.args("up"));
    assert_eq!(udp(&c, &lab.pod("lab-a"), ip("10.1.0.1"), 100, 3), 0);
}

#[test]
fn an_added_pod_is_planned_first_and_nothing_is_planned_afterwards() {
    let lab = Lab::new();
    let file = Declared::new(LAN);
    lab.ok(&file.args("up"));
    assert!(lab.ok(&file.args("plan")).contains("nothing to do"));
    file.write(&with_pods("\"c\", \"d\""));
    let before = lab.fingerprint();
    let plan = lab.ok(&file.args("plan"));
    assert!(plan.contains("+ make veth pair lab-d") && !plan.contains("lab-a"), "{plan}");
    assert_eq!(lab.fingerprint(), before, "`plan` changes nothing");
    lab.ok(&file.args("up"));
    assert!(lab.ok(&file.args("plan")).contains("nothing to do"));
    assert!(lab.ok(&file.args("up")).contains("up already"));
}

/// Does something to a topology that is up, and expects that it is seen, and put right alone.
fn repaired(text: &str, seen: &str, planned: &str, harm: impl FnOnce(&Lab)) {
    let lab = Lab::new();
    let file = Declared::new(text);
    lab.ok(&file.args("up"));
    let index = lab.link("lab-b").index;
    harm(&lab);
    let list = lab.ok(&["ls"]);
    assert!(list.contains("drifted") && list.contains(seen), "{seen} in {list}");
    let plan = lab.ok(&file.args("plan"));
    assert!(plan.contains(planned), "{planned} in {plan}");
    let text = lab.ok(&file.args("up"));
    assert!(text.contains("whole again"), "{text}");
    assert!(lab.ok(&file.args("plan")).contains("nothing to do"), "{seen}");
    assert_eq!(lab.link("lab-b").index, index, "what was whole is the same as before: {seen}");
    lab.ok(&["check", "--live", "lab", "--transfer", "50ms"]);
}

#[test]
fn what_is_removed_by_hand_is_put_right_and_nothing_else() {
    repaired(LAN, "link lab-a is gone", "+ make veth pair lab-a", |lab| lab.run(|| delete_link("lab-a")));
    repaired(LAN, "link br-lab-lan is gone", "+ make the switch lan", |lab| {
        lab.run(|| delete_link("br-lab-lan"));
    });
    repaired(LAN, "namespace lab-a is gone", "+ make namespace lab-a", |lab| {
        lab.run(|| netns::remove("lab-a").unwrap());
        eventually("the pair goes with the namespace", || {
            lab.links().iter().all(|link| link.name != "lab-a")
        });
    });
    repaired(LAN, "link lab-a is down", "~ connect lab-a", |lab| {
        lab.run(|| set_link("lab-a", LinkMessageBuilder::down));
    });
    repaired(LAN, "a/eth0 lacks the address 10.1.0.1/24", "~ configure the pod's end of lab-a", |lab| {
        lab.pod("lab-a")
            .run(|| {
                with_netlink(async |netlink| {
                    let index = netlink.link("eth0").await.unwrap().index;
                    netlink.remove_address(index, "10.1.0.1/24".parse().unwrap()).await.unwrap();
                });
            })
            .unwrap();
    });
    repaired(LAN, "link lab-a is not a port of its bridge", "~ connect lab-a", |lab| {
        lab.run(|| set_link("lab-a", LinkMessageBuilder::nocontroller));
    });
    repaired(LAN, "has an MTU of 1400", "~ change the MTU of lab-a", |lab| {
        lab.run(|| set_link("lab-a", |link| link.mtu(1_400)));
    });
    let routed = format!("{LAN}gateway = true\n");
    repaired(&routed, "a lacks its route to 0.0.0.0/0", "~ set routes and parameters in lab-a", |lab| {
        lab.pod("lab-a")
            .run(|| {
                with_netlink(async |netlink| {
                    let link = netlink.link("eth0").await.unwrap().index;
                    for (to, via) in netlink.routes(link).await.unwrap() {
                        netlink.remove_route(&Route { to, via, link }).await.unwrap();
                    }
                });
            })
            .unwrap();
    });
    repaired(&routed, "the nftables table inet", "~ let the host forward", |lab| {
        lab.run(|| {
            let mark = veth_user::state::Roots {
                state: veth_user::state::DEFAULT_STATE_DIR.into(),
                pins: veth_user::state::DEFAULT_PIN_DIR.into(),
            }
            .mark();
            forwarding::delete(&format!("{mark}-lab")).unwrap();
        });
    });
    let linked =
        format!("{LAN}\n[bridge.other]\npods = [\"d\"]\n\n[link.x]\nbetween = [\"lan\", \"other\"]\n");
    repaired(&linked, "link ln-lab-x-a is gone", "+ make link x", |lab| {
        lab.run(|| delete_link("ln-lab-x-a"));
    });
}

/// A link that took the name of one of ours, and a group besides, is somebody else's.
#[test]
fn what_took_the_name_of_something_of_ours_is_left_alone() {
    let lab = Lab::new();
    let file = Declared::new(LAN);
    lab.ok(&file.args("up"));
    lab.run(|| {
        delete_link("lab-c");
        add_link(LinkVeth::new("lab-c", "theirs").build());
        set_link("lab-c", |link| link.link_group(5));
    });
    let theirs = lab.link("lab-c").index;
    file.write(&with_pods("\"d\""));
    lab.ok(&file.args("up"));
    assert_eq!(lab.link("lab-c").index, theirs);
    assert!(lab.ok(&file.args("plan")).contains("nothing to do"));
    file.write(LAN);
    let error = lab.refused(&file.args("up"));
    assert!(error.contains("lab-c") && error.contains(":5:"), "{error}");
    lab.ok(&["down"]);
    assert_eq!(lab.link("lab-c").index, theirs);
}

/// Maps know nobody who is gone, also where only its number is left.
#[test]
fn maps_forget_a_port_whose_link_went_first() {
    let lab = Lab::new();
    let file = Declared::new(LAN);
    lab.ok(&file.args("up"));
    let hook = if need::is_at_least(6, 6) { Hook::Tcx } else { Hook::Clsact };
    let knows = |index: u32| lab.datapath(hook, "lab", move |datapath| datapath.port(index).is_some());
    let (gone, bridge) = (lab.link("lab-c").index, lab.link("br-lab-lan").index);
    assert!(knows(gone) && knows(bridge));
    lab.run(|| delete_link("lab-c"));
    lab.ok(&file.args("up"));
    assert!(!knows(gone) && knows(lab.link("lab-c").index));
    file.write(&format!("{LAN}gateway = true\n"));
    lab.ok(&file.args("up"));
    assert!(!knows(bridge), "the program that kept pods from the host");
}

#[test]
fn a_gateway_comes_and_goes_with_its_routes() {
    let lab = Lab::new();
    let file = Declared::new(LAN);
    let routes = || {
        let pod = lab.pod("lab-b");
        pod.run(|| {
            with_netlink(async |netlink| {
                netlink.routes(netlink.link("eth0").await.unwrap().index).await.unwrap()
            })
        })
        .unwrap()
    };
    lab.ok(&file.args("up"));
    for _ in 0..2 {
        assert_eq!(routes(), []);
        file.write(&format!("{LAN}gateway = \"10.1.0.254\"\n"));
        lab.ok(&file.args("up"));
        assert_eq!(routes(), [("0.0.0.0/0".parse().unwrap(), Some(ip("10.1.0.254")))]);
        lab.ok(&["check", "--live", "lab", "--transfer", "50ms"]);
        file.write(LAN);
        lab.ok(&file.args("up"));
        assert!(lab.ok(&file.args("plan")).contains("nothing to do"));
    }
    lab.ok(&["check", "--live", "lab", "--transfer", "50ms"]);
}

/// Its record was removed, and its marks are all that is left to go by.
#[test]
fn what_nothing_is_remembered_of_goes_with_its_firewall() {
    let lab = Lab::new();
    let before = (lab.fingerprint(), lab.run(|| sysctl::forwarding().unwrap()));
    let file = Declared::new(&format!("{LAN}outside = true\n"));
    lab.ok(&file.args("up"));
    assert_ne!(lab.fingerprint(), before.0);
    lab.run(|| std::fs::remove_file("/run/veth/lab.json").unwrap());
    lab.ok(&["down", "--all"]);
    assert_eq!((lab.fingerprint(), lab.run(|| sysctl::forwarding().unwrap())), before);
}

#[test]
fn a_change_that_fails_is_changed_back() {
    let lab = Lab::new();
    let file = Declared::new(LAN);
    lab.ok(&file.args("up"));
    let before = lab.shape();
    let (a, b) = (lab.pod("lab-a"), lab.pod("lab-b"));
    let text = format!("{}\n[pod.d]\nsysctl = {{ \"net.ipv4.no_such_thing\" = 1 }}\n", with_pods("\"d\""));
    file.write(&text);
    let (sent, came) = while_traffic_flows(&a, &b, ip("10.1.0.2"), || {
        let Finished { status, err, .. } = lab.veth(&file.args("up"));
        assert!(status.code() == Some(1), "{status:?}");
        assert!(err.contains("no_such_thing") && err.contains("as it was before"), "{err}");
    });
    assert_eq!(sent, came);
    // A pod that had gone is another.
    assert_eq!(lab.shape(), before);
    file.write(LAN);
    assert!(lab.ok(&file.args("plan")).contains("nothing to do"));
    lab.ok(&["check", "--live", "lab", "--transfer", "50ms"]);
    lab.ok(&["down"]);
}

#[test]
fn a_change_that_is_interrupted_is_undone() {
    let lab = Lab::new();
    let file = Declared::new(LAN);
    lab.ok(&file.args("up"));
    let before = lab.fingerprint();
    let pods: Vec<String> = (0..100).map(|number| format!("\"p{number}\"")).collect();
    file.write(&LAN.replace("\"c\"", &format!("\"c\", {}", pods.join(", "))).replace("/24", "/20"));
    let running = lab.start(&file.args("up"), &[]);
    eventually("it begins", || lab.links().len() > 10);
    running.signal(Signal::SIGINT);
    let finished = running.finish();
    assert_eq!(finished.status.code(), Some(130), "{finished:?}");
    file.write(LAN);
    assert_eq!(lab.fingerprint(), before);
    assert!(lab.ok(&file.args("plan")).contains("nothing to do"));
}

/// Whether a datagram gets there; whether an answer gets back is another question.
fn arrives(from: &Netns, to: &Netns, address: IpAddr) -> bool {
    let (sender, receiver) = (bind(from, ip("0.0.0.0")), bind(to, address));
    receiver.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    // A pod without a route cannot even send.
    sender.send_to(&[1], receiver.local_addr().unwrap()).is_ok() && receiver.recv(&mut [0]).is_ok()
}

#[test]
fn pods_do_not_reach_the_pods_of_other_switches_nor_the_host() {
    let lab = Lab::new();
    let text = "name = \"two\"\n[switch.one]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\ngateway = true\noutside = true\n\
                [switch.two]\nsubnet = \"10.2.0.0/24\"\npods = [\"c\", \"d\"]\ngateway = true\n\
                [bridge.three]\nsubnet = \"10.3.0.0/24\"\npods = [\"e\", \"f\"]\n\
                [route.four]\nsubnet = \"10.4.0.0/24\"\npods = [\"g\", \"h\"]\n";
    let file = Declared::new(text);
    lab.ok(&file.args("up"));
    lab.ok(&["check", "--live", "two", "--transfer", "50ms"]);
    let pods: Vec<(&str, &str)> =
        vec![("a", "10.1.0.2"), ("c", "10.2.0.2"), ("e", "10.3.0.1"), ("g", "10.4.0.1")];
    for (from, _) in &pods {
        for (to, address) in pods.iter().filter(|(to, _)| to != from) {
            let (sender, receiver) = (lab.pod(&format!("two-{from}")), lab.pod(&format!("two-{to}")));
            assert!(!arrives(&sender, &receiver, ip(address)), "{from} reaches {to}");
        }
    }
    // The host's own loopback address stands for any other that it has. It knows a way back, as hosts do.
    lab.run(|| {
        let world = Behind::new(8, 0, &["198.51.100.1/24"], &["198.51.100.2/24"]);
        with_netlink(async |netlink| {
            let link = netlink.link(&world.link).await.unwrap().index;
            let (to, via) = ("0.0.0.0/0".parse().unwrap(), Some(ip("198.51.100.2")));
            netlink.add_route(&Route { to, via, link }).await.unwrap();
            netns::share_names().unwrap();
            world.namespace.publish("world").unwrap();
            let lo = netlink.link("lo").await.unwrap().index;
            netlink.add_address(lo, "192.0.2.1/32".parse().unwrap()).await.unwrap();
        });
    });
    let e = lab.pod("two-e");
    e.run(|| {
        with_netlink(async |netlink| {
            let link = netlink.link("eth0").await.unwrap().index;
            let route = Route { to: "192.0.2.0/24".parse().unwrap(), via: None, link };
            netlink.add_route(&route).await.unwrap();
        });
    })
    .unwrap();
    let host = lab.run(|| Netns::current().unwrap());
    assert!(!arrives(&e, &host, ip("192.0.2.1")), "a pod of a bridge without a gateway reaches the host");
    // What is missing there is the gateway, and nothing else.
    assert!(arrives(&lab.pod("two-a"), &host, ip("10.1.0.1")), "a gateway is the host");
}

#[test]
fn outside_access_is_masqueraded_and_forwarding_is_restored() {
    let lab = Lab::new();
    let before = lab.run(|| sysctl::forwarding().unwrap());
    // The world: beyond the host, and it knows no way to the pods.
    lab.run(|| {
        let world = Behind::new(9, 0, &["198.51.100.1/24"], &["198.51.100.2/24"]);
        netns::share_names().unwrap();
        world.namespace.publish("world").unwrap();
    });
    let text = |name: &str, subnet: u8| {
        format!(
            "name = \"{name}\"\n[switch.lan]\nsubnet = \"10.{subnet}.0.0/24\"\npods = [\"a\", \"b\"]\noutside = true\n"
        )
    };
    let (first, second) = (Declared::new(&text("first", 1)), Declared::new(&text("second", 2)));
    lab.ok(&first.args("up"));
    lab.ok(&second.args("up"));
    let world = lab.pod("world");
    for pod in ["first-a", "second-b"] {
        tcp(&lab.pod(pod), &world, ip("198.51.100.2"), 100_000);
    }
    assert!(udp(&lab.pod("first-a"), &lab.pod("second-a"), ip("10.2.0.2"), 100, 3) > 0, "topologies meet");
    lab.ok(&["down", "first"]);
    let forwarding = lab.run(|| sysctl::forwarding().unwrap());
    assert!(forwarding.ipv4, "the other topology still needs it");
    tcp(&lab.pod("second-a"), &world, ip("198.51.100.2"), 100_000);
    lab.ok(&["down", "second"]);
    assert_eq!(lab.run(|| sysctl::forwarding().unwrap()), before);
}

#[test]
fn big_tcp_jumbo_frames_queues_and_parameters_are_as_declared() {
    if !need::kernel(6, 3, "BIG TCP in both families") {
        return;
    }
    let lab = Lab::new();
    let text = "name = \"big\"\nmtu = 65535\nqueues = 2\ntune = { big_tcp = true, gro = true }\n\
                [switch.lan]\nsubnet = [\"10.1.0.0/24\", \"fd01::/64\"]\npods = [\"a\", \"b\"]\nneighbours = true\n\
                [pod.a]\nsysctl = { \"net.ipv4.ip_default_ttl\" = 33 }\nroutes = [{ to = \"10.9.0.0/16\", via = \"10.1.0.2\" }]\n";
    let file = Declared::new(text);
    lab.ok(&file.args("up"));
    lab.ok(&["check", "--live", "big", "--transfer", "50ms"]);
    let host_end = lab.link("big-a");
    assert_eq!((host_end.mtu, host_end.gso_max_size, host_end.gro_max_size), (65_535, 196_608, 196_608));
    let a = lab.pod("big-a");
    let (end, neighbours, routes) = a
        .run(|| {
            with_netlink(async |netlink| {
                let link = netlink.link("eth0").await.unwrap();
                let neighbours = netlink.permanent_neighbours(link.index).await.unwrap();
                let routes = netlink.routes(link.index).await.unwrap();
                (link, neighbours, routes)
            })
        })
        .unwrap();
    assert_eq!((end.mtu, end.gso_max_size), (65_535, 196_608));
    assert!(neighbours.iter().any(|(address, _)| *address == ip("10.1.0.2")), "{neighbours:?}");
    assert!(neighbours.iter().any(|(address, _)| *address == ip("fd01::2")), "{neighbours:?}");
    assert!(routes.contains(&("10.9.0.0/16".parse().unwrap(), Some(ip("10.1.0.2")))), "{routes:?}");
    assert_eq!(a.run(|| sysctl::read("net/ipv4/ip_default_ttl").unwrap()).unwrap().as_deref(), Some("33"));
    let queues = lab.run(|| std::fs::read_dir("/sys/class/net/big-a/queues").map_or(0, Iterator::count));
    assert!(queues == 4 || queues == 0, "two queues a direction: {queues}");
    // Taken back in place.
    let index = host_end.index;
    file.write(&text.replace("tune = { big_tcp = true, gro = true }\n", "").replace("65535", "1500"));
    assert!(lab.ok(&file.args("up")).contains("changed"));
    let host_end = lab.link("big-a");
    assert_eq!((host_end.index, host_end.mtu, host_end.gso_max_size), (index, 1_500, 65_536));
    lab.ok(&["check", "--live", "big", "--transfer", "50ms"]);
}

#[test]
fn a_path_that_moves_or_changes_its_kind_is_made_again_alone() {
    let lab = Lab::new();
    let text = format!("{LAN}\n[wire.cable]\nsubnet = \"10.2.0.0/24\"\npods = [\"a\", \"b\"]\n");
    let file = Declared::new(&text);
    lab.ok(&file.args("up"));
    let index = lab.link("lab-a").index;
    for kind in ["direct", "bridge", "route", "switch", "wire"] {
        file.write(&text.replace("[wire.cable]", &format!("[{kind}.cable]")));
        assert!(["changed", "already"].iter().any(|word| lab.ok(&file.args("up")).contains(word)), "{kind}");
        assert!(lab.ok(&file.args("plan")).contains("nothing to do"), "{kind}");
        lab.ok(&["check", "--live", "lab", "--transfer", "50ms"]);
        assert_eq!(lab.link("lab-a").index, index, "the other path is not touched: {kind}");
    }
    file.write(LAN);
    lab.ok(&file.args("up"));
    lab.ok(&["check", "--live", "lab", "--transfer", "50ms"]);
}

/// Paths without programs are none to be ashamed of: every command knows them.
#[test]
fn every_command_takes_a_path_without_programs() {
    let lab = Lab::new();
    let before = lab.fingerprint();
    let file = Declared::new("name = \"plain\"\n[direct.cable]\npods = [\"a\", \"b\"]\n");
    lab.ok(&file.args("up"));
    assert!(lab.ok(&["stats", "plain"]).contains("no program counts"));
    assert_eq!(lab.stats("plain")["ports"].as_array().unwrap().len(), 0);
    assert!(lab.ok(&["ls"]).contains("direct"));
    assert!(lab.ok(&["ls", "plain"]).contains("eth0"));
    assert!(lab.ok(&["show", "plain"]).contains("cable: direct"));
    assert!(lab.ok(&["exec", "plain/a", "--", "true"]).is_empty());
    lab.ok(&["down", "plain"]);
    let text = lab.ok(&["run", "-f", &file.path().to_string_lossy()]);
    assert!(text.contains("10/10"), "{text}");
    assert_eq!(lab.fingerprint(), before);
}

#[test]
fn what_another_program_owns_is_named_in_the_file_and_left_alone() {
    let lab = Lab::new();
    lab.run(|| add_namespace("lab-b"));
    let before = lab.fingerprint();
    let file = Declared::new(LAN);
    for command in ["up", "plan"] {
        let error = lab.refused(&file.args(command));
        assert!(
            error.contains("lab-b") && error.contains(":5:") && error.contains("ip netns del"),
            "{error}"
        );
        assert_eq!(lab.fingerprint(), before);
    }
}

#[test]
fn a_bad_file_changes_nothing() {
    let lab = Lab::new();
    let before = lab.fingerprint();
    let file = Declared::new(&LAN.replace("pods", "podz"));
    for command in ["up", "plan"] {
        let error = lab.refused(&file.args(command));
        assert!(error.contains("podz") && error.contains("pods") && error.contains(":5:1"), "{error}");
    }
    let error = lab.refused(&["check", &file.path().to_string_lossy()]);
    assert!(error.contains(":5:1"), "{error}");
    assert_eq!(lab.fingerprint(), before);
}
