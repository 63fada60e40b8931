//! Undoes a topology by ownership, whatever a crash or a person did to it.

use std::time::Duration;

use super::{Error, Topology, check_place, model, model::Pod, ownership::Ownership, up::Progress};
use crate::{
    datapath::{
        attach::detach_clsact,
        pins::{self, Pins},
    },
    hooks,
    net::{Netlink, Netns, forwarding, link::Link, netns, ovs::Ovs, rcu, sysctl},
    probe::select::UNHURRIED_PORTS,
    state::{Lock, Phase, Record, Roots},
};

/// How often it is looked whether another command has ended.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Takes a topology down. Removes everything that is ours, whatever a crash or a person did to it, and
/// nothing that is not. Returns whether there was anything.
///
/// # Errors
///
/// When something could not be removed; the rest is removed all the same.
pub async fn down(roots: &Roots, name: &str, progress: &dyn Progress) -> Result<bool, Error> {
    let netlink = Netlink::open()?;
    if roots.load(name)?.is_none() {
        let lost = lost(roots, name, &netlink).await?;
        if lost.is_empty() && pins::layouts(roots, name).is_empty() {
            return Ok(false);
        }
    }
    let lock = lock(roots, name, progress).await?;
    match roots.load(name)? {
        Some(mut record) => {
            check_place(&record)?;
            record.phase = Phase::Changing;
            match roots.save(&record) {
                // To remove takes no room. Killed now, it is found to be not whole.
                Err(error) if error.is_full() => log::info!("{error}: going on without"),
                saved => saved?,
            }
            hooks::step();
            collect(teardown(roots, &record, &netlink, progress).await)?;
        }
        None => collect(sweep(roots, name, &netlink).await)?,
    }
    forget(roots, name, lock)?;
    Ok(true)
}

/// Ends what outlives topologies when a process is killed at the wrong moment.
///
/// # Errors
///
/// When the note of it cannot be removed.
pub fn tidy(roots: &Roots) -> Result<(), Error> {
    stop_hurrying(roots)?;
    stop_forwarding(roots, "")?;
    if roots.names()?.is_empty() {
        pins::unmount_if_ours(roots)?;
    }
    roots.remove_folder();
    Ok(())
}

/// Waits until nobody else changes the topology.
pub(super) async fn lock(roots: &Roots, name: &str, progress: &dyn Progress) -> Result<Lock, Error> {
    let mut told = false;
    loop {
        if let Some(lock) = roots.try_lock(name)? {
            return Ok(lock);
        }
        if !told {
            progress.note(&format_args!("waiting for another veth command that changes {name}"));
            told = true;
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

/// Forgets a topology of which nothing is left, and unmounts the bpffs if we mounted it and nobody uses it.
pub(super) fn forget(roots: &Roots, name: &str, lock: Lock) -> Result<(), Error> {
    if roots.names()?.iter().all(|other| other == name) {
        pins::unmount_if_ours(roots)?;
    }
    roots.forget(name, lock)?;
    hooks::step();
    Ok(())
}

/// No errors, or all of them.
pub(super) fn collect(errors: Vec<Error>) -> Result<(), Error> {
    if errors.is_empty() { Ok(()) } else { Err(Error::Teardown(errors)) }
}

/// Removes all that is ours of a topology, goes on after errors, and returns them.
pub(super) async fn teardown(
    roots: &Roots,
    record: &Record,
    netlink: &Netlink,
    progress: &dyn Progress,
) -> Vec<Error> {
    let name = &record.topology.name;
    // Another boot: the kernel objects are gone, and equal names now belong to somebody else.
    let same_boot = !matches!(record.is_from_another_boot(), Ok(true));
    let ports = record.topologies().map(|topology| topology.counted_ports().count()).max().unwrap_or(0);
    let mut errors = Vec::new();
    hurry(roots, ports);
    progress.start(3 + record.topologies().map(|topology| topology.pods.len()).sum::<usize>());
    if record.topologies().any(Topology::has_ovs) {
        progress.step(&"stop the Open vSwitch");
        errors.extend(Ovs::new(roots.ovs_folder(name)).end().err().map(Error::from));
        hooks::step();
    }
    if same_boot {
        progress.step(&"delete links");
        errors.extend(delete_links(roots, record, netlink).await);
        hooks::step();
        if record.topologies().any(Topology::is_routed) {
            progress.step(&"stop forwarding");
            errors.extend(forwarding::delete(&record.topology.table()).err().map(Error::from));
            errors.extend(stop_forwarding(roots, name).err());
            hooks::step();
        }
    }
    // Its folder says that links without a mark are ours, and goes after them.
    errors.extend(Ovs::new(roots.ovs_folder(name)).stop().err().map(Error::from));
    progress.step(&"remove pins");
    errors.extend(pins::remove_all(roots, name).err().map(Error::from));
    hooks::step();
    if same_boot {
        for topology in record.topologies() {
            for pod in &topology.pods {
                progress.step(&format_args!("remove namespace {}", pod.namespace));
                errors.extend(delete_namespace(topology, pod).await.err());
                hooks::step();
            }
        }
    }
    errors.extend(stop_hurrying(roots).err());
    progress.finish();
    errors
}

/// Lets the host forward what it did before us, if no other topology needs more.
pub(super) fn stop_forwarding(roots: &Roots, name: &str) -> Result<(), Error> {
    let Some(before) = roots.forwarding_note()? else {
        // Of another boot, if there is one.
        return Ok(roots.remove_forwarding_note()?);
    };
    for other in roots.names()?.iter().filter(|other| *other != name) {
        // One that cannot be read may need it.
        let needs = |record: Record| record.topologies().any(Topology::needs_forwarding);
        if roots.load(other).map_or(true, |record| record.is_some_and(needs)) {
            return Ok(());
        }
    }
    sysctl::restore_forwarding(&before)?;
    Ok(roots.remove_forwarding_note()?)
}

/// Makes the kernel hurry where many attachments come or go. Noted before it is done; what cannot be noted takes
/// longer.
pub(crate) fn hurry(roots: &Roots, attachments: usize) {
    if attachments > UNHURRIED_PORTS && rcu::is_normal() {
        match roots.note_hurry() {
            Ok(()) => rcu::expedite(true),
            Err(error) => log::info!("{error}: many attachments take 12 ms each"),
        }
    }
}

/// Undoes [`hurry`], also that of a process that was killed: another that is still at work takes longer then.
/// The note goes after it is done.
pub(crate) fn stop_hurrying(roots: &Roots) -> Result<(), Error> {
    if roots.has_hurry_note() {
        rcu::expedite(false);
        roots.remove_hurry_note()?;
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

async fn lost(roots: &Roots, name: &str, netlink: &Netlink) -> Result<Lost, Error> {
    let prefix = model::alias_prefix(&roots.mark(), name);
    let marked = |link: &Link| link.alias.as_deref().is_some_and(|alias| alias.starts_with(&prefix));
    let mut lost = Lost::default();
    lost.links.extend(netlink.links().await?.iter().filter(|link| marked(link)).map(|link| link.index));
    for namespace in netns::names()? {
        // One that cannot be looked into is not ours, or goes at this very moment.
        if let Ok(loopback) = loopback(&namespace).await
            && marked(&loopback)
        {
            lost.namespaces.push(namespace);
        }
    }
    Ok(lost)
}

/// The loopback of a namespace, which carries its mark.
async fn loopback(namespace: &str) -> Result<Link, Error> {
    Ok(Netns::open(namespace)?.netlink()?.link("lo").await?)
}

/// The names of all topologies whose mark is on a link or a namespace.
pub(super) async fn marked(roots: &Roots, netlink: &Netlink) -> Result<Vec<String>, Error> {
    let mark = format!("{}:", roots.mark());
    let name = |link: &Link| {
        let (topology, _rest) = link.alias.as_deref()?.strip_prefix(&mark)?.split_once('/')?;
        Some(topology.to_owned())
    };
    let mut names: Vec<String> = netlink.links().await?.iter().filter_map(name).collect();
    for namespace in netns::names()? {
        names.extend(loopback(&namespace).await.ok().as_ref().and_then(name));
    }
    Ok(names)
}

/// Removes what is lost, and every pin of that name.
async fn sweep(roots: &Roots, name: &str, netlink: &Netlink) -> Vec<Error> {
    let Lost { links, namespaces } = match lost(roots, name, netlink).await {
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
    let topology = Topology { mark: roots.mark(), ..Topology::empty(name) };
    results.push(forwarding::delete(&topology.table()).map_err(Error::from));
    results.push(Ovs::new(roots.ovs_folder(name)).stop().map_err(Error::from));
    results.into_iter().filter_map(Result::err).collect()
}

/// Host ends and bridges go in one request if nobody else uses the group, one by one otherwise.
async fn delete_links(roots: &Roots, record: &Record, netlink: &Netlink) -> Vec<Error> {
    let topology = &record.topology;
    let ownership = Ownership::new(roots, record);
    let links = match netlink.links().await {
        Ok(links) => links,
        Err(error) => return vec![error.into()],
    };
    let (ours, others): (Vec<_>, Vec<_>) = links.iter().partition(|link| ownership.has_link(link));
    // What was ours by name and is somebody else's now keeps what is theirs and loses what is ours.
    let mut errors = Vec::new();
    let programs = Pins::new(roots, record.layout_version, &topology.name).all_programs();
    for link in others.iter().filter(|link| !programs.is_empty() && ownership.has_name(link)) {
        errors.extend(detach_clsact(netlink, link, &programs).await.err().map(Error::from));
    }
    if ours.is_empty() {
        return errors;
    }
    let has_group = |links: &[&Link], group: u32| links.iter().any(|link| link.group == group);
    let is_whole = |group: &u32| has_group(&ours, *group) && !has_group(&others, *group);
    let whole: Vec<u32> = ownership.groups().filter(is_whole).collect();
    for group in &whole {
        errors.extend(netlink.delete_group(*group).await.err().map(Error::from));
    }
    for link in ours.iter().filter(|link| !whole.contains(&link.group)) {
        errors.extend(netlink.delete_link(link.index).await.err().map(Error::from));
    }
    errors
}

/// Removes a pod's namespace if it carries our mark, or if it is only a name without a namespace.
pub(super) async fn delete_namespace(topology: &Topology, pod: &Pod) -> Result<(), Error> {
    match netns::look_up(&pod.namespace)? {
        netns::Name::Free | netns::Name::Foreign => return Ok(()),
        netns::Name::Stale => {}
        netns::Name::Namespace => {
            if loopback(&pod.namespace).await?.alias.as_deref() != Some(&topology.pod_alias(pod)) {
                return Ok(());
            }
        }
    }
    Ok(netns::remove(&pod.namespace)?)
}
