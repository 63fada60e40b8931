//! `veth stats`: what it is asked for, in the form that it is asked for.

use nix::sys::signal::Signal;
use veth_tests::{Lab, lab::silence, topology::Declared, traffic::udp};

const LAN: &str = "name = \"lab\"\n\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\n";

/// Two pods, of which each has sent fifty datagrams to the other.
fn lab_with_traffic() -> (Lab, Declared) {
    let lab = Lab::new();
    let file = Declared::new(LAN);
    lab.ok(&file.args("up"));
    let (a, b) = (lab.pod("lab-a"), lab.pod("lab-b"));
    silence(&a);
    silence(&b);
    assert_eq!(udp(&a, &b, "10.1.0.2".parse().unwrap(), 100, 50), 0);
    (lab, file)
}

#[test]
fn counters_are_split_as_asked() {
    let (lab, _file) = lab_with_traffic();
    let rows = |by: &str| {
        let text = lab.ok(&["stats", "lab/a", "--by", by]);
        assert!(text.contains(&by.to_uppercase()) && !text.contains("lab-b"), "{by}:\n{text}");
        let rows = text.lines().filter(|line| line.contains("lab-a")).map(str::to_owned);
        rows.map(|line| line.split_whitespace().skip(3).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    assert!(rows("protocol").iter().any(|row| row.starts_with("ipv4_udp 50")), "{:?}", rows("protocol"));
    assert!(rows("verdict").iter().any(|row| row.starts_with("redirected 5")), "{:?}", rows("verdict"));
    assert!(rows("size").iter().any(|row| row.starts_with("128-255 50 -")), "{:?}", rows("size"));
    assert!(rows("cast").iter().any(|row| row.starts_with("unicast")), "{:?}", rows("cast"));
    assert!(rows("reason").iter().any(|row| row.starts_with("passed group")), "{:?}", rows("reason"));
    let cpus = rows("cpu");
    assert!(!cpus.is_empty() && cpus.iter().all(|row| row.as_bytes()[0].is_ascii_digit()), "{cpus:?}");
}

#[test]
fn csv_has_a_line_for_each_port_or_part_of_it() {
    let (lab, _file) = lab_with_traffic();
    let stats = lab.quiet_stats("lab");
    let text = lab.ok(&["stats", "--csv"]);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    let column = |name: &str| lines[0].iter().position(|column| *column == name).unwrap();
    assert_eq!(lines.len(), 4, "a heading, two pods and the bridge:\n{text}");
    for (line, port) in lines[1..].iter().zip(stats["ports"].as_array().unwrap()) {
        for (name, path) in [
            ("rx_packets", "/rx/packets"),
            ("tx_bytes", "/tx/bytes"),
            ("dropped_no_gateway_packets", "/dropped/no_gateway/packets"),
        ] {
            assert_eq!(line[column(name)], port.pointer(path).unwrap().to_string(), "{name}:\n{text}");
        }
    }
    let text = lab.ok(&["stats", "a", "--csv", "--by", "protocol"]);
    assert!(text.starts_with("topology,taken_ms,pod,port,link,path,protocol,packets,bytes\n"), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains(",ipv4_udp,50,7100")).count(), 1, "{text}");
    assert_eq!(text.lines().count(), 11, "{text}");
    // The heading comes once.
    let mut running = lab.start(&["stats", "--csv", "--watch", "20ms"], &[]);
    let lines: String = (0..12).map(|_| running.wait_for("\n")).collect();
    running.signal(Signal::SIGINT);
    assert_eq!((lines + &running.finish().out).matches("taken_ms").count(), 1);
}

#[test]
fn who_watches_sees_what_comes_and_goes() {
    let lab = Lab::new();
    let file = Declared::new(LAN);
    lab.ok(&file.args("up"));
    let mut running = lab.start(&["stats", "lab", "--json", "--watch", "50ms"], &[]);
    running.wait_for("\"a\"");
    file.write(&LAN.replace("\"b\"", "\"c\""));
    lab.ok(&file.args("up"));
    let line = running.wait_for("\"c\"");
    assert!(!line.rsplit('\n').next().unwrap().contains("\"b\""), "{line}");
    lab.ok(&["down", "lab"]);
    let finished = running.finish();
    assert_eq!(finished.status.code(), Some(1), "what it was asked for is gone");
    // Half-way down, its file is still there and its maps are not.
    let is_gone = finished.err.contains("there is no topology lab")
        || finished.err.contains("map_") && finished.err.contains("No such file");
    assert!(is_gone, "{}", finished.err);
}

#[test]
fn names_that_nobody_has_are_refused() {
    let (lab, _file) = lab_with_traffic();
    for (args, expected) in [
        (&["stats", "nobody"][..], "there is no topology nobody; there is lab"),
        (&["stats", "lab/nobody"][..], "there is no pod lab/nobody; there is lab/a, lab/b"),
    ] {
        assert!(lab.refused(args).contains(expected), "{args:?}: {}", lab.refused(args));
    }
    for args in
        [&["stats", "--by", "colour"][..], &["stats", "--by", "cpu", "--json"], &["stats", "--csv", "--json"]]
    {
        assert_eq!(lab.veth(args).status.code(), Some(2), "{args:?}");
    }
}
