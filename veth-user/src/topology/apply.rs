//! Does what a plan says.

use std::{
    cell::Cell,
    collections::HashSet,
    io,
    time::{Duration, Instant},
};

use veth_common::{FdbKey, Port as PortEntry, PortKind, RedirectMode, Target};

use super::{
    Error, Path, Pod, Port, Status, Topology, check_layout, check_place,
    model::Bridge,
    observe,
    plan::{self, Step},
    repair::repair,
    teardown::{collect, forget, hurry, lock, stop_hurrying, teardown},
    xdp,
};
use crate::{
    datapath::{
        self, Datapath, Hook, LoadOptions, Redirect,
        pins::{self, Pins},
    },
    hooks,
    net::{
        self, Netlink, Netns,
        link::{End, Link, Pair},
        netns, sysctl,
    },
    probe::{self, Abilities, Selection, Wish},
    state::{Phase, Record, Roots},
};

/// Is told how far long work has come.
pub trait Progress {
    /// `total` steps are ahead.
    fn start(&self, total: usize);
    /// A step begins.
    fn step(&self, what: &dyn std::fmt::Display);
    /// Something worth a line, whatever becomes of the rest.
    fn note(&self, what: &dyn std::fmt::Display);
    /// All is done, or given up.
    fn finish(&self);
}

/// How long a link may take to carry frames after it was set up. It is a few milliseconds.
const READY_MAX: Duration = Duration::from_secs(10);

/// How often that is looked at.
const READY_POLL: Duration = Duration::from_millis(1);

/// What `up` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was there already; nothing was changed.
    AlreadyUp,
    /// It was there but for some things that could be put right in place.
    Repaired,
    /// It was made.
    Made,
}

/// Brings a topology up. What a killed command left of it is removed first; what fails is rolled back.
///
/// `begun` is set when the machine begins to change: whoever drops the future after that takes down what there
/// is, and before that has nothing to undo.
///
/// # Errors
///
/// When a name is taken, the kernel lacks something, or a step fails. Nothing is left then.
pub async fn up(
    roots: &Roots,
    topology: &Topology,
    progress: &dyn Progress,
    begun: &Cell<bool>,
) -> Result<Outcome, Error> {
    let topology = &Topology { mark: roots.mark(), ..topology.clone() };
    topology.validate()?;
    let host = Netns::current()?;
    let netlink = Netlink::open()?;
    // What cannot be is said before anything that is there is touched.
    datapath::object::check()?;
    let selection = select(topology)?;
    let lock = lock(roots, &topology.name, progress).await?;

    if let Some(record) = roots.load(&topology.name)? {
        check_place(&record)?;
        check_layout(&record)?;
        let status = observe(roots, &record, &netlink, &netlink.links().await?).await?;
        match &status {
            Status::Up | Status::Drifted(_) if record.topology != *topology => {
                return Err(Error::OtherShape(record.topology.name));
            }
            Status::Up => return Ok(Outcome::AlreadyUp),
            // `check_place` has refused it.
            Status::Elsewhere => {}
            Status::Drifted(drift) => {
                let words: Vec<&str> = drift.iter().map(|drift| drift.what.as_str()).collect();
                let words = words.join("; ");
                if drift.iter().all(|drift| drift.repair.is_some()) {
                    progress.note(&format_args!("{} had changed ({words}); putting it right", topology.name));
                    repair(roots, &record, &netlink, drift).await?;
                    return Ok(Outcome::Repaired);
                }
                progress.note(&format_args!("{} was not whole ({words}); making it again", topology.name));
            }
            Status::Incomplete | Status::Gone => {
                progress
                    .note(&format_args!("removing what an interrupted command left of {}", topology.name));
            }
        }
        begun.set(true);
        collect(teardown(roots, &record, &netlink, progress).await)?;
    }

    let mut record = match prepare(roots, topology, selection, &host, &netlink, begun).await {
        Ok(record) => record,
        Err(error) => {
            // What could not be made leaves nothing; if that cannot be forgotten, the first error matters more.
            if let Err(second) = forget(roots, &topology.name, lock) {
                progress.note(&second);
            }
            return Err(error);
        }
    };
    let hook = record.selection.hook;
    if hook.is_xdp() {
        progress.note(&xdp::WARNING);
    }
    let steps = plan::build(topology, hook);
    progress.start(steps.len());
    let made = make(roots, &mut record, &netlink, steps, progress).await;
    progress.finish();
    let finished = match made {
        Ok(()) => {
            record.phase = Phase::Up;
            roots.save(&record).map_err(|error| ("remember that it is up".to_owned(), error.into()))
        }
        Err(failed) => Err(failed),
    };
    if let Err((step, source)) = finished {
        let mut rollback = teardown(roots, &record, &netlink, progress).await;
        if rollback.is_empty()
            && let Err(error) = forget(roots, &topology.name, lock)
        {
            rollback.push(error);
        }
        return Err(Error::RolledBack { step, source: Box::new(source), rollback });
    }
    hooks::step();
    Ok(Outcome::Made)
}

/// Does the steps, or says which one failed.
async fn make(
    roots: &Roots,
    record: &mut Record,
    netlink: &Netlink,
    steps: Vec<Step>,
    progress: &dyn Progress,
) -> Result<(), (String, Error)> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error| (what, error)
    };
    let Record { topology, selection, .. } = &*record;
    hurry(roots, topology).map_err(failed("hurry grace periods"))?;
    let mut worker = Worker {
        roots,
        topology,
        record,
        netlink,
        datapath: None,
        links: Vec::new(),
        changed_features: Vec::new(),
    };
    for step in steps {
        let description = step.describe(topology, selection.hook);
        progress.step(&description);
        worker.perform(step).await.map_err(failed(&description.to_string()))?;
        hooks::step();
    }
    let Worker { changed_features, .. } = worker;
    record.changed_features = changed_features;
    stop_hurrying(roots).map_err(failed("let grace periods take their time again"))
}

/// The hook and redirect for a topology on this kernel.
fn select(topology: &Topology) -> Result<Selection, Error> {
    let wish = Wish { hook: topology.hook.into(), redirect: topology.redirect.into() };
    let abilities = Abilities::probe()?;
    let selection = probe::select(wish, abilities, topology.ports().count())?;
    for path in &topology.paths {
        probe::select::check_mtu(selection.hook, abilities.kernel, path.mtu)?;
    }
    Ok(selection)
}

/// Everything that can fail without a trace, then the intent file, then a place for pins.
async fn prepare(
    roots: &Roots,
    topology: &Topology,
    selection: Selection,
    host: &Netns,
    netlink: &Netlink,
    begun: &Cell<bool>,
) -> Result<Record, Error> {
    log::info!("{}", selection.why);
    let taken = |what: &'static str, name: &str, remove: String| Error::Taken {
        what,
        name: name.to_owned(),
        topology: topology.name.clone(),
        remove,
    };
    for pod in &topology.pods {
        if matches!(netns::look_up(&pod.namespace)?, netns::Name::Namespace | netns::Name::Foreign) {
            return Err(taken(
                "network namespace",
                &pod.namespace,
                format!("ip netns del {}", pod.namespace),
            ));
        }
    }
    let links = netlink.links().await?;
    for name in topology.host_links() {
        if links.iter().any(|link| link.name == name) {
            return Err(taken("link", name, format!("ip link del {name}")));
        }
    }
    let record = Record::new(topology.clone(), host.inode()?, selection)?;
    begun.set(true);
    roots.save(&record)?;
    hooks::step();
    // Pins of this name without links and namespaces are what a crash left: the folder is ours alone.
    pins::remove_all(roots, &topology.name)?;
    pins::prepare(roots)?;
    hooks::step();
    Ok(record)
}

struct Worker<'a> {
    roots: &'a Roots,
    topology: &'a Topology,
    record: &'a Record,
    netlink: &'a Netlink,
    datapath: Option<Datapath>,
    /// The host's links, read once after all were made.
    links: Vec<Link>,
    /// What the record is to remember of what was changed for XDP.
    changed_features: Vec<String>,
}

impl Worker<'_> {
    async fn perform(&mut self, step: Step) -> Result<(), Error> {
        let topology = self.topology;
        match step {
            Step::Namespace { pod } => self.make_namespace(pod).await,
            Step::Pair { pod, port } => self.make_pair(pod, port).await,
            Step::Prepare { pod, port } => self.prepare(&topology.pods[pod], port),
            Step::Configure { pod, port } => self.configure(pod, port).await,
            Step::Load => self.load().await,
            Step::Bridge { path } => self.make_bridge(&topology.paths[path]).await,
            Step::Register { pod, port } => self.register(&topology.pods[pod].ports[port]),
            Step::Attach { pod, port } => {
                let name = &topology.pods[pod].ports[port].host_link;
                self.attach(self.record.selection.hook, name).await
            }
            Step::Connect { pod, port } => self.connect(&topology.pods[pod].ports[port]).await,
            Step::Ready => self.wait_until_ready().await,
        }
    }

    /// The namespace gets its mark before it gets its name, so that none of ours is ever without.
    async fn make_namespace(&self, pod: usize) -> Result<(), Error> {
        let pod = &self.topology.pods[pod];
        let runtime = tokio::runtime::Handle::current();
        let (namespace, netlink) = Netns::anonymous(move || {
            let _entered = runtime.enter();
            sysctl::disable_dad()?;
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
        let pod = &self.topology.pods[pod];
        let port = &pod.ports[port];
        let namespace = Netns::open(&pod.namespace)?;
        self.netlink
            .add_pair(&Pair {
                host: End { name: &port.host_link, mac: port.host_mac },
                pod: End { name: &port.name, mac: port.mac },
                namespace: Some(&namespace),
                mtu: self.topology.path(port).mtu,
                group: self.topology.group(),
                queues: 1,
            })
            .await?;
        sysctl::disable_ipv6(&port.host_link)?;
        Ok(())
    }

    async fn configure(&self, pod: usize, port: usize) -> Result<(), Error> {
        let pod = &self.topology.pods[pod];
        let port = &pod.ports[port];
        let netlink = Netns::open(&pod.namespace)?.netlink()?;
        let index = netlink.link(&port.name).await?.index;
        for cidr in port.addresses.iter().filter(|cidr| cidr.address.is_ipv4() || sysctl::has_ipv6()) {
            netlink.add_address(index, *cidr).await?;
        }
        Ok(netlink.set_up(index).await?)
    }

    fn prepare(&mut self, pod: &Pod, port: usize) -> Result<(), Error> {
        let port = &pod.ports[port];
        let changed = xdp::prepare(pod, port)?;
        self.changed_features.extend(changed);
        Ok(())
    }

    async fn attach(&mut self, hook: Hook, name: &str) -> Result<(), Error> {
        let link = self.host_link(name)?.clone();
        let (netlink, place) = (self.netlink, self.topology.place);
        Ok(self.datapath()?.attach(netlink, hook, place, &link).await?)
    }

    async fn load(&mut self) -> Result<(), Error> {
        self.links = self.netlink.links().await?;
        for (pod, port) in self.topology.ports() {
            let index = self.index(&port.host_link)?;
            self.netlink.set_alias(index, &self.topology.port_alias(pod, port)).await?;
        }
        let Record { topology, selection, layout_version, .. } = self.record;
        let set_packet_host = selection.redirect == Redirect::Peer
            && probe::must_set_packet_host(probe::Kernel::current()?).await?;
        let options = LoadOptions {
            slots: topology.slot_count(),
            log: topology.ebpf_log,
            hook: selection.hook,
            set_packet_host,
        };
        datapath::load(self.roots, &topology.name, &options)?;
        let pins = Pins::new(self.roots, *layout_version, &topology.name);
        self.datapath = Some(Datapath::open(pins, selection.hook)?);
        Ok(())
    }

    async fn make_bridge(&mut self, path: &Path) -> Result<(), Error> {
        let Some(Bridge { domain, link: bridge, mac, slot }) = &path.bridge else {
            return Ok(());
        };
        self.netlink.add_bridge(bridge, *mac, path.mtu, self.topology.group()).await?;
        sysctl::disable_ipv6(bridge)?;
        let index = self.netlink.link(bridge).await?.index;
        self.netlink.set_alias(index, &self.topology.bridge_alias(path)).await?;
        self.links.push(self.netlink.link(bridge).await?);
        let datapath = self.datapath()?;
        datapath.set_port(&PortEntry {
            ifindex: index,
            slot: *slot,
            kind: PortKind::Bridge as u32,
            domain: *domain,
            ..PortEntry::default()
        })?;
        self.attach(self.record.selection.bridge_hook, bridge).await?;
        Ok(self.netlink.set_up(index).await?)
    }

    fn register(&mut self, port: &Port) -> Result<(), Error> {
        let ifindex = self.index(&port.host_link)?;
        let (topology, mode) = (self.topology, mode(self.record.selection.redirect));
        let entry = port_entry(topology, port, ifindex, mode);
        let datapath = self.datapath()?;
        datapath.set_target(port.slot, ifindex)?;
        datapath.set_port(&entry)?;
        if let Some(key) = fdb_key(topology, port) {
            datapath.set_fdb(key, &target(topology, port, mode))?;
        }
        Ok(())
    }

    async fn connect(&self, port: &Port) -> Result<(), Error> {
        let index = self.index(&port.host_link)?;
        self.netlink.set_up(index).await?;
        if let Some(bridge) = &self.topology.path(port).bridge {
            self.netlink.join_bridge(index, self.index(&bridge.link)?).await?;
            self.netlink.add_static_fdb(index, port.mac).await?;
        }
        Ok(())
    }

    /// Setting a link up is not enough: the kernel starts its queue, and its bridge port, a moment later, and
    /// drops frames until then.
    async fn wait_until_ready(&self) -> Result<(), Error> {
        let host_ends: HashSet<&str> =
            self.topology.ports().map(|(_, port)| port.host_link.as_str()).collect();
        wait_for_links(self.netlink, &host_ends).await?;
        for pod in &self.topology.pods {
            let netlink = Netns::open(&pod.namespace)?.netlink()?;
            let ends = pod.ports.iter().map(|port| port.name.as_str()).collect();
            wait_for_links(&netlink, &ends).await?;
        }
        Ok(())
    }

    fn index(&self, name: &str) -> Result<u32, Error> {
        self.host_link(name).map(|link| link.index)
    }

    fn host_link(&self, name: &str) -> Result<&Link, Error> {
        let link = self.links.iter().find(|link| link.name == name);
        Ok(link.ok_or_else(|| {
            net::Error::new(
                format!("find the link {name}, which was made a moment ago"),
                io::Error::from_raw_os_error(libc::ENODEV),
            )
        })?)
    }

    fn datapath(&mut self) -> Result<&mut Datapath, Error> {
        Ok(self.datapath.as_mut().ok_or(datapath::Error::NotLoaded)?)
    }
}

/// Waits until links of a namespace are operational.
async fn wait_for_links(netlink: &Netlink, names: &HashSet<&str>) -> Result<(), Error> {
    let start = Instant::now();
    loop {
        let links = netlink.links().await?;
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

/// What a redirect means to the programs. XDP goes out of the host end too, in its own way.
pub(super) const fn mode(redirect: Redirect) -> RedirectMode {
    match redirect {
        Redirect::Peer => RedirectMode::Peer,
        Redirect::Host | Redirect::Devmap => RedirectMode::Host,
    }
}

/// What the programs are told of a port. `mode` is how frames reach the other end of its wire.
pub(super) fn port_entry(topology: &Topology, port: &Port, ifindex: u32, mode: RedirectMode) -> PortEntry {
    let mut entry = PortEntry { ifindex, slot: port.slot, ..PortEntry::default() };
    if let Some(bridge) = &topology.path(port).bridge {
        entry.kind = PortKind::Switch as u32;
        entry.domain = bridge.domain;
    } else {
        entry.kind = PortKind::Wire as u32;
        entry.target = topology.wire_peer(port).map(|peer| target(topology, peer, mode)).unwrap_or_default();
    }
    entry
}

/// Where a switch looks a port's address up.
pub(super) fn fdb_key(topology: &Topology, port: &Port) -> Option<FdbKey> {
    let bridge = topology.path(port).bridge.as_ref()?;
    Some(FdbKey { domain: bridge.domain, mac: port.mac })
}

/// A port as a target, with how frames reach it.
pub(super) fn target(topology: &Topology, port: &Port, mode: RedirectMode) -> Target {
    Target {
        slot: port.slot,
        max_length: topology.path(port).mtu + Target::MTU_OVERHEAD,
        mac: port.mac,
        redirect: mode as u8,
        reserved: 0,
    }
}
