//! Whole files, good and bad.

use std::collections::HashSet;

use clap::ValueEnum as _;
use proptest::prelude::*;
use serde_json::Value;

use super::{
    init::{Example, example},
    *,
};
use crate::topology::model::{HookWish, Kind, Path, Pod, Port};

fn good(text: &str) -> Topology {
    parse("lab.toml", text).unwrap_or_else(|diagnostics| panic!("{diagnostics}"))
}

/// Every problem as `line:column message | hint`.
fn bad(text: &str) -> Vec<String> {
    let Err(diagnostics) = parse("lab.toml", text) else { panic!("nothing is wrong with\n{text}") };
    assert_eq!(diagnostics.len(), diagnostics.iter().len());
    diagnostics
        .iter()
        .map(|Diagnostic { line, column, message, hint, .. }| format!("{line}:{column} {message} | {hint}"))
        .collect()
}

/// The addresses of a pod's ports.
fn addresses(topology: &Topology, pod: &str) -> Vec<String> {
    let pod = topology.pods.iter().find(|other| other.name == pod).unwrap();
    pod.ports.iter().flat_map(|port| &port.addresses).map(ToString::to_string).collect()
}

#[test]
fn five_lines_are_a_switch() {
    let topology =
        good("name = \"lab\"\n\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\", \"c\"]\n");
    assert_eq!(topology.name, "lab");
    assert_eq!(topology.paths.len(), 1);
    let Path { kind, mtu, queues, gateway, outside, .. } = &topology.paths[0];
    assert_eq!((*kind, *mtu, *queues, gateway.len(), *outside), (Kind::Switch, 1_500, 1, 0, false));
    let names: Vec<_> = topology.pods.iter().map(|pod| pod.namespace.as_str()).collect();
    assert_eq!(names, ["lab-a", "lab-b", "lab-c"]);
    assert_eq!(addresses(&topology, "c"), ["10.1.0.3/24"]);
}

#[test]
fn every_example_is_good_and_about_what_it_says() {
    for &kind in Example::value_variants() {
        let topology =
            parse("example.toml", example(kind)).unwrap_or_else(|diagnostics| panic!("{diagnostics}"));
        let kinds: Vec<Kind> = topology.paths.iter().map(|path| path.kind).collect();
        let expected: &[Kind] = match kind {
            Example::Direct | Example::Tutorial => &[Kind::Direct],
            Example::Wire => &[Kind::Wire],
            Example::Switch | Example::Outside => &[Kind::Switch],
            Example::Bridge => &[Kind::Bridge],
            Example::Route => &[Kind::Route],
            Example::Ovs => &[Kind::Ovs],
            Example::Link => &[Kind::Switch, Kind::Bridge, Kind::Ovs],
        };
        assert_eq!(kinds, expected, "{kind:?}");
        assert!(example(kind).lines().all(|line| line.len() <= 120), "{kind:?}");
    }
    let names: HashSet<String> =
        Example::value_variants().iter().map(|&kind| parse("", example(kind)).unwrap().name).collect();
    assert_eq!(names.len(), Example::value_variants().len(), "examples can be up at the same time");
}

#[test]
fn the_examples_are_what_their_comments_say() {
    let tutorial = good(example(Example::Tutorial));
    let shown = |pod: &Pod| {
        let Port { name, addresses, .. } = &pod.ports[0];
        format!("{} {name} {}", pod.namespace, addresses[0])
    };
    let shown: Vec<String> = tutorial.pods.iter().map(shown).collect();
    assert_eq!(shown, ["ns1 veth1 172.16.0.1/24", "ns2 veth1-peer 172.16.0.2/24"]);
    good(&example(Example::Tutorial).replace("direct.cable", "wire.cable"));

    let switch = good(example(Example::Switch));
    assert_eq!(addresses(&switch, "b"), ["10.1.0.2/24"]);
    assert_eq!(addresses(&switch, "c"), ["10.1.0.100/24"]);
    let pod = &switch.pods[2];
    assert_eq!(pod.ports[0].mac.to_string(), "02:00:00:00:00:0c");
    assert_eq!(pod.routes[0].to.to_string(), "10.9.0.0/16");
    assert_eq!(pod.sysctls["net.ipv4.tcp_congestion_control"], "reno");

    let link = good(example(Example::Link));
    let all = ["web", "app", "cache", "db"].map(|pod| addresses(&link, pod).join(" "));
    assert_eq!(all, ["10.1.0.1/24", "10.1.0.2/24", "10.1.0.3/24", "10.1.0.4/24"]);
    assert_eq!(link.cables[2].ends[1].path, None);
    assert_eq!(link.cables[2].ends[1].addresses[0].to_string(), "10.1.0.254/24");

    let outside = good(example(Example::Outside));
    let gateways: Vec<String> = outside.paths[0].gateway.iter().map(ToString::to_string).collect();
    assert_eq!(gateways, ["10.1.0.1/24", "fd00:1::1/64"]);
    assert_eq!(addresses(&outside, "a"), ["10.1.0.2/24", "fd00:1::2/64"]);

    let route = good(example(Example::Route));
    let gateways: Vec<String> = route.paths[0].gateway.iter().map(ToString::to_string).collect();
    assert_eq!(gateways, ["169.254.1.1/32", "fe80::1/64"]);
    assert_eq!(addresses(&route, "c"), ["10.1.0.3/32", "fd00:1::3/128"]);
}

#[test]
fn what_is_not_said_is_chosen() {
    let topology = good(
        "[switch.a]\npods = 2\n[wire.b]\npods = 2\n[route.c]\nsubnet = \"10.202.0.0/16\"\n[switch.d]\npods = [\"pod1\"]",
    );
    assert_eq!(topology.name, "lab");
    assert_eq!(addresses(&topology, "pod2"), ["10.200.0.2/16", "fd00:200::2/64"]);
    assert_eq!(addresses(&topology, "b-1"), ["10.201.0.1/16", "fd00:201::1/64"]);
    assert_eq!(
        addresses(&topology, "pod1"),
        ["10.200.0.1/16", "fd00:200::1/64", "10.203.0.1/16", "fd00:203::1/64"]
    );
    let names: Vec<_> = topology.pods[0].ports.iter().map(|port| port.name.as_str()).collect();
    assert_eq!(names, ["eth0", "eth1"]);
    // Another's free choice is passed over.
    let topology = good("[wire.b]\npods = 2\n[switch.a]\nsubnet = \"10.200.7.0/24\"\npods = [\"x\"]");
    assert_eq!(addresses(&topology, "pod1")[0], "10.201.0.1/16");
}

#[test]
fn a_value_of_the_file_counts_where_a_path_has_none() {
    let topology = good(
        "hook = \"xdp\"\nmtu = 9000\nqueues = 4\ntune = { big_tcp = true }\n\
         [switch.a]\n[switch.b]\nmtu = 1400\nqueues = 1\ntune = { big_tcp = false, gro = true }\n\
         [link.l]\nbetween = [\"a\", \"b\"]\n[link.h]\nbetween = [\"host\", \"a\"]\n",
    );
    assert_eq!(topology.hook, HookWish::Xdp);
    let shown: Vec<_> =
        topology.paths.iter().map(|path| (path.mtu, path.queues, path.tune.big_tcp, path.tune.gro)).collect();
    assert_eq!(shown, [(9_000, 4, true, false), (1_400, 1, false, true)]);
    assert_eq!(topology.cables.iter().map(|cable| cable.mtu).collect::<Vec<_>>(), [1_400, 9_000]);
    assert_eq!(topology.cables[1].ends[0].addresses.len(), 2);
}

#[test]
fn who_has_an_address_moves_nobody() {
    let list = "[switch.lan]\nsubnet = \"10.1.0.0/29\"\ngateway = true\npods = [\"a\", \"b\", \"c\"]\n";
    let of = |more: &str| {
        let topology = good(&format!("{list}{more}"));
        ["a", "b", "c"].map(|pod| addresses(&topology, pod).join(" "))
    };
    assert_eq!(of(""), ["10.1.0.2/29", "10.1.0.3/29", "10.1.0.4/29"]);
    assert_eq!(of("[pod.b.port.lan]\naddress = \"10.1.0.6\""), ["10.1.0.2/29", "10.1.0.6/29", "10.1.0.4/29"]);
    assert_eq!(of("[pod.c.port.lan]\naddress = \"10.1.0.2\""), ["10.1.0.3/29", "10.1.0.4/29", "10.1.0.2/29"]);
    // The last that is left, even if it was passed over.
    let topology = good(
        "[wire.w]\nsubnet = \"10.1.0.0/30\"\npods = [\"a\", \"b\"]\n[pod.a.port.w]\naddress = \"10.1.0.2/30\"",
    );
    assert_eq!(addresses(&topology, "b"), ["10.1.0.1/30"]);
}

#[test]
fn routes_find_their_port() {
    let topology = good(
        "[switch.x]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\"]\n[route.y]\nsubnet = \"10.2.0.0/24\"\npods = [\"a\"]\n\
         [pod.a]\nroutes = [\n{ to = \"10.9.0.0/16\", via = \"10.1.0.9\" },\n{ to = \"default\", via = \"169.254.1.1\" },\n\
         { to = \"10.8.0.1\", port = \"y\" },\n]\nsysctl = { \"net.ipv4.ip_forward\" = true, \"net.core.somaxconn\" = 7 }",
    );
    let routes: Vec<_> =
        topology.pods[0].routes.iter().map(|route| (route.to.to_string(), route.port)).collect();
    assert_eq!(
        routes,
        [("10.9.0.0/16".to_owned(), 0), ("0.0.0.0/0".to_owned(), 1), ("10.8.0.1/32".to_owned(), 1)]
    );
    let values: Vec<_> = topology.pods[0].sysctls.values().map(String::as_str).collect();
    assert_eq!(values, ["7", "1"]);
}

/// A file, and its problems: place, a part of the message, a part of the hint.
type Case = (&'static str, &'static [(&'static str, &'static str, &'static str)]);

const SWITCH: &str = "[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\n";

/// What is wrong with files that stand alone.
const BAD: &[Case] = &[
    ("[switch.lan\npods = 2", &[("1:12", "unclosed table", "[kind.NAME]")]),
    ("[switch.a]\n[switch.a]", &[("2:9", "duplicate key", "only once")]),
    (
        "[switch.a]\npods = [\"a\", 'b\n",
        &[("2:16", "unclosed array", "a list is"), ("2:16", "literal string", "quotes")],
    ),
    ("[swiitch.lan]\npods = 2\n", &[("1:2", "no key `swiitch` at the top", "`switch`")]),
    (
        "[switch.lan]\npod = [\"a\"]\nfoo = 1\n",
        &[
            ("2:1", "no key `pod` in `switch.lan`", "`pods`"),
            ("3:1", "no key `foo` in `switch.lan`", "known here: `"),
        ],
    ),
    (
        "hook = \"tcxx\"\nplace = \"middle\"\nebpf_log = \"of\"",
        &[
            ("1:8", "`tcxx` is no value of `hook`", "`tcx`"),
            ("2:9", "`middle` is no value of `place`", "`last`, `first`"),
            ("3:12", "`of` is no value of `ebpf_log`", "`off`"),
        ],
    ),
    (
        "mtu = 1000\nqueues = 0\n[switch.a]\nmtu = 70_000\npods = 0",
        &[
            ("1:7", "`mtu` cannot be 1000", "1280 to 65535"),
            ("2:10", "`queues` cannot be 0", "1 to 4096"),
            ("4:7", "`mtu` cannot be 70000", "1280 to 65535"),
            ("5:8", "`pods` cannot be 0", "1 to 10000"),
        ],
    ),
    (
        "mtu = \"1500\"\n[switch.a]\npods = \"a\"\noutside = 1\nneighbours = \"true\"\nsubnet = { a = 1 }\ntune = 5",
        &[
            ("1:7", "`mtu` is text, and must be a whole number", "mtu = 1500"),
            ("3:8", "`pods` is text, and must be a list or a whole number", "[\"a\"]"),
            ("4:11", "`outside` is a number, and must be true or false", "outside = true"),
            ("5:14", "`neighbours` is text", "neighbours = true"),
            ("6:10", "`subnet` is a table, and must be a list or text in quotes", "quotes"),
            ("7:8", "`tune` is a number, and must be a table", "What is changed for speed"),
        ],
    ),
    (
        "switch = 5\nbridge = [1]\n",
        &[
            ("1:10", "`switch` is a number, and must be a table", "Switches accelerated"),
            ("2:10", "`bridge` is a list, and must be a table", "Plain Linux bridges"),
        ],
    ),
    ("[switch.lan]\npods = [\"a\", 5, \"b\"]", &[("2:14", "`pods` is a number, and must be text", "")]),
    ("name = \"My Lab\"", &[("1:8", "cannot be the name of a topology", "`my-lab`")]),
    (
        "[switch.LAN]\npods = [\"a_b\", \"host\", \"x23456789012345678901234567890123\"]",
        &[
            ("1:9", "cannot be the name of a path", "`lan`"),
            ("2:9", "cannot be the name of a pod", "`a-b`"),
            ("2:16", "`host` is no name for a pod", "another"),
            ("2:24", "cannot be the name of a pod", "`x2345678901234567890123456789012`"),
        ],
    ),
    ("[switch.host]\n", &[("1:9", "`host` is no name for a path", "another")]),
    ("[switch.lan]\npods = [\"a\", \"b\", \"a\"]", &[("2:19", "`a` is named twice", "one port")]),
    ("[switch.lan]\n[bridge.lan]", &[("2:9", "`lan` is the name of a switch too", "choose another")]),
    (
        "[switch.a]\nsubnet = \"10.1.0.0/16\"\n[switch.b]\nsubnet = [\"fd00::/64\", \"10.1.2.0/24\"]",
        &[("4:24", "10.1.2.0/24 overlaps with 10.1.0.0/16 of the switch `a`", "that is free")],
    ),
    (
        "[switch.a]\nsubnet = [\"10.1.0.0/16\", \"10.1.2.0/24\"]",
        &[("2:26", "of the same path", "choose another")],
    ),
    ("[switch.a]\nsubnet = \"10.1.0.5/24\"", &[("2:10", "is an address in a subnet", "10.1.0.0/24")]),
    (
        "[switch.a]\nsubnet = [\"10.1.0.0\", \"x\", \"fd00::\", \"10.0.0.0/33\", \"224.0.0.0/24\", \"fe80::/64\"]",
        &[
            ("2:11", "`10.1.0.0` is no subnet", "10.1.0.0/24"),
            ("2:23", "`x` is no subnet", "write it like"),
            ("2:28", "`fd00::` is no subnet", "fd00::/64"),
            ("2:38", "`10.0.0.0/33` is no subnet", "write it like"),
            ("2:53", "out of 224.0.0.0/24", "private"),
            ("2:69", "out of fe80::/64", "private"),
        ],
    ),
    ("[switch.a]\nsubnet = []", &[("2:10", "the list of subnets is empty", "leave `subnet` out")]),
    (
        "[switch.a]\nsubnet = \"10.1.0.8/29\"\npods = 7\ngateway = true",
        &[(
            "2:10",
            "10.1.0.8/29 is too small for the pods of `a`: it has 6 addresses for 8",
            "10.1.0.0/28 is large enough",
        )],
    ),
    ("[ovs.a]\npods = 1001", &[("2:8", "1001 pods are too many: an Open vSwitch takes 1000", "spread them")]),
    (
        "[wire.w]\npods = [\"a\"]\n[direct.d]\npods = [\"a\", \"b\", \"c\"]\n[wire.none]",
        &[
            ("2:8", "a wire connects exactly 2 pods, not 1", "name two"),
            ("4:8", "a direct pair connects exactly 2 pods, not 3", "[switch.d]"),
            ("5:7", "a wire connects exactly 2 pods, not 0", "name two"),
        ],
    ),
    (
        "[switch.s]\npods = 2\ncounters = false\n[bridge.b]\npods = 2\ncounters = false",
        &[("3:12", "a switch always counts", "remove it")],
    ),
    (
        "[direct.d]\npods = [\"a\", \"a\"]",
        &[("2:14", "both ends of a direct pair are the pod `a`", "two different")],
    ),
    (
        "[wire.w]\npods = 2\ngateway = true\noutside = true\n[direct.d]\npods=[\"x\", \"y\"]\nspoof_check = true",
        &[
            ("3:11", "a wire has no gateway", "a switch of two pods"),
            ("4:11", "cannot reach the outside", "a switch of two pods"),
            ("7:15", "nothing checks the sources of frames on a direct pair", "use a switch"),
        ],
    ),
    (
        "[bridge.b]\nspoof_check = true\ngateway = false\noutside = true\n[route.r]\ngateway = true\nneighbours = true",
        &[
            ("2:15", "nothing checks the sources of frames on a bridge", "use a switch"),
            ("4:11", "there is to be none", "remove `gateway = false`"),
            ("6:11", "always 169.254.1.1", "remove"),
            ("7:14", "no neighbours of each other", "remove"),
        ],
    ),
    (
        "[switch.a]\nsubnet = \"10.1.0.0/24\"\ngateway = [\"10.2.0.1\", \"10.1.0.0\", \"10.1.0.1/16\", \"z\"]",
        &[
            ("3:12", "10.2.0.1 is outside the subnet of `a`", "10.1.0.0/24"),
            ("3:24", "stands for the subnet", "from 10.1.0.1"),
            ("3:36", "prefix length of 24", "10.1.0.1/24"),
            ("3:51", "`z` is no IP address", "10.1.0.5"),
        ],
    ),
    (
        "[switch.lan]\n[bridge.b]\n[wire.w]\npods = 2\n[link.x]\nbetween = [\"lam\", \"b\"]\n[link.y]\nbetween = [\"w\", \"nowhere\"]",
        &[
            ("6:12", "there is no switch `lam`", "`lan`"),
            ("8:12", "`w` is a wire, where no link can end", "ends at a switch"),
            ("8:17", "there is no switch `nowhere`", "`lan`, `b`, `host`"),
        ],
    ),
    (
        "[switch.a]\n[bridge.b]\n[ovs.c]\n[link.x]\nbetween = [\"a\", \"b\"]\n[link.y]\nbetween = [\"b\", \"c\"]\n\
      [link.z]\nbetween = [\"c\", \"a\"]\n[link.twice]\nbetween = [\"b\", \"a\"]\n[link.self]\nbetween = [\"a\", \"a\"]",
        &[
            ("9:11", "closes a loop: `c` and `a`", "circle for ever"),
            ("11:11", "closes a loop: `b` and `a`", "circle for ever"),
            ("13:11", "closes a loop: `a` and `a`", "circle for ever"),
        ],
    ),
    (
        "[switch.a]\n[switch.b]\n[link.x]\n[link.y]\nbetween = [\"a\"]\n[link.z]\nbetween = [\"host\", \"host\"]\n\
      [link.v]\nbetween = [\"a\", \"b\"]\naddress = \"10.200.0.9\"",
        &[
            ("3:7", "`x` has no ends", "between ="),
            ("5:11", "2 ends, not 1", "between ="),
            ("7:11", "both ends of the link are the host", "must be a switch"),
            ("10:11", "between two switches has no address", "only an end at `host`"),
        ],
    ),
    // Linked switches may share a subnet, but then every address is one of theirs.
    (
        "[switch.a]\nsubnet = \"10.1.0.0/24\"\ngateway = true\n[switch.b]\nsubnet = \"10.1.0.0/24\"\ngateway = true\n\
      [link.x]\nbetween = [\"a\", \"b\"]",
        &[("6:11", "10.1.0.1 is used twice", "choose another")],
    ),
    (
        "[switch.lan]\npods = [\"a\", \"b\", \"a-eth1\"]\n[bridge.x]\npods = [\"a\"]",
        &[("2:19", "two interfaces of the host would be called `lab-a-eth1`", "another name")],
    ),
];

/// What is wrong behind [`SWITCH`], whose lines count.
const BAD_AT_SWITCH: &[Case] = &[
    (
        "[pod.a]\nroutes = [{ to = \"10.9.0.0/16\", over = \"lan\" }]",
        &[("5:33", "no key `over` in `pod.a.routes`", "known here")],
    ),
    (
        "[pod.aa]\n[pod.nobody]",
        &[
            ("4:6", "no path has a pod `aa`", "`a`"),
            ("5:6", "no path has a pod `nobody`", "name it in the `pods`"),
        ],
    ),
    (
        "[pod.a.port.lam]\n[pod.b.port.other]",
        &[
            ("4:13", "`a` is on no path `lam`", "`lan`"),
            ("5:13", "`b` is on no path `other`", "it is on `lan`"),
        ],
    ),
    (
        "[pod.a.port.lan]\naddress = \"10.2.0.1\"\nmac = \"02:00\"\nname = \"an-interface-name\"",
        &[
            ("5:11", "10.2.0.1 is outside the subnet of `lan`", "10.1.0.0/24"),
            ("6:7", "`02:00` is no Ethernet address", "six bytes"),
            (
                "7:8",
                "`an-interface-name` has 17 bytes, and the name of an interface at most 15",
                "`an-interface-na`",
            ),
        ],
    ),
    (
        "[pod.a.port.lan]\naddress = \"10.1.0.7\"\nmac = \"03:00:00:00:00:01\"\n\
      [pod.b.port.lan]\naddress = [\"10.1.0.7/24\"]\nname = \"a b\"",
        &[
            ("6:7", "is a group's", "02"),
            ("8:12", "10.1.0.7 is used twice", "choose another"),
            ("9:8", "`a b` cannot be the name of an interface", "1 to 15"),
        ],
    ),
    (
        "[pod.a.port.lan]\nmac = \"02:00:00:00:00:01\"\n[pod.b.port.lan]\nmac = \"02:00:00:00:00:01\"",
        &[("7:7", "02:00:00:00:00:01 is used twice", "its own")],
    ),
    (
        "[bridge.other]\npods = [\"a\"]\n[pod.a.port.lan]\nname = \"eth1\"",
        &[("5:9", "two interfaces of the pod `a` are called `eth1`", "differently")],
    ),
    (
        "[pod.a]\nnamespace = \"a/b\"\n[pod.b]\nnamespace = \"\"",
        &[
            ("5:13", "`a/b` cannot be the name of a network namespace", "a file's name"),
            ("7:13", "`` cannot be the name of a network namespace", "a file's name"),
        ],
    ),
    (
        "[pod.a]\nnamespace = \"lab-b\"",
        &[("3:14", "two pods would have the network namespace `lab-b`", "differently")],
    ),
    (
        "[pod.a]\nsysctl = { net.ipv4.ip_forward = 1, \"kernel.panic\" = 1, \"net/ipv4/ip_forward\" = 1, \"net.x\" = 1.5 }",
        &[
            ("5:12", "`net` is a table", "quotes"),
            ("5:37", "`kernel.panic` belongs to the whole machine", "`net.`"),
            ("5:57", "`net/ipv4/ip_forward` is no kernel parameter", "net.ipv4.ip_forward"),
            ("5:94", "`net.x` is a number with a fraction", ""),
        ],
    ),
    (
        "[pod.a]\nroutes = [\n{ to = \"10.9.0.1/16\", via = \"10.1.0.2\" },\n{ to = \"defaultx\", via = \"10.1.0.2\" },\n\
      { to = \"default\" },\n{ to = \"10.9.0.0/16\", via = \"10.2.0.2\" },\n{ to = \"fd00::/64\", via = \"10.1.0.2\" },\n\
      { via = \"10.1.0.2\" },\n{ to = \"10.9.0.0/16\", via = \"10.1.0.2/24\" },\n{ to = \"10.9.0.0/16\", port = \"lann\" },\n]",
        &[
            ("6:8", "`10.9.0.1/16` is an address in a network", "10.9.0.0/16"),
            ("7:8", "`defaultx` is no target", "`default`"),
            ("8:8", "a default route needs a neighbour", "via ="),
            ("9:29", "10.2.0.2 is no neighbour of the pod `a`", "10.1.0.0/24"),
            ("10:27", "10.1.0.2 is no way to fd00::/64", "same family"),
            ("11:9", "a route without a target", "to = "),
            ("12:29", "`10.1.0.2/24` is no IP address", "without the length"),
            ("13:30", "on no path `lann`", "`lan`"),
        ],
    ),
    (
        "[link.h]\nbetween = [\"lan\", \"host\"]\naddress = \"10.1.0.1/16\"\n[link.i]\nbetween = [\"host\", \"lan\"]\naddress = \"10.3.0.1\"",
        &[
            ("6:11", "prefix length of 24", "10.1.0.1/24"),
            ("9:11", "10.3.0.1 is outside the subnet of `lan`", "10.1.0.0/24"),
        ],
    ),
];

#[test]
fn everything_that_is_wrong_is_told_with_its_place_and_a_hint() {
    let at_switch = BAD_AT_SWITCH.iter().map(|(text, expected)| (format!("{SWITCH}{text}"), *expected));
    let mut failures = Vec::new();
    for (text, expected) in
        BAD.iter().map(|(text, expected)| ((*text).to_owned(), *expected)).chain(at_switch)
    {
        let found = bad(&text);
        let fits = |(line, (place, message, hint)): (&String, &(&str, &str, &str))| {
            let (head, tail) = line.split_once(" | ").unwrap();
            head.starts_with(&format!("{place} "))
                && head.contains(message)
                && tail.contains(hint)
                && !tail.is_empty()
        };
        if found.len() != expected.len() || !found.iter().zip(expected).all(fits) {
            failures.push(format!("{text}\nhas {found:#?}\nand not {expected:#?}\n"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_name_is_needed_where_the_files_own_cannot_be_one() {
    let Err(diagnostics) = parse("/tmp/My Lab.toml", "") else { panic!("a name with a blank") };
    let first = diagnostics.iter().next().unwrap();
    assert_eq!((first.line, first.column, first.length), (1, 1, 0));
    assert!(first.message.contains("`My Lab`") && first.hint.contains("name = \"my-lab\""), "{diagnostics}");
    assert_eq!(parse("/tmp/my-lab.toml", "").unwrap().name, "my-lab");
    assert!(parse("-", "").is_err());
}

#[test]
fn a_problem_is_shown_in_its_text() {
    let Err(diagnostics) = parse("lab.toml", "[switch.lan]\npods = [\"a\", \"ä\"]\nmtu = 1\n[bridge.lan]\n")
    else {
        panic!("three problems")
    };
    let expected = "\
error: `ä` cannot be the name of a pod: use 1 to 32 of a-z, 0-9 and `-`, beginning with a letter or digit
 --> lab.toml:2:14
  |
2 | pods = [\"a\", \"ä\"]
  |              ^^^
  |
  = help: use 1 to 32 of a-z, 0-9 and `-`, beginning with a letter or digit

error: `mtu` cannot be 1
 --> lab.toml:3:7
  |
3 | mtu = 1
  |       ^
  |
  = help: it can be 1280 to 65535

error: `lan` is the name of a switch too
 --> lab.toml:4:9
  |
1 | [switch.lan]
  |         --- the other
...
4 | [bridge.lan]
  |         ^^^
  |
  = help: paths of all kinds share their names: choose another";
    assert_eq!(diagnostics.to_string(), expected);
    assert!(diagnostics.styled().contains("\u{1b}["));
    let json = serde_json::to_value(&diagnostics).unwrap();
    assert_eq!(
        json[1],
        serde_json::json!({
            "file": "lab.toml",
            "line": 3,
            "column": 7,
            "length": 1,
            "message": "`mtu` cannot be 1",
            "hint": "it can be 1280 to 65535",
        })
    );
    assert_eq!((&json[0]["column"], &json[0]["length"]), (&Value::from(14), &Value::from(3)));
}

#[test]
fn the_schema_documents_every_key() {
    fn look(schema: &Value, place: &str, count: &mut usize) {
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            for (name, inner) in properties {
                assert!(inner.get("description").is_some(), "{place}.{name}");
                *count += 1;
            }
            assert_eq!(schema.get("additionalProperties"), Some(&Value::Bool(false)), "{place}");
        }
        match schema {
            Value::Object(object) => {
                object.iter().for_each(|(key, inner)| look(inner, &format!("{place}.{key}"), count));
            }
            Value::Array(items) => items.iter().for_each(|inner| look(inner, place, count)),
            Value::String(text) => assert_ne!(text, "null", "{place}"),
            _ => {}
        }
    }
    let mut count = 0;
    look(&schema(), "", &mut count);
    assert!(count > 35, "{count}");
}

prop_compose! {
    /// A path of any kind, and as many pods as it takes.
    fn path()(
        kind in prop::sample::select(vec!["switch", "bridge", "ovs", "route", "wire", "direct"]),
        pods in 0..40_usize,
        names in prop::collection::btree_set("[a-z][a-z0-9]{0,4}", 2..40),
        is_number in any::<bool>(),
        gateway in any::<bool>(),
        outside in any::<bool>(),
        has_subnet in any::<bool>(),
    ) -> (String, String, bool) {
        let is_pair = matches!(kind, "wire" | "direct");
        let mut text = String::new();
        let names: Vec<String> = names.into_iter().take(if is_pair { 2 } else { 40 }).map(|name| format!("p{name}")).collect();
        let pods = if is_number {
            (if is_pair { 2 } else { pods + 1 }).to_string()
        } else {
            format!("{names:?}")
        };
        text += "pods = ";
        text += &pods;
        text += "\n";
        if !is_pair && kind != "route" && gateway {
            text += "gateway = true\n";
        }
        if !is_pair && outside {
            text += "outside = true\n";
        }
        (kind.to_owned(), text, has_subnet)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_good_file_makes_a_valid_topology(paths in prop::collection::vec(path(), 0..8), chain in any::<bool>()) {
        use std::fmt::Write as _;
        let mut text = "name = \"any\"\n".to_owned();
        let mut last = None;
        for (index, (kind, path, has_subnet)) in paths.iter().enumerate() {
            writeln!(text, "[{kind}.path{index}]\n{path}").unwrap();
            if *has_subnet {
                writeln!(text, "subnet = [\"fd01:{index}::/64\", \"192.168.{}.0/22\"]", 4 * index).unwrap();
            }
        }
        // A chain of every second bridge with the host at its end; who has a gateway keeps its own network.
        for (index, (kind, path, _)) in paths.iter().enumerate() {
            if chain && !path.contains("true") && matches!(kind.as_str(), "switch" | "bridge" | "ovs") {
                let other = last.replace(index).map_or("host".to_owned(), |last: usize| format!("path{last}"));
                writeln!(text, "[link.link{index}]\nbetween = [\"path{index}\", \"{other}\"]").unwrap();
            }
        }
        let topology = match parse("any.toml", &text) {
            Ok(topology) => topology,
            Err(diagnostics) => return Err(TestCaseError::fail(format!("{text}\n{diagnostics}"))),
        };
        prop_assert_eq!(topology.validate(), Ok(()));
        prop_assert_eq!(topology.paths.len(), paths.len());
        let ports = topology.all_ports().flat_map(|(_, port)| &port.addresses);
        let ends = topology.cables.iter().flat_map(|cable| &cable.ends).flat_map(|end| &end.addresses);
        let hosts = topology.paths.iter().filter(|path| path.kind != Kind::Route).flat_map(|path| &path.gateway);
        let all: Vec<_> = ports.chain(ends).chain(hosts).map(|cidr| cidr.address).collect();
        let different: HashSet<_> = all.iter().collect();
        prop_assert_eq!(different.len(), all.len());
        prop_assert!(topology.all_ports().all(|(_, port)| port.addresses.len() == 2));
        for path in &topology.paths {
            prop_assert!(!path.outside || !path.gateway.is_empty());
        }
    }

    #[test]
    fn no_text_breaks_it(text in "\\PC*", keys in "[a-z.\\[\\]\"=\\n{}, 0-9]{0,60}") {
        for text in [text, keys] {
            if let Err(diagnostics) = parse("any.toml", &text) {
                prop_assert!(diagnostics.len() > 0);
                let _unused = diagnostics.to_string();
            }
        }
    }
}
