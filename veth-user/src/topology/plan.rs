//! What has to be done, in order: a pure function of what is declared.
//!
//! Steps are small and enumerable, so that a test can stop the process after any of them.

use std::fmt;

use super::Topology;
use crate::datapath::Hook;

/// One change of the machine. Numbers are indexes into [`Topology::pods`], [`super::Pod::ports`] and
/// [`Topology::paths`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a pod's namespace.
    Namespace {
        /// The pod.
        pod: usize,
    },
    /// Make a port's veth pair, both ends down.
    Pair {
        /// The pod.
        pod: usize,
        /// Its port.
        port: usize,
    },
    /// Give the pod's end its addresses and set it up.
    Configure {
        /// The pod.
        pod: usize,
        /// Its port.
        port: usize,
    },
    /// Make both ends of a pair fit for XDP, before they come up.
    Prepare {
        /// The pod.
        pod: usize,
        /// Its port.
        port: usize,
    },
    /// Load the programs and pin them with their maps.
    Load,
    /// Make the bridge behind a switch.
    Bridge {
        /// The switch.
        path: usize,
    },
    /// Tell the maps of a port.
    Register {
        /// The pod.
        pod: usize,
        /// Its port.
        port: usize,
    },
    /// Attach the program to a port's host end.
    Attach {
        /// The pod.
        pod: usize,
        /// Its port.
        port: usize,
    },
    /// Make the host end a bridge port and set it up: from here on frames flow.
    Connect {
        /// The pod.
        pod: usize,
        /// Its port.
        port: usize,
    },
    /// Wait until every link carries frames.
    Ready,
}

/// The steps from nothing to a running topology.
///
/// The order is what makes it safe: no frame flows before every program and every map entry is in place, so
/// none is missed or goes the wrong way, and host ends join the bridge last, so that none of the traffic
/// that links make when they come up is multiplied by it.
#[must_use]
pub fn build(topology: &Topology, hook: Hook) -> Vec<Step> {
    let ports = || {
        topology
            .pods
            .iter()
            .enumerate()
            .flat_map(|(pod, value)| (0..value.ports.len()).map(move |port| (pod, port)))
    };
    let mut steps = Vec::new();
    steps.extend((0..topology.pods.len()).map(|pod| Step::Namespace { pod }));
    steps.extend(ports().map(|(pod, port)| Step::Pair { pod, port }));
    if hook.is_xdp() {
        steps.extend(ports().map(|(pod, port)| Step::Prepare { pod, port }));
    }
    steps.extend(ports().map(|(pod, port)| Step::Configure { pod, port }));
    steps.push(Step::Load);
    steps.extend(
        topology
            .paths
            .iter()
            .enumerate()
            .filter(|(_, path)| path.bridge.is_some())
            .map(|(path, _)| Step::Bridge { path }),
    );
    steps.extend(ports().map(|(pod, port)| Step::Register { pod, port }));
    steps.extend(ports().map(|(pod, port)| Step::Attach { pod, port }));
    steps.extend(ports().map(|(pod, port)| Step::Connect { pod, port }));
    steps.push(Step::Ready);
    steps
}

impl Step {
    /// The step in words, for progress and errors.
    #[must_use]
    pub const fn describe<'a>(&'a self, topology: &'a Topology, hook: Hook) -> impl fmt::Display + use<'a> {
        Description { step: self, topology, hook }
    }
}

struct Description<'a> {
    step: &'a Step,
    topology: &'a Topology,
    hook: Hook,
}

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, topology, hook } = self;
        let link = |pod: usize, port: usize| &topology.pods[pod].ports[port].host_link;
        match **step {
            Step::Namespace { pod } => write!(f, "make namespace {}", topology.pods[pod].namespace),
            Step::Pair { pod, port } => write!(f, "make veth pair {}", link(pod, port)),
            Step::Configure { pod, port } => write!(f, "configure the pod's end of {}", link(pod, port)),
            Step::Prepare { pod, port } => write!(f, "prepare the pod's end of {} for XDP", link(pod, port)),
            Step::Load => write!(f, "load the eBPF programs"),
            Step::Bridge { path: _ } => write!(f, "make the bridge"),
            Step::Register { pod, port } => write!(f, "register {}", link(pod, port)),
            Step::Attach { pod, port } => write!(f, "attach {hook} to {}", link(pod, port)),
            Step::Connect { pod, port } => write!(f, "connect {}", link(pod, port)),
            Step::Ready => write!(f, "wait until every link carries frames"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_flows_before_everything_is_in_place() {
        let topology = Topology::switch("s", 5, 1_500).unwrap();
        let steps = build(&topology, Hook::Tcx);
        let first_connect = steps.iter().position(|step| matches!(step, Step::Connect { .. })).unwrap();
        let rest = &steps[first_connect..];
        assert!(rest.iter().all(|step| matches!(step, Step::Connect { .. } | Step::Ready)));
        assert_eq!(rest.last(), Some(&Step::Ready));
        let attached = steps.iter().filter(|step| matches!(step, Step::Attach { .. })).count();
        assert_eq!(attached, 5);
        assert_eq!(steps.iter().filter(|step| matches!(step, Step::Bridge { .. })).count(), 1);
    }

    #[test]
    fn a_wire_needs_no_bridge() {
        let steps = build(&Topology::wire("w", 1_500).unwrap(), Hook::Clsact);
        assert!(!steps.iter().any(|step| matches!(step, Step::Bridge { .. })));
        assert_eq!(steps.len(), 14);
    }

    #[test]
    fn pairs_are_prepared_for_xdp_before_they_come_up() {
        let steps = build(&Topology::switch("s", 3, 1_500).unwrap(), Hook::Xdp);
        let last = steps.iter().rposition(|step| matches!(step, Step::Prepare { .. })).unwrap();
        let first = steps.iter().position(|step| matches!(step, Step::Configure { .. })).unwrap();
        assert!(last < first);
        assert_eq!(steps.iter().filter(|step| matches!(step, Step::Prepare { .. })).count(), 3);
    }

    #[test]
    fn steps_say_what_they_do() {
        let topology = Topology::wire("wire", 1_500).unwrap();
        let words: Vec<_> = build(&topology, Hook::Tcx)
            .iter()
            .map(|step| step.describe(&topology, Hook::Tcx).to_string())
            .collect();
        assert_eq!(words[0], "make namespace ns1");
        assert!(words.contains(&"attach tcx to wire-ns2".to_owned()));
    }
}
