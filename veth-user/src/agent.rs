//! Follows what happens to links of running topologies, and keeps the fast path true to it.
//!
//! Nothing depends on it: without it, and when it is killed, frames flow as before, and what the kernel's own maps cannot
//! notice stays until the next `up`.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use crate::{
    net::{Netlink, events::Events},
    state::{Phase, Roots, Stamp},
    text::with_causes,
    topology::{
        self, Error,
        follow::{Followed, Note},
    },
};

/// How often it is looked whether topologies have come, gone or changed where no link tells of it.
const TICK: Duration = Duration::from_millis(500);

/// How long it rests while there is more to look at that can wait, or a command has the topology, unless something happens:
/// longer than a command waits until it tries again to have it.
const REST: Duration = Duration::from_millis(25);

/// A topology, as its record was.
struct Watched {
    stamp: Stamp,
    /// Nothing where it cannot be followed: it is being changed, elsewhere, or of another build.
    followed: Option<Followed>,
}

impl Watched {
    /// How long it can wait after a look, unless something happens.
    fn pause(&self, looked: Looked) -> Duration {
        match (&self.followed, looked) {
            (Some(followed), Looked::Yes) if followed.is_pressed() => Duration::ZERO,
            (Some(followed), Looked::Yes | Looked::Taken) if followed.is_behind() => REST,
            _ => TICK,
        }
    }
}

/// Whether it could be looked at what has happened to a topology.
#[derive(Clone, Copy)]
enum Looked {
    Yes,
    /// A command has it.
    Taken,
    /// The kernel did not answer.
    Failed,
}

/// Follows everything that is up, until dropped. `tell` is told what was done.
///
/// # Errors
///
/// When the kernel gives no socket.
pub async fn run(roots: &Roots, tell: &mut dyn FnMut(&Note)) -> Result<Infallible, Error> {
    let mut events = Events::open()?;
    let netlink = Netlink::open()?;
    let mut watched: BTreeMap<String, Watched> = BTreeMap::new();
    loop {
        refresh(roots, &mut watched, &netlink).await?;
        let mut pause = TICK;
        for (name, topology) in &mut watched {
            let looked = catch_up(roots, name, topology, &netlink, tell).await.unwrap_or_else(|error| {
                log::warn!("{name}: {}", with_causes(&error));
                Looked::Failed
            });
            pause = pause.min(topology.pause(looked));
        }
        if let Ok(happened) = tokio::time::timeout(pause, events.next()).await {
            let happened = happened?;
            for followed in watched.values_mut().filter_map(|topology| topology.followed.as_mut()) {
                followed.notice(&happened);
            }
        }
    }
}

/// Opens topologies that have come or were changed, and lets go of those that have gone.
async fn refresh(
    roots: &Roots,
    watched: &mut BTreeMap<String, Watched>,
    netlink: &Netlink,
) -> Result<(), Error> {
    let names = roots.names()?;
    watched.retain(|name, _| names.contains(name));
    for name in names {
        let Some(stamp) = roots.stamp(&name) else {
            watched.remove(&name);
            continue;
        };
        if watched.get(&name).is_some_and(|known| known.stamp == stamp) {
            continue;
        }
        let opened = open(roots, &name, netlink).await.unwrap_or_else(|error| {
            log::warn!("{name} is not followed: {}", with_causes(&error));
            None
        });
        watched.insert(name, Watched { stamp, followed: opened });
    }
    Ok(())
}

/// A topology that is up, here, and ours to read.
async fn open(roots: &Roots, name: &str, netlink: &Netlink) -> Result<Option<Followed>, Error> {
    let Some(record) = roots.load(name)? else { return Ok(None) };
    if record.phase == Phase::Changing || record.is_from_another_boot()? {
        return Ok(None);
    }
    topology::check_place(&record)?;
    topology::check_layout(&record)?;
    if record.topology.accelerated_ports().next().is_none() {
        return Ok(None);
    }
    Followed::open(roots, record, netlink).await.map(Some)
}

/// Looks at what has happened to a topology, unless a command has it.
async fn catch_up(
    roots: &Roots,
    name: &str,
    topology: &mut Watched,
    netlink: &Netlink,
    tell: &mut dyn FnMut(&Note),
) -> Result<Looked, Error> {
    let Watched { stamp, followed } = topology;
    let Some(followed) = followed.as_mut().filter(|followed| followed.is_behind()) else {
        return Ok(Looked::Yes);
    };
    let Some(lock) = roots.try_lock_known(name)? else { return Ok(Looked::Taken) };
    // One that was changed meanwhile is read anew first.
    if roots.stamp(name) != Some(*stamp) {
        return Ok(Looked::Taken);
    }
    let notes = followed.look(netlink).await?;
    drop(lock);
    notes.iter().for_each(tell);
    Ok(Looked::Yes)
}
