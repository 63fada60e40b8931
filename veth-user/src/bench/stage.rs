//! Where traffic goes: every path is made once, on a throw-away host, before anything is measured.

use std::{
    cell::Cell,
    fmt::{Display, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use aya::programs::Xdp;
use aya_obj::programs::XdpAttachType;
use veth_common::Mac;

use super::{
    Error,
    spec::{Base, PathSpec, word},
    workload::{End, Ends, Generator, Injection},
};
use crate::{
    datapath::{self, NULL_XDP, NullRedirect, XDP, pins::Pins},
    net::{
        Netlink, Netns,
        address::Cidr,
        link::{Macvlan, Pair},
        sysctl,
    },
    state::{Record, Roots},
    text::with_causes,
    topology::{self, Progress, Topology, file},
};

/// A path that is ready for traffic.
pub(super) struct Stage {
    pub(super) ends: Ends,
    /// What programs are on it, and where, in words.
    pub(super) hook: Option<String>,
    /// How it is declared, where veth made it.
    pub(super) declaration: Option<String>,
    /// The link of the end that begins, where it is known.
    pub(super) link: Option<String>,
    /// How the kernel makes frames come in on it, where it can.
    pub(super) injection: Option<Injection>,
    /// Programs that end when they are dropped.
    programs: Option<NullRedirect>,
}

/// Up to so many pods know each other beforehand.
const NEIGHBOURS_MAX: usize = 64;

impl Stage {
    /// What somebody else made.
    pub(super) const fn of(ends: Ends) -> Self {
        Self { ends, hook: None, declaration: None, link: None, injection: None, programs: None }
    }
}

/// Says nothing: making a path takes a moment.
pub(super) struct Quiet;

impl Progress for Quiet {
    fn start(&self, _total: usize) {}
    fn step(&self, what: &dyn Display) {
        log::debug!("{what}");
    }
    fn note(&self, what: &dyn Display) {
        log::info!("{what}");
    }
    fn finish(&self) {}
}

/// Makes the path that is measured as the `number`th.
pub(super) async fn build(roots: &Roots, spec: &PathSpec, number: u8, is_v4: bool) -> Result<Stage, Error> {
    match spec.base {
        Base::Loopback => loopback(is_v4).await,
        Base::Macvlan => macvlan(number, is_v4).await,
        Base::NullRedirect => {
            let mut stage = declared(roots, spec, number, is_v4).await?;
            let netlink = Netlink::open()?;
            let record = topology::record(roots, &topology_name(number))?;
            let topology = &record.topology;
            let links: Vec<&str> = topology.ports().map(|(_, port)| port.host_link.as_str()).collect();
            let mut null = NullRedirect::default();
            for (from, to) in [(0, 1), (1, 0)] {
                let target = netlink.link(links[to]).await?.index;
                let from = netlink.link(links[from]).await?;
                null.attach(&netlink, record.selection.bridge_hook, &from, target).await?;
            }
            stage.hook = Some("one bpf_redirect_peer, nothing counted".to_owned());
            stage.programs = Some(null);
            Ok(stage)
        }
        _ => declared(roots, spec, number, is_v4).await,
    }
}

fn topology_name(number: u8) -> String {
    format!("bench{number}")
}

/// The text of a topology file.
pub(super) fn declaration(spec: &PathSpec, number: u8, pods: usize) -> String {
    let name = topology_name(number);
    let mut text = format!("name = \"{name}\"\n");
    let kind = match spec.base {
        // The same pairs; only the program differs.
        Base::NullRedirect => "wire",
        base => base.name(),
    };
    if spec.base.is_accelerated() {
        let (hook, redirect) = (word(&spec.hook), word(&spec.redirect));
        let _infallible = writeln!(text, "hook = \"{hook}\"\nredirect = \"{redirect}\"");
    }
    let pods = if pods == 2 { "[\"a\", \"b\"]".to_owned() } else { pods.to_string() };
    let _infallible = writeln!(
        text,
        "\n[{kind}.p]\nsubnet = [\"10.{number}.0.0/16\", \"fd00:{number}::/64\"]\npods = {pods}"
    );
    // Each of many would have to be told of each.
    if spec.base != Base::Route && spec.pods <= NEIGHBOURS_MAX && !spec.churn {
        text += "neighbours = true\n";
    }
    if spec.big_tcp {
        text += "tune = { big_tcp = true }\n";
    }
    text
}

/// A path that veth makes of a file.
pub(super) async fn declared(
    roots: &Roots,
    spec: &PathSpec,
    number: u8,
    is_v4: bool,
) -> Result<Stage, Error> {
    let text = declaration(spec, number, spec.pods);
    let topology = bring_up(roots, &text).await?;
    let record = topology::record(roots, &topology.name)?;
    let selection = &record.selection;
    let forwards = record.topology.accelerated_ports().next().is_some();
    let hook = forwards.then(|| format!("{} + {}", selection.hook, selection.redirect));
    let injection = match spec.base {
        Base::Direct | Base::Route => None,
        _ => injection(roots, &record, spec)
            .await
            .inspect_err(|error| log::info!("no frames can be made for {spec}: {}", with_causes(error)))
            .ok(),
    };
    let link = topology.all_ports().next().map(|(_, port)| port.name.clone());
    let of_ends = Stage::of(ends(&topology, is_v4)?);
    Ok(Stage { hook, declaration: Some(text), link, injection, ..of_ends })
}

/// Frames of the first pod come in on its host end. A bare pair has none, and on a routed path the kernel loses all but
/// the first of those that come in together.
async fn injection(roots: &Roots, record: &Record, spec: &PathSpec) -> Result<Injection, Error> {
    let topology = &record.topology;
    let wrong = || Error::Declaration("there are no pods".to_owned());
    let [first, last] = [topology.pods.first(), topology.pods.last()].map(|pod| pod.ok_or_else(wrong));
    let (first, last) = (first?, last?);
    let [from, to] = [first, last].map(|pod| pod.ports.first().ok_or_else(wrong));
    let (from, to) = (from?, to?);
    let ifindex = Netlink::open()?.link(&from.host_link).await?.index;
    let generator = if spec.base.is_accelerated() && record.selection.hook.is_xdp() {
        let pins = Pins::new(roots, record.layout_version, &topology.name);
        let program = Xdp::from_pin(pins.program(XDP), XdpAttachType::Interface);
        let failed = |source| datapath::Error::program(format!("open {XDP}"), XDP, source);
        Generator::Own(Box::new(program.map_err(failed)?))
    } else {
        Generator::Pass(datapath::null(NULL_XDP)?)
    };
    Ok(Injection { generator, ifindex, macs: [to.mac, from.mac], link: to.name.clone() })
}

/// Makes what a text declares, or changes what is there to it.
pub(super) async fn bring_up(roots: &Roots, text: &str) -> Result<Topology, Error> {
    let topology = file::parse("bench.toml", text).map_err(|error| Error::Declaration(error.to_string()))?;
    topology::up(roots, &topology, &Quiet, &Cell::new(false)).await?;
    Ok(topology)
}

/// The first pod begins, and the last answers.
fn ends(topology: &Topology, is_v4: bool) -> Result<Ends, Error> {
    let pods = [topology.pods.first(), topology.pods.last()];
    let [Some(first), Some(last)] = pods else {
        return Err(Error::Declaration("there are no pods".to_owned()));
    };
    let end = |pod: &topology::Pod| {
        let address = pod.ports.iter().flat_map(|port| &port.addresses);
        let address = address.map(|cidr| cidr.address).find(|address| address.is_ipv4() == is_v4);
        let address = address.ok_or_else(|| Error::Declaration(format!("{} has no address", pod.name)))?;
        Ok::<_, Error>(End { namespace: Arc::new(Netns::open(&pod.namespace)?), address })
    };
    Ok([end(first)?, end(last)?])
}

async fn loopback(is_v4: bool) -> Result<Stage, Error> {
    let (namespace, netlink) = Netns::throw_away()?;
    netlink.set_up(netlink.link("lo").await?.index).await?;
    let address = if is_v4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let end = End { namespace: Arc::new(namespace), address };
    let link = Some("lo".to_owned());
    Ok(Stage { link, ..Stage::of([end.clone(), end]) })
}

/// Two pods that hang on one end of a veth pair that nobody else uses.
async fn macvlan(number: u8, is_v4: bool) -> Result<Stage, Error> {
    let host = Netlink::open()?;
    let mac = |place: u8| Mac::new([2, 0x6d, 0x76, number, 0, place]);
    let names = [format!("mv{number}"), format!("mv{number}-end")];
    let [parent, other] =
        [0, 1].map(|place: u8| crate::net::link::End { name: &names[usize::from(place)], mac: mac(place) });
    host.add_pair(&Pair { host: parent, pod: other, namespace: None, mtu: 1_500, group: 0, queues: 1 })
        .await?;
    for name in &names {
        host.set_up(host.link(name).await?.index).await?;
    }
    let lower = host.link(&names[0]).await?.index;
    let addresses = [1_u8, 2].map(|pod| -> [IpAddr; 2] {
        [
            Ipv4Addr::new(10, number, 0, pod).into(),
            Ipv6Addr::new(0xfd00, u16::from(number), 0, 0, 0, 0, 0, u16::from(pod)).into(),
        ]
    });
    let mut ends = Vec::new();
    for (pod, other) in [(0, 1), (1, 0)] {
        let (namespace, inside) = Netns::throw_away()?;
        let place = |pod: usize| mac(if pod == 0 { 2 } else { 3 });
        host.add_macvlan(&Macvlan { name: "eth0", mac: place(pod), lower, namespace: &namespace }).await?;
        let link = inside.link("eth0").await?.index;
        for address in addresses[pod].iter().filter(|address| address.is_ipv4() || sysctl::has_ipv6()) {
            let prefix = if address.is_ipv4() { 16 } else { 64 };
            inside.add_address(link, Cidr { address: *address, prefix }).await?;
        }
        inside.set_up(link).await?;
        for address in addresses[other].iter().filter(|address| address.is_ipv4() || sysctl::has_ipv6()) {
            inside.add_neighbour(link, *address, place(other)).await?;
        }
        ends.push(End { namespace: Arc::new(namespace), address: addresses[pod][usize::from(!is_v4)] });
    }
    let [a, b] = <[End; 2]>::try_from(ends).map_err(|_| Error::Declaration("two ends".to_owned()))?;
    Ok(Stage { link: Some("eth0".to_owned()), ..Stage::of([a, b]) })
}
