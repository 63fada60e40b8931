//! What has to be done, in order: a pure function of what is declared and what there is.
//!
//! Steps are small and enumerable, so that a test can stop the process after any of them. Every one leaves alone
//! what is already as it should be, so that one that was interrupted can be done again.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use serde::Serialize;
use veth_common::RedirectMode;

use super::{
    Kind, Path, Pod, Port, Topology,
    model::{Bridge, Cable},
    observe::{Fault, Observed},
};
use crate::datapath::{Hook, object};

/// One change of the machine. Numbers are indexes into [`Topology::pods`], [`Pod::ports`], [`Topology::paths`] and
/// [`Topology::cables`] of what is declared; what is to go is carried along, for the declaration does not have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Remove a cable.
    RemoveCable(Box<Cable>),
    /// Remove a port from the maps, and its pair.
    RemovePort(Box<Gone>),
    /// Remove a pod's namespace.
    RemovePod(Box<Pod>),
    /// Remove the bridge of a path.
    RemoveBridge(Box<Path>),
    /// Stop the Open vSwitch.
    RemoveOvs,
    /// Remove the firewall's table.
    RemoveFirewall,
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
    /// Change the MTU of both ends of a pair.
    Resize {
        /// The pod.
        pod: usize,
        /// Its port.
        port: usize,
    },
    /// Set what XDP, Open vSwitch or tuning needs of both ends of a pair, before they come up.
    Prepare {
        /// The pod.
        pod: usize,
        /// Its port.
        port: usize,
    },
    /// Give the pod's end its addresses and neighbours, and set it up.
    Configure {
        /// The pod.
        pod: usize,
        /// Its port.
        port: usize,
    },
    /// Give a pod its routes and kernel parameters.
    Settle {
        /// The pod.
        pod: usize,
    },
    /// Mark links as the topology's.
    Mark,
    /// Load the programs and pin them with their maps.
    Load,
    /// Let this veth's programs take the place of those that are pinned, on the same maps.
    Replace,
    /// Load this veth's programs, with maps of its layout, beside those that are pinned.
    Migrate,
    /// Add what was counted in the maps of another layout, and let go of those.
    Carry,
    /// Start an Open vSwitch.
    Ovs,
    /// Make the bridge of a path.
    Bridge {
        /// The path.
        path: usize,
    },
    /// Give the bridge of a path its MTU and the addresses of the gateway.
    Gateway {
        /// The path.
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
    /// Change how frames reach a port.
    Redirect {
        /// The pod.
        pod: usize,
        /// Its port.
        port: usize,
        /// How.
        mode: RedirectMode,
    },
    /// Attach the program that keeps pods from the host to the bridge of a path.
    Guard {
        /// The path.
        path: usize,
    },
    /// Make the host end a bridge port, or give it its routes, and set it up: from here on frames flow.
    Connect {
        /// The pod.
        pod: usize,
        /// Its port.
        port: usize,
    },
    /// Make a cable and connect both of its ends.
    Cable {
        /// The cable.
        cable: usize,
    },
    /// Make a pod forget who had addresses that others have now.
    Forget {
        /// The pod.
        pod: usize,
    },
    /// Let the host forward, and only what is meant to leave its path.
    Firewall,
    /// Wait until every link carries frames.
    Ready,
}

/// A port that is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Its pod.
    pub pod: Pod,
    /// The port.
    pub port: Port,
    /// Its path.
    pub path: Path,
}

/// Whether a step brings something, takes something away, or changes what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// `+`
    Add,
    /// `-`
    Remove,
    /// `~`
    Change,
}

/// The steps from nothing to a running topology.
///
/// The order is what makes it safe: no frame flows before every program and every map entry is in place, so
/// none is missed or goes the wrong way, and host ends join the bridge last, so that none of the traffic
/// that links make when they come up is multiplied by it.
#[must_use]
pub fn build(topology: &Topology, hook: Hook) -> Vec<Step> {
    diff(
        topology,
        &Topology { pods: Vec::new(), paths: Vec::new(), ..Topology::empty("") },
        &Observed::default(),
        hook,
    )
}

/// The steps from what there is to what is declared: those that something differs for, and no other. `made` is what
/// was made, `observed` what is wrong with it.
#[must_use]
pub fn diff(declared: &Topology, made: &Topology, observed: &Observed, hook: Hook) -> Vec<Step> {
    let difference = Difference::new(declared, made, observed);
    let mut steps = difference.removals();
    steps.extend(difference.additions(hook));
    if !steps.is_empty() {
        steps.push(Step::Ready);
    }
    steps
}

/// The steps from the maps of another layout to those of ours, or back to ours where another veth was killed amid such
/// steps. Everything else stays as it is: each attachment goes from one program to the other, of which both know
/// everything. What is gone is left for later.
#[must_use]
pub fn migrate(topology: &Topology, observed: &Observed) -> Vec<Step> {
    let pods = topology.pods.iter().enumerate();
    let is_there = |pod: &Pod, port: &Port| {
        !observed.has(&Fault::Namespace(pod.name.clone()))
            && !observed.has(&Fault::Pair(pod.name.clone(), port.name.clone()))
    };
    let counted = || {
        let ports = pods
            .clone()
            .flat_map(|(at, pod)| pod.ports.iter().enumerate().map(move |(n, port)| (at, n, port)));
        ports
            .filter(|(pod, _, port)| topology.path(port).is_counted() && is_there(&topology.pods[*pod], port))
    };
    let guarded = topology.paths.iter().enumerate().filter(|(_, path)| path.is_guarded());
    let guarded = guarded.filter(|(_, path)| !observed.has(&Fault::Bridge(path.name.clone())));
    let mut steps = vec![Step::Migrate];
    let registered = counted().filter(|(.., port)| !port.host_link.is_empty());
    steps.extend(registered.map(|(pod, port, _)| Step::Register { pod, port }));
    steps.extend(guarded.map(|(path, _)| Step::Guard { path }));
    steps.extend(counted().map(|(pod, port, _)| Step::Attach { pod, port }));
    steps.push(Step::Carry);
    steps
}

/// What both topologies have in common, by what it would take to make one the other.
struct Difference<'a> {
    declared: &'a Topology,
    made: &'a Topology,
    observed: &'a Observed,
    /// Pods, by name, that stay.
    pods: HashSet<&'a str>,
    /// Ports, by pod and name, that stay.
    ports: HashSet<(&'a str, &'a str)>,
    /// Paths, by name, whose bridge stays.
    bridges: HashSet<&'a str>,
    /// Cables, by name, that stay.
    cables: HashSet<&'a str>,
}

impl<'a> Difference<'a> {
    fn new(declared: &'a Topology, made: &'a Topology, observed: &'a Observed) -> Self {
        let has = |fault: &Fault| observed.has(fault);
        // What an interrupted command left in another shape cannot be trusted to have either.
        let left = &observed.leftovers;
        let mut pods = HashSet::new();
        let new_pods: HashMap<&str, &Pod> =
            declared.pods.iter().map(|pod| (pod.name.as_str(), pod)).collect();
        for old in &made.pods {
            let stays = new_pods.get(old.name.as_str()).is_some_and(|new| is_same_pod(old, new));
            let is_mixed = left.iter().any(|left| {
                left.pods
                    .iter()
                    .any(|pod| pod.name == old.name && !(is_same_pod(pod, old) && is_same_pod(old, pod)))
            });
            if stays && !is_mixed && !has(&Fault::Namespace(old.name.clone())) {
                pods.insert(old.name.as_str());
            }
        }
        let mut bridges = HashSet::new();
        for (old, _) in made.bridges() {
            let stays = declared.bridges().any(|(new, _)| is_same_bridge((made, old), (declared, new)));
            let is_mixed = left.iter().any(|left| {
                left.bridges()
                    .any(|(path, _)| path.name == old.name && !is_same_bridge((left, path), (made, old)))
            });
            if stays && !is_mixed && !has(&Fault::Bridge(old.name.clone())) {
                bridges.insert(old.name.as_str());
            }
        }
        let mut ports = HashSet::new();
        for (pod, port) in made.all_ports().filter(|(pod, _)| pods.contains(pod.name.as_str())) {
            let is_same = |new: &&Pod| {
                let ports = new.ports.iter().filter(|new| new.name == port.name);
                ports.into_iter().any(|new| is_same_port((made, port), (declared, new)))
            };
            let is_declared = new_pods.get(pod.name.as_str()).is_some_and(is_same);
            let is_mixed = left.iter().any(|left| {
                left.all_ports().any(|(other, before)| {
                    (&other.name, &before.name) == (&pod.name, &port.name)
                        && !is_same_port((left, before), (made, port))
                })
            });
            if is_declared && !is_mixed && !has(&Fault::Pair(pod.name.clone(), port.name.clone())) {
                ports.insert((pod.name.as_str(), port.name.as_str()));
            }
        }
        // Both ends of a direct pair stay, or none.
        for (number, _) in made.paths.iter().enumerate().filter(|(_, path)| path.kind == Kind::Direct) {
            let ends: Vec<_> =
                made.ports_of(number).map(|(pod, port)| (pod.name.as_str(), port.name.as_str())).collect();
            if !ends.iter().all(|end| ports.contains(end)) {
                ports.retain(|port| !ends.contains(port));
            }
        }
        let mut cables = HashSet::new();
        for old in &made.cables {
            let same = |new: &Cable| is_same_cable((made, old), (declared, new));
            // An end that is not a port of its bridge is joined again; one whose bridge goes is made again.
            let rests = old
                .ends
                .iter()
                .all(|end| end.path.is_none_or(|path| bridges.contains(made.paths[path].name.as_str())));
            let is_mixed = left.iter().any(|left| {
                left.cables
                    .iter()
                    .any(|cable| cable.name == old.name && !is_same_cable((left, cable), (made, old)))
            });
            if rests && !is_mixed && declared.cables.iter().any(same) && !has(&Fault::Cable(old.name.clone()))
            {
                cables.insert(old.name.as_str());
            }
        }
        Self { declared, made, observed, pods, ports, bridges, cables }
    }

    fn has_port(&self, pod: &Pod, port: &Port) -> bool {
        self.ports.contains(&(pod.name.as_str(), port.name.as_str()))
    }

    /// Everything that goes: of what was made, and of what an interrupted command left.
    fn removals(&self) -> Vec<Step> {
        let mut steps = self.removals_of(self.made);
        for step in self.observed.leftovers.iter().flat_map(|leftover| self.removals_of(leftover)) {
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
        steps
    }

    fn removals_of(&self, topology: &Topology) -> Vec<Step> {
        let mut steps = Vec::new();
        let cables = topology.cables.iter().filter(|cable| !self.cables.contains(cable.name.as_str()));
        steps.extend(cables.map(|cable| Step::RemoveCable(Box::new(cable.clone()))));
        let ports = topology.all_ports().filter(|(pod, port)| !self.has_port(pod, port));
        steps.extend(ports.map(|(pod, port)| {
            Step::RemovePort(Box::new(Gone {
                pod: Pod { ports: Vec::new(), ..pod.clone() },
                port: port.clone(),
                path: topology.path(port).clone(),
            }))
        }));
        let pods = topology.pods.iter().filter(|pod| !self.pods.contains(pod.name.as_str()));
        steps.extend(pods.map(|pod| Step::RemovePod(Box::new(pod.clone()))));
        let bridges = topology.bridges().filter(|(path, _)| !self.bridges.contains(path.name.as_str()));
        steps.extend(bridges.map(|(path, _)| Step::RemoveBridge(Box::new(path.clone()))));
        if topology.has_ovs() && !self.declared.has_ovs() {
            steps.push(Step::RemoveOvs);
        }
        if topology.is_routed() && !self.declared.is_routed() {
            steps.push(Step::RemoveFirewall);
        }
        steps
    }

    /// Everything that comes or changes.
    fn additions(&self, hook: Hook) -> Vec<Step> {
        let ports: Vec<Change<'_>> = self.ports().collect();
        let mut steps = self.pods_and_pairs(&ports, hook);
        if ports.iter().any(|change| change.is_new() && !change.port.host_link.is_empty()) {
            steps.push(Step::Mark);
        }
        steps.extend(self.programs_and_bridges());
        steps.extend(self.maps_and_attachments(&ports));
        steps.extend(self.connections(&ports));
        steps
    }

    /// What is inside of pods.
    fn pods_and_pairs(&self, ports: &[Change<'_>], hook: Hook) -> Vec<Step> {
        let Self { declared, made, observed, .. } = self;
        let mut steps = Vec::new();
        let pods = || declared.pods.iter().enumerate();
        let new_pods = pods().filter(|(_, pod)| !self.pods.contains(pod.name.as_str()));
        steps.extend(new_pods.map(|(pod, _)| Step::Namespace { pod }));
        let is_made = |change: &&Change<'_>| change.is_new() && change.makes_pair(declared);
        steps.extend(each(ports, is_made, |pod, port| Step::Pair { pod, port }));
        let is_resized = |change: &&Change<'_>| change.is_resized() || change.has(observed, Fault::Mtu);
        steps.extend(each(ports, is_resized, |pod, port| Step::Resize { pod, port }));
        let is_prepared = |change: &&Change<'_>| {
            change.is_new() && declared.preparation(change.port.path, hook).is_some()
                || change.is_prepared_otherwise(made, declared, hook)
                || change.has(observed, Fault::Unfit)
        };
        steps.extend(each(ports, is_prepared, |pod, port| Step::Prepare { pod, port }));
        let is_configured = |change: &&Change<'_>| {
            change.is_new()
                || change.is_reconfigured(made, declared)
                || change.has(observed, Fault::Addresses)
        };
        steps.extend(each(ports, &is_configured, |pod, port| Step::Configure { pod, port }));
        let configured: HashSet<&str> =
            ports.iter().filter(&is_configured).map(|change| change.pod.name.as_str()).collect();
        let old_pods: HashMap<&str, &Pod> = made
            .pods
            .iter()
            .map(|pod| (pod.name.as_str(), pod))
            .filter(|(name, _)| self.pods.contains(name))
            .collect();
        let is_settled = |(_, pod): &(usize, &Pod)| {
            let old = old_pods.get(pod.name.as_str()).map(|old| settlement(made, old)).unwrap_or_default();
            let new = settlement(declared, pod);
            // With the last address of a family its routes go too.
            let is_touched = configured.contains(pod.name.as_str());
            old != new || is_touched && !new.is_empty() || observed.has(&Fault::Routes(pod.name.clone()))
        };
        steps.extend(pods().filter(is_settled).map(|(pod, _)| Step::Settle { pod }));
        steps
    }

    /// What pods are connected to.
    fn programs_and_bridges(&self) -> Vec<Step> {
        let Self { declared, made, observed, .. } = self;
        let mut steps = Vec::new();
        let has_loaded = declared.has_programs() && made.has_programs();
        if declared.has_programs() && !has_loaded {
            steps.push(Step::Load);
        } else if has_loaded && observed.is_outdated {
            steps.push(Step::Replace);
        }
        if declared.has_ovs() && (!made.has_ovs() || observed.has(&Fault::Ovs)) {
            steps.push(Step::Ovs);
        }
        let bridges = || declared.paths.iter().enumerate().filter(|(_, path)| path.bridge.is_some());
        let new_bridges = bridges().filter(|(_, path)| self.has_new_bridge(path));
        steps.extend(new_bridges.map(|(path, _)| Step::Bridge { path }));
        for (number, path) in bridges().filter(|(_, path)| !self.has_new_bridge(path)) {
            let old = made.paths.iter().find(|old| old.name == path.name);
            let differs = old.is_none_or(|old| old.mtu != path.mtu || old.gateway != path.gateway);
            if differs || observed.has(&Fault::Gateway(path.name.clone())) {
                steps.push(Step::Gateway { path: number });
            }
            if path.is_guarded() && (observed.is_outdated || observed.has(&Fault::Guard(path.name.clone()))) {
                steps.push(Step::Guard { path: number });
            }
        }
        steps
    }

    /// What programs know, and where they stand.
    fn maps_and_attachments(&self, ports: &[Change<'_>]) -> Vec<Step> {
        let Self { declared, made, observed, .. } = self;
        let mut steps = Vec::new();
        let is_counted = |change: &Change<'_>| change.path().is_counted();
        let is_registered = |change: &&Change<'_>| {
            is_counted(change)
                && !change.port.host_link.is_empty()
                && (change.is_new()
                    || change.is_registered_otherwise(made, declared)
                    || self.has_new_peer(change)
                    || change.has(observed, Fault::Maps))
        };
        steps.extend(each(ports, is_registered, |pod, port| Step::Register { pod, port }));
        let is_attached = |change: &&Change<'_>| {
            is_counted(change)
                && (change.is_new() || observed.is_outdated || change.has(observed, Fault::Program))
        };
        steps.extend(each(ports, is_attached, |pod, port| Step::Attach { pod, port }));
        steps.extend(ports.iter().filter(|change| !change.is_new()).filter_map(|change| {
            let mode = observed.redirect(&change.pod.name, &change.port.name)?;
            Some(Step::Redirect { pod: change.at.0, port: change.at.1, mode })
        }));
        steps
    }

    /// What lets frames flow.
    fn connections(&self, ports: &[Change<'_>]) -> Vec<Step> {
        let Self { declared, made, observed, .. } = self;
        let mut steps = Vec::new();
        let is_connected = |change: &&Change<'_>| {
            !change.port.host_link.is_empty()
                && (change.is_new()
                    || self.has_new_bridge(change.path())
                    || change.is_routed_otherwise()
                    || change.has(observed, Fault::Connection))
        };
        steps.extend(each(ports, is_connected, |pod, port| Step::Connect { pod, port }));
        let cables = declared.cables.iter().enumerate();
        let new_cables = cables.filter(|(_, cable)| !self.cables.contains(cable.name.as_str()));
        steps.extend(new_cables.map(|(cable, _)| Step::Cable { cable }));
        if self.has_moved_addresses() {
            let stays = |(_, pod): &(usize, &Pod)| self.pods.contains(pod.name.as_str());
            let pods = declared.pods.iter().enumerate().filter(stays);
            steps.extend(pods.map(|(pod, _)| Step::Forget { pod }));
        }
        let is_firewalled_otherwise = declared.forward_paths() != made.forward_paths()
            || declared.needs_forwarding() != made.needs_forwarding();
        if declared.is_routed() && (is_firewalled_otherwise || observed.has(&Fault::Firewall)) {
            steps.push(Step::Firewall);
        }
        steps
    }

    /// Whether a path has a bridge that is to be made.
    fn has_new_bridge(&self, path: &Path) -> bool {
        path.bridge.is_some() && !self.bridges.contains(path.name.as_str())
    }

    /// Whether somebody has an address now that somebody else had before.
    fn has_moved_addresses(&self) -> bool {
        let before = self.made.owners();
        self.declared.owners().iter().any(|(address, mac)| before.get(address).is_some_and(|old| old != mac))
    }

    /// Every declared port, with what was there instead if it stays.
    fn ports(&self) -> impl Iterator<Item = Change<'a>> {
        let Self { declared, made, .. } = *self;
        let old: HashMap<(&str, &str), &'a Port> =
            made.all_ports().map(|(pod, port)| ((pod.name.as_str(), port.name.as_str()), port)).collect();
        let pods = declared.pods.iter().enumerate();
        let ports = pods.flat_map(|(at, pod)| {
            pod.ports.iter().enumerate().map(move |(number, port)| ((at, number), pod, port))
        });
        ports.map(move |(at, pod, port)| {
            let name = (pod.name.as_str(), port.name.as_str());
            let old = old.get(&name).filter(|_| self.ports.contains(&name)).copied();
            let old = old.map(|old| (old, made.path(old)));
            Change { at, pod, port, new_path: declared.path(port), old }
        })
    }

    /// Whether the other end of a wire is made anew.
    fn has_new_peer(&self, change: &Change<'_>) -> bool {
        change.path().kind == Kind::Wire
            && self.declared.ports_of(change.port.path).any(|(pod, port)| !self.has_port(pod, port))
    }
}

/// A step for each port of some kind.
fn each<'a>(
    ports: &'a [Change<'a>],
    is_wanted: impl Fn(&&Change<'a>) -> bool + 'a,
    step: fn(usize, usize) -> Step,
) -> impl Iterator<Item = Step> + 'a {
    ports.iter().filter(move |change| is_wanted(change)).map(move |change| step(change.at.0, change.at.1))
}

/// A declared port, and the one that was there.
struct Change<'a> {
    at: (usize, usize),
    pod: &'a Pod,
    port: &'a Port,
    new_path: &'a Path,
    old: Option<(&'a Port, &'a Path)>,
}

impl Change<'_> {
    const fn path(&self) -> &Path {
        self.new_path
    }

    const fn is_new(&self) -> bool {
        self.old.is_none()
    }

    fn has(&self, observed: &Observed, fault: fn(String, String) -> Fault) -> bool {
        observed.has(&fault(self.pod.name.clone(), self.port.name.clone()))
    }

    /// A direct pair is made with its first end.
    fn makes_pair(&self, declared: &Topology) -> bool {
        self.new_path.kind != Kind::Direct
            || declared.ports_of(self.port.path).next().is_some_and(|(_, first)| first.slot == self.port.slot)
    }

    fn is_resized(&self) -> bool {
        self.old.is_some_and(|(_, path)| path.mtu != self.new_path.mtu)
    }

    fn is_prepared_otherwise(&self, made: &Topology, declared: &Topology, hook: Hook) -> bool {
        self.old.is_some_and(|(old, path)| {
            path.tune != self.new_path.tune
                || made.preparation(old.path, hook) != declared.preparation(self.port.path, hook)
        })
    }

    fn is_reconfigured(&self, made: &Topology, declared: &Topology) -> bool {
        self.old.is_some_and(|(old, _)| {
            old.addresses != self.port.addresses
                || made.neighbours_of(old).ne(declared.neighbours_of(self.port))
        })
    }

    fn is_registered_otherwise(&self, made: &Topology, declared: &Topology) -> bool {
        let peer =
            |topology: &Topology, port: &Port| topology.wire_peer(port).map(|peer| (peer.slot, peer.mac));
        self.old.is_some_and(|(old, path)| {
            path.mtu != self.new_path.mtu
                || path.spoof_check != self.new_path.spoof_check
                || path.spoof_check && old.addresses != self.port.addresses
                || old.slot != self.port.slot
                || path.kind == Kind::Wire && peer(made, old) != peer(declared, self.port)
        })
    }

    /// Only what is routed to a pod hangs on its addresses.
    fn is_routed_otherwise(&self) -> bool {
        self.new_path.kind == Kind::Route
            && self.old.is_some_and(|(old, path)| {
                old.addresses != self.port.addresses || path.gateway != self.new_path.gateway
            })
    }
}

/// What a pod needs beside its ports.
fn settlement(topology: &Topology, pod: &Pod) -> Vec<String> {
    let routes = topology.routes_of(pod).into_iter().map(|route| format!("{route:?}"));
    let sysctls = topology.sysctls_of(pod).into_iter().map(|(key, value)| format!("{key}={value}"));
    routes.chain(sysctls).collect()
}

/// A pod stays if nothing about it changed that cannot be changed back: what a kernel parameter was before is not
/// known.
fn is_same_pod(old: &Pod, new: &Pod) -> bool {
    old.name == new.name
        && old.namespace == new.namespace
        && old.sysctls.keys().all(|key| new.sysctls.contains_key(key))
}

fn is_same_bridge((made, old): (&Topology, &Path), (declared, new): (&Topology, &Path)) -> bool {
    let link = |path: &Path| {
        path.bridge.as_ref().map(|Bridge { domain, link, mac, slot }| (*domain, link.clone(), *mac, *slot))
    };
    old.name == new.name
        && old.kind == new.kind
        && link(old) == link(new)
        && old.is_routed() == new.is_routed()
        && made.path_group(old) == declared.path_group(new)
}

/// A port stays if all is the same that only a new one could have.
fn is_same_port((made, old): (&Topology, &Port), (declared, new): (&Topology, &Port)) -> bool {
    let (before, after) = (made.path(old), declared.path(new));
    let domain = |path: &Path| path.bridge.as_ref().map(|bridge| bridge.domain);
    let peer = |topology: &Topology, port: &Port| {
        (topology.path(port).kind == Kind::Direct).then(|| {
            let ends = topology.ports_of(port.path);
            ends.map(|(pod, port)| (pod.name.clone(), port.name.clone())).collect::<Vec<_>>()
        })
    };
    old.name == new.name
        && old.host_link == new.host_link
        && old.mac == new.mac
        && old.host_mac == new.host_mac
        && before.name == after.name
        && before.kind == after.kind
        && before.queues == after.queues
        && before.is_counted() == after.is_counted()
        && domain(before) == domain(after)
        && made.port_group(old) == declared.port_group(new)
        && peer(made, old) == peer(declared, new)
}

fn is_same_cable((made, old): (&Topology, &Cable), (declared, new): (&Topology, &Cable)) -> bool {
    let shape = |topology: &Topology, cable: &Cable| {
        let end = |end: &super::model::CableEnd| {
            let path = end.path.map(|path| topology.paths[path].name.clone());
            (path, end.link.clone(), end.mac, end.addresses.clone())
        };
        (cable.name.clone(), cable.mtu, cable.ends.each_ref().map(end))
    };
    shape(made, old) == shape(declared, new)
}

impl Step {
    /// The step in words, for progress and errors.
    #[must_use]
    pub const fn describe<'a>(&'a self, topology: &'a Topology, hook: Hook) -> impl fmt::Display + use<'a> {
        Description { step: self, topology, hook }
    }

    /// What kind of change it is.
    #[must_use]
    pub const fn sign(&self) -> Sign {
        match self {
            Self::RemoveCable(_)
            | Self::RemovePort(_)
            | Self::RemovePod(_)
            | Self::RemoveBridge(_)
            | Self::RemoveOvs
            | Self::RemoveFirewall => Sign::Remove,
            Self::Namespace { .. }
            | Self::Pair { .. }
            | Self::Load
            | Self::Migrate
            | Self::Ovs
            | Self::Bridge { .. }
            | Self::Attach { .. }
            | Self::Guard { .. }
            | Self::Cable { .. } => Sign::Add,
            Self::Resize { .. }
            | Self::Prepare { .. }
            | Self::Configure { .. }
            | Self::Settle { .. }
            | Self::Mark
            | Self::Forget { .. }
            | Self::Gateway { .. }
            | Self::Register { .. }
            | Self::Redirect { .. }
            | Self::Connect { .. }
            | Self::Replace
            | Self::Carry
            | Self::Firewall
            | Self::Ready => Sign::Change,
        }
    }
}

impl Sign {
    /// As in a diff.
    #[must_use]
    pub const fn symbol(self) -> char {
        match self {
            Self::Add => '+',
            Self::Remove => '-',
            Self::Change => '~',
        }
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
        let name = |pod: &Pod, port: &Port| {
            if port.host_link.is_empty() {
                format!("{}/{}", pod.name, port.name)
            } else {
                port.host_link.clone()
            }
        };
        let link = |pod: usize, port: usize| {
            let pod = &topology.pods[pod];
            name(pod, &pod.ports[port])
        };
        let path = |path: usize| {
            let path = &topology.paths[path];
            format!("the {} {}", path.kind.name(), path.name)
        };
        match step {
            Step::RemoveCable(cable) => write!(f, "remove link {}", cable.name),
            Step::RemovePort(gone) => write!(f, "remove veth pair {}", name(&gone.pod, &gone.port)),
            Step::RemovePod(pod) => write!(f, "remove namespace {}", pod.namespace),
            Step::RemoveBridge(path) => write!(f, "remove the {} {}", path.kind.name(), path.name),
            Step::RemoveOvs => write!(f, "stop the Open vSwitch"),
            Step::RemoveFirewall => write!(f, "remove the firewall's table"),
            Step::Namespace { pod } => write!(f, "make namespace {}", topology.pods[*pod].namespace),
            Step::Pair { pod, port } => write!(f, "make veth pair {}", link(*pod, *port)),
            Step::Resize { pod, port } => write!(f, "change the MTU of {}", link(*pod, *port)),
            Step::Prepare { pod, port } => {
                let why = topology.preparation(topology.pods[*pod].ports[*port].path, *hook);
                write!(f, "prepare {} for {}", link(*pod, *port), why.unwrap_or("the kernel's usual ways"))
            }
            Step::Configure { pod, port } => write!(f, "configure the pod's end of {}", link(*pod, *port)),
            Step::Settle { pod } => {
                write!(f, "set routes and parameters in {}", topology.pods[*pod].namespace)
            }
            Step::Mark => write!(f, "mark the links"),
            Step::Load => write!(f, "load the eBPF programs"),
            Step::Replace => write!(f, "replace the eBPF programs"),
            Step::Migrate => write!(f, "load the eBPF programs with maps of layout {}", object::layout()),
            Step::Carry => write!(f, "carry the counters over, and remove the maps of another layout"),
            Step::Ovs => write!(f, "start an Open vSwitch"),
            Step::Bridge { path: number } => write!(f, "make {}", path(*number)),
            Step::Gateway { path: number } => write!(f, "set MTU and gateway of {}", path(*number)),
            Step::Guard { path: number } => write!(f, "keep pods of {} from the host", path(*number)),
            Step::Register { pod, port } => write!(f, "register {}", link(*pod, *port)),
            Step::Redirect { pod, port, mode: RedirectMode::Peer } => {
                write!(f, "reach {} by peer redirect", link(*pod, *port))
            }
            Step::Redirect { pod, port, mode: RedirectMode::Host } => {
                write!(f, "reach {} through its host end", link(*pod, *port))
            }
            Step::Attach { pod, port } => {
                let path = topology.path(&topology.pods[*pod].ports[*port]);
                if path.kind.is_accelerated() {
                    write!(f, "attach {hook} to {}", link(*pod, *port))
                } else {
                    write!(f, "attach a counter to {}", link(*pod, *port))
                }
            }
            Step::Connect { pod, port } => write!(f, "connect {}", link(*pod, *port)),
            Step::Cable { cable } => write!(f, "make link {}", topology.cables[*cable].name),
            Step::Forget { pod } => {
                write!(f, "make {} forget who had addresses before", topology.pods[*pod].namespace)
            }
            Step::Firewall => write!(f, "let the host forward between its paths and the outside"),
            Step::Ready => write!(f, "wait until every link carries frames"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::topology::observe::Drift;

    fn faults(faults: &[Fault]) -> Observed {
        let drift = |fault: &Fault| Drift { what: String::new(), fault: fault.clone() };
        Observed::new(&faults.iter().map(drift).collect::<Vec<_>>(), Vec::new())
    }

    fn words(steps: &[Step], topology: &Topology) -> Vec<String> {
        steps.iter().map(|step| step.describe(topology, Hook::Tcx).to_string()).collect()
    }

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
        assert_eq!(steps.len(), 15);
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
        let words = words(&build(&topology, Hook::Tcx), &topology);
        assert_eq!(words[0], "make namespace ns1");
        assert!(words.contains(&"attach tcx to wire-ns2".to_owned()));
    }

    #[test]
    fn a_pod_that_is_added_touches_no_other() {
        let made = Topology::switch("s", 3, 1_500).unwrap();
        let mut declared = Topology::switch("s", 4, 1_500).unwrap();
        declared.number_slots(Some(&made));
        let steps = diff(&declared, &made, &Observed::default(), Hook::Tcx);
        assert_eq!(
            words(&steps, &declared),
            [
                "make namespace s-pod4",
                "make veth pair s-pod4",
                "configure the pod's end of s-pod4",
                "mark the links",
                "register s-pod4",
                "attach tcx to s-pod4",
                "connect s-pod4",
                "wait until every link carries frames",
            ]
        );
        let back = diff(&made, &declared, &Observed::default(), Hook::Tcx);
        assert_eq!(
            words(&back, &made),
            ["remove veth pair s-pod4", "remove namespace s-pod4", "wait until every link carries frames"]
        );
    }

    #[test]
    fn what_was_removed_by_hand_is_all_that_is_made_again() {
        let topology = Topology::switch("s", 3, 1_500).unwrap();
        let port = Fault::Pair("pod2".to_owned(), "eth0".to_owned());
        let steps = words(&diff(&topology, &topology, &faults(&[port]), Hook::Tcx), &topology);
        assert!(
            steps
                .iter()
                .all(|step| step.contains("pod2") || step.contains("the links") || step.starts_with("wait"))
        );
        assert!(steps.contains(&"make veth pair s-pod2".to_owned()), "{steps:?}");
        let bridge = Fault::Bridge("switch".to_owned());
        let steps = words(&diff(&topology, &topology, &faults(&[bridge]), Hook::Tcx), &topology);
        assert!(steps.contains(&"make the switch switch".to_owned()), "{steps:?}");
        assert_eq!(steps.iter().filter(|step| step.starts_with("connect")).count(), 3);
        assert!(!steps.iter().any(|step| step.contains("namespace") || step.contains("attach")), "{steps:?}");
    }

    #[test]
    fn the_other_end_of_a_wire_is_told_of_a_new_one() {
        let topology = Topology::wire("w", 1_500).unwrap();
        let gone = Fault::Pair("ns1".to_owned(), "eth0".to_owned());
        let steps = words(&diff(&topology, &topology, &faults(&[gone]), Hook::Tcx), &topology);
        assert!(steps.contains(&"register w-ns2".to_owned()), "{steps:?}");
        assert!(!steps.contains(&"make veth pair w-ns2".to_owned()), "{steps:?}");
    }

    #[test]
    fn an_mtu_is_changed_in_place() {
        let made = Topology::switch("s", 2, 1_500).unwrap();
        let declared = Topology::switch("s", 2, 9_000).unwrap();
        let steps = diff(&declared, &made, &Observed::default(), Hook::Tcx);
        assert!(steps.iter().all(|step| step.sign() == Sign::Change), "{steps:?}");
        assert_eq!(steps.iter().filter(|step| matches!(step, Step::Resize { .. })).count(), 2);
        assert_eq!(steps.iter().filter(|step| matches!(step, Step::Register { .. })).count(), 2);
    }

    #[test]
    fn both_ends_of_a_direct_pair_go_together() {
        let mut topology = Topology::empty("d");
        let path = topology.add_path("cable", Kind::Direct, 1_500);
        for name in ["a", "b"] {
            let pod = topology.add_pod(name);
            topology.add_port(pod, path, Vec::new());
        }
        let steps = build(&topology, Hook::Tcx);
        assert_eq!(steps.iter().filter(|step| matches!(step, Step::Pair { .. })).count(), 1);
        assert!(!steps.contains(&Step::Load), "nothing of ours is in it");
        let gone = Fault::Pair("b".to_owned(), "eth0".to_owned());
        let steps = diff(&topology, &topology, &faults(&[gone]), Hook::Tcx);
        assert_eq!(steps.iter().filter(|step| matches!(step, Step::RemovePort(_))).count(), 2);
        assert_eq!(steps.iter().filter(|step| matches!(step, Step::Pair { .. })).count(), 1);
        assert_eq!(steps.iter().filter(|step| matches!(step, Step::Configure { .. })).count(), 2);
    }

    /// What a random topology is made from: paths with a kind, and pods with the paths they are on.
    type Seeds = (Vec<(Kind, u32, bool)>, Vec<Vec<usize>>, bool);

    fn seeds() -> impl Strategy<Value = Seeds> {
        let kind = prop_oneof![Just(Kind::Switch), Just(Kind::Bridge), Just(Kind::Route), Just(Kind::Ovs)];
        let path = (kind, prop_oneof![Just(1_500_u32), Just(9_000)], any::<bool>());
        let pods = prop::collection::vec(prop::collection::vec(0..4_usize, 0..3), 1..6);
        (prop::collection::vec(path, 1..4), pods, any::<bool>())
    }

    fn topology((paths, pods, has_cable): &Seeds) -> Topology {
        let mut topology = Topology::empty("random");
        for (number, (kind, mtu, has_gateway)) in paths.iter().enumerate() {
            let path = topology.add_path(&format!("path{number}"), *kind, *mtu);
            if *has_gateway || *kind == Kind::Route {
                topology.paths[path].gateway.push(format!("10.{number}.0.254/24").parse().unwrap());
            }
        }
        for (number, on) in pods.iter().enumerate() {
            let pod = topology.add_pod(&format!("pod{number}"));
            for (at, path) in on.iter().enumerate() {
                let path = path % paths.len();
                let address = format!("10.{path}.{at}.{}/24", number + 1).parse().unwrap();
                topology.add_port(pod, path, vec![address]);
            }
        }
        if *has_cable && topology.bridges().count() >= 2 {
            let ends: Vec<usize> =
                (0..paths.len()).filter(|path| topology.paths[*path].bridge.is_some()).collect();
            topology.add_cable("cable", 1_500, [Some(ends[0]), Some(ends[1])]);
        }
        topology.number_slots(None);
        topology.validate().unwrap();
        topology
    }

    /// All that steps make and remove, by name.
    fn parts(topology: &Topology) -> BTreeSet<String> {
        let pods = topology.pods.iter().map(|pod| format!("pod {}", pod.namespace));
        let ports = topology.all_ports().map(|(pod, port)| format!("port {}/{}", pod.name, port.name));
        let bridges =
            topology.bridges().map(|(path, _)| format!("bridge {} {}", path.kind.name(), path.name));
        let cables = topology.cables.iter().map(|cable| format!("cable {}", cable.name));
        pods.chain(ports).chain(bridges).chain(cables).collect()
    }

    /// What a step makes (true) or removes.
    fn part(step: &Step, topology: &Topology) -> Option<(bool, String)> {
        let port = |pod: &Pod, port: &Port| format!("port {}/{}", pod.name, port.name);
        let bridge = |path: &Path| format!("bridge {} {}", path.kind.name(), path.name);
        Some(match step {
            Step::RemoveCable(cable) => (false, format!("cable {}", cable.name)),
            Step::RemovePort(gone) => (false, port(&gone.pod, &gone.port)),
            Step::RemovePod(pod) => (false, format!("pod {}", pod.namespace)),
            Step::RemoveBridge(path) => (false, bridge(path)),
            Step::Namespace { pod } => (true, format!("pod {}", topology.pods[*pod].namespace)),
            Step::Pair { pod, port: number } => {
                let pod = &topology.pods[*pod];
                (true, port(pod, &pod.ports[*number]))
            }
            Step::Bridge { path } => (true, bridge(&topology.paths[*path])),
            Step::Cable { cable } => (true, format!("cable {}", topology.cables[*cable].name)),
            _ => return None,
        })
    }

    /// Does the steps to names only. Making what is there, or removing what is not, is a mistake of the plan.
    fn run(steps: &[Step], topology: &Topology, there: &mut BTreeSet<String>) {
        for step in steps {
            match part(step, topology) {
                Some((true, part)) => assert!(there.insert(part.clone()), "{part} is made twice"),
                Some((false, part)) => assert!(there.remove(&part), "{part} is not there to be removed"),
                None => {}
            }
        }
    }

    proptest! {
        #[test]
        fn a_plan_leads_from_any_topology_to_any_other(from in seeds(), to in seeds()) {
            let (made, mut declared) = (topology(&from), topology(&to));
            declared.number_slots(Some(&made));
            let steps = diff(&declared, &made, &Observed::default(), Hook::Tcx);
            let mut there = parts(&made);
            run(&steps, &declared, &mut there);
            prop_assert_eq!(there, parts(&declared));
        }

        #[test]
        fn what_is_as_declared_needs_nothing(seeds in seeds()) {
            let topology = topology(&seeds);
            let steps = diff(&topology, &topology, &Observed::default(), Hook::Tcx);
            prop_assert!(steps.is_empty(), "{:?}", steps);
        }

        #[test]
        fn an_interrupted_change_is_finished_or_undone(from in seeds(), to in seeds()) {
            let (before, mut declared) = (topology(&from), topology(&to));
            declared.number_slots(Some(&before));
            for wanted in [&before, &declared] {
                let observed = Observed::new(&[], vec![before.clone()]);
                let steps = diff(wanted, &declared, &observed, Hook::Tcx);
                // Anything of both may be there.
                let mut there: BTreeSet<String> = parts(&before).union(&parts(&declared)).cloned().collect();
                let removed: Vec<Step> = steps.iter().filter(|step| step.sign() == Sign::Remove).cloned().collect();
                // What both have may be named for either, and goes once.
                for step in &removed {
                    if let Some((false, part)) = part(step, wanted) {
                        there.remove(&part);
                    }
                }
                let added: Vec<Step> = steps.into_iter().filter(|step| step.sign() != Sign::Remove).collect();
                run(&added, wanted, &mut there);
                prop_assert_eq!(&there, &parts(wanted));
            }
        }
    }
}
