//! What is checked: a pure choice, so that the same topology and seed always give the same pairs.

use std::{
    collections::{BTreeSet, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
};

use crate::{
    net::address::Cidr,
    topology::{Kind, Path, Pod, Port, Topology},
};

/// Ports of a domain up to which each is tried with each. The machine's neighbour table has room for as many.
pub const ALL_MAX: usize = 32;

/// Random draws for each pair that is wanted: a domain may have few more.
const DRAWS: usize = 20;

/// Where pods on routed links find the host.
const ROUTE_GATEWAYS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1))];

/// How much is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    /// All with all where there are up to [`ALL_MAX`] ports in a domain; else a ring and as many random pairs again.
    #[default]
    Full,
    /// A ring of the first [`ALL_MAX`] ports of each domain.
    Ring,
}

/// A port, by the index of its pod in the topology and its own in the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct End {
    /// Index into [`Topology::pods`].
    pub pod: usize,
    /// Index into [`Pod::ports`].
    pub port: usize,
}

impl End {
    /// The pod and the port.
    #[must_use]
    pub fn of(self, topology: &Topology) -> (&Pod, &Port) {
        let pod = &topology.pods[self.pod];
        (pod, &pod.ports[self.port])
    }

    fn path(self, topology: &Topology) -> usize {
        self.of(topology).1.path
    }
}

/// What a pair is counted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Over {
    /// A path, an index into [`Topology::paths`].
    Path(usize),
    /// A cable, an index into [`Topology::cables`].
    Cable(usize),
}

/// An address that a port is to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    /// What it crosses.
    pub over: Over,
    /// The port that asks.
    pub from: End,
    /// The port that is asked; nothing for the host.
    pub to: Option<End>,
    /// From which of its addresses; nothing leaves the choice to the kernel.
    pub source: Option<IpAddr>,
    /// At which address.
    pub target: IpAddr,
}

/// All that is to be pinged in a topology, in both directions and both address families: within each domain of paths
/// joined by cables the ports that reach each other, and from one pod each gateway and each of the host's addresses.
#[must_use]
pub fn pairs(topology: &Topology, seed: u64) -> Vec<Pair> {
    select(topology, Extent::Full, seed)
}

/// The same, of another extent.
#[must_use]
pub fn select(topology: &Topology, extent: Extent, seed: u64) -> Vec<Pair> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut pairs = Vec::new();
    for paths in domains(topology) {
        let ends = ends_of(topology, &paths);
        let couples = match extent {
            Extent::Full if ends.len() <= ALL_MAX => all(&ends),
            Extent::Full => {
                let mut couples = ring(topology, &ends);
                add_random(topology, &ends, &mut couples, &mut random);
                couples
            }
            Extent::Ring => ring(topology, &ends[..ends.len().min(ALL_MAX)]),
        };
        for (one, other) in couples {
            pairs.extend(between(topology, one, other).chain(between(topology, other, one)));
        }
    }
    pairs.extend(gateways(topology));
    pairs.extend(legs(topology));
    pairs
}

/// Whether [`pairs`] depends on the seed.
#[must_use]
pub fn is_sampled(topology: &Topology) -> bool {
    domains(topology).iter().any(|paths| ends_of(topology, paths).len() > ALL_MAX)
}

/// A transfer over each path, and over each cable between two, where two pods reach each other by it.
#[must_use]
pub fn transfers(topology: &Topology, ipv6: bool) -> Vec<Pair> {
    let first = |from: &[End], to: &[End], over: Over| {
        let couples = from.iter().flat_map(|one| to.iter().map(move |other| (*one, *other)));
        couples
            .flat_map(|(one, other)| between(topology, one, other))
            .find(|pair| pair.target.is_ipv4() || ipv6)
            .map(|pair| Pair { over, ..pair })
    };
    let on = |path: usize| ends_of(topology, &BTreeSet::from([path]));
    let paths = (0..topology.paths.len()).filter_map(|path| first(&on(path), &on(path), Over::Path(path)));
    let cables = topology.cables.iter().enumerate().filter_map(|(number, cable)| {
        let [Some(from), Some(to)] = cable.ends.each_ref().map(|end| end.path) else {
            return None;
        };
        first(&on(from), &on(to), Over::Cable(number))
    });
    paths.chain(cables).collect()
}

/// Cuts a list of pairs so that the pairs of each piece need no more than `budget` entries in the machine's neighbour
/// table of either family.
pub(super) fn batches(topology: &Topology, pairs: &[Pair], budget: usize) -> Vec<Range<usize>> {
    let mut batches = Vec::new();
    let (mut start, mut known) = (0, [HashSet::new(), HashSet::new()]);
    for (number, pair) in pairs.iter().enumerate() {
        let entries = entries(topology, pair);
        let family = usize::from(pair.target.is_ipv6());
        let new = entries.iter().flatten().filter(|entry| !known[family].contains(*entry)).count();
        if known[family].len() + new > budget && number > start {
            batches.push(start..number);
            start = number;
            known = [HashSet::new(), HashSet::new()];
        }
        known[family].extend(entries.into_iter().flatten());
    }
    if start < pairs.len() {
        batches.push(start..pairs.len());
    }
    batches
}

/// The neighbours that a pair makes namespaces look for: who, whom.
fn entries(topology: &Topology, pair: &Pair) -> [Option<(Option<usize>, Option<usize>)>; 4] {
    let path = &topology.paths[pair.from.path(topology)];
    let (from, to) = (Some(pair.from.pod), pair.to.map(|to| to.pod));
    match path.kind {
        // Pods know the host alone, and the host knows them.
        Kind::Route => {
            let to = to.map(|to| [Some((Some(to), None)), Some((None, Some(to)))]).unwrap_or_default();
            [Some((from, None)), Some((None, from)), to[0], to[1]]
        }
        // Permanent entries are not counted against the limit.
        _ if path.neighbours && to.is_some() => [None; 4],
        _ => [Some((from, to)), Some((to, from)), None, None],
    }
}

/// Paths that frames get from one to the other on: those joined by cables.
fn domains(topology: &Topology) -> Vec<BTreeSet<usize>> {
    let mut domains: Vec<BTreeSet<usize>> =
        (0..topology.paths.len()).map(|path| BTreeSet::from([path])).collect();
    for cable in &topology.cables {
        let [Some(one), Some(other)] = cable.ends.each_ref().map(|end| end.path) else {
            continue;
        };
        let find =
            |domains: &[BTreeSet<usize>], path| domains.iter().position(|domain| domain.contains(&path));
        if let (Some(one), Some(other)) = (find(&domains, one), find(&domains, other))
            && one != other
        {
            let joined = std::mem::take(&mut domains[one.max(other)]);
            domains[one.min(other)].extend(joined);
        }
    }
    domains.retain(|domain| !domain.is_empty());
    domains
}

fn ends_of(topology: &Topology, paths: &BTreeSet<usize>) -> Vec<End> {
    let pods = topology.pods.iter().enumerate();
    pods.flat_map(|(pod, value)| (0..value.ports.len()).map(move |port| End { pod, port }))
        .filter(|end| paths.contains(&end.path(topology)))
        .collect()
}

fn all(ends: &[End]) -> Vec<(End, End)> {
    ends.iter()
        .enumerate()
        .flat_map(|(at, one)| ends[at + 1..].iter().map(move |other| (*one, *other)))
        .collect()
}

/// Each port with the next that it reaches.
fn ring(topology: &Topology, ends: &[End]) -> Vec<(End, End)> {
    let mut seen = HashSet::new();
    let mut couples = Vec::new();
    for (at, one) in ends.iter().enumerate() {
        let others = ends[at + 1..].iter().chain(&ends[..at]);
        let next = others.copied().find(|other| between(topology, *one, *other).next().is_some());
        if let Some(next) = next
            && seen.insert(sorted(*one, next))
        {
            couples.push((*one, next));
        }
    }
    couples
}

/// As many couples again, drawn at random, none of them twice.
fn add_random(topology: &Topology, ends: &[End], couples: &mut Vec<(End, End)>, random: &mut fastrand::Rng) {
    let mut seen: HashSet<(End, End)> = couples.iter().map(|(one, other)| sorted(*one, *other)).collect();
    let wanted = couples.len() * 2;
    for _ in 0..couples.len() * DRAWS {
        if couples.len() == wanted {
            return;
        }
        let (one, other) = (ends[random.usize(..ends.len())], ends[random.usize(..ends.len())]);
        if between(topology, one, other).next().is_some() && seen.insert(sorted(one, other)) {
            couples.push((one, other));
        }
    }
}

fn sorted(one: End, other: End) -> (End, End) {
    (one.min(other), one.max(other))
}

/// Each address of one port that another reaches, from the first address that it can be reached from.
fn between(topology: &Topology, from: End, to: End) -> impl Iterator<Item = Pair> {
    let (from_path, to_path) = (from.path(topology), to.path(topology));
    let targets = if from.pod == to.pod { &[] } else { to.of(topology).1.addresses.as_slice() };
    targets.iter().filter_map(move |target| {
        let meets = |source: &&Cidr| {
            let (source, target) = (**source, *target);
            source.address.is_ipv4() == target.address.is_ipv4()
                && (sees(topology, from, source, target) && sees(topology, to, target, source)
                    || from_path == to_path && routes(&topology.paths[from_path], source, target))
        };
        let source = from.of(topology).1.addresses.iter().find(meets)?;
        Some(Pair {
            over: over(topology, from_path, to_path),
            from,
            to: Some(to),
            source: Some(source.address),
            target: target.address,
        })
    })
}

/// Whether an address is on a port's own link, by the port's prefix or by a route without a gateway.
fn sees(topology: &Topology, end: End, own: Cidr, other: Cidr) -> bool {
    let routes = topology.pods[end.pod].routes.iter();
    contains(own, other.address)
        || routes
            .filter(|route| route.port == end.port && route.via.is_none())
            .any(|route| contains(route.to, other.address))
}

/// Whether the host carries from one address to the other.
fn routes(path: &Path, source: Cidr, target: Cidr) -> bool {
    let by_gateway = |cidr: Cidr| path.gateway.iter().any(|gateway| contains(*gateway, cidr.address));
    path.kind == Kind::Route || by_gateway(source) && by_gateway(target)
}

/// What a pair between ports of two paths is counted with: the cable between both, or the one that it sets out on.
fn over(topology: &Topology, from: usize, to: usize) -> Over {
    if from == to {
        return Over::Path(from);
    }
    let joins = |paths: &[usize]| {
        topology.cables.iter().position(|cable| {
            let ends = cable.ends.each_ref().map(|end| end.path);
            ends.iter().all(Option::is_some) && paths.iter().all(|path| ends.contains(&Some(*path)))
        })
    };
    joins(&[from, to]).or_else(|| joins(&[from])).map_or(Over::Path(from), Over::Cable)
}

/// The host's addresses on each path, from one port that has it on its link.
fn gateways(topology: &Topology) -> impl Iterator<Item = Pair> {
    let paths = topology.paths.iter().enumerate().filter(|(_, path)| path.is_routed());
    paths.flat_map(|(number, path)| {
        let ends = ends_of(topology, &BTreeSet::from([number]));
        let over = Over::Path(number);
        let mut pairs = Vec::new();
        if path.kind == Kind::Route {
            for target in ROUTE_GATEWAYS {
                let found = ends.iter().find_map(|from| {
                    let addresses = &from.of(topology).1.addresses;
                    let source = addresses.iter().find(|own| own.address.is_ipv4() == target.is_ipv4())?;
                    // A link-local address answers to a link-local one.
                    Some((*from, target.is_ipv4().then_some(source.address)))
                });
                pairs.extend(found.map(|(from, source)| Pair { over, from, to: None, source, target }));
            }
        } else {
            pairs.extend(path.gateway.iter().filter_map(|gateway| to_host(topology, &ends, over, *gateway)));
        }
        pairs
    })
}

/// The host's addresses at the ends of cables, each from one port of the switch, or else of its domain.
fn legs(topology: &Topology) -> impl Iterator<Item = Pair> {
    let domains = domains(topology);
    topology.cables.iter().enumerate().flat_map(move |(number, cable)| {
        let [one, other] = &cable.ends;
        let leg = match (one.path, other.path) {
            (Some(path), None) => Some((path, other)),
            (None, Some(path)) => Some((path, one)),
            _ => None,
        };
        let pairs = leg.into_iter().flat_map(|(path, host)| {
            let mut ends = ends_of(topology, &BTreeSet::from([path]));
            let domain = domains.iter().find(|domain| domain.contains(&path));
            ends.extend(domain.into_iter().flat_map(|domain| ends_of(topology, domain)));
            let over = Over::Cable(number);
            let pairs: Vec<_> = host
                .addresses
                .iter()
                .filter_map(|address| to_host(topology, &ends, over, *address))
                .collect();
            pairs
        });
        pairs.collect::<Vec<_>>()
    })
}

/// An address of the host, from the first port that shares its subnet.
fn to_host(topology: &Topology, ends: &[End], over: Over, host: Cidr) -> Option<Pair> {
    ends.iter().find_map(|from| {
        let addresses = &from.of(topology).1.addresses;
        let source =
            addresses.iter().find(|own| contains(host, own.address) && contains(**own, host.address))?;
        Some(Pair { over, from: *from, to: None, source: Some(source.address), target: host.address })
    })
}

/// Whether an address is in the network of another.
fn contains(network: Cidr, address: IpAddr) -> bool {
    match (network.address, address) {
        (IpAddr::V4(network_address), IpAddr::V4(address)) => {
            let differ = network_address.to_bits() ^ address.to_bits();
            differ.leading_zeros() >= u32::from(network.prefix)
        }
        (IpAddr::V6(network_address), IpAddr::V6(address)) => {
            let differ = network_address.to_bits() ^ address.to_bits();
            differ.leading_zeros() >= u32::from(network.prefix)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topology::model::{DEFAULT_MTU, Route};

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn add(topology: &mut Topology, pod: &str, path: usize, addresses: &[&str]) -> usize {
        let known = topology.pods.iter().position(|known| known.name == pod);
        let pod = known.unwrap_or_else(|| topology.add_pod(pod));
        topology.add_port(pod, path, addresses.iter().map(|text| cidr(text)).collect());
        pod
    }

    fn words(topology: &Topology, pairs: &[Pair]) -> Vec<String> {
        let name = |end: End| end.of(topology).0.name.clone();
        let word = |pair: &Pair| {
            let to = pair.to.map_or_else(|| "host".to_owned(), name);
            format!("{}>{to}@{}", name(pair.from), pair.target)
        };
        pairs.iter().map(word).collect()
    }

    #[test]
    fn a_wire_is_tried_both_ways_in_both_families() {
        let topology = Topology::wire("wire", DEFAULT_MTU).unwrap();
        let expected =
            ["ns1>ns2@172.16.0.2", "ns1>ns2@fd00:172:16::2", "ns2>ns1@172.16.0.1", "ns2>ns1@fd00:172:16::1"];
        for extent in [Extent::Full, Extent::Ring] {
            let pairs = select(&topology, extent, 0);
            assert_eq!(words(&topology, &pairs), expected);
            assert_eq!(pairs[0].source, Some("172.16.0.1".parse().unwrap()));
        }
        assert_eq!(words(&topology, &transfers(&topology, true)), expected[..1]);
    }

    #[test]
    fn all_with_all_up_to_the_limit() {
        let count = |pods| pairs(&Topology::switch("s", pods, DEFAULT_MTU).unwrap(), 1).len();
        assert_eq!(count(3), 3 * 2 * 2);
        assert_eq!(count(ALL_MAX), 992 * 2);
        // A ring of couples and as many again, both ways, in both families.
        assert_eq!(count(ALL_MAX + 1), (ALL_MAX + 1) * 2 * 2 * 2);
        let ring = select(&Topology::switch("s", 1_000, DEFAULT_MTU).unwrap(), Extent::Ring, 1);
        assert_eq!(ring.len(), ALL_MAX * 2 * 2);
    }

    #[test]
    fn the_seed_decides() {
        let topology = Topology::switch("s", 100, DEFAULT_MTU).unwrap();
        assert_eq!(pairs(&topology, 7), pairs(&topology, 7));
        assert_ne!(pairs(&topology, 7), pairs(&topology, 8));
        assert!(is_sampled(&topology) && !is_sampled(&Topology::switch("s", 32, DEFAULT_MTU).unwrap()));
    }

    #[test]
    fn cables_join_what_shares_a_subnet() {
        let mut topology = Topology::empty("lab");
        let paths = ["a", "b", "c"].map(|name| topology.add_path(name, Kind::Switch, DEFAULT_MTU));
        add(&mut topology, "a1", paths[0], &["10.0.0.1/24"]);
        add(&mut topology, "b1", paths[1], &["10.0.0.2/24"]);
        add(&mut topology, "b2", paths[1], &["10.9.0.2/24"]);
        add(&mut topology, "c1", paths[2], &["10.0.0.3/24"]);
        assert!(pairs(&topology, 0).is_empty());
        assert!(transfers(&topology, true).is_empty());
        topology.add_cable("ab", DEFAULT_MTU, [Some(paths[0]), Some(paths[1])]);
        let found = pairs(&topology, 0);
        assert_eq!(words(&topology, &found), ["a1>b1@10.0.0.2", "b1>a1@10.0.0.1"]);
        assert_eq!(found[0].over, Over::Cable(0));
        topology.add_cable("bc", DEFAULT_MTU, [Some(paths[1]), Some(paths[2])]);
        assert_eq!(pairs(&topology, 0).len(), 6);
        let found = transfers(&topology, true);
        assert_eq!(words(&topology, &found), ["a1>b1@10.0.0.2", "b1>c1@10.0.0.3"]);
        assert_eq!(found[1].over, Over::Cable(1));
    }

    #[test]
    fn several_ports_are_tried_each_from_its_own_address() {
        let mut topology = Topology::empty("lab");
        let paths = ["a", "b"].map(|name| topology.add_path(name, Kind::Bridge, DEFAULT_MTU));
        for (pod, number) in [("one", 1), ("two", 2)] {
            add(&mut topology, pod, paths[0], &[&format!("10.0.0.{number}/24")]);
            add(&mut topology, pod, paths[1], &[&format!("10.1.0.{number}/24")]);
        }
        let found = pairs(&topology, 0);
        assert_eq!(
            words(&topology, &found),
            ["one>two@10.0.0.2", "two>one@10.0.0.1", "one>two@10.1.0.2", "two>one@10.1.0.1"]
        );
        assert_eq!(found[2].source, Some("10.1.0.1".parse().unwrap()));
        assert_eq!(found[2].from, End { pod: 0, port: 1 });
    }

    #[test]
    fn the_host_is_asked_from_one_pod() {
        let mut topology = Topology::empty("lab");
        let net = topology.add_path("net", Kind::Switch, DEFAULT_MTU);
        topology.paths[net].gateway = vec![cidr("10.0.0.254/24"), cidr("10.1.0.254/24"), cidr("fd00::fe/64")];
        add(&mut topology, "one", net, &["10.0.0.1/24", "fd00::1/64"]);
        add(&mut topology, "two", net, &["10.1.0.1/24"]);
        // In different subnets, by the gateway.
        let expected = ["one>two@10.1.0.1", "two>one@10.0.0.1", "one>host@10.0.0.254", "two>host@10.1.0.254"];
        assert_eq!(words(&topology, &pairs(&topology, 0))[..4], expected);
        assert_eq!(words(&topology, &pairs(&topology, 0))[4..], ["one>host@fd00::fe"]);
        topology.add_cable("leg", DEFAULT_MTU, [None, Some(net)]).ends[0].addresses =
            vec![cidr("10.0.0.200/24")];
        let found = pairs(&topology, 0);
        assert_eq!(words(&topology, &found)[5..], ["one>host@10.0.0.200"]);
        assert_eq!(found[5].over, Over::Cable(0));
    }

    #[test]
    fn routed_pods_share_no_subnet() {
        let mut topology = Topology::empty("lab");
        let path = topology.add_path("routed", Kind::Route, DEFAULT_MTU);
        topology.paths[path].gateway = vec![cidr("169.254.1.1/32")];
        add(&mut topology, "one", path, &["10.0.0.1/32", "fd00::1/128"]);
        add(&mut topology, "two", path, &["10.0.0.2/32"]);
        let found = pairs(&topology, 0);
        assert_eq!(
            words(&topology, &found),
            ["one>two@10.0.0.2", "two>one@10.0.0.1", "one>host@169.254.1.1", "one>host@fe80::1"]
        );
        assert_eq!(found[3].source, None);
    }

    #[test]
    fn a_route_on_the_link_is_as_good_as_a_prefix() {
        let mut topology = Topology::empty("lab");
        let path = topology.add_path("pair", Kind::Direct, DEFAULT_MTU);
        for (pod, own, other) in
            [("one", "10.0.0.1/32", "10.9.0.1/32"), ("two", "10.9.0.1/32", "10.0.0.1/32")]
        {
            let pod = add(&mut topology, pod, path, &[own]);
            assert!(pairs(&topology, 0).is_empty());
            topology.pods[pod].routes.push(Route { to: cidr(other), via: None, port: 0 });
        }
        assert_eq!(pairs(&topology, 0).len(), 2);
    }

    #[test]
    fn batches_fit_the_neighbour_table() {
        let topology = Topology::switch("s", ALL_MAX, DEFAULT_MTU).unwrap();
        let pairs = pairs(&topology, 0);
        assert_eq!(batches(&topology, &pairs, 992).len(), 1);
        assert_eq!(batches(&topology, &pairs, 500).len(), 2);
        let mut known = topology.clone();
        known.paths[0].neighbours = true;
        assert_eq!(batches(&known, &pairs, 10).len(), 1);
        assert!(batches(&topology, &[], 10).is_empty());
    }

    #[test]
    fn prefixes() {
        for (network, address, inside) in [
            ("10.0.0.1/24", "10.0.0.200", true),
            ("10.0.0.1/24", "10.0.1.1", false),
            ("10.0.0.1/32", "10.0.0.1", true),
            ("0.0.0.0/0", "255.0.0.1", true),
            ("fd00::1/64", "fd00::ffff:1", true),
            ("fd00::1/64", "fd00:0:0:1::1", false),
            ("::/0", "10.0.0.1", false),
        ] {
            assert_eq!(contains(cidr(network), address.parse().unwrap()), inside, "{network} {address}");
        }
    }

    /// Switches with pods of two subnets, some pods on two switches, and cables.
    fn topologies() -> impl Strategy<Value = Topology> {
        let pods = prop::collection::vec((0..4_usize, 0..2_u8, prop::option::of(0..4_usize)), 0..120);
        let cables = prop::collection::vec((0..4_usize, prop::option::of(0..4_usize)), 0..4);
        (pods, cables).prop_map(|(pods, cables)| {
            let mut topology = Topology::empty("t");
            for number in 0..4 {
                topology.add_path(&format!("p{number}"), Kind::Switch, DEFAULT_MTU);
            }
            for (number, (path, subnet, second)) in (1_u8..).zip(pods) {
                let addresses = [format!("10.{subnet}.0.{number}/24"), format!("fd00:{subnet}::{number}/64")];
                let addresses = addresses.each_ref().map(String::as_str);
                add(&mut topology, &format!("pod{number}"), path, &addresses);
                if let Some(second) = second {
                    add(&mut topology, &format!("pod{number}"), second, &[&format!("10.7.0.{number}/24")]);
                }
            }
            for (number, (from, to)) in cables.into_iter().enumerate() {
                topology.add_cable(&format!("c{number}"), DEFAULT_MTU, [Some(from), to]);
            }
            topology
        })
    }

    proptest! {
        #[test]
        fn what_is_chosen_makes_sense(topology in topologies(), seed in any::<u64>()) {
            let found = pairs(&topology, seed);
            let unique: HashSet<_> = found.iter().collect();
            prop_assert_eq!(unique.len(), found.len());
            let domains = domains(&topology);
            let domain_of = |end: End| domains.iter().position(|domain| domain.contains(&end.path(&topology)));
            for pair in &found {
                let to = pair.to.unwrap();
                prop_assert_ne!(pair.from.pod, to.pod);
                prop_assert_eq!(domain_of(pair.from), domain_of(to));
                let own = |end: End, address| end.of(&topology).1.addresses.iter().any(|cidr| cidr.address == address);
                prop_assert!(own(to, pair.target) && own(pair.from, pair.source.unwrap()));
                // And back.
                let back = |other: &Pair| {
                    other.from == to && other.to == Some(pair.from) && Some(other.target) == pair.source
                };
                prop_assert!(found.iter().any(back));
            }
            // Whoever reaches anybody is asked and asks.
            for domain in &domains {
                let ends = ends_of(&topology, domain);
                let asked: HashSet<End> = found.iter().filter_map(|pair| pair.to).collect();
                for one in &ends {
                    let reaches = ends.iter().any(|other| between(&topology, *one, *other).next().is_some());
                    prop_assert_eq!(reaches, asked.contains(one));
                }
            }
            // Every pair is in one batch, in order.
            let batches = batches(&topology, &found, 100);
            prop_assert_eq!(batches.iter().cloned().flatten().collect::<Vec<_>>(), (0..found.len()).collect::<Vec<_>>());
            for pair in transfers(&topology, true) {
                prop_assert!(pair.to.is_some_and(|to| to.pod != pair.from.pod));
            }
        }
    }
}
