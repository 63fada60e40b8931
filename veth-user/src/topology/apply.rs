//! Does what a plan says.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use veth_common::{FdbKey, Port as PortEntry, PortKind, RedirectMode, Target};

use super::{
    Error, Kind, Path, Pod, Port, Topology, check_layout, check_place, features,
    model::{self, Bridge, Cable},
    observe::{self, Fault, Observed},
    plan::{self, Gone, Step},
    teardown::{self, collect, forget, hurry, lock, stop_hurrying, teardown},
};
use crate::{
    datapath::{
        self, Datapath, Hook, LoadOptions, Redirect,
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

/// Up to so many ports, pods may greet each other while they come up. The work grows with the square.
const QUIET_PORTS: usize = 64;

/// The largest merged frame with BIG TCP: three times what it is without.
const BIG_TCP_BYTES: u32 = 3 * 65_536;

/// What `up` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was there already; nothing was changed.
    AlreadyUp,
    /// It was as it was declared before, but for some things that were put right in place.
    Repaired,
    /// It was there, and was changed to what is declared now.
    Changed,
    /// It was made.
    Made,
}

/// What `up` would do.
#[derive(Debug)]
pub struct Plan {
    /// What is declared, as it would be made.
    pub topology: Topology,
    /// Why what there is has to be taken down first, if it has.
    pub remake: Option<String>,
    /// What would be done.
    pub steps: Vec<Step>,
    /// By which hook programs would be attached.
    pub hook: Hook,
    /// What is wrong with what there is.
    pub drift: Vec<observe::Drift>,
    /// Whether the declaration differs from what was made.
    pub is_declared_otherwise: bool,
    /// Whether a command that was killed left it half-changed.
    is_interrupted: bool,
    /// What is remembered of what there is.
    record: Option<Record>,
    /// What was picked, where it is to be made anew.
    selection: Option<Selection>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remake.is_none() && self.steps.is_empty() && self.record.is_some() && !self.is_interrupted
    }
}

/// Compares what is declared with what there is. Changes nothing.
///
/// # Errors
///
/// When the declaration makes no sense here, a name is taken, or the machine cannot be looked at.
pub async fn plan(roots: &Roots, topology: &Topology) -> Result<Plan, Error> {
    plan_with(roots, topology, &Netlink::open()?).await
}

async fn plan_with(roots: &Roots, topology: &Topology, netlink: &Netlink) -> Result<Plan, Error> {
    let mut topology = Topology { mark: roots.mark(), ..topology.clone() };
    let record = roots.load(&topology.name)?;
    topology.number_slots(record.as_ref().map(|record| &record.topology));
    topology.validate()?;
    let links = netlink.links().await?;
    let mut plan = match record {
        Some(record) => plan_change(roots, topology, record, netlink, &links).await?,
        None => plan_new(topology, None)?,
    };
    if let Some(why) = &plan.remake {
        let why = Some(why.clone());
        let (record, drift) = (plan.record.take(), std::mem::take(&mut plan.drift));
        plan.topology.number_slots(None);
        plan = Plan { record, drift, remake: why, ..plan_new(plan.topology, plan.selection)? };
    }
    check_names(&plan, &links)?;
    if plan.steps.contains(&Step::Ovs) {
        ovs::find_programs().map_err(Error::Ovs)?;
    }
    Ok(plan)
}

/// What it takes to make a topology of which there is nothing.
fn plan_new(topology: Topology, selection: Option<Selection>) -> Result<Plan, Error> {
    let selection = match selection {
        Some(selection) => selection,
        None => select(&topology)?,
    };
    let hook = selection.hook;
    Ok(Plan {
        steps: plan::build(&topology, hook),
        topology,
        remake: None,
        hook,
        drift: Vec::new(),
        is_declared_otherwise: true,
        is_interrupted: false,
        record: None,
        selection: Some(selection),
    })
}

/// What it takes to make one topology another.
async fn plan_change(
    roots: &Roots,
    topology: Topology,
    record: Record,
    netlink: &Netlink,
    links: &[Link],
) -> Result<Plan, Error> {
    check_place(&record)?;
    let hook = record.selection.hook;
    let made = &record.topology;
    let mut plan = Plan {
        topology,
        remake: None,
        steps: Vec::new(),
        hook,
        drift: Vec::new(),
        is_declared_otherwise: false,
        is_interrupted: record.phase == Phase::Changing,
        record: None,
        selection: None,
    };
    let declared = &plan.topology;
    plan.is_declared_otherwise = Topology { file: made.file.clone(), ..declared.clone() } != *made;
    if record.is_from_another_boot()? || plan.is_interrupted && record.before.is_none() {
        plan.remake = Some("an interrupted command left it half-made".to_owned());
        plan.record = Some(record);
        return Ok(plan);
    }
    check_layout(&record)?;
    plan.drift = observe::drift(roots, &record, netlink, links).await?;
    let capacity = record.capacity;
    plan.remake = if plan.drift.iter().any(|drift| drift.fault == Fault::Programs) {
        Some("its programs or maps are gone".to_owned())
    } else if (made.hook, made.redirect, made.place, made.ebpf_log)
        != (declared.hook, declared.redirect, declared.place, declared.ebpf_log)
    {
        Some("other programs are asked for (hook, redirect, place or log)".to_owned())
    } else if declared.has_programs() && made.has_programs() && declared.slot_count() > capacity {
        Some(format!("its maps have room for {capacity} ports"))
    } else {
        None
    };
    if plan.remake.is_none() {
        let observed = Observed::new(&plan.drift, record.before.clone());
        plan.steps = plan::diff(declared, made, &observed, hook);
        check_paths(declared, hook)?;
    } else {
        plan.selection = Some(select(declared)?);
    }
    plan.record = Some(record);
    Ok(plan)
}

/// Refuses names that belong to somebody else, before anything is touched.
fn check_names(plan: &Plan, links: &[Link]) -> Result<(), Error> {
    let topology = &plan.topology;
    let taken = |what: &'static str, name: &str, remove: String| Error::Taken {
        what,
        name: name.to_owned(),
        topology: topology.name.clone(),
        remove,
    };
    // What is ours now, whatever becomes of it.
    let known = plan.record.iter().flat_map(|record| std::iter::once(&record.topology).chain(&record.before));
    let mut namespaces = HashSet::new();
    let mut names = HashSet::new();
    for topology in known {
        namespaces.extend(topology.pods.iter().map(|pod| pod.namespace.as_str()));
        names.extend(topology.host_links());
    }
    let links: HashMap<&str, &Link> = links.iter().map(|link| (link.name.as_str(), link)).collect();
    let prefix = topology.alias_prefix();
    let is_theirs = |name: &str| {
        links.get(name).is_some_and(|link| match &link.alias {
            Some(alias) => !alias.starts_with(&prefix) || !names.contains(name),
            None => !names.contains(name) || !topology.groups().any(|group| group == link.group),
        })
    };
    let mut wanted: Vec<&str> = Vec::new();
    for step in &plan.steps {
        match step {
            Step::Namespace { pod } => {
                let namespace = &topology.pods[*pod].namespace;
                let found = netns::look_up(namespace)?;
                if matches!(found, netns::Name::Namespace | netns::Name::Foreign)
                    && !namespaces.contains(namespace.as_str())
                {
                    return Err(taken("network namespace", namespace, format!("ip netns del {namespace}")));
                }
            }
            Step::Pair { pod, port } => wanted.push(&topology.pods[*pod].ports[*port].host_link),
            Step::Ovs => wanted.push(ovs::COMMON_LINK),
            Step::Bridge { path } => {
                wanted.extend(topology.paths[*path].bridge.iter().map(|bridge| bridge.link.as_str()));
            }
            Step::Cable { cable } => {
                wanted.extend(topology.cables[*cable].ends.iter().map(|end| end.link.as_str()));
            }
            _ => {}
        }
    }
    wanted
        .into_iter()
        .find(|name| is_theirs(name))
        .map_or(Ok(()), |name| Err(taken("link", name, format!("ip link del {name}"))))
}

/// Brings a topology up, or changes it to what is declared now. What a killed command left of it is repaired or
/// removed first; what fails is rolled back.
///
/// `begun` is set when the machine begins to change: whoever drops the future after that calls [`undo`], and before
/// that has nothing to undo.
///
/// # Errors
///
/// When a name is taken, the kernel lacks something, or a step fails. Nothing is left then that was not there before.
pub async fn up(
    roots: &Roots,
    topology: &Topology,
    progress: &dyn Progress,
    begun: &Cell<bool>,
) -> Result<Outcome, Error> {
    topology.validate()?;
    let netlink = Netlink::open()?;
    // What cannot be is said before anything that is there is touched.
    datapath::object::check()?;
    let lock = lock(roots, &topology.name, progress).await?;
    let plan = match plan_with(roots, topology, &netlink).await {
        Ok(plan) => plan,
        Err(error) => {
            if matches!(roots.load(&topology.name), Ok(None)) {
                forget(roots, &topology.name, lock)?;
            }
            return Err(error);
        }
    };
    if plan.is_empty() {
        return Ok(Outcome::AlreadyUp);
    }
    let words: Vec<&str> = plan.drift.iter().map(|drift| drift.what.as_str()).collect();
    let words = words.join("; ");
    let name = &topology.name;
    match (&plan.remake, plan.is_interrupted) {
        (Some(_), true) => {
            progress.note(&format_args!("removing what an interrupted command left of {name}"));
        }
        (Some(why), false) if words.is_empty() => progress.note(&format_args!("making {name} again: {why}")),
        (Some(_), false) => progress.note(&format_args!("{name} was not whole ({words}); making it again")),
        (None, true) => progress.note(&format_args!("finishing what an interrupted command left of {name}")),
        (None, false) if !words.is_empty() => {
            progress.note(&format_args!("{name} had changed ({words}); putting it right"));
        }
        (None, false) => {}
    }
    begun.set(true);
    if plan.remake.is_none()
        && let Some(record) = plan.record
    {
        let outcome = if plan.is_declared_otherwise { Outcome::Changed } else { Outcome::Repaired };
        change(roots, record, plan.topology, plan.steps, &netlink, progress).await?;
        return Ok(outcome);
    }
    if let Some(record) = &plan.record {
        collect(teardown(roots, record, &netlink, progress).await)?;
    }
    let Some(selection) = plan.selection else { return Err(datapath::Error::NotLoaded.into()) };
    log::info!("{}", selection.why);
    let record = Record::new(plan.topology, Netns::current()?.inode()?, selection)?;
    let mut record = Record { capacity: datapath::capacity(record.topology.slot_count()), ..record };
    let prepared = prepare(roots, &record);
    if record.selection.hook.is_xdp() && record.topology.has_programs() {
        progress.note(&features::XDP_WARNING);
    }
    let made = match prepared {
        Ok(()) => make(roots, &mut record, &netlink, plan.steps, progress).await,
        Err(error) => Err(("remember what is about to be made".to_owned(), error)),
    };
    let finished = made.and_then(|()| finish(roots, &mut record));
    if let Err((step, source)) = finished {
        let mut rollback = teardown(roots, &record, &netlink, progress).await;
        if rollback.is_empty()
            && let Err(error) = forget(roots, &record.topology.name, lock)
        {
            rollback.push(error);
        }
        return Err(Error::RolledBack { step, source: Box::new(source), rollback });
    }
    hooks::step();
    Ok(Outcome::Made)
}

/// Undoes what a dropped [`up`] had begun: a topology that was there before is again as it was, and one that was not
/// goes.
///
/// # Errors
///
/// When something could not be undone.
pub async fn undo(roots: &Roots, name: &str, progress: &dyn Progress) -> Result<(), Error> {
    let netlink = Netlink::open()?;
    let lock = lock(roots, name, progress).await?;
    let Some(Record { before: Some(before), phase: Phase::Changing, .. }) = roots.load(name)? else {
        drop(lock);
        teardown::down(roots, name, progress).await?;
        return Ok(());
    };
    let plan = plan_with(roots, &before, &netlink).await?;
    if let (None, Some(record)) = (plan.remake, plan.record) {
        change(roots, record, plan.topology, plan.steps, &netlink, progress).await
    } else {
        drop(lock);
        teardown::down(roots, name, progress).await.map(|_| ())
    }
}

/// Notes that all was made.
fn finish(roots: &Roots, record: &mut Record) -> Result<(), (String, Error)> {
    record.phase = Phase::Up;
    record.before = None;
    roots.save(record).map_err(|error| ("remember that it is up".to_owned(), error.into()))
}

/// Changes a topology that is up, in place. What fails is changed back.
async fn change(
    roots: &Roots,
    record: Record,
    topology: Topology,
    steps: Vec<Step>,
    netlink: &Netlink,
    progress: &dyn Progress,
) -> Result<(), Error> {
    // Where a command was killed, what there was before it is as likely to be there as what it was to be.
    let before = record.before.clone().unwrap_or_else(|| record.topology.clone());
    let was_interrupted = record.phase == Phase::Changing;
    let mut record =
        Record { phase: Phase::Changing, before: Some(record.topology.clone()), topology, ..record };
    roots.save(&record)?;
    hooks::step();
    let made = make(roots, &mut record, netlink, steps, progress).await;
    let Err((step, source)) = made.and_then(|()| finish(roots, &mut record)) else {
        hooks::step();
        return Ok(());
    };
    let failed = |rollback: Vec<Error>| Error::ChangedBack { step, source: Box::new(source), rollback };
    if was_interrupted {
        return Err(failed(vec![Error::Interrupted(record.topology.name.clone())]));
    }
    progress.note(&"changing back what had been changed");
    let back = async {
        let links = netlink.links().await?;
        let drift = observe::drift(roots, &record, netlink, &links).await?;
        let observed = Observed::new(&drift, record.before.clone());
        let steps = plan::diff(&before, &record.topology, &observed, record.selection.hook);
        record = Record { before: Some(record.topology.clone()), topology: before, ..record };
        roots.save(&record)?;
        let made = make(roots, &mut record, netlink, steps, progress).await;
        made.and_then(|()| finish(roots, &mut record)).map_err(|(_, error)| error)
    };
    let rollback: Vec<Error> = back.await.err().into_iter().collect();
    Err(failed(rollback))
}

/// Does the steps, or says which one failed.
async fn make(
    roots: &Roots,
    record: &mut Record,
    netlink: &Netlink,
    steps: Vec<Step>,
    progress: &dyn Progress,
) -> Result<(), (String, Error)> {
    progress.start(steps.len());
    let made = perform(roots, record, netlink, steps, progress).await;
    progress.finish();
    made
}

async fn perform(
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
    let attachments = |step: &&Step| matches!(step, Step::Attach { .. } | Step::RemovePort(_));
    let attachments = steps.iter().filter(attachments).count();
    hurry(roots, attachments).map_err(failed("hurry grace periods"))?;
    let mut worker = Worker {
        roots,
        topology: &record.topology,
        record,
        netlink,
        ovs: Ovs::new(roots.ovs_folder(&record.topology.name)),
        datapath: None,
        links: HashMap::new(),
        is_bulk: record.before.is_none() && record.topology.ports().count() > QUIET_PORTS,
        touched: HashSet::new(),
        changed_features: Vec::new(),
    };
    for step in &steps {
        let description = step.describe(worker.topology, worker.record.selection.hook);
        progress.step(&description);
        worker.perform(step).await.map_err(failed(&description.to_string()))?;
        hooks::step();
    }
    let Worker { changed_features, .. } = worker;
    for change in changed_features {
        if !record.changed_features.contains(&change) {
            record.changed_features.push(change);
        }
    }
    stop_hurrying(roots).map_err(failed("let grace periods take their time again"))
}

/// The hook and redirect for a topology on this kernel.
fn select(topology: &Topology) -> Result<Selection, Error> {
    let wish = Wish { hook: topology.hook.into(), redirect: topology.redirect.into() };
    let abilities = Abilities::probe()?;
    let selection = probe::select(wish, abilities, topology.accelerated_ports().count())?;
    check_paths(topology, selection.hook)?;
    Ok(selection)
}

/// Refuses paths that a hook cannot serve on this kernel.
fn check_paths(topology: &Topology, hook: Hook) -> Result<(), Error> {
    let kernel = probe::Kernel::current()?;
    if topology.paths.iter().any(|path| path.tune.big_tcp) {
        probe::select::check_big_tcp(kernel)?;
    }
    if !hook.is_xdp() {
        return Ok(());
    }
    for path in topology.paths.iter().filter(|path| path.kind.is_accelerated()) {
        probe::select::check_mtu(hook, kernel, path.mtu)?;
    }
    Ok(())
}

/// The intent file, then a place for pins.
fn prepare(roots: &Roots, record: &Record) -> Result<(), Error> {
    roots.save(record)?;
    hooks::step();
    // Pins of this name without links and namespaces are what a crash left: the folder is ours alone.
    pins::remove_all(roots, &record.topology.name)?;
    if record.topology.has_programs() {
        pins::prepare(roots)?;
    }
    hooks::step();
    Ok(())
}

struct Worker<'a> {
    roots: &'a Roots,
    topology: &'a Topology,
    record: &'a Record,
    netlink: &'a Netlink,
    ovs: Ovs,
    datapath: Option<Datapath>,
    /// Links of the host's namespace, as far as they were looked at.
    links: HashMap<String, Link>,
    /// Whether so many ports come at once that what their pods say to all when they come up would drown them.
    is_bulk: bool,
    /// Pods, by index, with a port that was changed.
    touched: HashSet<usize>,
    /// What the record is to remember of features that were changed.
    changed_features: Vec<String>,
}

impl Worker<'_> {
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
            Step::Ovs => Ok(self.ovs.start()?),
            Step::Bridge { path } => self.make_bridge(&topology.paths[*path]).await,
            Step::Gateway { path } => self.set_gateway(&topology.paths[*path]).await,
            Step::Register { pod, port } => self.register(&topology.pods[*pod].ports[*port]).await,
            Step::Attach { pod, port } => {
                let name = &topology.pods[*pod].ports[*port].host_link;
                self.attach(self.record.selection.hook, name).await
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
        if path.kind.is_accelerated() && self.is_loaded() {
            let index = self
                .netlink
                .links()
                .await?
                .iter()
                .find(|link| link.name == port.host_link)
                .map(|link| link.index);
            let pin = self.pins().link(&port.host_link);
            let datapath = self.datapath()?;
            if let Some(bridge) = &path.bridge {
                let key = FdbKey { domain: bridge.domain, mac: port.mac };
                if datapath.fdb(key).is_some_and(|target| target.slot == port.slot) {
                    datapath.remove_fdb(key)?;
                }
            }
            for address in datapath.sources(port.slot).collect::<Result<Vec<_>, _>>()? {
                datapath.remove_source(port.slot, address)?;
            }
            if let Some(index) = index {
                datapath.remove_port(index)?;
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
    fn leave_ovs(&self, end: &model::CableEnd) -> Result<(), Error> {
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
            pins::remove_pin(&self.pins().link(&bridge.link))?;
        }
        self.delete_ours(&bridge.link).await
    }

    /// Deletes a link of the host's namespace, unless it is somebody else's by now.
    async fn delete_ours(&mut self, name: &str) -> Result<(), Error> {
        self.links.remove(name);
        let links = self.netlink.links().await?;
        let prefix = self.topology.alias_prefix();
        let is_ours = |link: &&Link| {
            link.name == name
                && match &link.alias {
                    Some(alias) => alias.starts_with(&prefix),
                    None => link.group != 0,
                }
        };
        match links.iter().find(is_ours) {
            Some(link) => Ok(self.netlink.delete_link(link.index).await?),
            None => Ok(()),
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
        if path.kind == Kind::Route {
            sysctl::make_router_end(&port.host_link)?;
        } else {
            sysctl::disable_ipv6(&port.host_link)?;
        }
        Ok(())
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
        let (gso, gro) = merged_sizes(self.topology.path(port));
        let inside = Netns::open(&pod.namespace)?.netlink()?;
        set_merged_sizes(&inside, &inside.link(&port.name).await?, gso, gro).await?;
        if !port.host_link.is_empty() {
            let link = self.netlink.link(&port.host_link).await?;
            set_merged_sizes(self.netlink, &link, gso, gro).await?;
        }
        Ok(())
    }

    async fn configure(&mut self, pod: usize, port: usize) -> Result<(), Error> {
        self.touched.insert(pod);
        let pod = &self.topology.pods[pod];
        let port = &pod.ports[port];
        let netlink = Netns::open(&pod.namespace)?.netlink()?;
        let link = netlink.link(&port.name).await?;
        // One that is down was just made, and has none.
        set_addresses(&netlink, &link, &port.addresses, link.up).await?;
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

    async fn attach(&mut self, hook: Hook, name: &str) -> Result<(), Error> {
        let link = self.host_link(name).await?;
        let (netlink, place) = (self.netlink, self.topology.place);
        Ok(self.datapath()?.attach(netlink, hook, place, &link).await?)
    }

    async fn load(&mut self) -> Result<(), Error> {
        let Record { topology, selection, capacity, .. } = self.record;
        pins::prepare(self.roots)?;
        let set_packet_host = selection.redirect == Redirect::Peer
            && probe::must_set_packet_host(probe::Kernel::current()?).await?;
        let options =
            LoadOptions { slots: *capacity, log: topology.ebpf_log, hook: selection.hook, set_packet_host };
        Ok(datapath::load(self.roots, &topology.name, &options)?)
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
        if path.gateway.iter().any(|cidr| cidr.address.is_ipv6()) {
            sysctl::make_router_end(name)?;
        } else {
            sysctl::disable_ipv6(name)?;
        }
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
        set_addresses(self.netlink, &link, &path.gateway, true).await?;
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
        let usual = mode(self.record.selection.redirect);
        let peer = match topology.wire_peer(port) {
            Some(peer) if topology.path(port).bridge.is_none() => Some(peer),
            _ => None,
        };
        let datapath = self.datapath()?;
        // Of a port that is there already, it was found out how frames must reach it.
        let known = |target: Target| {
            if target.redirect == RedirectMode::Host as u8 { RedirectMode::Host } else { usual }
        };
        datapath.set_target(port.slot, ifindex)?;
        // Allowed before it is checked, and no longer allowed after it was.
        let allowed: Vec<IpAddr> = if topology.path(port).spoof_check {
            port.addresses.iter().map(|cidr| cidr.address).chain([port.mac.link_local().into()]).collect()
        } else {
            Vec::new()
        };
        for address in &allowed {
            datapath.set_source(port.slot, *address)?;
        }
        let was_known = datapath.port(ifindex).is_some();
        let way =
            datapath.port(ifindex).filter(|_| peer.is_some()).map_or(usual, |entry| known(entry.target));
        datapath.set_port(&port_entry(topology, port, ifindex, way))?;
        if let Some(key) = fdb_key(topology, port) {
            let way = datapath.fdb(key).map_or(usual, known);
            datapath.set_fdb(key, &target(topology, port, way))?;
        }
        if was_known {
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
        self.netlink.set_up(index).await?;
        match (&path.bridge, path.kind) {
            (Some(bridge), Kind::Ovs) => self.ovs.add_port(&bridge.link, &port.host_link)?,
            (Some(bridge), Kind::Bridge) => {
                self.netlink.join_bridge_learning(index, self.index(&bridge.link).await?).await?;
            }
            (Some(bridge), _) => {
                let bridge = self.index(&bridge.link).await?;
                self.netlink.join_bridge(index, bridge, !self.is_bulk).await?;
                self.netlink.add_static_fdb(index, port.mac).await?;
            }
            (None, Kind::Route) => self.connect_routed(port, path, index).await?,
            (None, _) => {}
        }
        Ok(())
    }

    /// The host's end of a routed pair: the gateway's addresses, and the way to the pod's.
    async fn connect_routed(&self, port: &Port, path: &Path, link: u32) -> Result<(), Error> {
        let end = self.netlink.link(&port.host_link).await?;
        set_addresses(self.netlink, &end, &path.gateway, true).await?;
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
        let topology = self.topology;
        let [a, b] = &cable.ends;
        let end = |end: &'static str, value: &'_ model::CableEnd| (end, value.link.clone(), value.mac);
        let (_, a_name, a_mac) = end("a", a);
        let (_, b_name, b_mac) = end("b", b);
        self.netlink
            .add_pair(&Pair {
                host: End { name: &a_name, mac: a_mac },
                pod: End { name: &b_name, mac: b_mac },
                namespace: None,
                mtu: cable.mtu,
                group: topology.group(),
                queues: 1,
            })
            .await?;
        for end in &cable.ends {
            let index = self.index(&end.link).await?;
            self.netlink.set_alias(index, &topology.cable_alias(cable)).await?;
            let joined =
                end.path.and_then(|path| topology.paths[path].bridge.as_ref().map(|bridge| (path, bridge)));
            let Some((path, bridge)) = joined else {
                if end.addresses.iter().any(|cidr| cidr.address.is_ipv6()) {
                    sysctl::make_router_end(&end.link)?;
                } else {
                    sysctl::disable_ipv6(&end.link)?;
                }
                if cable.ends.iter().filter_map(|end| end.path).any(|path| topology.reaches_ovs(path)) {
                    features::prepare_for_ovs(&end.link)?;
                }
                let link = self.netlink.link(&end.link).await?;
                set_addresses(self.netlink, &link, &end.addresses, true).await?;
                self.netlink.set_up(index).await?;
                continue;
            };
            sysctl::disable_ipv6(&end.link)?;
            self.netlink.set_up(index).await?;
            if topology.paths[path].kind == Kind::Ovs {
                self.ovs.add_port(&bridge.link, &end.link)?;
            } else {
                self.netlink.join_bridge_learning(index, self.index(&bridge.link).await?).await?;
            }
        }
        let names = cable.ends.iter().map(|end| end.link.as_str()).collect();
        wait_for_links(self.netlink, &names).await
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
                self.roots.note_forwarding(now)?;
                sysctl::set_forwarding(sysctl::Forwarding { ipv4: true, ipv6: true })?;
            }
        } else {
            teardown::stop_forwarding(self.roots, &topology.name)?;
        }
        Ok(())
    }

    /// Setting a link up is not enough: the kernel starts its queue, and its bridge port, a moment later, and
    /// drops frames until then.
    async fn wait_until_ready(&self) -> Result<(), Error> {
        let pods = self.topology.pods.iter().enumerate();
        let pods: Vec<&Pod> =
            pods.filter(|(number, _)| self.touched.contains(number)).map(|(_, pod)| pod).collect();
        let ports = pods.iter().flat_map(|pod| &pod.ports);
        let host_ends = ports.map(|port| port.host_link.as_str()).filter(|name| !name.is_empty()).collect();
        wait_for_links(self.netlink, &host_ends).await?;
        for pod in pods {
            let netlink = Netns::open(&pod.namespace)?.netlink()?;
            let ends = pod.ports.iter().map(|port| port.name.as_str()).collect();
            wait_for_links(&netlink, &ends).await?;
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
        if let Some(link) = self.links.get(name) {
            return Ok(link.index);
        }
        Ok(self.host_link(name).await?.index)
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
        Pins::new(self.roots, self.record.layout_version, &self.topology.name)
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

/// Gives a link addresses; `strictly`, and no others.
async fn set_addresses(netlink: &Netlink, link: &Link, wanted: &[Cidr], strictly: bool) -> Result<(), Error> {
    let there = if strictly { netlink.addresses(link.index).await? } else { Vec::new() };
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

/// How large merged frames of a path may be, in bytes.
const fn merged_sizes(path: &Path) -> (u32, u32) {
    if path.tune.big_tcp { (BIG_TCP_BYTES, BIG_TCP_BYTES) } else { (link::MERGED_MAX, link::MERGED_MAX) }
}

async fn set_merged_sizes(netlink: &Netlink, link: &Link, gso: u32, gro: u32) -> Result<(), Error> {
    if (link.gso_max_size, link.gro_max_size) == (gso, gro) {
        return Ok(());
    }
    Ok(netlink.set_max_sizes(link.index, gso, gro).await?)
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
    let flags = if topology.path(port).spoof_check { PortEntry::SPOOF_CHECK } else { 0 };
    let mut entry = PortEntry { ifindex, slot: port.slot, flags, mac: port.mac, ..PortEntry::default() };
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
