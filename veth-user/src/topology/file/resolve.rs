//! From a file that has the right form to a topology that makes sense, or to everything that makes none.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
};

use veth_common::Mac;

use super::{
    diagnostics::Problem,
    document::{self, At, Document, Mixed},
    schema::Findings,
    subnet::Subnet,
    text::{did_you_mean, listed},
};
use crate::{
    net::{address::Cidr, link},
    topology::model::{self, DEFAULT_MTU, Kind, NAME_MAX, SWITCH_PODS_MAX, Topology},
};

/// The name that stands for the machine itself.
const HOST: &str = "host";

/// The addresses of the host on every routed path.
const ROUTE_GATEWAYS: [Cidr; 2] = [
    Cidr { address: IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)), prefix: 32 },
    Cidr { address: IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)), prefix: 64 },
];

type Span = Range<usize>;

/// A path of the file.
struct Path<'d> {
    kind: Kind,
    name: &'d At<String>,
    spec: &'d document::Path,
    members: Vec<Member>,
    subnets: Vec<Subnet>,
    /// Where the subnets are said, or the path's name.
    subnet_span: Span,
    gateways: Vec<(IpAddr, Span)>,
}

/// A port of a path.
struct Member {
    span: Span,
    name: Option<String>,
    mac: Option<Mac>,
    addresses: Vec<IpAddr>,
}

/// A pod that some path names.
struct Pod {
    name: String,
    span: Span,
    namespace: Option<At<String>>,
    sysctls: BTreeMap<String, String>,
    routes: Vec<model::Route>,
    /// Its ports, in order: a path, and which of its members.
    ports: Vec<(usize, usize)>,
}

/// Something that is told as a problem already.
struct Refused;

/// A link between two paths, or a path and the host.
struct Link<'d> {
    name: &'d At<String>,
    spec: &'d document::Link,
    ends: [Option<usize>; 2],
    addresses: Vec<Cidr>,
}

struct Resolver<'d> {
    document: &'d Document,
    findings: Findings,
    paths: Vec<Path<'d>>,
    pods: Vec<Pod>,
    pod_numbers: HashMap<String, usize>,
    links: Vec<Link<'d>>,
    /// For every path the first of those that links join it with.
    domains: Vec<usize>,
    /// Whose every address is.
    taken: HashMap<IpAddr, Span>,
}

/// Makes a topology of a file that has the right form.
pub(super) fn resolve(file: &str, document: &Document, findings: Findings) -> Result<Topology, Vec<Problem>> {
    let mut resolver = Resolver {
        document,
        findings,
        paths: Vec::new(),
        pods: Vec::new(),
        pod_numbers: HashMap::new(),
        links: Vec::new(),
        domains: Vec::new(),
        taken: HashMap::new(),
    };
    let name = resolver.topology_name(file);
    resolver.collect_paths();
    resolver.collect_pods();
    resolver.check_kinds();
    resolver.collect_links();
    resolver.choose_subnets();
    resolver.take_fixed_addresses();
    resolver.describe_pods();
    resolver.give_addresses();
    resolver.give_link_addresses();
    resolver.check_routes();
    if resolver.findings.problems.is_empty() {
        resolver.build(&name)
    } else {
        Err(resolver.findings.problems)
    }
}

impl<'d> Resolver<'d> {
    fn refuse(&mut self, span: Span, message: impl Into<String>, hint: impl Into<String>) {
        self.findings.problems.push(Problem::new(span, message, hint));
    }

    /// Whether something was taken out of a table, so that what lacks in it says nothing.
    fn is_damaged(&self, table: &str) -> bool {
        self.findings.damaged.contains(table)
    }

    /// Whether something was taken out of a path, or out of the top, so that pods or paths may lack.
    fn are_paths_damaged(&self) -> bool {
        self.findings.damaged.iter().any(|place| !place.starts_with("pod.") && !place.starts_with("link."))
    }

    fn check_name(&mut self, name: &str, span: &Span, what: &'static str) {
        if name == HOST && what != "topology" {
            self.refuse(
                span.clone(),
                format!("`{HOST}` is no name for a {what}: it stands for the machine itself"),
                "choose another name",
            );
        } else if let Err(error) = model::check_name(name, what) {
            let better = tidy_name(name);
            let hint = if better.is_empty() {
                format!("use 1 to {NAME_MAX} of a-z, 0-9 and `-`, beginning with a letter or digit")
            } else {
                format!("for instance `{better}`")
            };
            self.refuse(span.clone(), error.to_string(), hint);
        }
    }

    fn topology_name(&mut self, file: &str) -> String {
        if let Some(name) = &self.document.name {
            self.check_name(name.get(), &name.span(), "topology");
            return name.get().clone();
        }
        let stem = std::path::Path::new(file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if model::check_name(&stem, "topology").is_err() && !self.is_damaged("") {
            let better = tidy_name(&stem);
            let better = if better.is_empty() { "lab" } else { &better };
            let message = format!("the topology has no name, and that of the file, `{stem}`, cannot be one");
            self.refuse(0..0, message, format!("begin the file with: name = \"{better}\""));
        }
        stem
    }

    fn collect_paths(&mut self) {
        let document = self.document;
        let tables = [
            (Kind::Switch, &document.switch),
            (Kind::Bridge, &document.bridge),
            (Kind::Ovs, &document.ovs),
            (Kind::Route, &document.route),
            (Kind::Wire, &document.wire),
            (Kind::Direct, &document.direct),
        ];
        for (kind, table) in tables {
            self.paths.extend(table.iter().map(|(name, spec)| Path {
                kind,
                name,
                spec,
                members: Vec::new(),
                subnets: Vec::new(),
                subnet_span: spec.subnet.as_ref().map_or_else(|| name.span(), At::span),
                gateways: Vec::new(),
            }));
        }
        self.paths.sort_by_key(|path| path.name.span().start);
        let mut seen: HashMap<&str, (Kind, Span)> = HashMap::new();
        for number in 0..self.paths.len() {
            let Path { kind, name, .. } = self.paths[number];
            self.check_name(name.get(), &name.span(), "path");
            if let Some((other, first)) = seen.insert(name.get(), (kind, name.span())) {
                let message = format!("`{}` is the name of a {} too", name.get(), other.name());
                let problem = Problem::new(
                    name.span(),
                    message,
                    "paths of all kinds share their names: choose another",
                );
                self.findings.problems.push(problem.beside(first, "the other"));
            }
        }
    }

    fn collect_pods(&mut self) {
        let mut is_first_number = true;
        for number in 0..self.paths.len() {
            let Path { kind, name: path, spec, .. } = self.paths[number];
            let mut names: Vec<(String, Span)> = Vec::new();
            match spec.pods.as_ref().map(|pods| (pods.get(), pods.span())) {
                Some((Mixed::Number(count), span)) => {
                    let prefix = if is_first_number { "pod".to_owned() } else { format!("{}-", path.get()) };
                    is_first_number = false;
                    names.extend((1..=*count).map(|number| (format!("{prefix}{number}"), span.clone())));
                    let longest = names.last().filter(|(name, _)| name.len() > NAME_MAX).cloned();
                    if let Some((longest, span)) = longest {
                        self.refuse(
                            span,
                            format!("pods of it would be called like `{longest}`, which is too long"),
                            "list their names, or shorten the path's",
                        );
                    }
                }
                Some((Mixed::List(list), _)) => {
                    for pod in list {
                        self.check_name(pod.get(), &pod.span(), "pod");
                        let first =
                            names.iter().find(|(name, _)| name == pod.get()).map(|(_, span)| span.clone());
                        match first {
                            Some(_) if matches!(kind, Kind::Wire | Kind::Direct) && list.len() == 2 => {
                                let message =
                                    format!("both ends of {} are the pod `{}`", noun(kind), pod.get());
                                self.refuse(pod.span(), message, "name two different pods");
                            }
                            Some(first) => {
                                let message = format!("the pod `{}` is named twice on this path", pod.get());
                                let problem = Problem::new(
                                    pod.span(),
                                    message,
                                    "a pod has one port on a path: remove one, or name it differently",
                                );
                                self.findings.problems.push(problem.beside(first, "first here"));
                            }
                            None => names.push((pod.get().clone(), pod.span())),
                        }
                    }
                    if matches!(kind, Kind::Wire | Kind::Direct) && list.len() == 2 && names.len() == 1 {
                        // Said already.
                        names.push((String::new(), path.span()));
                    }
                }
                _ => {}
            }
            self.check_count(number, names.len());
            names.retain(|(name, _)| !name.is_empty());
            for (name, span) in names {
                let pods = &mut self.pods;
                let pod = *self.pod_numbers.entry(name.clone()).or_insert_with(|| {
                    pods.push(Pod {
                        name,
                        span: span.clone(),
                        namespace: None,
                        sysctls: BTreeMap::new(),
                        routes: Vec::new(),
                        ports: Vec::new(),
                    });
                    pods.len() - 1
                });
                let members = &mut self.paths[number].members;
                self.pods[pod].ports.push((number, members.len()));
                members.push(Member { span, name: None, mac: None, addresses: Vec::new() });
            }
        }
    }

    fn check_count(&mut self, number: usize, count: usize) {
        let Path { kind, name, spec, .. } = self.paths[number];
        let span = spec.pods.as_ref().map_or_else(|| name.span(), At::span);
        let kind_name = noun(kind);
        match kind {
            Kind::Wire | Kind::Direct if count != 2 && !self.is_damaged(&self.table_of(number)) => {
                let hint = if count > 2 {
                    format!("more than two pods need a switch: [switch.{}]", name.get())
                } else {
                    "name two: pods = [\"a\", \"b\"]".to_owned()
                };
                self.refuse(span, format!("{kind_name} connects exactly 2 pods, not {count}"), hint);
            }
            Kind::Switch | Kind::Bridge | Kind::Ovs if count > SWITCH_PODS_MAX => {
                let message = format!("{count} pods are too many: {kind_name} takes {SWITCH_PODS_MAX}");
                self.refuse(span, message, "spread them over several, joined by [link.NAME]");
            }
            _ => {}
        }
    }

    /// Refuses what makes no sense for a kind of path.
    fn check_kinds(&mut self) {
        for number in 0..self.paths.len() {
            let Path { kind, spec, .. } = self.paths[number];
            let (is_pair, is_route) = (matches!(kind, Kind::Wire | Kind::Direct), kind == Kind::Route);
            let kind_name = noun(kind);
            if let Some(gateway) = &spec.gateway {
                if is_pair {
                    self.refuse(
                        gateway.span(),
                        format!("{kind_name} has no gateway: the host has no part in it"),
                        "remove it, or use a switch of two pods",
                    );
                } else if is_route {
                    self.refuse(
                        gateway.span(),
                        "the gateways of a routed path are always 169.254.1.1 and fe80::1",
                        "remove it",
                    );
                }
            }
            if let Some(outside) = spec.outside.as_ref().filter(|outside| *outside.get()) {
                if is_pair {
                    self.refuse(
                        outside.span(),
                        format!("the pods of {kind_name} cannot reach the outside by it"),
                        "remove it, or use a switch of two pods",
                    );
                } else if spec.gateway.as_ref().is_some_and(|gateway| *gateway.get() == Mixed::Truth(false)) {
                    self.refuse(
                        outside.span(),
                        "pods reach the outside by the gateway, and there is to be none",
                        "remove `gateway = false`",
                    );
                }
            }
            if let Some(check) = spec.spoof_check.as_ref().filter(|check| *check.get())
                && !kind.is_accelerated()
            {
                let message = format!(
                    "nothing checks the sources of frames on {kind_name}: no program of ours sees them"
                );
                self.refuse(check.span(), message, "remove it, or use a switch");
            }
            if let Some(counters) = spec.counters.as_ref().filter(|counters| !*counters.get())
                && kind.is_accelerated()
            {
                let message = format!("{kind_name} always counts: its programs see every frame anyway");
                self.refuse(counters.span(), message, "remove it, or use a bridge or a direct pair");
            }
            if let Some(neighbours) = spec.neighbours.as_ref().filter(|neighbours| *neighbours.get())
                && is_route
            {
                self.refuse(
                    neighbours.span(),
                    "pods on a routed path are no neighbours of each other",
                    "remove it",
                );
            }
        }
    }

    fn collect_links(&mut self) {
        self.domains = (0..self.paths.len()).collect();
        let mut links: Vec<_> = self.document.link.iter().collect();
        links.sort_by_key(|(name, _)| name.span().start);
        for (name, spec) in links {
            self.check_name(name.get(), &name.span(), "link");
            let Some(between) = &spec.between else {
                if !self.is_damaged(&format!("link.{}", name.get())) {
                    self.refuse(
                        name.span(),
                        format!("the link `{}` has no ends", name.get()),
                        "add what it connects: between = [\"SWITCH\", \"SWITCH\"]",
                    );
                }
                continue;
            };
            let [a, b] = between.get().as_slice() else {
                if !self.is_damaged(&format!("link.{}", name.get())) {
                    self.refuse(
                        between.span(),
                        format!("a link has 2 ends, not {}", between.get().len()),
                        "between = [\"SWITCH\", \"SWITCH\"]",
                    );
                }
                continue;
            };
            let (Ok(first), Ok(second)) = (self.link_end(a), self.link_end(b)) else { continue };
            match (first, second) {
                (None, None) => {
                    self.refuse(
                        between.span(),
                        "both ends of the link are the host",
                        "one end must be a switch, a bridge or an Open vSwitch",
                    );
                    continue;
                }
                (Some(first), Some(second)) => {
                    let (first, second) = (self.domains[first], self.domains[second]);
                    if first == second {
                        let message = format!(
                            "this link closes a loop: `{}` and `{}` are joined already",
                            a.get(),
                            b.get()
                        );
                        self.refuse(between.span(), message, "remove one link of the loop: there is no spanning tree, and a broadcast would circle for ever");
                        continue;
                    }
                    let (keep, join) = (first.min(second), first.max(second));
                    self.domains
                        .iter_mut()
                        .filter(|domain| **domain == join)
                        .for_each(|domain| *domain = keep);
                    if let Some(address) = &spec.address {
                        self.refuse(
                            address.span(),
                            "a link between two switches has no address",
                            "remove it; only an end at `host` has one",
                        );
                    }
                }
                _ => {}
            }
            self.links.push(Link { name, spec, ends: [first, second], addresses: Vec::new() });
        }
    }

    /// A path that can have links, the host, or a problem.
    fn link_end(&mut self, name: &At<String>) -> Result<Option<usize>, Refused> {
        if name.get() == HOST {
            return Ok(None);
        }
        let takes_links = |path: &Path<'_>| matches!(path.kind, Kind::Switch | Kind::Bridge | Kind::Ovs);
        let Some(number) = self.paths.iter().position(|path| path.name.get() == name.get()) else {
            if !self.are_paths_damaged() {
                let mut known: Vec<&str> = self
                    .paths
                    .iter()
                    .filter(|path| takes_links(path))
                    .map(|path| path.name.get().as_str())
                    .collect();
                known.push(HOST);
                let hint = did_you_mean(name.get(), known.iter().copied())
                    .unwrap_or_else(|| format!("it can be {}", listed(&known)));
                self.refuse(name.span(), format!("there is no switch `{}`", name.get()), hint);
            }
            return Err(Refused);
        };
        let path = &self.paths[number];
        if !takes_links(path) {
            let message = format!("`{}` is {}, where no link can end", name.get(), noun(path.kind));
            self.refuse(name.span(), message, "a link ends at a switch, a bridge, an Open vSwitch or `host`");
            return Err(Refused);
        }
        Ok(Some(number))
    }

    fn choose_subnets(&mut self) {
        for number in 0..self.paths.len() {
            let Some(subnet) = &self.paths[number].spec.subnet else { continue };
            for text in texts(subnet) {
                let Some(subnet) = self.parse_subnet(&text) else { continue };
                self.check_overlap(number, subnet, &text.span());
                self.paths[number].subnets.push(subnet);
            }
            if texts(subnet).is_empty() && !self.is_damaged(&self.table_of(number)) {
                self.refuse(
                    subnet.span(),
                    "the list of subnets is empty",
                    "name one, or leave `subnet` out for one that is free",
                );
            }
        }
        for number in 0..self.paths.len() {
            if self.paths[number].spec.subnet.is_some() {
                continue;
            }
            let domain = self.domains[number];
            let shared = (0..self.paths.len())
                .find(|&other| self.domains[other] == domain && !self.paths[other].subnets.is_empty());
            let subnets = match shared {
                Some(other) => self.paths[other].subnets.clone(),
                None => self.free_subnets(number),
            };
            if subnets.is_empty() {
                self.refuse(
                    self.paths[number].name.span(),
                    "no private subnet is left for this path",
                    "choose one: subnet = \"…\"",
                );
            }
            self.paths[number].subnets = subnets;
        }
    }

    fn table_of(&self, number: usize) -> String {
        format!("{}.{}", self.paths[number].kind.name(), self.paths[number].name.get())
    }

    fn parse_subnet(&mut self, text: &At<String>) -> Option<Subnet> {
        let Ok(cidr) = text.get().parse::<Cidr>() else {
            let hint = match text.get().parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => format!("add the length of the prefix: {}/24", text.get()),
                Ok(IpAddr::V6(_)) => format!("add the length of the prefix: {}/64", text.get()),
                Err(_) => "write it like 10.1.0.0/24 or fd00:1::/64".to_owned(),
            };
            self.refuse(text.span(), format!("`{}` is no subnet", text.get()), hint);
            return None;
        };
        let subnet = Subnet::of(cidr);
        if subnet.to_string() != cidr.to_string() {
            let message = format!("`{}` is an address in a subnet, not a subnet", text.get());
            self.refuse(text.span(), message, format!("the subnet is {subnet}"));
            return None;
        }
        let address = cidr.address;
        let is_link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        if cidr.prefix == 0
            || address.is_multicast()
            || address.is_loopback()
            || address.is_unspecified()
            || is_link_local
        {
            self.refuse(
                text.span(),
                format!("pods cannot have addresses out of {subnet}"),
                "choose a private one, like 10.1.0.0/24 or fd00:1::/64",
            );
            return None;
        }
        Some(subnet)
    }

    /// Refuses a subnet that is another path's too, unless a link joins both.
    fn check_overlap(&mut self, number: usize, subnet: Subnet, span: &Span) {
        for other in 0..=number {
            if other != number && self.domains[other] == self.domains[number] {
                continue;
            }
            let Some(met) = self.paths[other].subnets.iter().copied().find(|met| met.overlaps(subnet)) else {
                continue;
            };
            let other = &self.paths[other];
            let whose = if std::ptr::eq(other, &raw const self.paths[number]) {
                "of the same path".to_owned()
            } else {
                format!("of the {} `{}`", other.kind.name(), other.name.get())
            };
            let problem = Problem::new(
                span.clone(),
                format!("{subnet} overlaps with {met} {whose}"),
                "choose another, or leave `subnet` out for one that is free",
            );
            let beside = other.subnet_span.clone();
            self.findings.problems.push(problem.beside(beside, "the other"));
            return;
        }
    }

    /// A private subnet of each family that no path has.
    fn free_subnets(&self, number: usize) -> Vec<Subnet> {
        let is_free = |subnet: &Subnet| {
            !self.paths.iter().flat_map(|path| &path.subnets).any(|other| other.overlaps(*subnet))
        };
        // The digits of the IPv4 network are those of the IPv6 network: 10.201.0.0/16 and fd00:201::/64.
        let pairs = (number..number + 56)
            .map(|index| 200 + index % 56)
            .map(|index| [format!("10.{index}.0.0/16"), format!("fd00:{index}::/64")]);
        let pairs = pairs.map(|pair| pair.map(|text| text.parse().map(Subnet::of)));
        for pair in pairs {
            if let [Ok(four), Ok(six)] = pair
                && is_free(&four)
                && is_free(&six)
            {
                return vec![four, six];
            }
        }
        Vec::new()
    }

    /// An address for something on a path, out of one of its subnets.
    fn parse_address(&mut self, path: usize, text: &At<String>) -> Option<(IpAddr, Subnet)> {
        let (address, prefix) = match (text.get().parse::<IpAddr>(), text.get().parse::<Cidr>()) {
            (Ok(address), _) => (address, None),
            (_, Ok(cidr)) => (cidr.address, Some(cidr.prefix)),
            _ => {
                self.refuse(
                    text.span(),
                    format!("`{}` is no IP address", text.get()),
                    "write it like 10.1.0.5 or fd00:1::5",
                );
                return None;
            }
        };
        let Path { kind, ref subnets, ref subnet_span, name, .. } = self.paths[path];
        let Some(subnet) = subnets.iter().copied().find(|subnet| subnet.contains(address)) else {
            if subnets.is_empty() {
                return None;
            }
            let known: Vec<String> = subnets.iter().map(ToString::to_string).collect();
            let problem = Problem::new(
                text.span(),
                format!("{address} is outside the subnet of `{}`", name.get()),
                format!("choose one out of {}", known.join(" or ")),
            );
            self.findings.problems.push(problem.beside(subnet_span.clone(), "the subnet"));
            return None;
        };
        if !subnet.is_usable(address) {
            let first = subnet.addresses().next().map_or_else(String::new, |first| first.to_string());
            self.refuse(
                text.span(),
                format!("{address} stands for the subnet {subnet} itself"),
                format!("choose another address, from {first}"),
            );
            return None;
        }
        let right = if kind == Kind::Route { subnet.alone(address) } else { subnet.with(address) };
        if prefix.is_some_and(|prefix| prefix != right.prefix) {
            let message = format!("an address of `{}` has a prefix length of {}", name.get(), right.prefix);
            self.refuse(text.span(), message, format!("write {address}, or {right}"));
            return None;
        }
        Some((address, subnet))
    }

    fn take(&mut self, address: IpAddr, span: &Span) -> bool {
        if let Some(first) = self.taken.get(&address) {
            let problem = Problem::new(
                span.clone(),
                format!("the address {address} is used twice"),
                "every address belongs to one: choose another explicitly",
            );
            self.findings.problems.push(problem.beside(first.clone(), "first here"));
            return false;
        }
        self.taken.insert(address, span.clone());
        true
    }

    /// Everything that is said of the path's ports and gateways by address, before others get what is left.
    fn take_fixed_addresses(&mut self) {
        for (_, port, path, member) in self.port_tables() {
            for text in port.address.as_ref().map(texts).unwrap_or_default() {
                if let Some((address, _)) = self.parse_address(path, &text)
                    && self.take(address, &text.span())
                {
                    self.paths[path].members[member].addresses.push(address);
                }
            }
        }
        for number in 0..self.paths.len() {
            let Path { kind, spec, .. } = self.paths[number];
            if matches!(kind, Kind::Wire | Kind::Direct | Kind::Route) {
                continue;
            }
            let outside = spec.outside.as_ref().filter(|outside| *outside.get());
            let usual = match spec.gateway.as_ref().map(|gateway| (gateway.get(), gateway)) {
                None => outside.map(At::span),
                Some((Mixed::Truth(wanted), gateway)) => wanted.then(|| gateway.span()),
                Some((_, gateway)) => {
                    for text in texts(gateway) {
                        if let Some((address, _)) = self.parse_address(number, &text)
                            && self.take(address, &text.span())
                        {
                            self.paths[number].gateways.push((address, text.span()));
                        }
                    }
                    None
                }
            };
            let Some(span) = usual else { continue };
            for subnet in self.paths[number].subnets.clone() {
                if let Some(address) = subnet.addresses().next()
                    && self.take(address, &span)
                {
                    self.paths[number].gateways.push((address, span.clone()));
                }
            }
        }
        for index in 0..self.links.len() {
            let Link { spec, ends, .. } = self.links[index];
            let ([Some(path), None] | [None, Some(path)]) = ends else { continue };
            for text in spec.address.as_ref().map(texts).unwrap_or_default() {
                if let Some((address, subnet)) = self.parse_address(path, &text)
                    && self.take(address, &text.span())
                {
                    self.links[index].addresses.push(subnet.with(address));
                }
            }
        }
    }

    /// Every `[pod.NAME.port.PATH]` whose pod and path there are: pod, table, path, member.
    fn port_tables(&self) -> Vec<(usize, &'d document::Port, usize, usize)> {
        let mut tables = Vec::new();
        for (name, spec) in &self.document.pod {
            let Some(&pod) = self.pod_numbers.get(name.get()) else { continue };
            for (path, port) in &spec.port {
                let key = path.span().start;
                let found = self.pods[pod]
                    .ports
                    .iter()
                    .find(|(number, _)| self.paths[*number].name.get() == path.get());
                tables.extend(found.map(|&(path, member)| (key, pod, port, path, member)));
            }
        }
        tables.sort_by_key(|(key, ..)| *key);
        tables.into_iter().map(|(_, pod, port, path, member)| (pod, port, path, member)).collect()
    }

    fn describe_pods(&mut self) {
        let mut tables: Vec<_> = self.document.pod.iter().collect();
        tables.sort_by_key(|(name, _)| name.span().start);
        for (name, spec) in tables {
            let Some(&pod) = self.pod_numbers.get(name.get()) else {
                if !self.are_paths_damaged() {
                    let known = self.pods.iter().map(|pod| pod.name.as_str());
                    let hint = did_you_mean(name.get(), known)
                        .unwrap_or_else(|| "name it in the `pods` of a path".to_owned());
                    self.refuse(name.span(), format!("no path has a pod `{}`", name.get()), hint);
                }
                continue;
            };
            if let Some(namespace) = &spec.namespace {
                self.check_namespace(namespace);
                self.pods[pod].namespace = Some(namespace.clone());
            }
            for (key, value) in &spec.sysctl {
                self.check_sysctl(key, value);
                let value = match value.get() {
                    Mixed::Truth(value) => u8::from(*value).to_string(),
                    Mixed::Number(value) => value.to_string(),
                    Mixed::Text(value) => value.clone(),
                    Mixed::List(_) => continue,
                };
                self.pods[pod].sysctls.insert(key.get().clone(), value);
            }
            for path in spec.port.keys() {
                let names: Vec<&str> = self.pods[pod]
                    .ports
                    .iter()
                    .map(|(path, _)| self.paths[*path].name.get().as_str())
                    .collect();
                if !names.contains(&path.get().as_str()) && !self.are_paths_damaged() {
                    let hint = did_you_mean(path.get(), names.iter().copied())
                        .unwrap_or_else(|| format!("it is on {}", listed(&names)));
                    self.refuse(
                        path.span(),
                        format!("the pod `{}` is on no path `{}`", name.get(), path.get()),
                        hint,
                    );
                }
            }
        }
        let mut macs: HashMap<Mac, Span> = HashMap::new();
        for (_, port, path, member) in self.port_tables() {
            if let Some(name) = &port.name {
                self.check_interface(name);
                self.paths[path].members[member].name = Some(name.get().clone());
            }
            let Some(text) = &port.mac else { continue };
            let Some(mac) = self.parse_mac(text) else { continue };
            if let Some(first) = macs.insert(mac, text.span()) {
                let problem = Problem::new(
                    text.span(),
                    format!("the Ethernet address {mac} is used twice"),
                    "every port has its own: choose another",
                );
                self.findings.problems.push(problem.beside(first, "first here"));
            }
            self.paths[path].members[member].mac = Some(mac);
        }
        self.check_interfaces_differ();
    }

    fn check_namespace(&mut self, name: &At<String>) {
        let text = name.get();
        if !model::is_namespace_name(text) {
            self.refuse(
                name.span(),
                format!("`{text}` cannot be the name of a network namespace"),
                "it is a file's name: letters, digits, `-`, `_` and `.`",
            );
        }
    }

    fn check_interface(&mut self, name: &At<String>) {
        let text = name.get();
        let rule = format!("use 1 to {} letters, digits, `-`, `_` or `.`", link::NAME_MAX);
        if text.len() > link::NAME_MAX {
            let message = format!(
                "`{text}` has {} bytes, and the name of an interface at most {}",
                text.len(),
                link::NAME_MAX
            );
            self.refuse(
                name.span(),
                message,
                format!("for instance `{}`", text.chars().take(link::NAME_MAX).collect::<String>()),
            );
        } else if !model::is_interface_name(text) {
            self.refuse(name.span(), format!("`{text}` cannot be the name of an interface"), rule);
        }
    }

    /// Refuses two interfaces of a pod with one name, where at least one was said.
    fn check_interfaces_differ(&mut self) {
        let tables = self.port_tables();
        for pod in 0..self.pods.len() {
            let mut seen: HashMap<String, Span> = HashMap::new();
            for (index, &(path, member)) in self.pods[pod].ports.clone().iter().enumerate() {
                let explicit = tables.iter().find(|(.., at, number)| (*at, *number) == (path, member));
                let explicit = explicit.and_then(|(_, port, ..)| port.name.as_ref());
                let name = explicit.map_or_else(|| format!("eth{index}"), |name| name.get().clone());
                let span = explicit.map_or_else(|| self.paths[path].members[member].span.clone(), At::span);
                if let Some(first) = seen.insert(name.clone(), span.clone()) {
                    let message =
                        format!("two interfaces of the pod `{}` are called `{name}`", self.pods[pod].name);
                    let problem = Problem::new(span, message, "name one of them differently");
                    self.findings.problems.push(problem.beside(first, "the other"));
                }
            }
        }
    }

    fn check_sysctl(&mut self, key: &At<String>, value: &At<Mixed>) {
        let name = key.get();
        let fits = name.split('.').all(|part| !part.is_empty())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
        if !fits {
            let hint = if name.contains('/') {
                format!("with dots: \"{}\"", name.trim_start_matches("/proc/sys/").replace('/', "."))
            } else {
                "write it as sysctl does: \"net.ipv4.ip_forward\"".to_owned()
            };
            self.refuse(key.span(), format!("`{name}` is no kernel parameter"), hint);
        } else if !name.starts_with("net.") {
            self.refuse(
                key.span(),
                format!("`{name}` belongs to the whole machine, not to a pod"),
                "only what begins with `net.` is a network namespace's own",
            );
        }
        if matches!(value.get(), Mixed::Text(text) if text.contains(['\n', '\0'])) {
            self.refuse(value.span(), "the value of a kernel parameter is one line", "remove the line break");
        }
    }

    fn parse_mac(&mut self, text: &At<String>) -> Option<Mac> {
        let bytes: Option<Vec<u8>> = text
            .get()
            .split(':')
            .map(|byte| {
                let is_hex = byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
                is_hex.then(|| u8::from_str_radix(byte, 16).ok()).flatten()
            })
            .collect();
        let Some(bytes) = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()) else {
            self.refuse(
                text.span(),
                format!("`{}` is no Ethernet address", text.get()),
                "write six bytes, as 02:00:00:00:00:01",
            );
            return None;
        };
        let mac = Mac::new(bytes);
        if !mac.is_valid_source() {
            let problem = if mac.is_zero() { "is nobody's" } else { "is a group's" };
            self.refuse(
                text.span(),
                format!("the Ethernet address {mac} {problem}"),
                "begin it with 02, as 02:00:00:00:00:01",
            );
            return None;
        }
        Some(mac)
    }

    /// Gives every port an address of each subnet in which it has none yet.
    fn give_addresses(&mut self) {
        for number in 0..self.paths.len() {
            for subnet in self.paths[number].subnets.clone() {
                self.give_addresses_of(number, subnet);
            }
        }
    }

    fn give_addresses_of(&mut self, number: usize, subnet: Subnet) {
        let fixed: HashSet<IpAddr> = self.taken.keys().copied().collect();
        let mut free = subnet.addresses().filter(|address| !fixed.contains(address));
        for member in 0..self.paths[number].members.len() {
            // Who has an address keeps the place in the row, so that saying it moves nobody else.
            let place = free.next();
            let Member { span, addresses, .. } = &mut self.paths[number].members[member];
            if addresses.iter().any(|address| subnet.contains(*address)) {
                continue;
            }
            let address =
                place.or_else(|| subnet.addresses().find(|address| !self.taken.contains_key(address)));
            let Some(address) = address else {
                self.too_small(number, subnet);
                return;
            };
            addresses.push(address);
            self.taken.insert(address, span.clone());
        }
    }

    fn too_small(&mut self, number: usize, subnet: Subnet) {
        let Path { name, subnet_span, members, .. } = &self.paths[number];
        let room = subnet.addresses().count();
        let others = self.taken.keys().filter(|address| subnet.contains(**address)).count();
        let has = |member: &&Member| !member.addresses.iter().any(|address| subnet.contains(*address));
        let wanted = others + members.iter().filter(has).count();
        let message = format!(
            "{subnet} is too small for the pods of `{}`: it has {room} addresses for {wanted}",
            name.get()
        );
        let hint = match subnet.enough_for(wanted) {
            Some(wider) => format!("{wider} is large enough"),
            None => "choose a larger one".to_owned(),
        };
        self.refuse(subnet_span.clone(), message, hint);
    }

    fn give_link_addresses(&mut self) {
        for index in 0..self.links.len() {
            let Link { name, spec, ends, .. } = self.links[index];
            let ([Some(path), None] | [None, Some(path)]) = ends else { continue };
            if spec.address.is_some() {
                continue;
            }
            for subnet in self.paths[path].subnets.clone() {
                let address = subnet.addresses().find(|address| !self.taken.contains_key(address));
                match address {
                    Some(address) => {
                        self.taken.insert(address, name.span());
                        self.links[index].addresses.push(subnet.with(address));
                    }
                    None => self.refuse(
                        name.span(),
                        format!("{subnet} has no address left for the host"),
                        "choose a larger subnet",
                    ),
                }
            }
        }
    }

    fn check_routes(&mut self) {
        let mut tables: Vec<_> = self.document.pod.iter().collect();
        tables.sort_by_key(|(name, _)| name.span().start);
        for (name, spec) in tables {
            let Some(&pod) = self.pod_numbers.get(name.get()) else { continue };
            for route in &spec.routes {
                if let Some(route) = self.route(name, pod, route) {
                    self.pods[pod].routes.push(route);
                }
            }
        }
    }

    #[expect(clippy::too_many_lines, reason = "one thing after the other, each with its own way out")]
    fn route(&mut self, name: &At<String>, pod: usize, route: &document::Route) -> Option<model::Route> {
        let document::Route { to, via, port } = route;
        let Some(to) = to else {
            if !self.is_damaged(&format!("pod.{}", name.get())) {
                let span = via.as_ref().or(port.as_ref()).map_or_else(|| name.span(), At::span);
                self.refuse(
                    span,
                    "a route without a target",
                    "add where to: to = \"10.9.0.0/16\", or to = \"default\"",
                );
            }
            return None;
        };
        let via = match via.as_ref().map(|via| (via, via.get().parse::<IpAddr>())) {
            None => None,
            Some((via, Ok(address))) => Some((address, via.span())),
            Some((via, Err(_))) => {
                self.refuse(
                    via.span(),
                    format!("`{}` is no IP address", via.get()),
                    "name a neighbour, as 10.1.0.1, without the length of a prefix",
                );
                return None;
            }
        };
        let to_span = to.span();
        let to = self.route_target(to, via.as_ref().map(|(address, _)| *address))?;
        if let Some((address, span)) = &via
            && address.is_ipv4() != to.address.is_ipv4()
        {
            self.refuse(
                span.clone(),
                format!("{address} is no way to {to}: one is IPv4, the other IPv6"),
                "use the same family for both",
            );
            return None;
        }
        let ports = self.pods[pod].ports.clone();
        let named = match port {
            None => None,
            Some(port) => {
                let names: Vec<&str> =
                    ports.iter().map(|(path, _)| self.paths[*path].name.get().as_str()).collect();
                let Some(index) = names.iter().position(|name| name == port.get()) else {
                    let hint = did_you_mean(port.get(), names.iter().copied())
                        .unwrap_or_else(|| format!("it is on {}", listed(&names)));
                    self.refuse(
                        port.span(),
                        format!("the pod `{}` is on no path `{}`", name.get(), port.get()),
                        hint,
                    );
                    return None;
                };
                Some(index)
            }
        };
        let reaches = |path: usize, via: IpAddr| {
            let Path { kind, subnets, .. } = &self.paths[path];
            if *kind == Kind::Route {
                ROUTE_GATEWAYS.iter().any(|gateway| gateway.address == via)
            } else {
                matches!(via, IpAddr::V6(via) if via.is_unicast_link_local())
                    || subnets.iter().any(|subnet| subnet.contains(via))
            }
        };
        let port = match (named, &via) {
            (Some(index), None) => index,
            (Some(index), Some((via, _))) if reaches(ports[index].0, *via) => index,
            (None, None) if ports.len() == 1 => 0,
            (None, None) => {
                self.refuse(
                    to_span,
                    "this route says neither `via` nor `port`, and the pod has several ports",
                    "add via = \"ADDRESS\", or port = \"PATH\"",
                );
                return None;
            }
            (_, Some((via, span))) => {
                let found = ports.iter().position(|(path, _)| named.is_none() && reaches(*path, *via));
                let Some(index) = found else {
                    let known: Vec<String> = ports
                        .iter()
                        .flat_map(|(path, _)| &self.paths[*path].subnets)
                        .map(ToString::to_string)
                        .collect();
                    let is_routed = ports.iter().any(|(path, _)| self.paths[*path].kind == Kind::Route);
                    let hint = if is_routed {
                        "on a routed path the neighbour is 169.254.1.1 or fe80::1".to_owned()
                    } else {
                        format!("choose an address out of {}", known.join(" or "))
                    };
                    self.refuse(
                        span.clone(),
                        format!("{via} is no neighbour of the pod `{}`", name.get()),
                        hint,
                    );
                    return None;
                };
                index
            }
        };
        Some(model::Route { to, via: via.map(|(address, _)| address), port })
    }

    fn route_target(&mut self, to: &At<String>, via: Option<IpAddr>) -> Option<Cidr> {
        if to.get() == "default" {
            return match via {
                Some(IpAddr::V4(_)) => Some(Cidr { address: Ipv4Addr::UNSPECIFIED.into(), prefix: 0 }),
                Some(IpAddr::V6(_)) => Some(Cidr { address: Ipv6Addr::UNSPECIFIED.into(), prefix: 0 }),
                None => {
                    self.refuse(to.span(), "a default route needs a neighbour", "add via = \"ADDRESS\"");
                    None
                }
            };
        }
        let cidr = match (to.get().parse::<Cidr>(), to.get().parse::<IpAddr>()) {
            (Ok(cidr), _) => cidr,
            (_, Ok(address)) => Cidr { address, prefix: if address.is_ipv4() { 32 } else { 128 } },
            _ => {
                let hint = did_you_mean(to.get(), ["default"])
                    .unwrap_or_else(|| "write a network as 10.9.0.0/16, an address, or `default`".to_owned());
                self.refuse(to.span(), format!("`{}` is no target of a route", to.get()), hint);
                return None;
            }
        };
        let subnet = Subnet::of(cidr);
        if subnet.to_string() != cidr.to_string() {
            self.refuse(
                to.span(),
                format!("`{}` is an address in a network, not a network", to.get()),
                format!("the network is {subnet}"),
            );
            return None;
        }
        Some(cidr)
    }

    /// Makes the topology of what has no problem.
    fn build(&self, name: &str) -> Result<Topology, Vec<Problem>> {
        let document = self.document;
        let mut topology = Topology::empty(name);
        topology.hook = document.hook.unwrap_or_default();
        topology.redirect = document.redirect.unwrap_or_default();
        topology.place = document.place.unwrap_or_default();
        topology.ebpf_log = document.ebpf_log.unwrap_or_default();
        for path in &self.paths {
            let Path { kind, name, spec, subnets, gateways, .. } = path;
            let mtu = spec.mtu.or(document.mtu).unwrap_or(DEFAULT_MTU);
            let number = topology.add_path(name.get(), *kind, mtu);
            let with_prefix = |address: IpAddr| {
                subnets.iter().find(|subnet| subnet.contains(address)).map(|subnet| subnet.with(address))
            };
            let made = &mut topology.paths[number];
            made.subnets = subnets.iter().map(|subnet| subnet.network()).collect();
            made.queues = spec.queues.or(document.queues).unwrap_or(1);
            made.gateway = if *kind == Kind::Route {
                let is_used = |gateway: &Cidr| {
                    subnets.iter().any(|subnet| subnet.is_ipv4() == gateway.address.is_ipv4())
                };
                ROUTE_GATEWAYS.into_iter().filter(is_used).collect()
            } else {
                gateways.iter().filter_map(|(address, _)| with_prefix(*address)).collect()
            };
            let is_set = |wish: &Option<At<bool>>| wish.as_ref().is_some_and(|wish| *wish.get());
            made.outside = is_set(&spec.outside);
            made.spoof_check = is_set(&spec.spoof_check);
            made.counters = is_set(&spec.counters);
            made.neighbours = is_set(&spec.neighbours);
            made.tune.big_tcp = spec.tune.big_tcp.or(document.tune.big_tcp).unwrap_or_default();
            made.tune.gro = spec.tune.gro.or(document.tune.gro).unwrap_or_default();
        }
        // Who has every link of the host's namespace, to say whose names clash.
        let mut links: Vec<(String, Span)> = Vec::new();
        for (path, bridge) in topology.bridges() {
            let span =
                self.paths.iter().find(|other| *other.name.get() == path.name).map(|path| path.name.span());
            links.push((bridge.link.clone(), span.unwrap_or_default()));
        }
        for pod in &self.pods {
            let made = topology.add_pod(&pod.name);
            for &(path, member) in &pod.ports {
                let Member { span, name, mac, addresses, .. } = &self.paths[path].members[member];
                let Path { kind, subnets, .. } = &self.paths[path];
                // In the order of the subnets.
                let addresses =
                    subnets.iter().flat_map(|subnet| {
                        let own = addresses.iter().filter(|address| subnet.contains(**address));
                        own.map(|&address| {
                            if *kind == Kind::Route { subnet.alone(address) } else { subnet.with(address) }
                        })
                    });
                let addresses = addresses.collect();
                let port = topology.add_port(made, path, addresses);
                if let Some(mac) = mac {
                    port.mac = *mac;
                }
                links.push((port.host_link.clone(), span.clone()));
                if let Some(name) = name {
                    port.name.clone_from(name);
                }
            }
            let made = &mut topology.pods[made];
            made.sysctls.clone_from(&pod.sysctls);
            made.routes.clone_from(&pod.routes);
            if let Some(namespace) = &pod.namespace {
                made.namespace.clone_from(namespace.get());
            }
        }
        for Link { name, spec, ends, addresses } in &self.links {
            let smallest = ends.iter().flatten().map(|path| topology.paths[*path].mtu).min();
            let mtu = spec.mtu.or(smallest).unwrap_or(DEFAULT_MTU);
            let cable = topology.add_cable(name.get(), mtu, *ends);
            for end in &mut cable.ends {
                if end.path.is_none() {
                    end.addresses.clone_from(addresses);
                }
                links.push((end.link.clone(), name.span()));
            }
        }
        topology.number_slots(None);
        let mut problems = self.namespace_clashes(&topology);
        let mut seen: HashMap<String, Span> = HashMap::new();
        for (link, span) in links {
            if link.is_empty() {
                continue;
            }
            let problem = Problem::new(
                span.clone(),
                format!("two interfaces of the host would be called `{link}`"),
                "pods, paths and links name interfaces of the host after themselves: choose another name for one",
            );
            if let Some(first) = seen.insert(link, span) {
                problems.push(problem.beside(first, "the other"));
            }
        }
        if problems.is_empty()
            && let Err(error) = topology.validate()
        {
            problems.push(Problem::new(0..0, error.to_string(), "change the names that are concerned"));
        }
        if problems.is_empty() { Ok(topology) } else { Err(problems) }
    }

    fn namespace_clashes(&self, topology: &Topology) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut seen: HashMap<&str, Span> = HashMap::new();
        for (pod, made) in self.pods.iter().zip(&topology.pods) {
            let span = pod.namespace.as_ref().map_or_else(|| pod.span.clone(), At::span);
            if let Some(first) = seen.insert(&made.namespace, span.clone()) {
                let message = format!("two pods would have the network namespace `{}`", made.namespace);
                let problem =
                    Problem::new(span, message, "every pod has its own: name one of them differently");
                problems.push(problem.beside(first, "the other"));
            }
        }
        problems
    }
}

/// A kind of path, as sentences have it.
const fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::Direct => "a direct pair",
        Kind::Wire => "a wire",
        Kind::Switch => "a switch",
        Kind::Bridge => "a bridge",
        Kind::Route => "a routed path",
        Kind::Ovs => "an Open vSwitch",
    }
}

/// One text or several, each with its place.
fn texts(value: &At<Mixed>) -> Vec<At<String>> {
    match value.get() {
        Mixed::Text(text) => vec![At::new(value.span(), text.clone())],
        Mixed::List(list) => list.clone(),
        Mixed::Truth(_) | Mixed::Number(_) => Vec::new(),
    }
}

/// A name that can be used, as near as possible to one that cannot.
fn tidy_name(name: &str) -> String {
    let name = name.to_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    let name: String = name.trim_matches('-').chars().take(NAME_MAX).collect();
    if name == HOST { format!("{HOST}-1") } else { name.trim_end_matches('-').to_owned() }
}
