//! A tree for a terminal.

use super::{cable_end, elsewhere, ends, leaves, list, ports_of, unconnected, what};
use crate::topology::Topology;

/// Pods of a path that are shown.
const PODS_MAX: usize = 32;

/// Of more than that, the first few.
const PODS_FIRST: usize = 8;

/// A tree of the paths, the pods on each, and the links between them.
#[must_use]
pub fn text(topology: &Topology) -> String {
    let mut branches: Vec<(String, Vec<String>)> = Vec::new();
    let mut marked = false;
    for (number, path) in topology.paths.iter().enumerate() {
        let mut heading = format!("{}: {}, MTU {}", path.name, what(path), path.mtu);
        if let Some(leaves) = leaves(path) {
            heading = format!("{heading}, {leaves}");
        }
        let ports = ports_of(topology, number);
        let shown = if ports.len() > PODS_MAX { PODS_FIRST } else { ports.len() };
        let rows: Vec<[String; 3]> = ports
            .iter()
            .take(shown)
            .map(|(pod, port)| {
                let elsewhere = elsewhere(topology, pod, number);
                marked |= !elsewhere.is_empty();
                let mark = if elsewhere.is_empty() { "" } else { "*" };
                let mut addresses = list(port.addresses.iter());
                if !elsewhere.is_empty() {
                    addresses = format!("{addresses} (also on {})", elsewhere.join(", "));
                }
                [format!("{}{mark}", pod.name), ends(port), addresses]
            })
            .collect();
        let mut leaves = align(&rows);
        if ports.len() > shown {
            leaves.push(format!("and {} more", ports.len() - shown));
        }
        branches.push((heading, leaves));
    }
    for cable in &topology.cables {
        let [a, b] = cable.ends.each_ref().map(|end| cable_end(topology, end));
        branches.push((format!("link {}: {a} -- {b}, MTU {}", cable.name, cable.mtu), Vec::new()));
    }
    let unconnected = unconnected(topology);
    if !unconnected.is_empty() {
        let pods = unconnected.iter().map(|pod| pod.name.clone()).collect();
        branches.push(("on no path".to_owned(), pods));
    }
    let mut lines = vec![topology.name.clone()];
    for (number, (heading, leaves)) in branches.iter().enumerate() {
        let (tee, rail) = joint(number + 1 == branches.len());
        lines.push(format!("{tee}{heading}"));
        for (number, leaf) in leaves.iter().enumerate() {
            let (tee, _) = joint(number + 1 == leaves.len());
            lines.push(format!("{rail}{tee}{leaf}"));
        }
    }
    if marked {
        lines.push("* on several paths".to_owned());
    }
    lines.push(String::new());
    lines.join("\n")
}

/// What stands before a branch, and before what hangs on it.
const fn joint(is_last: bool) -> (&'static str, &'static str) {
    if is_last { ("└── ", "    ") } else { ("├── ", "│   ") }
}

/// Rows with their cells one below the other.
fn align(rows: &[[String; 3]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1)];
    let line = |[pod, ends, addresses]: &[String; 3]| {
        let [first, second] = widths;
        format!("{pod:first$}  {ends:second$}  {addresses}").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::model::DEFAULT_MTU;

    #[test]
    fn the_tutorial() {
        let topology = Topology::wire("wire", DEFAULT_MTU).unwrap();
        let expected = "\
wire
└── wire: wire, MTU 1500
    ├── ns1  eth0 = wire-ns1  172.16.0.1/24 fd00:172:16::1/64
    └── ns2  eth0 = wire-ns2  172.16.0.2/24 fd00:172:16::2/64
";
        assert_eq!(text(&topology), expected);
    }

    #[test]
    fn a_pod_on_several_paths_is_marked_on_each() {
        let text = text(&super::super::tests::everything());
        assert!(text.contains("router*") && text.contains("(also on bridge-path eth1)"), "{text}");
        assert!(text.contains("(also on switch-path eth0)"), "{text}");
        assert!(text.contains("gateway 10.3.0.254/24 fd00:3::fe/64, outside"), "{text}");
        assert!(
            text.contains("link leg: ovs-path (ln-lab-leg-a) -- host (ln-lab-leg-b 10.6.0.100/24)"),
            "{text}"
        );
    }

    #[test]
    fn the_limit_is_exact() {
        let draw = |pods| text(&Topology::switch("s", pods, DEFAULT_MTU).unwrap());
        assert!(!draw(PODS_MAX).contains("more"));
        assert!(draw(PODS_MAX + 1).contains(&format!("and {} more", PODS_MAX + 1 - PODS_FIRST)));
    }
}
