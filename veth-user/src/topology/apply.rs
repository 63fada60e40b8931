//! Does what a plan says, and undoes it by ownership.

use std::{
    collections::HashSet,
    io,
    time::{Duration, Instant},
};

use veth_common::{FdbKey, Port as PortEntry, PortKind, Target};

use super::{
    Error, Path, Port, Status, Switch, Topology, check_layout, model, observe,
    plan::{self, Step},
};
use crate::{
    datapath::{self, Datapath, LoadOptions, pins},
    hooks,
    net::{
        self, Netlink, Netns,
        link::{End, Link, Pair},
        netns, rcu, sysctl,
    },
    state::{Lock, Phase, Record, Roots},
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

/// Up to so many ports, attaching and removing takes no more than 0.1 s without hurry.
const UNHURRIED_PORTS: usize = 8;

/// What `up` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was there already; nothing was changed.
    AlreadyUp,
    /// It was made.
    Made,
}

/// Brings a topology up. What a killed command left of it is removed first; what fails is rolled back.
///
/// # Errors
///
/// When a name is taken, the kernel lacks something, or a step fails. Nothing is left then.
pub async fn up(roots: &Roots, topology: &Topology, progress: &dyn Progress) -> Result<Outcome, Error> {
    topology.validate()?;
    let host = Netns::current()?;
    let netlink = Netlink::open()?;
    let lock = lock(roots, &topology.name, progress)?;

    if let Some(mut record) = roots.load(&topology.name)? {
        check_place(&record, &host)?;
        check_layout(&record)?;
        let status = observe(roots, &record, &netlink.links().await?)?;
        match &status {
            Status::Up if record.topology != *topology => {
                return Err(Error::OtherShape(record.topology.name));
            }
            Status::Up => return Ok(Outcome::AlreadyUp),
            // `check_place` has refused it.
            Status::Elsewhere => {}
            Status::Drifted(drift) => progress.note(&format_args!(
                "{} was not whole ({}); making it again",
                topology.name,
                drift.join("; ")
            )),
            Status::Incomplete | Status::Gone => {
                progress
                    .note(&format_args!("removing what an interrupted command left of {}", topology.name));
            }
        }
        collect(teardown(roots, &mut record, &netlink, progress).await)?;
    }

    let prepared = prepare(roots, topology, &host, &netlink).await;
    let mut record = match prepared {
        Ok(record) => record,
        Err(error) => {
            forget(roots, &topology.name, lock)?;
            return Err(error);
        }
    };
    hurry(roots, &mut record)?;
    let steps = plan::build(topology);
    progress.start(steps.len());
    let mut worker = Worker { roots, topology, netlink: &netlink, datapath: None, links: Vec::new() };
    for step in steps {
        let description = step.describe(topology);
        progress.step(&description);
        if let Err(source) = worker.perform(step).await {
            progress.finish();
            let step = description.to_string();
            drop(worker);
            let mut rollback = teardown(roots, &mut record, &netlink, progress).await;
            if rollback.is_empty()
                && let Err(error) = forget(roots, &topology.name, lock)
            {
                rollback.push(error);
            }
            return Err(Error::RolledBack { step, source: Box::new(source), rollback });
        }
        hooks::step();
    }
    record.phase = Phase::Up;
    stop_hurrying(roots, &mut record)?;
    roots.save(&record)?;
    hooks::step();
    progress.finish();
    Ok(Outcome::Made)
}

/// Takes a topology down. Removes everything that is ours, whatever a crash or a person did to it, and
/// nothing that is not. Returns whether there was anything.
///
/// # Errors
///
/// When something could not be removed; the rest is removed all the same.
pub async fn down(roots: &Roots, name: &str, progress: &dyn Progress) -> Result<bool, Error> {
    let netlink = Netlink::open()?;
    if roots.load(name)?.is_none() {
        let lost = lost(name, &netlink).await?;
        if lost.is_empty() && pins::layouts(roots, name).is_empty() {
            return Ok(false);
        }
    }
    let lock = lock(roots, name, progress)?;
    match roots.load(name)? {
        Some(mut record) => {
            if !record.is_from_another_boot()? {
                check_place(&record, &Netns::current()?)?;
            }
            record.phase = Phase::Changing;
            roots.save(&record)?;
            hooks::step();
            collect(teardown(roots, &mut record, &netlink, progress).await)?;
        }
        None => collect(sweep(roots, name, &netlink).await)?,
    }
    forget(roots, name, lock)?;
    Ok(true)
}

/// Takes down what this process has made or begun to make, and nothing that another did under that name.
///
/// # Errors
///
/// As [`down`].
pub async fn down_if_ours(roots: &Roots, name: &str, progress: &dyn Progress) -> Result<bool, Error> {
    match roots.load(name)? {
        Some(record) if record.maker == std::process::id() => down(roots, name, progress).await,
        _ => Ok(false),
    }
}

fn lock(roots: &Roots, name: &str, progress: &dyn Progress) -> Result<Lock, Error> {
    let waiting = || progress.note(&format_args!("waiting for another veth command that changes {name}"));
    Ok(roots.lock(name, waiting)?)
}

/// Forgets a topology of which nothing is left, and unmounts the bpffs if we mounted it and nobody uses it.
fn forget(roots: &Roots, name: &str, lock: Lock) -> Result<(), Error> {
    if roots.names()?.iter().all(|other| other == name) {
        pins::unmount_if_ours(roots)?;
    }
    roots.forget(name, lock)?;
    hooks::step();
    Ok(())
}

fn collect(errors: Vec<Error>) -> Result<(), Error> {
    if errors.is_empty() { Ok(()) } else { Err(Error::Teardown(errors)) }
}

fn check_place(record: &Record, host: &Netns) -> Result<(), Error> {
    if record.host_netns == host.inode()? {
        return Ok(());
    }
    Err(Error::OtherNamespace { name: record.topology.name.clone(), inode: record.host_netns })
}

/// Everything that can fail without a trace, then the intent file, then a place for pins.
async fn prepare(
    roots: &Roots,
    topology: &Topology,
    host: &Netns,
    netlink: &Netlink,
) -> Result<Record, Error> {
    datapath::probe::require()?;
    datapath::object::check()?;
    let taken = |what: &'static str, name: &str, remove: String| Error::Taken {
        what,
        name: name.to_owned(),
        topology: topology.name.clone(),
        remove,
    };
    for pod in &topology.pods {
        if netns::look_up(&pod.namespace)? == netns::Name::Namespace {
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
    let record = Record::new(topology.clone(), host.inode()?)?;
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
    netlink: &'a Netlink,
    datapath: Option<Datapath>,
    /// The host's links, read once after all were made.
    links: Vec<Link>,
}

impl Worker<'_> {
    async fn perform(&mut self, step: Step) -> Result<(), Error> {
        let topology = self.topology;
        match step {
            Step::Namespace { pod } => self.make_namespace(pod).await,
            Step::Pair { pod, port } => self.make_pair(pod, port).await,
            Step::Configure { pod, port } => self.configure(pod, port).await,
            Step::Load => self.load().await,
            Step::Bridge { path } => match &topology.paths[path] {
                Path::Switch(switch) => self.make_bridge(switch).await,
                Path::Wire { .. } => Ok(()),
            },
            Step::Register { pod, port } => self.register(&topology.pods[pod].ports[port]),
            Step::Attach { pod, port } => {
                let name = &topology.pods[pod].ports[port].host_link;
                Ok(self.datapath()?.attach(name)?)
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
                namespace: &namespace,
                mtu: self.topology.paths[port.path].mtu(),
                group: self.topology.group(),
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
        for cidr in &port.addresses {
            netlink.add_address(index, *cidr).await?;
        }
        Ok(netlink.set_up(index).await?)
    }

    async fn load(&mut self) -> Result<(), Error> {
        self.links = self.netlink.links().await?;
        for (pod, port) in self.topology.ports() {
            let index = self.index(&port.host_link)?;
            self.netlink.set_alias(index, &self.topology.port_alias(pod, port)).await?;
        }
        self.datapath = Some(Datapath::load(
            self.roots,
            &self.topology.name,
            &LoadOptions { slots: self.topology.slot_count(), log: self.topology.ebpf_log },
        )?);
        Ok(())
    }

    async fn make_bridge(&mut self, switch: &Switch) -> Result<(), Error> {
        let Switch { domain, bridge, mac, slot, mtu } = switch;
        self.netlink.add_bridge(bridge, *mac, *mtu, self.topology.group()).await?;
        sysctl::disable_ipv6(bridge)?;
        let index = self.netlink.link(bridge).await?.index;
        self.netlink.set_alias(index, &self.topology.bridge_alias(switch)).await?;
        self.links.push(self.netlink.link(bridge).await?);
        let datapath = self.datapath()?;
        datapath.set_port(&PortEntry {
            ifindex: index,
            slot: *slot,
            kind: PortKind::Bridge as u32,
            domain: *domain,
            ..PortEntry::default()
        })?;
        datapath.attach(bridge)?;
        Ok(self.netlink.set_up(index).await?)
    }

    fn register(&mut self, port: &Port) -> Result<(), Error> {
        let ifindex = self.index(&port.host_link)?;
        let topology = self.topology;
        let mut entry = PortEntry { ifindex, slot: port.slot, ..PortEntry::default() };
        let mut fdb = None;
        match &topology.paths[port.path] {
            Path::Wire { .. } => {
                entry.kind = PortKind::Wire as u32;
                entry.target =
                    topology.wire_peer(port).map(|peer| target(topology, peer)).unwrap_or_default();
            }
            Path::Switch(switch) => {
                entry.kind = PortKind::Switch as u32;
                entry.domain = switch.domain;
                fdb = Some(FdbKey { domain: switch.domain, mac: port.mac });
            }
        }
        let datapath = self.datapath()?;
        datapath.set_target(port.slot, ifindex)?;
        datapath.set_port(&entry)?;
        if let Some(key) = fdb {
            datapath.set_fdb(key, &target(topology, port))?;
        }
        Ok(())
    }

    async fn connect(&self, port: &Port) -> Result<(), Error> {
        let index = self.index(&port.host_link)?;
        match &self.topology.paths[port.path] {
            Path::Wire { .. } => Ok(self.netlink.set_up(index).await?),
            Path::Switch(switch) => {
                self.netlink.set_up(index).await?;
                self.netlink.join_bridge(index, self.index(&switch.bridge)?).await?;
                Ok(self.netlink.add_static_fdb(index, port.mac).await?)
            }
        }
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
        let link = self.links.iter().find(|link| link.name == name);
        Ok(link.map(|link| link.index).ok_or_else(|| {
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

fn target(topology: &Topology, port: &Port) -> Target {
    let mode: veth_common::RedirectMode = topology.redirect.into();
    Target {
        slot: port.slot,
        max_length: topology.paths[port.path].mtu() + Target::MTU_OVERHEAD,
        mac: port.mac,
        redirect: mode as u8,
        reserved: 0,
    }
}

/// Removes all that is ours of a topology, goes on after errors, and returns them.
async fn teardown(
    roots: &Roots,
    record: &mut Record,
    netlink: &Netlink,
    progress: &dyn Progress,
) -> Vec<Error> {
    let mut errors = Vec::new();
    let mut check = |result: Result<(), Error>| {
        if let Err(error) = result {
            errors.push(error);
        }
        hooks::step();
    };
    // Another boot: the kernel objects are gone, and equal names now belong to somebody else.
    let same_boot = !matches!(record.is_from_another_boot(), Ok(true));
    if same_boot {
        check(hurry(roots, record));
    }
    let topology = &record.topology;
    progress.start(2 + topology.pods.len());
    if same_boot {
        progress.step(&"delete links");
        check(delete_links(topology, netlink).await);
    }
    progress.step(&"remove pins");
    check(pins::remove_all(roots, &topology.name).map_err(Error::from));
    if same_boot {
        for pod in &topology.pods {
            progress.step(&format_args!("remove namespace {}", pod.namespace));
            check(delete_namespace(topology, pod).await);
        }
    }
    if same_boot {
        check(stop_hurrying(roots, record));
    }
    progress.finish();
    errors
}

/// Makes the kernel hurry where many attachments come or go. Remembered before it is done.
fn hurry(roots: &Roots, record: &mut Record) -> Result<(), Error> {
    if record.topology.ports().count() > UNHURRIED_PORTS && rcu::is_normal() {
        record.rcu_raised = true;
        roots.save(record)?;
        rcu::expedite(true);
    }
    Ok(())
}

/// Undoes [`hurry`], also that of a process that was killed. Forgotten after it is done.
fn stop_hurrying(roots: &Roots, record: &mut Record) -> Result<(), Error> {
    if record.rcu_raised {
        rcu::expedite(false);
        record.rcu_raised = false;
        roots.save(record)?;
    }
    Ok(())
}

/// What carries the mark of a topology that nothing is remembered of: somebody removed its state file.
#[derive(Debug, Default)]
struct Lost {
    links: Vec<u32>,
    namespaces: Vec<String>,
}

impl Lost {
    fn is_empty(&self) -> bool {
        self.links.is_empty() && self.namespaces.is_empty()
    }
}

async fn lost(name: &str, netlink: &Netlink) -> Result<Lost, Error> {
    let prefix = model::alias_prefix(name);
    let marked = |link: &Link| link.alias.as_deref().is_some_and(|alias| alias.starts_with(&prefix));
    let mut lost = Lost::default();
    lost.links.extend(netlink.links().await?.iter().filter(|link| marked(link)).map(|link| link.index));
    for namespace in netns::names()? {
        if netns::look_up(&namespace)? == netns::Name::Namespace
            && marked(&Netns::open(&namespace)?.netlink()?.link("lo").await?)
        {
            lost.namespaces.push(namespace);
        }
    }
    Ok(lost)
}

/// Removes what is lost, and every pin of that name.
async fn sweep(roots: &Roots, name: &str, netlink: &Netlink) -> Vec<Error> {
    let Lost { links, namespaces } = match lost(name, netlink).await {
        Ok(lost) => lost,
        Err(error) => return vec![error],
    };
    let mut results: Vec<Result<(), Error>> = Vec::new();
    for link in links {
        results.push(netlink.delete_link(link).await.map_err(Error::from));
    }
    results.push(pins::remove_all(roots, name).map_err(Error::from));
    for namespace in namespaces {
        results.push(netns::remove(&namespace).map_err(Error::from));
    }
    results.into_iter().filter_map(Result::err).collect()
}

/// Host ends and bridges go in one request if nobody else uses the group, one by one otherwise.
async fn delete_links(topology: &Topology, netlink: &Netlink) -> Result<(), Error> {
    let group = topology.group();
    let names: HashSet<&str> = topology.host_links().collect();
    let prefix = topology.alias_prefix();
    // A link has its name and group from birth, its alias a little later.
    let is_ours = |link: &Link| match &link.alias {
        Some(alias) => alias.starts_with(&prefix),
        None => {
            link.group == group
                && names.contains(link.name.as_str())
                && matches!(link.kind.as_deref(), Some("veth" | "bridge"))
        }
    };
    let links = netlink.links().await?;
    let (ours, others): (Vec<_>, Vec<_>) = links.iter().partition(|link| is_ours(link));
    if ours.is_empty() {
        return Ok(());
    }
    if ours.iter().all(|link| link.group == group) && others.iter().all(|link| link.group != group) {
        return Ok(netlink.delete_group(group).await?);
    }
    for link in ours {
        netlink.delete_link(link.index).await?;
    }
    Ok(())
}

/// Removes a pod's namespace if it carries our mark, or if it is only a name without a namespace.
async fn delete_namespace(topology: &Topology, pod: &super::Pod) -> Result<(), Error> {
    match netns::look_up(&pod.namespace)? {
        netns::Name::Free => return Ok(()),
        netns::Name::Stale => {}
        netns::Name::Namespace => {
            let netlink = Netns::open(&pod.namespace)?.netlink()?;
            if netlink.link("lo").await?.alias.as_deref() != Some(&topology.pod_alias(pod)) {
                return Ok(());
            }
        }
    }
    Ok(netns::remove(&pod.namespace)?)
}
