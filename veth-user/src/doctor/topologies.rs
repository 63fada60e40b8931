//! What is up: how each topology is, and the neighbour table that all pods of the machine share.

use clap::ValueEnum;

use super::{Finding, Fix, Look, Place, Unseen, look, port};
use crate::{
    datapath::{Place as Order, pins::Pins},
    net::{Netlink, Netns, capability::Capabilities, link::Link, sysctl},
    state::{Record, Roots},
    topology::{
        self, Kind, Status, Topology,
        model::{DEFAULT_MTU, HookWish, LogLevel, RedirectWish, SWITCH, TUTORIAL},
        observe::Fault,
    },
};

/// The limits of the neighbour tables, which all namespaces share.
const LIMITS: [(&str, &str); 2] =
    [("ipv4", "net/ipv4/neigh/default/gc_thresh3"), ("ipv6", "net/ipv6/neigh/default/gc_thresh3")];

/// The kernel's own limit.
const USUAL_LIMIT: u32 = 1_024;

/// What is known.
pub(super) struct Facts {
    pub(super) topologies: Vec<One>,
    pub(super) limits: Vec<Limit>,
}

/// What is known of a topology.
pub(super) struct One {
    pub(super) record: Record,
    pub(super) status: Look<Status>,
    /// Pins may not be looked at, so that the status says nothing of programs.
    pub(super) hidden: bool,
    pub(super) ports: Vec<port::Facts>,
    /// Bridges that are there, with their MTU and what it should be.
    pub(super) bridges: Vec<(String, u32, u32)>,
}

/// How many neighbours a table takes.
pub(super) struct Limit {
    pub(super) family: &'static str,
    pub(super) key: &'static str,
    pub(super) value: Look<Option<u32>>,
    /// Whether this namespace has the value; otherwise only the machine's first has.
    pub(super) here: bool,
}

pub(super) async fn gather(
    roots: &Roots,
    capabilities: Capabilities,
    host_netns: u64,
    netlink: &Netlink,
    links: &[Link],
) -> Facts {
    let mut topologies = Vec::new();
    // Those that cannot be read are told among the leftovers.
    let records =
        roots.names().unwrap_or_default().into_iter().filter_map(|name| roots.load(&name).ok().flatten());
    for record in records {
        let status = look(topology::observe(roots, &record, netlink, links).await);
        let is_here = record.host_netns == host_netns && !matches!(record.is_from_another_boot(), Ok(true));
        let (mut ports, mut bridges) = (Vec::new(), Vec::new());
        if is_here {
            ports = port::gather(roots, capabilities, &record, netlink, links).await;
            bridges.extend(record.topology.bridges().filter_map(|(path, bridge)| {
                let link = links.iter().find(|link| link.name == bridge.link)?;
                Some((bridge.link.clone(), link.mtu, path.mtu))
            }));
        }
        let hidden = Pins::new(roots, record.layout_version, &record.topology.name).are_hidden();
        topologies.push(One { record, status, hidden, ports, bridges });
    }
    Facts { topologies, limits: LIMITS.into_iter().map(|(family, key)| limit(family, key)).collect() }
}

fn limit(family: &'static str, key: &'static str) -> Limit {
    let here = look(sysctl::read(key));
    let (value, here) = match here {
        Ok(None) => {
            let first = || Netns::first()?.run(|| sysctl::read(key))?;
            (look(first()), false)
        }
        value => (value, true),
    };
    Limit { family, key, value: value.map(|value| value.and_then(|value| value.parse().ok())), here }
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for One { record, status, hidden, ports, bridges } in &facts.topologies {
        findings.extend(self::status(record, status, *hidden));
        for (bridge, mtu, declared) in bridges.iter().filter(|(_, mtu, declared)| mtu != declared) {
            findings.push(
                port::wrong_mtu(&Place::Host, bridge, *mtu, *declared)
                    .about(format!("{}/{bridge}", record.topology.name)),
            );
        }
        let whole = status == &Ok(Status::Up);
        findings.extend(port::judge(&record.topology, &record.selection, whole, ports));
    }
    findings.extend(neighbours(facts));
    findings
}

fn status(record: &Record, status: &Look<Status>, hidden: bool) -> Vec<Finding> {
    let id = "topology";
    let topology = &record.topology;
    let name = &topology.name;
    let findings = match status {
        Err(unseen @ Unseen::NotAllowed(_)) => {
            vec![Finding::unseen(id, unseen, "it may have changed since it was made")]
        }
        Err(Unseen::Failed(error)) => {
            vec![Finding::fail(id, error, "it cannot be told how it is", format!("veth down {name}"))]
        }
        Ok(Status::Up) if hidden => {
            let unseen = Unseen::NotAllowed("its pins are hidden".to_owned());
            vec![Finding::unseen(id, &unseen, "its links are there; whether its programs are cannot be told")]
        }
        Ok(Status::Up) => vec![Finding::ok(id, format!("up; {}", record.selection.why))],
        Ok(Status::Drifted(drift)) => {
            let all = drift.iter().all(|drift| drift.fault != Fault::Programs);
            let why = if all {
                "it is not as it was declared; it can be put right in place"
            } else {
                "it is not as it was declared, and has to be made again"
            };
            let finding = |what: &String| Finding::fail(id, format!("drifted: {what}"), why, up(topology));
            let fixable = |finding: Finding| {
                if all { finding.fixable(Fix::Repair { topology: name.clone() }) } else { finding }
            };
            drift.iter().map(|drift| fixable(finding(&drift.what))).collect()
        }
        Ok(Status::Incomplete) => vec![Finding::fail(
            id,
            "incomplete",
            "a veth command that changed it was killed, or is at work this moment",
            format!("veth down {name}"),
        )],
        Ok(Status::Gone) => vec![Finding::warn(
            id,
            "from before the machine was started last",
            "nothing of it is there but its record",
            format!("veth down {name}"),
        )],
        Ok(Status::Elsewhere) => vec![Finding::warn(
            id,
            format!("made in another network namespace, net:[{}]", record.host_netns),
            "it cannot be seen from here",
            "nsenter --net=FILE veth doctor",
        )],
    };
    findings.into_iter().map(|finding| finding.about(name)).collect()
}

/// Neighbours that pods of a path have when each talks to each.
fn pairs(topology: &Topology) -> u32 {
    let ports = |path| topology.ports().filter(|(_, port)| port.path == path).count();
    let pairs =
        (0..topology.paths.len()).map(ports).map(|ports| ports * ports.saturating_sub(1)).sum::<usize>();
    u32::try_from(pairs).unwrap_or(u32::MAX)
}

fn neighbours(facts: &Facts) -> Vec<Finding> {
    let wanted: u32 =
        facts.topologies.iter().map(|one| pairs(&one.record.topology)).fold(0, u32::saturating_add);
    facts.limits.iter().map(|limit| neighbour_table(limit, wanted)).collect()
}

fn neighbour_table(limit: &Limit, wanted: u32) -> Finding {
    let id = "neighbour-table";
    let Limit { family, key, value, here } = limit;
    let (limit, seen) = match value {
        Ok(Some(limit)) => (*limit, format!("{limit} entries")),
        Ok(None) | Err(_) => (
            USUAL_LIMIT,
            format!("not to be seen from this network namespace; usually {USUAL_LIMIT} entries"),
        ),
    };
    let seen = format!("{seen}; pods that all talk to each other need {wanted}");
    if wanted <= limit {
        return Finding::ok(id, seen).about(*family);
    }
    let new = wanted.checked_next_power_of_two().unwrap_or(u32::MAX);
    let command = format!("sysctl -w {}={new}", sysctl::name(key));
    let finding = Finding::warn(
        id,
        seen,
        "all pods of the machine share one table. Above about 32 that all talk to each other it overflows: \
         connections fail with \"No buffer space available\", and the log says \"neighbour table overflow\"",
        if *here { command } else { format!("in the machine's first network namespace: {command}") },
    );
    let finding = if *here {
        finding.fixable(Fix::Sysctl {
            place: Place::Host,
            key: (*key).to_owned(),
            old: limit.to_string(),
            new: new.to_string(),
        })
    } else {
        finding
    };
    finding.about(*family)
}

/// The command that declares a topology.
pub(super) fn up(topology: &Topology) -> String {
    let Topology { name, pods, paths, hook, redirect, place, ebpf_log, file, cables: _, mark: _ } = topology;
    let mut words = vec!["veth up".to_owned()];
    if let Some(file) = file {
        words.push(format!("-f {}", file.display()));
    } else {
        let usual = if paths.first().is_some_and(|path| path.kind == Kind::Switch) {
            words.push(format!("--pods {}", pods.len()));
            SWITCH
        } else {
            TUTORIAL
        };
        if name != usual {
            words.push(format!("--name {name}"));
        }
        let mtu = paths.first().map_or(DEFAULT_MTU, |path| path.mtu);
        if mtu != DEFAULT_MTU {
            words.push(format!("--mtu {mtu}"));
        }
    }
    words.extend(option("hook", hook, &HookWish::default()));
    words.extend(option("redirect", redirect, &RedirectWish::default()));
    words.extend(option("place", place, &Order::default()));
    words.extend(option("ebpf-log", ebpf_log, &LogLevel::default()));
    words.join(" ")
}

/// An option with its value, unless that is the usual one.
fn option<T: ValueEnum + PartialEq>(name: &str, value: &T, usual: &T) -> Option<String> {
    let word = value.to_possible_value().filter(|_| value != usual)?;
    Some(format!("--{name} {}", word.get_name()))
}

/// The commands that make a topology again by another hook or redirect.
pub(super) fn again(topology: &Topology, hook: Option<HookWish>, redirect: Option<RedirectWish>) -> String {
    let (hook, redirect) = (hook.unwrap_or(topology.hook), redirect.unwrap_or(topology.redirect));
    let changed = Topology { hook, redirect, ..topology.clone() };
    format!("veth down {} && {}", topology.name, up(&changed))
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};
    use crate::{
        datapath::{Hook, Redirect},
        probe::Selection,
        topology::Drift,
    };

    fn record(topology: Topology) -> Record {
        let (hook, redirect) = (Hook::Tcx, Redirect::Peer);
        let selection = Selection { hook, bridge_hook: hook, redirect, why: "because".into() };
        Record::new(topology, 7, selection).unwrap()
    }

    fn facts(topology: Topology, status: Status, limit: u32, here: bool) -> Facts {
        let one = One {
            record: record(topology),
            status: Ok(status),
            hidden: false,
            ports: Vec::new(),
            bridges: Vec::new(),
        };
        let [(family, key), _] = LIMITS;
        Facts { topologies: vec![one], limits: vec![Limit { family, key, value: Ok(Some(limit)), here }] }
    }

    #[test]
    fn commands_declare_the_same_again() {
        let wire = Topology::wire("wire", 1_500).unwrap();
        assert_eq!(up(&wire), "veth up");
        assert_eq!(again(&wire, Some(HookWish::Clsact), None), "veth down wire && veth up --hook clsact");
        let mut switch = Topology::switch("jumbo", 16, 9_000).unwrap();
        switch.redirect = RedirectWish::Host;
        switch.place = Order::First;
        switch.ebpf_log = LogLevel::Warn;
        let expected =
            "veth up --pods 16 --name jumbo --mtu 9000 --redirect host --place first --ebpf-log warn";
        assert_eq!(up(&switch), expected);
    }

    #[test]
    fn each_drift_is_told_and_repaired_if_all_can_be() {
        let wire = || Topology::wire("wire", 1_500).unwrap();
        let drift = |what: &str, fault| Drift { what: what.to_owned(), fault };
        let repair = Fault::Mtu("ns1".to_owned(), "eth0".to_owned());
        let status = Status::Drifted(vec![drift("a", repair.clone()), drift("b", repair.clone())]);
        let findings = judge(&facts(wire(), status, 1_024, true));
        assert_eq!(findings.iter().filter(|finding| finding.repair.is_some()).count(), 2, "{findings:?}");
        assert_eq!(findings[1].seen, "drifted: b");
        let status = Status::Drifted(vec![drift("a", repair), drift("b", Fault::Programs)]);
        let findings = judge(&facts(wire(), status, 1_024, true));
        assert!(findings.iter().all(|finding| finding.repair.is_none()), "{findings:?}");
    }

    #[test]
    fn every_status_is_judged() {
        for (status, level) in [
            (Status::Up, Level::Ok),
            (Status::Incomplete, Level::Fail),
            (Status::Gone, Level::Warn),
            (Status::Elsewhere, Level::Warn),
        ] {
            let findings = judge(&facts(Topology::wire("wire", 1_500).unwrap(), status, 1_024, true));
            assert_eq!((findings[0].id, findings[0].level), ("topology", level));
            assert_eq!(findings[0].subject.as_deref(), Some("wire"));
        }
    }

    #[test]
    fn many_pods_need_a_larger_table() {
        for (pods, level) in [(32, Level::Ok), (33, Level::Warn)] {
            let switch = Topology::switch("switch", pods, 1_500).unwrap();
            let findings = judge(&facts(switch, Status::Up, 1_024, true));
            let finding = findings.iter().find(|finding| finding.id == "neighbour-table").unwrap();
            assert_eq!(finding.level, level, "{finding:?}");
        }
        let switch = Topology::switch("switch", 40, 1_500).unwrap();
        let findings = judge(&facts(switch.clone(), Status::Up, 1_024, true));
        let finding = findings.last().unwrap();
        assert_eq!(finding.fix.as_deref(), Some("sysctl -w net.ipv4.neigh.default.gc_thresh3=2048"));
        assert_eq!(finding.undo.as_deref(), Some("sysctl -w net.ipv4.neigh.default.gc_thresh3=\"1024\""));
        // What is not in this namespace is not ours to change unasked.
        let findings = judge(&facts(switch, Status::Up, 1_024, false));
        let finding = findings.last().unwrap();
        assert!(
            finding.repair.is_none() && finding.fix.as_deref().unwrap().contains("first network namespace")
        );
        // Nor must it be seen to be too small.
        for (pods, level) in [(32, Level::Ok), (33, Level::Warn)] {
            let mut facts = facts(Topology::switch("switch", pods, 1_500).unwrap(), Status::Up, 0, false);
            facts.limits[0].value = Ok(None);
            assert_eq!(judge(&facts).last().unwrap().level, level);
        }
    }
}
