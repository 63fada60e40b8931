//! `veth metrics`: what Prometheus is told equals what `stats` shows.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use nix::sys::signal::Signal;
use veth_tests::{
    Lab,
    lab::{Running, silence},
    topology::Declared,
    traffic::udp,
};

const LAN: &str = "name = \"lab\"\n\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\n";

/// Starts it, and returns where it listens.
fn serve(lab: &Lab) -> (Running, String) {
    let mut running = lab.start(&["metrics", "--listen", "127.0.0.1:0"], &[]);
    let said = running.wait_for("/metrics\n");
    let address = said.trim().strip_prefix("serving http://").unwrap().strip_suffix("/metrics").unwrap();
    (running, address.to_owned())
}

/// What is answered to a request, head and all.
fn ask(lab: &Lab, address: &str, request: &str) -> String {
    let (address, request) = (address.to_owned(), request.to_owned());
    lab.run(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .write_all(format!("{request} HTTP/1.1\r\nHost: veth\r\nConnection: close\r\n\r\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
}

fn value(text: &str, series: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

#[test]
fn what_is_served_equals_what_stats_shows() {
    let lab = Lab::new();
    let file = Declared::new(LAN);
    lab.ok(&file.args("up"));
    let (running, address) = serve(&lab);
    let (a, b) = (lab.pod("lab-a"), lab.pod("lab-b"));
    silence(&a);
    silence(&b);
    assert_eq!(udp(&a, &b, "10.1.0.2".parse().unwrap(), 100, 50), 0);
    let stats = lab.quiet_stats("lab");
    let text = ask(&lab, &address, "GET /metrics");
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("application/openmetrics-text"), "{text}");
    for port in stats["ports"].as_array().unwrap().iter().filter(|port| port["pod"].is_string()) {
        let pod = port["pod"].as_str().unwrap();
        let labels = format!("{{topology=\"lab\",pod=\"{pod}\",port=\"eth0\"}}");
        for (series, path) in [
            ("veth_port_receive_packets_total", "/rx/packets"),
            ("veth_port_receive_bytes_total", "/rx/bytes"),
            ("veth_port_transmit_packets_total", "/tx/packets"),
            ("veth_port_transmit_bytes_total", "/tx/bytes"),
            ("veth_port_redirected_packets_total", "/redirected/packets"),
            ("veth_port_passed_packets_total", "/passed/packets"),
        ] {
            let expected = port.pointer(path).unwrap().as_u64().unwrap();
            assert_eq!(
                value(&text, &format!("{series}{labels}")),
                Some(expected),
                "{series}{labels} in {text}"
            );
        }
    }
    assert!(text.trim_end().ends_with("# EOF"), "{text}");

    // A pod that is gone has no series, and what comes has one, without a restart.
    file.write(&LAN.replace("\"b\"", "\"c\""));
    lab.ok(&file.args("up"));
    let text = ask(&lab, &address, "GET /metrics");
    assert!(text.contains("pod=\"c\"") && !text.contains("pod=\"b\""), "{text}");
    lab.ok(&["down"]);
    assert!(!ask(&lab, &address, "GET /metrics").contains("topology="));

    for (request, expected) in [
        ("GET /healthz", "HTTP/1.1 200"),
        ("GET /", "HTTP/1.1 404"),
        ("POST /metrics", "HTTP/1.1 405"),
        ("nonsense", "HTTP/1.1 400"),
    ] {
        let answer = ask(&lab, &address, request);
        assert!(answer.starts_with(expected), "{request}: {answer}");
    }
    let taken = lab.refused(&["metrics", "--listen", &address]);
    assert!(taken.contains(&format!("listen on {address}")) && taken.contains("in use"), "{taken}");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.finish().status.code(), Some(0));
}
