//! Drawings of a topology. Pure: what is drawn is what is declared, and nothing looks at the machine.

mod dot;
mod svg;
mod text;

use crate::topology::{
    Kind, Path, Pod, Port, Topology,
    model::{Cable, CableEnd},
};

pub use dot::dot;
pub use svg::svg;
pub use text::text;

/// What stands for the host's own namespace.
const HOST: &str = "host";

/// What a path is, in a few words: `switch br-lab`.
fn what(path: &Path) -> String {
    let hub = path.bridge.as_ref().map(|bridge| bridge.link.as_str());
    let words = [Some(path.kind.name()), hub];
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// How pods leave a path: `gateway 10.0.0.1/24, outside`.
fn leaves(path: &Path) -> Option<String> {
    let gateway = path.is_routed().then(|| format!("gateway {}", list(path.gateway.iter())));
    let outside = path.outside.then(|| "outside".to_owned());
    let words: Vec<String> = gateway.into_iter().chain(outside).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// Whether two ports stand at the two ends of it, with nothing between them worth a box of its own.
fn is_line(topology: &Topology, path: usize) -> bool {
    let kind = topology.paths.get(path).map(|path| path.kind);
    matches!(kind, Some(Kind::Direct | Kind::Wire)) && ports_of(topology, path).len() == 2
}

/// The ports of a path, with their pods.
fn ports_of(topology: &Topology, path: usize) -> Vec<(&Pod, &Port)> {
    topology.ports_of(path).collect()
}

/// Both ends of a port: `eth0 = lab-pod1`.
fn ends(port: &Port) -> String {
    if port.host_link.is_empty() { port.name.clone() } else { format!("{} = {}", port.name, port.host_link) }
}

/// The other paths that a pod is on, each with the pod's interface there.
fn elsewhere(topology: &Topology, pod: &Pod, path: usize) -> Vec<String> {
    let others = pod.ports.iter().filter(|port| port.path != path);
    others.map(|port| format!("{} {}", path_name(topology, Some(port.path)), port.name)).collect()
}

/// Pods without a single port.
fn unconnected(topology: &Topology) -> Vec<&Pod> {
    topology.pods.iter().filter(|pod| pod.ports.is_empty()).collect()
}

/// What is at the end of a cable.
fn path_name(topology: &Topology, path: Option<usize>) -> &str {
    path.map_or(HOST, |path| topology.paths.get(path).map_or("?", |path| path.name.as_str()))
}

/// An end of a cable: `net (lab-up-a)`.
fn cable_end(topology: &Topology, end: &CableEnd) -> String {
    let addresses = end.addresses.iter().map(ToString::to_string);
    let words: Vec<String> = std::iter::once(end.link.clone()).chain(addresses).collect();
    format!("{} ({})", path_name(topology, end.path), words.join(" "))
}

/// Whether a cable leads to the host.
fn is_leg(cable: &Cable) -> bool {
    cable.ends.iter().any(|end| end.path.is_none())
}

fn list(items: impl Iterator<Item = impl ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{net::address::Cidr, topology::model::DEFAULT_MTU};

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    /// Every kind of path, a cable, a host leg, a router on two paths, and a pod on none.
    pub(super) fn everything() -> Topology {
        let mut topology = Topology::empty("lab");
        for (number, kind) in
            (1..).zip([Kind::Direct, Kind::Wire, Kind::Switch, Kind::Bridge, Kind::Route, Kind::Ovs])
        {
            let path = topology.add_path(&format!("{}-path", kind.name()), kind, DEFAULT_MTU);
            for end in 1..=2 {
                let pod = topology.add_pod(&format!("{}{end}", kind.name()));
                topology.add_port(
                    pod,
                    path,
                    vec![cidr(&format!("10.{number}.0.{end}/24")), cidr(&format!("fd00:{number}::{end}/64"))],
                );
            }
        }
        topology.paths[2].gateway = vec![cidr("10.3.0.254/24"), cidr("fd00:3::fe/64")];
        topology.paths[2].outside = true;
        let router = topology.add_pod("router");
        topology.add_port(router, 2, vec![cidr("10.3.0.9/24")]);
        topology.add_port(router, 3, vec![cidr("10.4.0.9/24")]);
        topology.add_pod("hermit");
        topology.add_cable("trunk", 9_000, [Some(2), Some(3)]);
        topology.add_cable("leg", DEFAULT_MTU, [Some(5), None]).ends[1].addresses =
            vec![cidr("10.6.0.100/24")];
        topology.number_slots(None);
        topology.validate().unwrap();
        topology
    }

    /// Everything that somebody may look for in a drawing.
    fn names(topology: &Topology) -> Vec<String> {
        let mut names = vec![topology.name.clone()];
        names.extend(topology.pods.iter().map(|pod| pod.name.clone()));
        for (_, port) in topology.all_ports() {
            names.extend([port.name.clone(), port.host_link.clone()]);
            names.extend(port.addresses.iter().map(ToString::to_string));
        }
        for path in &topology.paths {
            names.extend([path.name.clone(), path.kind.name().to_owned(), path.mtu.to_string()]);
            names.extend(path.gateway.iter().map(ToString::to_string));
        }
        for cable in &topology.cables {
            names.push(cable.name.clone());
            for end in &cable.ends {
                names.push(end.link.clone());
                names.extend(end.addresses.iter().map(ToString::to_string));
            }
        }
        names.extend(topology.bridges().map(|(_, bridge)| bridge.link.clone()));
        names
    }

    #[test]
    fn every_name_is_in_every_drawing() {
        let topology = everything();
        for (what, drawing) in [("text", text(&topology)), ("dot", dot(&topology)), ("svg", svg(&topology))] {
            for name in names(&topology) {
                assert!(drawing.contains(&name), "{name} is not in the {what}:\n{drawing}");
            }
        }
    }

    #[test]
    fn many_pods_are_summed_up_for_people_and_complete_for_programs() {
        let topology = Topology::switch("s", 1_000, DEFAULT_MTU).unwrap();
        for drawing in [text(&topology), svg(&topology)] {
            assert!(drawing.contains("pod1\n") || drawing.contains("pod1"), "{drawing}");
            assert!(drawing.contains("more") && !drawing.contains("pod1000"), "{drawing}");
        }
        assert!(dot(&topology).contains("pod1000"));
    }

    #[test]
    fn nothing_at_all_can_be_drawn() {
        let topology = Topology::empty("void");
        for drawing in [text(&topology), dot(&topology), svg(&topology)] {
            assert!(drawing.contains("void"));
        }
    }

    proptest! {
        /// A record may have been edited by hand: what is in it must not break out of its place.
        #[test]
        fn no_name_breaks_a_drawing(name in "\\PC{1,12}|[\"\\\\<>&'{}|\\n\\[\\]]{1,8}") {
            let mut topology = everything();
            topology.name.clone_from(&name);
            topology.pods[0].name.clone_from(&name);
            topology.paths[2].name.clone_from(&name);
            topology.cables[0].name.clone_from(&name);
            topology.pods[4].ports[0].host_link.clone_from(&name);
            let drawing = svg(&topology);
            let document = roxmltree::Document::parse(&drawing);
            prop_assert!(document.is_ok(), "{:?}\n{}", document.err(), drawing);
            prop_assert!(dot::tests::is_balanced(&dot(&topology)));
            prop_assert!(!text(&topology).is_empty());
        }
    }
}
