//! From what is declared to what there is: plan it, do it, and undo what failed.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
};

use super::{
    Error, Topology,
    apply::make,
    check_place, features,
    observe::{self, Drift, Fault, Observed},
    ownership::Ownership,
    plan::{self, Step},
    teardown::{self, collect, forget, lock, teardown},
    upgrade::{self, migrate, settle_counts},
};
use crate::{
    datapath::{
        self, Hook, object,
        pins::{self, Pins},
    },
    hooks,
    net::{self, Netlink, Netns, link::Link, netns, ovs},
    probe::{self, Abilities, Selection, Wish},
    state::{Phase, Record, Roots},
};

/// More files than a change has open at once: maps, programs, and sockets in pods, which close a moment later.
const FILES: usize = 40;

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

/// What `up` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was there already; nothing was changed.
    AlreadyUp,
    /// It was as it was declared before, but for some things that were put right in place.
    Repaired,
    /// It was as it was declared before, and runs this veth's programs now.
    Upgraded,
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
    /// What would be done.
    pub steps: Vec<Step>,
    /// By which hook programs would be attached.
    pub hook: Hook,
    /// What is wrong with what there is.
    pub drift: Vec<Drift>,
    /// What would be done before all that, to what there is: its maps are of another layout.
    migration: Option<Vec<Step>>,
    way: Way,
}

/// What a plan begins with.
#[derive(Debug)]
enum Way {
    /// There is nothing.
    Make(Selection),
    /// What there is has to go first, and why.
    Remake { record: Box<Record>, selection: Selection, why: String },
    /// What there is is changed in place.
    Change { record: Box<Record>, is_declared_otherwise: bool, is_outdated: bool },
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self.way, Way::Change { .. })
            && self.steps.is_empty()
            && self.migration.is_none()
            && !self.is_interrupted()
    }

    /// Why what there is has to be taken down first, if it has.
    #[must_use]
    pub fn remake(&self) -> Option<&str> {
        match &self.way {
            Way::Remake { why, .. } => Some(why),
            Way::Make(_) | Way::Change { .. } => None,
        }
    }

    /// What would be done first, and to what, where maps are of another layout than ours.
    #[must_use]
    pub fn migration(&self) -> Option<(&Record, &[Step])> {
        Some((self.record()?, self.migration.as_deref()?))
    }

    /// What is remembered of what there is.
    fn record(&self) -> Option<&Record> {
        match &self.way {
            Way::Make(_) => None,
            Way::Remake { record, .. } | Way::Change { record, .. } => Some(record),
        }
    }

    /// Whether a command that was killed left it half-changed.
    fn is_interrupted(&self) -> bool {
        self.record().is_some_and(|record| record.phase == Phase::Changing)
    }

    /// What whoever waits should know before it begins.
    fn say(&self, progress: &dyn Progress) {
        let name = &self.topology.name;
        let words: Vec<&str> = self.drift.iter().map(|drift| drift.what.as_str()).collect();
        let words = words.join("; ");
        match (self.remake(), self.is_interrupted()) {
            (Some(_), true) => {
                progress.note(&format_args!("removing what an interrupted command left of {name}"));
            }
            (Some(why), false) if words.is_empty() => {
                progress.note(&format_args!("making {name} again: {why}"));
            }
            (Some(_), false) => {
                progress.note(&format_args!("{name} was not whole ({words}); making it again"));
            }
            (None, true) => {
                progress.note(&format_args!("finishing what an interrupted command left of {name}"));
            }
            (None, false) if !words.is_empty() => {
                progress.note(&format_args!("{name} had changed ({words}); putting it right"));
            }
            (None, false) => {}
        }
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

pub(super) async fn plan_with(roots: &Roots, topology: &Topology, netlink: &Netlink) -> Result<Plan, Error> {
    let mut topology = Topology { mark: roots.mark(), ..topology.clone() };
    let record = roots.load(&topology.name)?;
    topology.number_slots(record.as_ref().map(|record| &record.topology));
    topology.validate()?;
    let links = netlink.links().await?;
    let plan = match record {
        Some(record) => plan_change(roots, topology, record, netlink, &links).await?,
        None => plan_anew(topology, Vec::new(), Way::Make)?,
    };
    check_names(roots, &plan, &links)?;
    if plan.steps.contains(&Step::Ovs) {
        ovs::find_programs().map_err(Error::Ovs)?;
    }
    Ok(plan)
}

/// What it takes to make all of a topology.
fn plan_anew(
    topology: Topology,
    drift: Vec<Drift>,
    way: impl FnOnce(Selection) -> Way,
) -> Result<Plan, Error> {
    let selection = select(&topology)?;
    let hook = selection.hook;
    Ok(Plan {
        steps: plan::build(&topology, hook),
        topology,
        hook,
        drift,
        migration: None,
        way: way(selection),
    })
}

/// What it takes to make one topology another.
async fn plan_change(
    roots: &Roots,
    mut topology: Topology,
    record: Record,
    netlink: &Netlink,
    links: &[Link],
) -> Result<Plan, Error> {
    check_place(&record)?;
    let (mut drift, mut why, mut migration) = (Vec::new(), None, None);
    if record.is_from_another_boot()? {
        why = Some("it is from before the machine was restarted".to_owned());
    } else if record.phase == Phase::Changing && record.before.is_none() {
        why = Some("an interrupted command left it half-made".to_owned());
    } else {
        drift = observe::drift(roots, &record, netlink, links).await?;
        migration = upgrade::migration(roots, &record, &Observed::new(&drift, Vec::new()))?;
        why = why.or_else(|| needs_other_programs(&record, &topology, &drift));
    }
    if let Some(why) = why {
        topology.number_slots(None);
        let record = Box::new(record);
        return plan_anew(topology, drift, |selection| Way::Remake { record, selection, why });
    }
    let (made, hook) = (&record.topology, record.selection.hook);
    check_paths(&topology, hook)?;
    let is_outdated = migration.is_none() && record.is_of_another_build() && made.has_programs();
    let mut observed = Observed::new(&drift, record.others().cloned().collect());
    observed.is_outdated = is_outdated;
    let steps = plan::diff(&topology, made, &observed, hook);
    // Where it is declared makes no difference.
    let is_declared_otherwise = Topology { file: made.file.clone(), ..topology.clone() } != *made;
    Ok(Plan {
        topology,
        steps,
        hook,
        drift,
        migration,
        way: Way::Change { record: Box::new(record), is_declared_otherwise, is_outdated },
    })
}

/// Why programs have to be loaded anew, with new maps, if they have.
fn needs_other_programs(record: &Record, declared: &Topology, drift: &[Drift]) -> Option<String> {
    let Record { topology: made, capacity, .. } = record;
    let wishes = |topology: &Topology| (topology.hook, topology.redirect, topology.place, topology.ebpf_log);
    if drift.iter().any(|drift| drift.fault == Fault::Programs) {
        Some("its programs or maps are gone".to_owned())
    } else if wishes(made) != wishes(declared) {
        Some("other programs are asked for (hook, redirect, place or log)".to_owned())
    } else if declared.has_programs() && declared.slot_count() > *capacity {
        Some(format!("its maps have room for {capacity} ports"))
    } else {
        None
    }
}

/// Refuses names that belong to somebody else, before anything is touched.
fn check_names(roots: &Roots, plan: &Plan, links: &[Link]) -> Result<(), Error> {
    let topology = &plan.topology;
    let taken = |what: &'static str, name: &str, remove: String| Error::Taken {
        what,
        name: name.to_owned(),
        topology: topology.name.clone(),
        remove,
    };
    // What is ours now, whatever becomes of it.
    let record = plan.record();
    let ours = record.map(|record| Ownership::new(roots, record));
    let namespaces: HashSet<&str> = record
        .into_iter()
        .flat_map(Record::topologies)
        .flat_map(|topology| topology.pods.iter().map(|pod| pod.namespace.as_str()))
        .collect();
    let links: HashMap<&str, &Link> = links.iter().map(|link| (link.name.as_str(), link)).collect();
    let is_theirs = |name: &str| {
        links.get(name).is_some_and(|link| !ours.as_ref().is_some_and(|ours| ours.has_link(link)))
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

/// What a topology is to be.
pub(super) enum Goal<'a> {
    /// What is declared.
    Declared(&'a Topology),
    /// What it is, by the programs of this veth, and in place.
    Upgraded(&'a str),
}

impl Goal<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Declared(topology) => &topology.name,
            Self::Upgraded(name) => name,
        }
    }

    /// What it takes. Whoever calls has the topology to himself.
    async fn plan(&self, roots: &Roots, netlink: &Netlink) -> Result<Plan, Error> {
        match self {
            Self::Declared(topology) => plan_with(roots, topology, netlink).await,
            Self::Upgraded(name) => {
                let record = super::record(roots, name)?;
                let plan = plan_with(roots, &record.topology, netlink).await?;
                match plan.remake() {
                    None => Ok(plan),
                    Some(why) => Err(Error::NotInPlace { name: record.topology.name, why: why.to_owned() }),
                }
            }
        }
    }
}

/// Brings a topology up, or changes it to what is declared now. What a killed command left of it is finished or
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
    reach(roots, &Goal::Declared(topology), progress, begun).await
}

/// Does what a goal takes.
pub(super) async fn reach(
    roots: &Roots,
    goal: &Goal<'_>,
    progress: &dyn Progress,
    begun: &Cell<bool>,
) -> Result<Outcome, Error> {
    // A change that lacks files half-way would lack them for changing back too.
    net::check_files(FILES, "change a topology")?;
    let netlink = Netlink::open()?;
    // What cannot be is said before anything that is there is touched.
    object::check()?;
    let lock = lock(roots, goal.name(), progress).await?;
    settle_counts(roots, goal.name())?;
    let planned = Box::pin(goal.plan(roots, &netlink)).await;
    let mut plan = match planned {
        Ok(plan) => plan,
        Err(error) => {
            if matches!(roots.load(goal.name()), Ok(None)) {
                forget(roots, goal.name(), lock)?;
            }
            return Err(error);
        }
    };
    if plan.is_empty() {
        // A command that only looked may have been killed while it hurried.
        teardown::stop_hurrying(roots)?;
        return Ok(Outcome::AlreadyUp);
    }
    plan.say(progress);
    begun.set(true);
    let is_migrated = plan.migration.is_some();
    if is_migrated {
        Box::pin(migrate(roots, &plan, &netlink, progress)).await?;
        // Of the new maps more can be told.
        plan = Box::pin(goal.plan(roots, &netlink)).await?;
        if plan.is_empty() {
            return Ok(Outcome::Upgraded);
        }
    }
    let Plan { topology, steps, way, .. } = plan;
    let selection = match way {
        Way::Change { record, is_declared_otherwise, is_outdated } => {
            Box::pin(change(roots, *record, topology, steps, &netlink, progress)).await?;
            return Ok(match (is_declared_otherwise, is_migrated || is_outdated) {
                (true, _) => Outcome::Changed,
                (false, true) => Outcome::Upgraded,
                (false, false) => Outcome::Repaired,
            });
        }
        Way::Remake { mut record, selection, why: _ } => {
            // From here on it is no topology that could be changed in place.
            record.phase = Phase::Changing;
            roots.save(&record)?;
            hooks::step();
            collect(teardown(roots, &record, &netlink, progress).await)?;
            selection
        }
        Way::Make(selection) => selection,
    };
    log::info!("{}", selection.why);
    let record = Record::new(topology, Netns::current()?.inode()?, selection)?;
    let mut record = Record { capacity: datapath::capacity(record.topology.slot_count()), ..record };
    if record.selection.hook.is_xdp() && record.topology.accelerated_ports().next().is_some() {
        progress.note(&features::XDP_WARNING);
    }
    let made = match prepare(roots, &record) {
        Ok(()) => make(roots, &mut record, &netlink, &steps, progress).await,
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

/// Undoes what a dropped [`up`] had begun: a topology that was there before is again as it was, and one that was not,
/// or was being made again, goes.
///
/// # Errors
///
/// When something could not be undone.
pub async fn undo(roots: &Roots, name: &str, progress: &dyn Progress) -> Result<(), Error> {
    let netlink = Netlink::open()?;
    let lock = lock(roots, name, progress).await?;
    settle_counts(roots, name)?;
    let before = match roots.load(name)? {
        Some(Record { phase: Phase::Up, .. }) => return Ok(()),
        Some(record) => record.before,
        None => None,
    };
    if let Some(before) = before {
        let mut plan = Box::pin(plan_with(roots, &before, &netlink)).await?;
        if plan.migration.is_some() {
            // Half-way from one layout to another, forward is the shorter way.
            Box::pin(migrate(roots, &plan, &netlink, progress)).await?;
            plan = Box::pin(plan_with(roots, &before, &netlink)).await?;
        }
        let Plan { topology, steps, way, .. } = plan;
        if let Way::Change { record, .. } = way {
            return change(roots, *record, topology, steps, &netlink, progress).await;
        }
    }
    drop(lock);
    teardown::down(roots, name, progress).await.map(|_| ())
}

/// Notes that all was made, by this veth: every attachment is to the programs that are pinned now.
fn finish(roots: &Roots, record: &mut Record) -> Result<(), (String, Error)> {
    forget_former(roots, record)?;
    record.set_build();
    settle(roots, record)
}

/// Lets go of the programs that were replaced.
pub(super) fn forget_former(roots: &Roots, record: &Record) -> Result<(), (String, Error)> {
    let pins = Pins::new(roots, object::layout(), &record.topology.name);
    pins.forget_former().map_err(|error| ("let go of former programs".to_owned(), error.into()))
}

/// Notes that nothing is under way any more.
fn settle(roots: &Roots, record: &mut Record) -> Result<(), (String, Error)> {
    record.phase = Phase::Up;
    record.before = None;
    record.leftovers.clear();
    save(roots, record)
}

/// Remembers how it is.
pub(super) fn save(roots: &Roots, record: &Record) -> Result<(), (String, Error)> {
    roots.save(record).map_err(|error| ("remember how it is".to_owned(), error.into()))
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
    // Of a change that was killed, all that it was between may be there, and of one before that.
    let mut leftovers: Vec<Topology> = record.others().cloned().collect();
    leftovers.retain(|other| *other != record.topology && *other != topology);
    let mut record = Record {
        phase: Phase::Changing,
        before: Some(record.topology.clone()),
        leftovers,
        topology,
        ..record
    };
    if steps.contains(&Step::Replace) {
        // From here on it is not known which: the next `up` replaces them.
        record.programs.clear();
    }
    roots.save(&record)?;
    hooks::step();
    let made = make(roots, &mut record, netlink, &steps, progress).await;
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
        let observed = Observed::new(&drift, record.others().cloned().collect());
        let steps = plan::diff(&before, &record.topology, &observed, record.selection.hook);
        record = Record { before: Some(record.topology.clone()), topology: before, ..record };
        roots.save(&record)?;
        let made = make(roots, &mut record, netlink, &steps, progress).await;
        let made = made.and_then(|()| forget_former(roots, &record));
        made.and_then(|()| settle(roots, &mut record)).map_err(|(_, error)| error)
    };
    let rollback: Vec<Error> = back.await.err().into_iter().collect();
    Err(failed(rollback))
}

/// The hook and redirect for a topology on this kernel.
fn select(topology: &Topology) -> Result<Selection, Error> {
    let wish = Wish { hook: topology.hook.into(), redirect: topology.redirect.into() };
    let abilities = Abilities::probe()?;
    let selection = probe::select(wish, abilities, topology.counted_ports().count())?;
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
