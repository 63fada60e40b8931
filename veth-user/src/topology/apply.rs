//! Does what a plan says.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use veth_common::{FdbKey, Port as PortEntry, PortKind, RedirectMode, Target};

use super::{
    Error, Kind, Path, Pod, Port, Topology,
    entries::{fdb_key, mode, port_entry, target},
    features,
    model::{Bridge, Cable, CableEnd},
    observe,
    ownership::Ownership,
    plan::{Gone, Step},
    teardown::{self, hurry, stop_hurrying},
    up::Progress,
    upgrade,
};
use crate::{
    datapath::{
        self, Datapath, Hook, LoadOptions, Redirect,
        attach::InnerEnd,
        object,
        pins::{self, Pins},
    },
    hooks,
    net::{
        self, Netlink, Netns,
        address::Cidr,
        forwarding,
        link::{self, End, Link, Pair},
        netns,
        ovs::{self, Ovs},
        route::Route,
        sysctl,
    },
    probe,
    state::{Record, Roots},
};

/// How long a link may take to carry frames after it was set up. It is a few milliseconds, unless others keep the kernel busy
/// with links: it looks at them in turn.
const READY_MAX: Duration = Duration::from_mins(1);

/// How often that is looked at.
const READY_POLL: Duration = Duration::from_millis(1);

/// Up to so many ports, pods may greet each other while they come up. The work grows with the square.
const QUIET_PORTS: usize = 64;

/// The largest merged frame with BIG TCP: three times what it is without.
const BIG_TCP_BYTES: u32 = 3 * 65_536;

/// Does the steps, or says which one failed.
pub(super) async fn make(
    roots: &Roots,
    record: &mut Record,
    netlink: &Netlink,
    steps: &[Step],
    progress: &dyn Progress,
) -> Result<(), (String, Error)> {
    progress.start(steps.len());
    let made = perform(roots, record, netlink, steps, progress).await;
    progress.finish();
    let changed = made?;
    let is_new = |change: &String| !record.changed_features.contains(change);
    let changed: Vec<String> = changed.into_iter().filter(is_new).collect();
    record.changed_features.extend(changed);
    Ok(())
}

/// Returns features that were changed, in words.
async fn perform(
    roots: &Roots,
    record: &Record,
    netlink: &Netlink,
    steps: &[Step],
    progress: &dyn Progress,
) -> Result<Vec<String>, (String, Error)> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error| (what, error)
    };
    let attachments = |step: &&Step| matches!(step, Step::Attach { .. } | Step::RemovePort(_));
    let attachments = steps.iter().filter(attachments).count();
    hurry(roots, attachments);
    if steps.iter().any(|step| matches!(step, Step::Namespace { .. })) {
        netns::share_names().map_err(Error::from).map_err(failed("prepare the names of namespaces"))?;
    }
    let topology = &record.topology;
    let mut worker = Worker {
        roots,
        topology,
        record,
        netlink,
        ownership: Ownership::new(roots, record),
        ovs: Ovs::new(roots.ovs_folder(&topology.name)),
        datapath: None,
        links: HashMap::new(),
        is_bulk: record.before.is_none() && topology.ports().count() > QUIET_PORTS,
        is_migrating: steps.contains(&Step::Migrate),
        touched: HashSet::new(),
        changed_features: Vec::new(),
    };
    let done = worker.perform_all(steps, progress).await;
    let calm = stop_hurrying(roots).map_err(failed("let grace periods take their time again"));
    done.and(calm).map(|()| worker.changed_features)
}

struct Worker<'a> {
    roots: &'a Roots,
    topology: &'a Topology,
    record: &'a Record,
    netlink: &'a Netlink,
    ownership: Ownership,
    ovs: Ovs,
    datapath: Option<Datapath>,
    /// Links of the host's namespace, as far as they were looked at.
    links: HashMap<String, Link>,
    /// Whether so many ports come at once that what their pods say to all when they come up would drown them.
    is_bulk: bool,
    /// Whether maps come to be that know nothing of ports that are there already.
    is_migrating: bool,
    /// Pods, by index, with a port that was changed.
    touched: HashSet<usize>,
    /// What the record is to remember of features that were changed.
    changed_features: Vec<String>,
}

impl Worker<'_> {
    async fn perform_all(&mut self, steps: &[Step], progress: &dyn Progress) -> Result<(), (String, Error)> {
        for step in steps {
            let description = step.describe(self.topology, self.record.selection.hook);
            progress.step(&description);
            self.perform(step).await.map_err(|error| (description.to_string(), error))?;
            hooks::step();
        }
        Ok(())
    }

    async fn perform(&mut self, step: &Step) -> Result<(), Error> {
        let topology = self.topology;
        match step {
            Step::RemoveCable(cable) => self.remove_cable(cable).await,
            Step::RemovePort(gone) => self.remove_port(gone).await,
            Step::RemovePod(pod) => teardown::delete_namespace(topology, pod).await,
            Step::RemoveBridge(path) => self.remove_bridge(path).await,
            Step::RemoveOvs => {
                self.ovs.stop()?;
                self.delete_ours(ovs::COMMON_LINK).await
            }
            Step::RemoveFirewall => {
                forwarding::delete(&topology.table())?;
                teardown::stop_forwarding(self.roots, &topology.name)
            }
            Step::Namespace { pod } => self.make_namespace(*pod).await,
            Step::Pair { pod, port } => self.make_pair(*pod, *port).await,
            Step::Resize { pod, port } => self.resize(*pod, *port).await,
            Step::Prepare { pod, port } => self.prepare(&topology.pods[*pod], *port).await,
            Step::Configure { pod, port } => self.configure(*pod, *port).await,
            Step::Settle { pod } => self.settle(&topology.pods[*pod]).await,
            Step::Mark => self.mark().await,
            Step::Load => self.load().await,
            Step::Replace => self.replace().await,
            Step::Migrate => self.migrate().await,
            Step::Carry => self.carry(),
            Step::Ovs => Ok(self.ovs.start()?),
            Step::Bridge { path } => self.make_bridge(&topology.paths[*path]).await,
            Step::Gateway { path } => self.set_gateway(&topology.paths[*path]).await,
            Step::Register { pod, port } => self.register(&topology.pods[*pod].ports[*port]).await,
            Step::Attach { pod, port } => {
                let pod = &topology.pods[*pod];
                self.attach_port(pod, &pod.ports[*port]).await
            }
            Step::Redirect { pod, port, mode } => {
                self.set_mode(&topology.pods[*pod].ports[*port], *mode).await
            }
            Step::Guard { path } => self.guard(&topology.paths[*path]).await,
            Step::Connect { pod, port } => self.connect(*pod, *port).await,
            Step::Cable { cable } => self.make_cable(&topology.cables[*cable]).await,
            Step::Forget { pod } => self.forget_neighbours(&topology.pods[*pod]).await,
            Step::Firewall => self.set_firewall(),
            Step::Ready => self.wait_until_ready().await,
        }
    }

    /// From the maps first: nobody sends to it any more when it goes.
    async fn remove_port(&mut self, gone: &Gone) -> Result<(), Error> {
        let Gone { pod, port, path } = gone;
        if path.is_counted() && self.is_loaded() {
            let (mut index, mut pin) = (None, self.pins().inner_link(&pod.name, &port.name));
            if !port.host_link.is_empty() {
                index = self.find_link(&port.host_link).await?.map(|link| link.index);
                pin = self.pins().link(&port.host_link);
            }
            let datapath = self.datapath()?;
            if path.kind == Kind::Switch
                && let Some(bridge) = &path.bridge
            {
                let key = FdbKey { domain: bridge.domain, mac: port.mac };
                if datapath.fdb(key).is_some_and(|target| target.slot == port.slot) {
                    datapath.remove_fdb(key)?;
                }
            }
            for address in datapath.sources(port.slot).collect::<Result<Vec<_>, _>>()? {
                datapath.remove_source(port.slot, address)?;
            }
            match index {
                Some(index) => datapath.remove_port(index)?,
                // Its link went before us, and with it the number that it is known by.
                None => datapath.remove_slot(port.slot)?,
            }
            datapath.remove_target(port.slot)?;
            datapath.clear_counters(port.slot)?;
            pins::remove_pin(&pin)?;
        }
        if path.kind == Kind::Ovs
            && self.ovs.is_running()?
            && let Some(bridge) = &path.bridge
        {
            self.ovs.remove_port(&bridge.link, &port.host_link)?;
        }
        if port.host_link.is_empty() {
            // Either end takes the other along.
            if netns::look_up(&pod.namespace)? == netns::Name::Namespace {
                let netlink = Netns::open(&pod.namespace)?.netlink()?;
                let is_it = |link: &&Link| link.name == port.name && link.mac == Some(port.mac);
                if let Some(link) = netlink.links().await?.iter().find(is_it) {
                    netlink.delete_link(link.index).await?;
                }
            }
            return Ok(());
        }
        self.delete_ours(&port.host_link).await
    }

    async fn remove_cable(&mut self, cable: &Cable) -> Result<(), Error> {
        for end in &cable.ends {
            self.leave_ovs(end)?;
            self.delete_ours(&end.link).await?;
        }
        Ok(())
    }

    /// An Open vSwitch remembers ports whose link is gone.
    fn leave_ovs(&self, end: &CableEnd) -> Result<(), Error> {
        if self.topology.has_ovs() && end.path.is_some() && self.ovs.is_running()? {
            self.ovs.forget_port(&end.link)?;
        }
        Ok(())
    }

    async fn remove_bridge(&mut self, path: &Path) -> Result<(), Error> {
        let Some(bridge) = &path.bridge else { return Ok(()) };
        if path.kind == Kind::Ovs {
            if self.ovs.is_running()? {
                self.ovs.remove_bridge(&bridge.link)?;
            }
            // The switch leaves it where it was killed, or does not clean up.
            return self.delete_ours(&bridge.link).await;
        }
        if path.is_guarded() && self.is_loaded() {
            self.datapath()?.remove_slot(bridge.slot)?;
            pins::remove_pin(&self.pins().link(&bridge.link))?;
        }
        self.delete_ours(&bridge.link).await
    }

    /// Deletes a link of the host's namespace, unless it is somebody else's by now.
    async fn delete_ours(&mut self, name: &str) -> Result<(), Error> {
        self.links.remove(name);
        match self.find_link(name).await? {
            Some(link) if self.ownership.has_link(&link) => Ok(self.netlink.delete_link(link.index).await?),
            _ => Ok(()),
        }
    }

    /// A link of the host's namespace as it is now, if there is one of that name.
    async fn find_link(&self, name: &str) -> Result<Option<Link>, Error> {
        match self.netlink.link(name).await {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The namespace gets its mark before it gets its name, so that none of ours is ever without.
    async fn make_namespace(&self, pod: usize) -> Result<(), Error> {
        let pod = &self.topology.pods[pod];
        let runtime = tokio::runtime::Handle::current();
        let (namespace, netlink) = Netns::anonymous(move || {
            let _entered = runtime.enter();
            Netlink::open()
        })?;
        let loopback = netlink.link("lo").await?.index;
        netlink.set_alias(loopback, &self.topology.pod_alias(pod)).await?;
        netlink.set_up(loopback).await?;
        if netns::look_up(&pod.namespace)? == netns::Name::Stale {
            netns::remove(&pod.namespace)?;
        }
        Ok(namespace.publish(&pod.namespace)?)
    }

    async fn make_pair(&self, pod: usize, port: usize) -> Result<(), Error> {
        let topology = self.topology;
        let pod = &topology.pods[pod];
        let port = &pod.ports[port];
        let path = topology.path(port);
        let namespace = Netns::open(&pod.namespace)?;
        let end = End { name: &port.name, mac: port.mac };
        let pair = |first, namespace| Pair {
            host: first,
            pod: end,
            namespace: Some(namespace),
            mtu: path.mtu,
            group: topology.port_group(port),
            queues: path.queues,
        };
        if path.kind == Kind::Direct {
            let others = topology.ports_of(port.path);
            for (other_pod, other) in others.filter(|(_, other)| other.slot != port.slot) {
                let other_end = End { name: &other.name, mac: other.mac };
                let netlink = Netns::open(&other_pod.namespace)?.netlink()?;
                netlink.add_pair(&Pair { group: 0, ..pair(other_end, &namespace) }).await?;
            }
            return Ok(());
        }
        let host_end = End { name: &port.host_link, mac: port.host_mac };
        self.netlink.add_pair(&pair(host_end, &namespace)).await?;
        if path.kind == Kind::Ovs {
            // The switch hears by packet sockets, and the host's own stack beside it.
            sysctl::deafen(&port.host_link)?;
        }
        set_ipv6(&port.host_link, if path.kind == Kind::Route { &path.gateway } else { &[] })
    }

    /// A link never has a larger MTU than the other end takes, or it would drop what comes.
    async fn resize(&mut self, pod: usize, port: usize) -> Result<(), Error> {
        let pod = &self.topology.pods[pod];
        let port = &pod.ports[port];
        let mtu = self.topology.path(port).mtu;
        let netlink = Netns::open(&pod.namespace)?.netlink()?;
        netlink.set_mtu(netlink.link(&port.name).await?.index, mtu).await?;
        if !port.host_link.is_empty() {
            self.netlink.set_mtu(self.index(&port.host_link).await?, mtu).await?;
        }
        Ok(())
    }

    async fn prepare(&mut self, pod: &Pod, port: usize) -> Result<(), Error> {
        let port = &pod.ports[port];
        let needed = features::needed(self.topology, port.path, self.record.selection.hook);
        self.changed_features.extend(features::prepare(pod, port, &needed)?);
        let path = self.topology.path(port);
        let inside = Netns::open(&pod.namespace)?.netlink()?;
        set_merged_size(&inside, &inside.link(&port.name).await?, path).await?;
        if !port.host_link.is_empty() {
            set_merged_size(self.netlink, &self.netlink.link(&port.host_link).await?, path).await?;
        }
        Ok(())
    }

    async fn configure(&mut self, pod: usize, port: usize) -> Result<(), Error> {
        self.touched.insert(pod);
        let pod = &self.topology.pods[pod];
        let port = &pod.ports[port];
        let netlink = Netns::open(&pod.namespace)?.netlink()?;
        let link = netlink.link(&port.name).await?;
        set_addresses(&netlink, &link, &port.addresses).await?;
        if sysctl::has_ipv6() {
            // As the kernel would give it, but at once: no duplicate address detection. Not by `accept_dad`, for with
            // thousands of namespaces each path through `/proc/sys` takes a millisecond.
            netlink.make_no_addresses(link.index).await?;
            add_address(&netlink, link.index, Cidr { address: port.mac.link_local().into(), prefix: 64 })
                .await?;
        }
        netlink.set_up(link.index).await?;
        let wanted: HashMap<IpAddr, _> = self.topology.neighbours_of(port).collect();
        if link.up {
            for (address, mac) in netlink.permanent_neighbours(link.index).await? {
                if wanted.get(&address) != Some(&mac) {
                    netlink.remove_neighbour(link.index, address).await?;
                }
            }
        }
        for (address, mac) in wanted.into_iter().filter(|(address, _)| is_usable(address)) {
            netlink.add_neighbour(link.index, address, mac).await?;
        }
        Ok(())
    }

    async fn settle(&self, pod: &Pod) -> Result<(), Error> {
        let namespace = Netns::open(&pod.namespace)?;
        let netlink = namespace.netlink()?;
        let wanted = self.topology.routes_of(pod);
        for (number, port) in pod.ports.iter().enumerate() {
            let link = netlink.link(&port.name).await?.index;
            let wanted = || {
                let of_port =
                    wanted.iter().filter(|route| route.port == number && is_usable(&route.to.address));
                of_port.map(|route| (route.to.network(), route.via))
            };
            for (to, via) in netlink.routes(link).await? {
                if !wanted().any(|route| route == (to, via)) {
                    netlink.remove_route(&Route { to, via, link }).await?;
                }
            }
            for (to, via) in wanted() {
                netlink.add_route(&Route { to, via, link }).await?;
            }
        }
        for (key, value) in &self.topology.sysctls_of(pod) {
            sysctl::write_in(&namespace, key, value)?;
        }
        Ok(())
    }

    /// The kernel takes no alias in the request that makes a link.
    async fn mark(&mut self) -> Result<(), Error> {
        let links = self.netlink.links().await?;
        self.links = links.into_iter().map(|link| (link.name.clone(), link)).collect();
        for (pod, port) in self.topology.ports() {
            let alias = self.topology.port_alias(pod, port);
            let link = self.links.get(&port.host_link);
            if let Some(link) = link.filter(|link| link.alias.as_ref() != Some(&alias)) {
                self.netlink.set_alias(link.index, &alias).await?;
            }
        }
        Ok(())
    }

    async fn attach_port(&mut self, pod: &Pod, port: &Port) -> Result<(), Error> {
        let topology = self.topology;
        let hook = self.record.selection.hook_of(topology.path(port).kind.is_accelerated());
        if !port.host_link.is_empty() {
            return self.attach(hook, &port.host_link).await;
        }
        let Some(peer) = topology.wire_peer(port) else { return Ok(()) };
        let namespace = Netns::open(&pod.namespace)?;
        let link = namespace.netlink()?.link(&port.name).await?;
        let pin = self.pins().inner_link(&pod.name, &port.name);
        let end = InnerEnd { namespace: &namespace, link: &link, pin, from: peer.slot, to: port.slot };
        Ok(self.datapath()?.attach_counter(hook, topology.place, &end).await?)
    }

    async fn attach(&mut self, hook: Hook, name: &str) -> Result<(), Error> {
        let link = self.host_link(name).await?;
        let (netlink, place) = (self.netlink, self.topology.place);
        Ok(self.datapath()?.attach(netlink, hook, place, &link).await?)
    }

    async fn load(&mut self) -> Result<(), Error> {
        let name = &self.topology.name;
        // What is pinned is of paths that have gone since: programs are loaded only where there are none.
        pins::remove_all(self.roots, name)?;
        pins::prepare(self.roots)?;
        datapath::load(self.roots, name, &self.load_options().await?)?;
        self.datapath = None;
        Ok(())
    }

    async fn load_options(&self) -> Result<LoadOptions, Error> {
        let Record { topology, selection, capacity, .. } = self.record;
        let set_packet_host = selection.redirect == Redirect::Peer
            && probe::must_set_packet_host(probe::Kernel::current()?).await?;
        Ok(LoadOptions { slots: *capacity, log: topology.ebpf_log, hook: selection.hook, set_packet_host })
    }

    /// Programs and maps of our layout beside the others. Those of an interrupted migration are there already, and may
    /// be in use, unless they are not whole.
    async fn replace(&mut self) -> Result<(), Error> {
        datapath::reload(&self.pins(), &self.load_options().await?)?;
        // What a step before has opened are the former ones.
        self.datapath = None;
        Ok(())
    }

    async fn migrate(&mut self) -> Result<(), Error> {
        let (name, options) = (&self.topology.name, self.load_options().await?);
        if self.is_loaded() {
            datapath::reload(&self.pins(), &options)?;
        } else {
            pins::remove_layout(self.roots, name, object::layout())?;
            hooks::step();
            datapath::load(self.roots, name, &options)?;
        }
        // What cannot be read later is better known now.
        for layout in pins::layouts(self.roots, name) {
            upgrade::with_counters(self.roots, name, (layout, object::layout()), |_, _| Ok(()))?;
        }
        Ok(())
    }

    /// What was counted in maps of other layouts, which go. All programs write to ours by now.
    fn carry(&mut self) -> Result<(), Error> {
        let (roots, name, ours) = (self.roots, &self.topology.name, object::layout());
        let mut record = self.record.clone();
        let made = record.layout_version;
        // On another processor a program may just be counting.
        datapath::wait_for_programs();
        for layout in pins::layouts(roots, name).into_iter().filter(|layout| ![ours, made].contains(layout)) {
            // Of an interrupted migration. What was carried over before is put there too, so that what is there is all, and
            // can be taken from there more than once.
            upgrade::with_counters(roots, name, (made, layout), |made, other| other.copy_carried(made))?;
            record.carrying = Some(layout);
            roots.save(&record)?;
            upgrade::end_carrying(roots, &mut record)?;
        }
        if made != ours {
            upgrade::with_counters(roots, name, (made, ours), |made, ours| ours.carry(made))?;
            record.set_build();
            record.carrying = Some(made);
            roots.save(&record)?;
            upgrade::end_carrying(roots, &mut record)?;
        }
        Ok(())
    }

    /// How frames must reach the port with a host end, as it is now.
    async fn way_to(&mut self, host_link: &str) -> Result<RedirectMode, Error> {
        let usual = mode(self.record.selection.redirect);
        if usual == RedirectMode::Host {
            return Ok(usual);
        }
        let hazard = observe::hazard(self.netlink, &self.host_link(host_link).await?).await?;
        Ok(if hazard.is_some() { RedirectMode::Host } else { usual })
    }

    async fn make_bridge(&mut self, path: &Path) -> Result<(), Error> {
        let Some(Bridge { link: name, mac, .. }) = &path.bridge else {
            return Ok(());
        };
        let group = self.topology.path_group(path);
        if path.kind == Kind::Ovs {
            self.ovs.add_bridge(name, *mac)?;
        } else {
            self.netlink.add_bridge(name, *mac, path.mtu, group).await?;
        }
        let index = self.index(name).await?;
        // Changed once by hand, it stays whatever the MTU of its ports: a bridge follows the smallest otherwise.
        let other = if path.mtu < link::MTU_MAX { path.mtu + 1 } else { path.mtu - 1 };
        for mtu in [other, path.mtu] {
            self.netlink.set_mtu(index, mtu).await?;
        }
        set_ipv6(name, &path.gateway)?;
        self.netlink.set_alias(index, &self.topology.bridge_alias(path)).await?;
        if path.kind == Kind::Ovs {
            self.netlink.set_group(index, group).await?;
            let common = self.netlink.link(ovs::COMMON_LINK).await?.index;
            self.netlink.set_alias(common, &self.topology.bridge_alias(path)).await?;
        }
        if path.is_guarded() {
            self.guard(path).await?;
        }
        self.set_gateway(path).await
    }

    /// MTU and addresses of a bridge, and up it goes, unless nobody is to use it.
    async fn set_gateway(&mut self, path: &Path) -> Result<(), Error> {
        let Some(bridge) = &path.bridge else { return Ok(()) };
        let link = self.netlink.link(&bridge.link).await?;
        if link.mtu != path.mtu {
            self.netlink.set_mtu(link.index, path.mtu).await?;
        }
        set_addresses(self.netlink, &link, &path.gateway).await?;
        if path.kind != Kind::Ovs || path.is_routed() {
            self.netlink.set_up(link.index).await?;
        }
        Ok(())
    }

    /// What the bridge would hand to the host ends there, counted.
    async fn guard(&mut self, path: &Path) -> Result<(), Error> {
        let Some(Bridge { domain, link, slot, .. }) = &path.bridge else { return Ok(()) };
        let ifindex = self.index(link).await?;
        self.datapath()?.set_port(&PortEntry {
            ifindex,
            slot: *slot,
            kind: PortKind::Bridge as u32,
            domain: *domain,
            ..PortEntry::default()
        })?;
        self.attach(self.record.selection.bridge_hook, link).await
    }

    async fn register(&mut self, port: &Port) -> Result<(), Error> {
        let ifindex = self.index(&port.host_link).await?;
        let topology = self.topology;
        let path = topology.path(port);
        let mut usual = mode(self.record.selection.redirect);
        if self.is_migrating && path.kind.is_accelerated() {
            // Of a wire the entry says how the other end is reached.
            let reached = topology.wire_peer(port).map_or(&port.host_link, |peer| &peer.host_link);
            // One that is gone is made again later.
            if self.find_link(reached).await?.is_some() {
                usual = self.way_to(reached).await?;
            }
        }
        // Allowed before it is checked, and no longer allowed after it was.
        let addresses = port.addresses.iter().map(|cidr| cidr.address).chain([port.mac.link_local().into()]);
        let allowed: Vec<IpAddr> = addresses.filter(|_| path.spoof_check).collect();
        let datapath = self.datapath()?;
        datapath.set_target(port.slot, ifindex)?;
        for address in &allowed {
            datapath.set_source(port.slot, *address)?;
        }
        // Of a port that is there already, it was found out how frames must reach it.
        let known = |target: Target| {
            if target.redirect == RedirectMode::Host as u8 { RedirectMode::Host } else { usual }
        };
        let before = datapath.port(ifindex);
        let way = before.filter(|_| path.kind == Kind::Wire).map_or(usual, |entry| known(entry.target));
        datapath.set_port(&port_entry(topology, port, ifindex, way))?;
        if let Some(key) = fdb_key(topology, port) {
            let way = datapath.fdb(key).map_or(usual, known);
            datapath.set_fdb(key, &target(topology, port, way))?;
        }
        if before.is_some() {
            for address in datapath.sources(port.slot).collect::<Result<Vec<_>, _>>()? {
                if !allowed.contains(&address) {
                    datapath.remove_source(port.slot, address)?;
                }
            }
        }
        Ok(())
    }

    /// Changes how frames reach a port: where its address is looked up, and at the other end of its wire.
    async fn set_mode(&mut self, port: &Port, mode: RedirectMode) -> Result<(), Error> {
        let topology = self.topology;
        if let Some(key) = fdb_key(topology, port) {
            self.datapath()?.set_fdb(key, &target(topology, port, mode))?;
        } else if let Some(peer) = topology.wire_peer(port) {
            let ifindex = self.index(&peer.host_link).await?;
            self.datapath()?.set_port(&port_entry(topology, peer, ifindex, mode))?;
        }
        Ok(())
    }

    async fn connect(&mut self, pod: usize, port: usize) -> Result<(), Error> {
        self.touched.insert(pod);
        let port = &self.topology.pods[pod].ports[port];
        let path = self.topology.path(port);
        let index = self.index(&port.host_link).await?;
        match (&path.bridge, path.kind) {
            (Some(bridge), Kind::Ovs) => {
                self.netlink.set_up(index).await?;
                self.ovs.add_port(&bridge.link, &port.host_link)?;
            }
            (Some(bridge), Kind::Bridge) => {
                self.netlink.join_bridge_learning(index, self.index(&bridge.link).await?).await?;
            }
            (Some(bridge), _) => {
                let bridge = self.index(&bridge.link).await?;
                self.netlink.join_bridge(index, bridge, !self.is_bulk).await?;
                self.netlink.add_static_fdb(index, port.mac).await?;
            }
            (None, Kind::Route) => {
                self.netlink.set_up(index).await?;
                self.connect_routed(port, path, index).await?;
            }
            (None, _) => self.netlink.set_up(index).await?,
        }
        Ok(())
    }

    /// The host's end of a routed pair: the gateway's addresses, and the way to the pod's.
    async fn connect_routed(&self, port: &Port, path: &Path, link: u32) -> Result<(), Error> {
        let end = self.netlink.link(&port.host_link).await?;
        set_addresses(self.netlink, &end, &path.gateway).await?;
        let wanted: Vec<Cidr> = port.addresses.iter().map(|cidr| cidr.host()).collect();
        for (to, via) in self.netlink.routes(link).await? {
            if !wanted.contains(&to) {
                self.netlink.remove_route(&Route { to, via, link }).await?;
            }
        }
        for to in wanted.into_iter().filter(|to| is_usable(&to.address)) {
            self.netlink.add_route(&Route { to, via: None, link }).await?;
            self.netlink.add_neighbour(link, to.address, port.mac).await?;
        }
        Ok(())
    }

    async fn make_cable(&mut self, cable: &Cable) -> Result<(), Error> {
        let [a, b] = cable.ends.each_ref().map(|end| End { name: &end.link, mac: end.mac });
        let group = self.topology.group();
        let pair = Pair { host: a, pod: b, namespace: None, mtu: cable.mtu, group, queues: 1 };
        self.netlink.add_pair(&pair).await?;
        for end in &cable.ends {
            let index = self.index(&end.link).await?;
            self.netlink.set_alias(index, &self.topology.cable_alias(cable)).await?;
            match end.path {
                Some(path) => self.plug_in(end, index, &self.topology.paths[path]).await?,
                None => self.make_host_leg(cable, end).await?,
            }
        }
        let names = cable.ends.iter().map(|end| end.link.as_str()).collect();
        wait_for_links(&names, async || self.netlink.links().await).await
    }

    /// An end of a cable in a bridge, which learns who is behind it.
    async fn plug_in(&mut self, end: &CableEnd, index: u32, path: &Path) -> Result<(), Error> {
        let Some(bridge) = &path.bridge else { return Ok(()) };
        sysctl::disable_ipv6(&end.link)?;
        if path.kind == Kind::Ovs {
            sysctl::deafen(&end.link)?;
            self.netlink.set_up(index).await?;
            return Ok(self.ovs.add_port(&bridge.link, &end.link)?);
        }
        Ok(self.netlink.join_bridge_learning(index, self.index(&bridge.link).await?).await?)
    }

    /// An end of a cable that is an interface of the host's own.
    async fn make_host_leg(&self, cable: &Cable, end: &CableEnd) -> Result<(), Error> {
        set_ipv6(&end.link, &end.addresses)?;
        let mut paths = cable.ends.iter().filter_map(|end| end.path);
        if paths.any(|path| self.topology.reaches_ovs(path)) {
            features::prepare_for_ovs(&end.link)?;
        }
        let link = self.netlink.link(&end.link).await?;
        set_addresses(self.netlink, &link, &end.addresses).await?;
        Ok(self.netlink.set_up(link.index).await?)
    }

    /// A pod asks again for what it thinks that somebody else has.
    async fn forget_neighbours(&self, pod: &Pod) -> Result<(), Error> {
        let owners = self.topology.owners();
        let netlink = Netns::open(&pod.namespace)?.netlink()?;
        for port in &pod.ports {
            let link = netlink.link(&port.name).await?.index;
            for (address, mac) in netlink.learned_neighbours(link).await? {
                if owners.get(&address).is_some_and(|owner| *owner != mac) {
                    netlink.remove_neighbour(link, address).await?;
                }
            }
        }
        Ok(())
    }

    /// The table first: not a packet is forwarded that should not be.
    fn set_firewall(&self) -> Result<(), Error> {
        let topology = self.topology;
        forwarding::replace(&topology.table(), &topology.forward_paths())?;
        if topology.needs_forwarding() {
            let now = sysctl::forwarding()?;
            if !(now.ipv4 && (now.ipv6 || !sysctl::has_ipv6())) {
                self.roots.note_forwarding(&sysctl::before_forwarding()?)?;
                sysctl::set_forwarding(sysctl::Forwarding { ipv4: true, ipv6: true })?;
            }
        } else {
            teardown::stop_forwarding(self.roots, &topology.name)?;
        }
        Ok(())
    }

    /// Setting a link up is not enough: the kernel starts its queue, and its bridge port, a moment later, and
    /// drops frames until then.
    async fn wait_until_ready(&mut self) -> Result<(), Error> {
        let topology = self.topology;
        let pods = topology.pods.iter().enumerate();
        let pods: Vec<&Pod> =
            pods.filter(|(number, _)| self.touched.contains(number)).map(|(_, pod)| pod).collect();
        let ports = pods.iter().flat_map(|pod| &pod.ports);
        let host_ends = ports.map(|port| port.host_link.as_str()).filter(|name| !name.is_empty()).collect();
        wait_for_links(&host_ends, async || self.netlink.links().await).await?;
        for pod in pods {
            let ends = pod.ports.iter().map(|port| port.name.as_str()).collect();
            // Through a host end no namespace has to be entered.
            let with_host_end = pod.ports.iter().find(|port| !port.host_link.is_empty());
            let known = match with_host_end {
                Some(port) => self.host_link(&port.host_link).await?.lower_namespace,
                None => None,
            };
            if let Some(namespace) = known {
                wait_for_links(&ends, async || self.netlink.links_in(namespace).await).await?;
            } else {
                let netlink = Netns::open(&pod.namespace)?.netlink()?;
                wait_for_links(&ends, async || netlink.links().await).await?;
            }
        }
        if self.is_bulk {
            let switched = |port: &&Port| self.topology.path(port).kind == Kind::Switch;
            for port in self.topology.ports().map(|(_, port)| port).filter(switched) {
                let index = self.links.get(&port.host_link).map(|link| link.index);
                if let Some(index) = index {
                    self.netlink.set_multicast_flood(index, true).await?;
                }
            }
        }
        Ok(())
    }

    async fn index(&mut self, name: &str) -> Result<u32, Error> {
        match self.links.get(name) {
            Some(link) => Ok(link.index),
            None => Ok(self.host_link(name).await?.index),
        }
    }

    async fn host_link(&mut self, name: &str) -> Result<Link, Error> {
        if let Some(link) = self.links.get(name) {
            return Ok(link.clone());
        }
        let link = self.netlink.link(name).await?;
        self.links.insert(name.to_owned(), link.clone());
        Ok(link)
    }

    fn pins(&self) -> Pins {
        Pins::new(self.roots, object::layout(), &self.topology.name)
    }

    /// Whether programs and maps are there. Where one is missing, all is made again, and nothing has to be taken out
    /// of them.
    fn is_loaded(&self) -> bool {
        self.pins().missing(self.record.selection.hook).is_empty()
    }

    fn datapath(&mut self) -> Result<&mut Datapath, Error> {
        if self.datapath.is_none() {
            self.datapath = Some(Datapath::open(self.pins(), self.record.selection.hook)?);
        }
        Ok(self.datapath.as_mut().ok_or(datapath::Error::NotLoaded)?)
    }
}

/// Whether the machine speaks an address's family.
fn is_usable(address: &IpAddr) -> bool {
    address.is_ipv4() || sysctl::has_ipv6()
}

/// Lets a link of the host's namespace speak IPv6, or not, before it has addresses.
fn set_ipv6(link: &str, addresses: &[Cidr]) -> Result<(), Error> {
    let is_wanted = addresses.iter().any(|cidr| cidr.address.is_ipv6());
    let done = if is_wanted { sysctl::make_router_end(link) } else { sysctl::disable_ipv6(link) };
    Ok(done?)
}

/// Gives a link these addresses and no others. One that is down was just made, and has none.
async fn set_addresses(netlink: &Netlink, link: &Link, wanted: &[Cidr]) -> Result<(), Error> {
    let there = if link.up { netlink.addresses(link.index).await? } else { Vec::new() };
    for cidr in there.iter().filter(|cidr| !wanted.contains(cidr)) {
        netlink.remove_address(link.index, *cidr).await?;
    }
    for cidr in wanted.iter().filter(|cidr| is_usable(&cidr.address) && !there.contains(cidr)) {
        add_address(netlink, link.index, *cidr).await?;
    }
    Ok(())
}

/// Link-local addresses are not told of, and may be there.
async fn add_address(netlink: &Netlink, link: u32, cidr: Cidr) -> Result<(), Error> {
    match netlink.add_address(link, cidr).await {
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
        result => Ok(result?),
    }
}

/// Lets merged frames be as large as a path wants, in bytes.
async fn set_merged_size(netlink: &Netlink, link: &Link, path: &Path) -> Result<(), Error> {
    let size = if path.tune.big_tcp { BIG_TCP_BYTES } else { link::MERGED_MAX };
    if (link.gso_max_size, link.gro_max_size) == (size, size) {
        return Ok(());
    }
    Ok(netlink.set_max_sizes(link.index, size, size).await?)
}

/// Waits until links of a namespace are operational. `look` lists all of the namespace.
async fn wait_for_links(
    names: &HashSet<&str>,
    look: impl AsyncFn() -> net::Result<Vec<Link>>,
) -> Result<(), Error> {
    let start = Instant::now();
    loop {
        let links = look().await?;
        let waiting = |link: &&Link| !link.operational && names.contains(link.name.as_str());
        let Some(link) = links.iter().find(waiting) else {
            return Ok(());
        };
        if start.elapsed() > READY_MAX {
            let action = format!("wait until {} carries frames", link.name);
            return Err(net::Error::new(action, io::Error::from(io::ErrorKind::TimedOut)).into());
        }
        tokio::time::sleep(READY_POLL).await;
    }
}
