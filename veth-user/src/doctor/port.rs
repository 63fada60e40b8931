//! Each port: both ends of its pair, and the programs of others at its host end.

use std::collections::BTreeMap;

use aya::programs::ProgramInfo;
use veth_common::Mac;

use super::{Finding, Fix, Look, Place, Unseen, fix::ethtool, host, look, topologies};
use crate::{
    datapath::{
        Hook, INGRESS, Place as Order, Redirect, XDP,
        attach::{Attached, attached, attached_to_egress},
        pins::Pins,
    },
    net::{
        Error, Netlink, Netns,
        capability::{Capabilities, Capability},
        ethtool::{Ethtool, Setting},
        link::Link,
        sysctl,
        tc::Qdisc,
    },
    probe::Selection,
    state::{Record, Roots},
    text::with_causes,
    topology::{
        Topology, features,
        model::{HookWish, RedirectWish},
        observe::hazard,
    },
};

/// Features without which a pod sends slowly by TC: bulk data in full frames, and sums counted in software.
const FAST: [Setting; 3] = [
    Setting { feature: "tx-checksum-ip-generic", on: true },
    Setting { feature: "tx-tcp-segmentation", on: true },
    Setting { feature: "tx-generic-segmentation", on: true },
];

/// What is known of a port.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) topology: String,
    pub(super) pod: String,
    pub(super) namespace: String,
    /// The pod's end.
    pub(super) name: String,
    pub(super) host_link: String,
    pub(super) mtu: u32,
    pub(super) mac: Mac,
    pub(super) host_mac: Mac,
    /// The features that its path needs.
    pub(super) needed: Vec<Setting>,
    pub(super) host: Option<Link>,
    pub(super) inside: Look<Link>,
    pub(super) features: Look<BTreeMap<String, bool>>,
    /// The stricter of the pod's own and its link's.
    pub(super) rp_filter: Look<Option<u32>>,
    /// Our program, as it is pinned.
    pub(super) ours: Option<u32>,
    pub(super) ingress: Look<Vec<Attached>>,
    pub(super) egress: Look<Vec<Attached>>,
    /// Qdiscs that shape or queue.
    pub(super) qdiscs: Look<Vec<String>>,
    pub(super) hazard: Look<Option<String>>,
}

impl Facts {
    fn subject(&self) -> String {
        let Self { topology, pod, name, .. } = self;
        format!("{topology}/{pod}/{name}")
    }

    fn place(&self) -> Place {
        Place::Pod { pod: format!("{}/{}", self.topology, self.pod), namespace: self.namespace.clone() }
    }
}

pub(super) async fn gather(
    roots: &Roots,
    capabilities: Capabilities,
    record: &Record,
    netlink: &Netlink,
    links: &[Link],
) -> Vec<Facts> {
    let Record { topology, selection, layout_version, .. } = record;
    let program = if selection.hook.is_xdp() { XDP } else { INGRESS };
    let pins = Pins::new(roots, *layout_version, &topology.name);
    let ours = ProgramInfo::from_pin(pins.program(program)).map(|info| info.id()).ok();
    let qdiscs = look(netlink.qdiscs().await);
    // A TCX chain that we may not ask for would look like an empty one.
    let may_ask = capabilities.has(Capability::NetAdmin) || capabilities.has(Capability::SysAdmin);
    let mut all = Vec::new();
    for (pod, port) in topology.accelerated_ports() {
        let host = links.iter().find(|link| link.name == port.host_link).cloned();
        let (mut ingress, mut egress, mut danger) = (Ok(Vec::new()), Ok(Vec::new()), Ok(None));
        if let Some(link) = &host {
            if may_ask {
                ingress = look(attached(netlink, link).await);
                egress = look(attached_to_egress(netlink, link).await);
                danger = look(hazard(netlink, link).await);
            } else {
                let hidden = Unseen::NotAllowed("programs are told to CAP_NET_ADMIN only".to_owned());
                (ingress, egress, danger) = (Err(hidden.clone()), Err(hidden.clone()), Err(hidden));
            }
        }
        let on_it = |qdisc: &&Qdisc| {
            host.as_ref().is_some_and(|link| link.index == qdisc.link)
                && !qdisc.is_hook()
                && qdisc.kind != "noqueue"
        };
        let namespace = Netns::open(&pod.namespace);
        let inside = async {
            let namespace = namespace.as_ref().map_err(|error| Unseen::Failed(with_causes(error)))?;
            look(async { namespace.netlink()?.link(&port.name).await }.await)
        };
        let inside = inside.await;
        let within = |work: &(dyn Fn() -> Result<u32, Error> + Sync)| -> Look<u32> {
            let namespace = namespace.as_ref().map_err(|error| Unseen::Failed(with_causes(error)))?;
            look(namespace.run(work).and_then(|result| result))
        };
        let features = match &namespace {
            Ok(namespace) => {
                look(Ethtool::open_in(namespace).and_then(|ethtool| ethtool.features(&port.name)))
            }
            Err(error) => Err(Unseen::Failed(with_causes(error))),
        };
        let rp_filter = within(&|| {
            let value = |link: &str| {
                let value = sysctl::read(&format!("net/ipv4/conf/{link}/rp_filter"))?;
                Ok::<u32, Error>(value.and_then(|value| value.parse().ok()).unwrap_or_default())
            };
            Ok(value("all")?.max(value(&port.name)?))
        });
        all.push(Facts {
            topology: topology.name.clone(),
            pod: pod.name.clone(),
            namespace: pod.namespace.clone(),
            name: port.name.clone(),
            host_link: port.host_link.clone(),
            mtu: topology.path(port).mtu,
            mac: port.mac,
            needed: features::needed(topology, port.path, selection.hook),
            host_mac: port.host_mac,
            inside,
            features,
            rp_filter: rp_filter.map(Some),
            ours,
            ingress,
            egress,
            qdiscs: qdiscs
                .clone()
                .map(|all| all.iter().filter(on_it).map(|qdisc| qdisc.kind.clone()).collect()),
            hazard: danger,
            host,
        });
    }
    all
}

/// What a topology is, as far as a port's check wants to know.
struct Context<'a> {
    topology: &'a Topology,
    selection: &'a Selection,
    /// Nothing of it has drifted.
    whole: bool,
}

/// A check of a port: findings, or why it could not be made.
type Check = fn(&Context<'_>, &Facts) -> Look<Vec<Finding>>;

/// All of them: what they are called, how it is when all is well, and why they matter.
const CHECKS: [(&str, Check, &str, &str); 8] = [
    ("port-up", up, "both ends of every pair are up", "a link that is down carries nothing"),
    ("port-mtu", mtu, "as declared", "what is longer than the other end takes is dropped"),
    ("port-mac", mac, "as declared", "frames go by the declared addresses"),
    (
        "port-features",
        features,
        "as the hook needs them",
        "XDP loses frames with the wrong ones, and TC is slow",
    ),
    (
        "ingress",
        ingress,
        "ours is the only program, or all is in order",
        "the order decides who sees which frame",
    ),
    ("egress", egress, "nothing that a redirect goes past", "a redirect may go past what is there"),
    (
        "peer-hazard",
        peer_hazard,
        "no pod that peer redirect would harm",
        "some pods need frames through their host end",
    ),
    (
        "rp-filter",
        rp_filter,
        "not strict in any pod",
        "a strict one drops what comes in another way than answers go out",
    ),
];

/// Judges every port. What is well is said once for all.
pub(super) fn judge(
    topology: &Topology,
    selection: &Selection,
    whole: bool,
    ports: &[Facts],
) -> Vec<Finding> {
    let context = Context { topology, selection, whole };
    let mut findings = Vec::new();
    for (id, check, well, why) in CHECKS.into_iter().filter(|_| !ports.is_empty()) {
        let mut unseen = None;
        let mut found = Vec::new();
        for port in ports {
            match check(&context, port) {
                Ok(some) => found.extend(some.into_iter().map(|finding| finding.about(port.subject()))),
                Err(hidden) => unseen = unseen.or(Some(hidden)),
            }
        }
        if let Some(unseen) = unseen {
            found.push(Finding::unseen(id, &unseen, why).about(&topology.name));
        } else if found.is_empty() {
            found.push(Finding::ok(id, well).about(&topology.name));
        }
        findings.extend(found);
    }
    findings
}

/// The pod's end; nothing where it is gone, which [`up`] tells.
fn inside(port: &Facts) -> Look<Option<&Link>> {
    match &port.inside {
        Ok(link) => Ok(Some(link)),
        Err(Unseen::Failed(_)) => Ok(None),
        Err(hidden) => Err(hidden.clone()),
    }
}

fn up(context: &Context<'_>, port: &Facts) -> Look<Vec<Finding>> {
    const WHY: &str = "no frame gets to this pod or from it";
    let mut findings = Vec::new();
    let again = || topologies::up(context.topology);
    let down = |place: Place, link: &str| {
        let fix = place.command(&format!("ip link set dev {link} up"));
        Finding::fail("port-up", format!("{link} is down"), WHY, fix)
            .fixable(Fix::SetUp { place, link: link.to_owned() })
    };
    match &port.host {
        None => findings.push(Finding::fail("port-up", format!("{} is gone", port.host_link), WHY, again())),
        Some(link) if !link.up => findings.push(down(Place::Host, &port.host_link)),
        Some(_) => {}
    }
    match &port.inside {
        Ok(link) if !link.up => findings.push(down(port.place(), &port.name)),
        Ok(_) => {}
        Err(Unseen::Failed(error)) => findings.push(Finding::fail("port-up", error, WHY, again())),
        Err(hidden) => return Err(hidden.clone()),
    }
    Ok(findings)
}

fn mtu(_: &Context<'_>, port: &Facts) -> Look<Vec<Finding>> {
    let mut findings = Vec::new();
    if let Some(link) = port.host.as_ref().filter(|link| link.mtu != port.mtu) {
        findings.push(wrong_mtu(&Place::Host, &port.host_link, link.mtu, port.mtu));
    }
    if let Some(link) = inside(port)?.filter(|link| link.mtu != port.mtu) {
        findings.push(wrong_mtu(&port.place(), &port.name, link.mtu, port.mtu));
    }
    Ok(findings)
}

/// A link that takes longer or shorter frames than was declared.
pub(super) fn wrong_mtu(place: &Place, link: &str, old: u32, new: u32) -> Finding {
    Finding::fail(
        "port-mtu",
        format!("{link} has {old}, declared is {new}"),
        "the programs let pass what was declared: longer frames are dropped at the end that takes less, so that ping \
         works and bulk data hangs",
        place.command(&format!("ip link set dev {link} mtu {new}")),
    )
    .fixable(Fix::Mtu { place: place.clone(), link: link.to_owned(), old, new })
}

fn mac(_: &Context<'_>, port: &Facts) -> Look<Vec<Finding>> {
    let ends = [
        (Place::Host, &port.host_link, port.host.as_ref(), port.host_mac),
        (port.place(), &port.name, inside(port)?, port.mac),
    ];
    let wrong = ends.into_iter().filter_map(|(place, name, link, declared)| {
        let mac = link?.mac.filter(|mac| *mac != declared)?;
        Some(Finding::fail(
            "port-mac",
            format!("{name} has {mac}, declared is {declared}"),
            "frames for the declared address are redirected to this pod, which takes them for somebody else's; frames \
             for the new one go the slow way, or are dropped",
            place.command(&format!("ip link set dev {name} address {declared}")),
        ))
    });
    Ok(wrong.collect())
}

fn features(context: &Context<'_>, port: &Facts) -> Look<Vec<Finding>> {
    let features = match &port.features {
        Ok(features) => features,
        // The end is gone, which is told elsewhere.
        Err(Unseen::Failed(_)) => return Ok(Vec::new()),
        Err(hidden) => return Err(hidden.clone()),
    };
    let is_xdp = context.selection.hook.is_xdp();
    let wrong = if is_xdp {
        features::unfit(features, &port.needed)
    } else if port.host.as_ref().is_some_and(|link| link.xdp.is_some_and(|xdp| xdp.native)) {
        // The kernel keeps them off as long as it is there, which is told with the ingress.
        Vec::new()
    } else {
        let is_needed_off =
            |setting: &Setting| port.needed.iter().any(|needed| needed.feature == setting.feature);
        let is_wrong = |setting: &Setting| features.get(setting.feature) == Some(&!setting.on);
        FAST.into_iter().filter(|setting| is_wrong(setting) && !is_needed_off(setting)).collect()
    };
    if wrong.is_empty() {
        return Ok(Vec::new());
    }
    let words: Vec<String> = wrong
        .iter()
        .map(|Setting { feature, on }| format!("{feature} is {}", if *on { "off" } else { "on" }))
        .collect();
    let (seen, place) = (format!("{}: {}", port.name, words.join(", ")), port.place());
    let command = place.command(&ethtool(&port.name, &wrong));
    Ok(vec![if is_xdp {
        Finding::fail(
            "port-features",
            seen,
            "by XDP a pod without GRO receives nothing, and what the sender leaves to the device (sums, VLAN tags) is \
             lost: ping works and TCP never connects",
            format!("{}, or {command}", topologies::up(context.topology)),
        )
        .fixable(Fix::Features { place, link: port.name.clone(), settings: wrong })
    } else {
        Finding::warn(
            "port-features",
            seen,
            "bulk TCP from this pod is several times slower: it is cut into small frames, or summed, by the CPU",
            command,
        )
    }])
}

fn ingress(context: &Context<'_>, port: &Facts) -> Look<Vec<Finding>> {
    let there = port.ingress.as_ref().map_err(Clone::clone)?;
    let Context { topology, selection, .. } = context;
    let hook = selection.hook;
    let is_ours = |one: &Attached| one.hook == hook && one.program.is_some() && one.program == port.ours;
    // That ours is gone is told with the topology.
    let Some(at) = there.iter().position(is_ours) else { return Ok(Vec::new()) };
    let (before, behind) = (&there[..at], &there[at + 1..]);
    let before = before.iter().map(|Attached { hook: their, name, .. }| {
        let seen = format!("{name} by {their} runs before ours, and sees every frame that the pod sends");
        if their.is_xdp() {
            Finding::warn(
                "ingress",
                seen,
                "XDP on a veth turns GSO off at its other end and copies each frame: bulk TCP is several times slower",
                format!("ip link set dev {} xdp off, if nobody needs it", port.host_link),
            )
        } else {
            Finding::ok("ingress", seen)
        }
    });
    let behind = behind.iter().map(|other| {
        let Attached { hook: their, name, position, .. } = other;
        let seen = format!("{name} by {their} runs behind ours by {hook}");
        if topology.place == Order::First && hook == *their {
            return Finding::ok("ingress", format!("{seen}, as --place first asks for"));
        }
        let fix = match (hook, their) {
            (Hook::Clsact, _) => format!(
                "give it a smaller priority than ours (`tc filter … prio`; it has {})",
                position.map_or(0, |position| position.priority)
            ),
            (_, Hook::Clsact) => {
                format!("{} (--hook clsact puts ours last)", topologies::again(topology, Some(HookWish::Clsact), None))
            }
            (Hook::Tcx, _) => {
                format!("{} (puts ours last again)", topologies::again(topology, None, None))
            }
            _ => topologies::again(topology, Some(HookWish::Tcx), Some(RedirectWish::Auto)),
        };
        let why = "it sees only what ours passes on, broadcast and unknown addresses, and never a frame that was \
            redirected: if it is a policy, it is not kept";
        Finding::warn("ingress", seen, why, fix)
    });
    Ok(before.chain(behind).collect())
}

fn egress(context: &Context<'_>, port: &Facts) -> Look<Vec<Finding>> {
    let Context { topology, selection, .. } = context;
    let mut names: Vec<String> = Vec::new();
    for Attached { hook, name, .. } in port.egress.as_ref().map_err(Clone::clone)? {
        names.push(format!("{name} by {hook}"));
    }
    for kind in port.qdiscs.as_ref().map_err(Clone::clone)? {
        names.push(format!("the qdisc {kind}"));
    }
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let seen = format!("on the egress of {}: {}", port.host_link, names.join(", "));
    Ok(vec![if selection.redirect == Redirect::Host {
        Finding::ok("egress", format!("{seen}; --redirect host goes through it"))
    } else {
        let hook = selection.hook.is_xdp().then_some(HookWish::Auto);
        Finding::warn(
            "egress",
            seen,
            format!(
                "--redirect {} goes past it: what it filters, counts or shapes is not",
                selection.redirect
            ),
            topologies::again(topology, hook, Some(RedirectWish::Host)),
        )
    }])
}

fn peer_hazard(context: &Context<'_>, port: &Facts) -> Look<Vec<Finding>> {
    if context.selection.redirect != Redirect::Peer {
        return Ok(Vec::new());
    }
    Ok(match &port.hazard {
        Ok(None) | Err(Unseen::Failed(_)) => Vec::new(),
        Err(hidden) => return Err(hidden.clone()),
        Ok(Some(hazard)) if context.whole => {
            vec![Finding::ok("peer-hazard", format!("{hazard}; veth reaches it through its host end"))]
        }
        Ok(Some(hazard)) => vec![Finding::warn(
            "peer-hazard",
            hazard,
            "frames that are handed straight into the pod miss what it has put there",
            format!(
                "{} (reaches this pod through its host end from then on)",
                topologies::up(context.topology)
            ),
        )],
    })
}

fn rp_filter(_: &Context<'_>, port: &Facts) -> Look<Vec<Finding>> {
    let value = match &port.rp_filter {
        Err(Unseen::Failed(_)) => return Ok(Vec::new()),
        Err(hidden) => return Err(hidden.clone()),
        Ok(value) => *value,
    };
    let key = format!("net/ipv4/conf/{}/rp_filter", port.name);
    let finding = host::rp_filter(&port.place(), "", &key, &Ok(value), "links of this pod");
    Ok(finding.into_iter().filter(|finding| finding.fix.is_some()).collect())
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};
    use crate::net::{link::XdpProgram, tc::Position};

    const MAC: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
    const HOST_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 2]);

    fn link(mac: Mac) -> Link {
        Link { up: true, mtu: 1_500, mac: Some(mac), ..Link::default() }
    }

    fn program(hook: Hook, id: u32) -> Attached {
        let position = (hook == Hook::Clsact).then_some(Position { priority: 7, handle: 1 });
        Attached { hook, program: Some(id), name: format!("p{id}"), position }
    }

    fn port() -> Facts {
        Facts {
            topology: "wire".into(),
            pod: "ns1".into(),
            namespace: "ns1".into(),
            name: "eth0".into(),
            host_link: "wire-ns1".into(),
            mtu: 1_500,
            mac: MAC,
            host_mac: HOST_MAC,
            needed: Vec::new(),
            host: Some(link(HOST_MAC)),
            inside: Ok(link(MAC)),
            features: Ok(FAST.into_iter().map(|setting| (setting.feature.to_owned(), true)).collect()),
            rp_filter: Ok(Some(0)),
            ours: Some(1),
            ingress: Ok(vec![program(Hook::Tcx, 1)]),
            egress: Ok(Vec::new()),
            qdiscs: Ok(Vec::new()),
            hazard: Ok(None),
        }
    }

    fn judged(hook: Hook, redirect: Redirect, place: Order, port: Facts) -> Vec<Finding> {
        let topology = Topology { place, ..Topology::wire("wire", 1_500).unwrap() };
        let selection = Selection { hook, bridge_hook: hook, redirect, why: String::new() };
        let findings = judge(&topology, &selection, false, &[port]);
        for finding in &findings {
            assert_eq!(finding.fix.is_none(), finding.level == Level::Ok, "{finding:?}");
        }
        findings
    }

    /// The findings about the port itself: check, level, fix.
    fn told(findings: &[Finding]) -> Vec<(&str, Level, &str)> {
        let about = |finding: &&Finding| finding.subject.as_deref() == Some("wire/ns1/eth0");
        findings
            .iter()
            .filter(about)
            .map(|finding| (finding.id, finding.level, finding.fix.as_deref().unwrap_or_default()))
            .collect()
    }

    fn by_tcx(port: Facts) -> Vec<Finding> {
        judged(Hook::Tcx, Redirect::Peer, Order::Last, port)
    }

    #[test]
    fn a_good_port_is_told_once_for_all() {
        let findings = by_tcx(port());
        assert_eq!(findings.len(), CHECKS.len());
        assert!(findings.iter().all(|finding| finding.subject.as_deref() == Some("wire")), "{findings:?}");
    }

    #[test]
    fn ends_that_are_not_as_declared() {
        let mut bad = port();
        bad.host.as_mut().unwrap().mtu = 1_400;
        let inside = bad.inside.as_mut().unwrap();
        inside.mac = Some(HOST_MAC);
        inside.up = false;
        let findings = by_tcx(bad);
        let expected = [
            ("port-up", Level::Fail, "veth exec wire/ns1 -- ip link set dev eth0 up"),
            ("port-mtu", Level::Fail, "ip link set dev wire-ns1 mtu 1500"),
            ("port-mac", Level::Fail, "veth exec wire/ns1 -- ip link set dev eth0 address 02:00:00:00:00:01"),
        ];
        assert_eq!(told(&findings), expected);
        let gone = Facts { host: None, inside: Err(Unseen::Failed("no such device".into())), ..port() };
        let expected = [("port-up", Level::Fail, "veth up"), ("port-up", Level::Fail, "veth up")];
        assert_eq!(told(&by_tcx(gone)), expected);
    }

    #[test]
    fn features_go_by_hook() {
        let mut slow = port();
        slow.features.as_mut().unwrap().insert("tx-tcp-segmentation".into(), false);
        let fix = "veth exec wire/ns1 -- ethtool -K eth0 tx-tcp-segmentation on";
        assert_eq!(told(&by_tcx(slow.clone())), [("port-features", Level::Warn, fix)]);
        // Somebody's XDP program keeps it off.
        slow.host.as_mut().unwrap().xdp = Some(XdpProgram { id: 9, native: true });
        assert_eq!(told(&by_tcx(slow)), []);
        let needed = features::XDP.to_vec();
        let ours = Facts { ingress: Ok(vec![program(Hook::Xdp, 1)]), needed, ..port() };
        let findings = judged(Hook::Xdp, Redirect::Devmap, Order::Last, ours);
        let finding = findings.iter().find(|finding| finding.id == "port-features").unwrap();
        assert_eq!(finding.level, Level::Fail, "sums are left to the device, and GRO is off");
        let undo = "veth exec wire/ns1 -- ethtool -K eth0 rx-gro off tx-checksum-ip-generic on";
        assert_eq!(finding.undo.as_deref(), Some(undo));
    }

    #[test]
    fn order_decides_who_sees_what() {
        use Hook::{Clsact, Tcx, Xdp};
        let (ok, warn) = (Level::Ok, Level::Warn);
        let ours = |hook| program(hook, 1);
        for (hook, place, chain, level, fix) in [
            (Tcx, Order::Last, vec![program(Tcx, 2), ours(Tcx)], ok, ""),
            (
                Tcx,
                Order::Last,
                vec![ours(Tcx), program(Tcx, 2)],
                warn,
                "veth down wire && veth up (puts ours last again)",
            ),
            (Tcx, Order::First, vec![ours(Tcx), program(Tcx, 2)], ok, ""),
            (Tcx, Order::Last, vec![ours(Tcx), program(Clsact, 2)], warn, "--hook clsact"),
            (Tcx, Order::Last, vec![program(Xdp, 2), ours(Tcx)], warn, "ip link set dev wire-ns1 xdp off"),
            (Clsact, Order::Last, vec![program(Clsact, 2), ours(Clsact)], ok, ""),
            (Clsact, Order::Last, vec![ours(Clsact), program(Clsact, 2)], warn, "it has 7"),
            (Xdp, Order::Last, vec![ours(Xdp), program(Tcx, 2)], warn, "--hook tcx"),
        ] {
            let words = format!("{chain:?}");
            let findings = judged(hook, Redirect::Host, place, Facts { ingress: Ok(chain), ..port() });
            let found = findings.iter().find(|finding| finding.id == "ingress").unwrap();
            assert_eq!(found.level, level, "{words}");
            assert!(found.fix.as_deref().unwrap_or_default().contains(fix), "{found:?}");
        }
        // That ours is gone is told with the topology.
        assert_eq!(told(&by_tcx(Facts { ingress: Ok(vec![program(Tcx, 2)]), ..port() })), []);
    }

    #[test]
    fn peer_redirect_goes_past_the_egress() {
        let shaped = Facts { qdiscs: Ok(vec!["tbf".into()]), ..port() };
        let fix = "veth down wire && veth up --redirect host";
        assert_eq!(told(&by_tcx(shaped.clone())), [("egress", Level::Warn, fix)]);
        let findings = judged(Hook::Tcx, Redirect::Host, Order::Last, shaped);
        assert_eq!(told(&findings), [("egress", Level::Ok, "")]);
    }

    #[test]
    fn a_pod_that_peer_redirect_would_harm() {
        let harmed = Facts { hazard: Ok(Some("its pod has bridged eth0".into())), ..port() };
        assert_eq!(told(&by_tcx(harmed.clone()))[0].1, Level::Warn);
        assert_eq!(told(&judged(Hook::Tcx, Redirect::Host, Order::Last, harmed)), []);
    }

    #[test]
    fn what_may_not_be_seen_is_said_once() {
        let hidden = || Unseen::NotAllowed("EPERM".to_owned());
        let findings = by_tcx(Facts {
            inside: Err(hidden()),
            features: Err(hidden()),
            ingress: Err(hidden()),
            ..port()
        });
        let count = findings.iter().filter(|finding| finding.seen.contains("needs root")).count();
        assert_eq!((count, findings.len()), (5, CHECKS.len()), "{findings:?}");
    }
}
