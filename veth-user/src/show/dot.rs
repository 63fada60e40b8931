//! Graphviz.

use std::fmt::Write as _;

use super::{HOST, ends, is_leg, is_line, leaves, ports_of, what};
use crate::topology::{Port, Topology};

/// The topology in Graphviz's language, complete however big: `veth show lab --dot | dot -Tpdf`.
///
/// Pods are ellipses, what joins them is a box, and a wire between two pods is an edge.
#[must_use]
pub fn dot(topology: &Topology) -> String {
    let mut graph = Graph::default();
    let has_host =
        topology.paths.iter().any(|path| leaves(path).is_some()) || topology.cables.iter().any(is_leg);
    if has_host {
        graph.node(HOST, "box3d", &[HOST.to_owned()]);
    }
    for pod in &topology.pods {
        let style = if pod.ports.len() > 1 { "bold" } else { "solid" };
        graph.item(
            &quote(&["pod:", &pod.name]),
            &[("shape", "ellipse"), ("style", style), ("label", &pod.name)],
        );
    }
    for (number, path) in topology.paths.iter().enumerate() {
        let heading = [path.name.clone(), what(path), format!("MTU {}", path.mtu)];
        let ports = ports_of(topology, number);
        if is_line(topology, number)
            && let [(first, from), (second, to)] = ports.as_slice()
        {
            graph.edge(
                [&quote(&["pod:", &first.name]), &quote(&["pod:", &second.name])],
                &[
                    ("label", &heading.join("\n")),
                    ("taillabel", &describe(from)),
                    ("headlabel", &describe(to)),
                ],
            );
            continue;
        }
        let id = format!("path:{}", path.name);
        graph.node(&id, "box", &heading);
        for (pod, port) in ports {
            graph.edge([&quote(&["pod:", &pod.name]), &quote(&[&id])], &[("label", &describe(port))]);
        }
        if let Some(leaves) = leaves(path) {
            graph.edge([&quote(&[&id]), &quote(&[HOST])], &[("style", "dashed"), ("label", &leaves)]);
        }
    }
    for cable in &topology.cables {
        let node = |path: Option<usize>| {
            let path = path.and_then(|path| topology.paths.get(path));
            path.map_or_else(|| quote(&[HOST]), |path| quote(&["path:", &path.name]))
        };
        let [a, b] = &cable.ends;
        let side = |end: &crate::topology::model::CableEnd| {
            let addresses = end.addresses.iter().map(ToString::to_string);
            std::iter::once(end.link.clone()).chain(addresses).collect::<Vec<_>>().join("\n")
        };
        graph.edge(
            [&node(a.path), &node(b.path)],
            &[
                ("style", "bold"),
                ("label", &format!("{}\nMTU {}", cable.name, cable.mtu)),
                ("taillabel", &side(a)),
                ("headlabel", &side(b)),
            ],
        );
    }
    let name = quote(&[&topology.name]);
    format!(
        "graph {name} {{\n  graph [label={name}, labelloc=\"t\", overlap=\"false\"];\n  node \
         [fontname=\"sans-serif\"];\n  edge [fontname=\"sans-serif\", fontsize=\"9\"];\n{}}}\n",
        graph.lines
    )
}

/// A port in the lines of a label.
fn describe(port: &Port) -> String {
    let addresses = port.addresses.iter().map(ToString::to_string);
    std::iter::once(ends(port)).chain(addresses).collect::<Vec<_>>().join("\n")
}

#[derive(Default)]
struct Graph {
    lines: String,
}

impl Graph {
    fn node(&mut self, id: &str, shape: &str, label: &[String]) {
        self.item(&quote(&[id]), &[("shape", shape), ("label", &label.join("\n"))]);
    }

    fn edge(&mut self, [from, to]: [&str; 2], attributes: &[(&str, &str)]) {
        self.item(&format!("{from} -- {to}"), attributes);
    }

    fn item(&mut self, what: &str, attributes: &[(&str, &str)]) {
        let attributes: Vec<String> =
            attributes.iter().map(|(name, value)| format!("{name}={}", quote(&[value]))).collect();
        let _unused: std::fmt::Result = writeln!(self.lines, "  {what} [{}];", attributes.join(", "));
    }
}

/// A quoted string. In labels Graphviz reads a backslash as the beginning of an escape, so it is doubled.
fn quote(parts: &[&str]) -> String {
    let mut quoted = String::from("\"");
    for c in parts.iter().flat_map(|part| part.chars()) {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
pub(super) mod tests {
    use layout::gv::{DotParser, parser::ast::Stmt};

    use super::*;
    use crate::topology::model::DEFAULT_MTU;

    /// Whether every quote and bracket outside of quotes has its partner.
    pub(crate) fn is_balanced(text: &str) -> bool {
        let (mut depth, mut quoted, mut escaped) = (0_i32, false, false);
        for c in text.chars() {
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                '{' | '[' if !quoted => depth += 1,
                '}' | ']' if !quoted => depth -= 1,
                _ => {}
            }
            if depth < 0 {
                return false;
            }
        }
        depth == 0 && !quoted && !escaped
    }

    #[test]
    fn quotes_cannot_be_left() {
        assert_eq!(quote(&["a\"b\\"]), r#""a\"b\\""#);
        assert_eq!(quote(&["a\nb"]), r#""a\nb""#);
    }

    #[test]
    fn graphviz_would_read_it() {
        let topology = super::super::tests::everything();
        let graph = DotParser::new(&dot(&topology)).process().unwrap();
        let count = |is: fn(&Stmt) -> bool| graph.list.list.iter().filter(|statement| is(statement)).count();
        // Pods, four paths with a hub, and the host.
        assert_eq!(count(|statement| matches!(statement, Stmt::Node(_))), topology.pods.len() + 4 + 1);
        // Two lines, the ports of the others, a gateway and the cables.
        assert_eq!(count(|statement| matches!(statement, Stmt::Edge(_))), 2 + 10 + 1 + 2);
    }

    #[test]
    fn a_wire_is_an_edge() {
        let text = dot(&Topology::wire("wire", DEFAULT_MTU).unwrap());
        assert!(text.contains("\"pod:ns1\" -- \"pod:ns2\"") && !text.contains("box"), "{text}");
    }
}
