//! Declared state, and how the machine gets there: model -> plan -> apply, and back by observe.

mod apply;
mod entries;
pub mod features;
pub mod file;
pub mod follow;
pub mod model;
pub mod observe;
mod ownership;
pub mod plan;
mod teardown;
mod up;
mod upgrade;

use crate::{
    datapath, net, probe,
    state::{self, Record, Roots},
};
use std::collections::BTreeSet;

pub use model::{Kind, Path, Pod, Port, Topology};
pub use observe::{Drift, Status, observe};
pub use teardown::{down, tidy};
pub(crate) use teardown::{hurry, stop_hurrying};
pub use up::{Outcome, Plan, Progress, plan as plan_up, undo, up};
pub use upgrade::upgrade;

/// Why a topology could not be brought up, taken down or looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The declaration makes no sense.
    #[error(transparent)]
    Invalid(#[from] model::Invalid),
    /// A name that the topology needs belongs to somebody else.
    #[error(
        "{what} {name} exists and was not made by veth for the topology {topology}. \
         Remove it (`{remove}`), or choose other names with --name"
    )]
    Taken {
        /// The kind of thing: `network namespace`, `link`.
        what: &'static str,
        /// Its name.
        name: String,
        /// The topology that needs the name.
        topology: String,
        /// The command that would remove it.
        remove: String,
    },
    /// The topology belongs to a veth that lays its maps out differently.
    #[error(
        "the topology {name} was made with map layout {found} by veth {version}, and this veth speaks layout \
         {expected}; `veth upgrade {name}` takes it over without losing a frame"
    )]
    OtherLayout {
        /// The topology.
        name: String,
        /// Its layout.
        found: u32,
        /// Ours.
        expected: u32,
        /// The version that made it.
        version: String,
    },
    /// What counters mean has changed between two layouts.
    #[error(
        "the counters of the topology {name} are of version {found}, and this veth, which speaks version {expected}, \
         cannot carry them over; use the veth that made it ({version}), or `veth down {name}` (which works across \
         layouts) and bring it up again"
    )]
    OtherCounters {
        /// The topology.
        name: String,
        /// The version of its counters.
        found: u32,
        /// Ours.
        expected: u32,
        /// The version that made it.
        version: String,
    },
    /// A command of a veth of another layout was killed half-way.
    #[error(
        "a command of veth {version} that changed the topology {name} was killed, and this veth speaks another map \
         layout; let that version finish it (`veth up`), or `veth down {name}` (which works across layouts)"
    )]
    InterruptedElsewhere {
        /// The topology.
        name: String,
        /// The version that made it.
        version: String,
    },
    /// The topology cannot be upgraded in place.
    #[error("the topology {name} cannot be upgraded in place: {why}; `veth up` makes it again")]
    NotInPlace {
        /// The topology.
        name: String,
        /// Why not.
        why: String,
    },
    /// The topology was made in another network namespace than this one.
    #[error(
        "the topology {name} lives in another network namespace (net:[{inode}]) than this process; run veth \
         there, for instance with `nsenter --net=FILE veth …`"
    )]
    OtherNamespace {
        /// The topology.
        name: String,
        /// The namespace it lives in.
        inode: u64,
    },
    /// Nothing of that name is there.
    #[error("there is no topology {name}{}", known_names(.known))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// No topology has such a pod.
    #[error("there is no pod {pod}{}", known_names(.known))]
    UnknownPod {
        /// What was asked for.
        pod: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Several topologies have such a pod.
    #[error("several topologies have a pod {pod}; say which one: {}", .found.join(", "))]
    AmbiguousPod {
        /// What was asked for.
        pod: String,
        /// What it could mean.
        found: Vec<String>,
    },
    /// Something failed, and what had been made until then was removed again.
    #[error("{step} failed; {}", rolled_back(.rollback))]
    RolledBack {
        /// The step that failed.
        step: String,
        /// Why.
        #[source]
        source: Box<Error>,
        /// What went wrong while removing, if anything did.
        rollback: Vec<Error>,
    },
    /// A change failed, and what it had changed was changed back.
    #[error("{step} failed; {}", changed_back(.rollback))]
    ChangedBack {
        /// The step that failed.
        step: String,
        /// Why.
        #[source]
        source: Box<Error>,
        /// What went wrong while changing back, if anything did.
        rollback: Vec<Error>,
    },
    /// A topology that was half-changed by a killed command stays so.
    #[error("{0} is as the interrupted command left it; `veth up` tries again, `veth down {0}` removes it")]
    Interrupted(String),
    /// Some things could not be removed. The rest was.
    #[error("{} could not be removed; run `veth down` again when the cause is gone{}", count(.0), list(.0))]
    Teardown(Vec<Error>),
    /// Open vSwitch is not here. How to install it is in the message.
    #[error(transparent)]
    Ovs(net::Error),
    /// From the operating system's edge.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// From the eBPF edge.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// The kernel lacks what is asked for, or could not be found out about.
    #[error(transparent)]
    Probe(#[from] probe::Error),
    /// From the state folder.
    #[error(transparent)]
    State(#[from] state::Error),
}

/// The record of a topology that must be there.
///
/// # Errors
///
/// When there is none; the error says which there are.
pub fn record(roots: &Roots, name: &str) -> Result<Record, Error> {
    model::check_name(name, "topology")?;
    let unknown = || Ok::<_, state::Error>(Error::Unknown { name: name.to_owned(), known: roots.names()? });
    match roots.load(name)? {
        Some(record) => Ok(record),
        None => Err(unknown()?),
    }
}

/// Refuses a topology whose links are in another namespace than ours.
///
/// # Errors
///
/// When it is there. A topology from before the machine was restarted is nowhere.
pub fn check_place(record: &Record) -> Result<(), Error> {
    if record.is_from_another_boot()? || record.host_netns == net::Netns::current()?.inode()? {
        return Ok(());
    }
    Err(Error::OtherNamespace { name: record.topology.name.clone(), inode: record.host_netns })
}

/// The records of all topologies. One that cannot be read is told and left out.
///
/// # Errors
///
/// When the state folder cannot be read.
pub fn records(roots: &Roots) -> Result<Vec<Record>, Error> {
    let mut records = Vec::new();
    for name in roots.names()? {
        match roots.load(&name) {
            // None: gone between our two looks.
            Ok(record) => records.extend(record),
            Err(error) => log::warn!("{error}"),
        }
    }
    Ok(records)
}

/// Refuses a topology whose maps this version would misread.
///
/// # Errors
///
/// When its layout is not ours.
pub fn check_layout(record: &Record) -> Result<(), Error> {
    if record.is_of_our_layout() {
        return Ok(());
    }
    Err(Error::OtherLayout {
        name: record.topology.name.clone(),
        found: record.layout_version,
        expected: datapath::object::layout(),
        version: record.veth_version.clone(),
    })
}

/// The names of all topologies of which anything is left: a record or pins; and, where there is none or
/// `thorough` asks for it, a mark, for which every namespace must be looked into.
///
/// # Errors
///
/// When the machine cannot be looked at.
pub async fn names(roots: &Roots, thorough: bool) -> Result<Vec<String>, Error> {
    let mut names: BTreeSet<String> = roots.names()?.into_iter().collect();
    names.extend(datapath::pins::topologies(roots));
    if thorough || names.is_empty() {
        names.extend(teardown::marked(roots, &net::Netlink::open()?).await?);
    }
    Ok(names.into_iter().collect())
}

/// A pod by its name, or by `TOPOLOGY/POD`, with the record of its topology.
///
/// # Errors
///
/// When there is none, or more than one.
pub fn find_pod(roots: &Roots, name: &str) -> Result<(Record, Pod), Error> {
    let (topology, pod) = match name.split_once('/') {
        Some((topology, pod)) => (Some(topology), pod),
        None => (None, name),
    };
    let mut known = Vec::new();
    let mut found = Vec::new();
    for record in records(roots)? {
        for candidate in &record.topology.pods {
            let full = format!("{}/{}", record.topology.name, candidate.name);
            if candidate.name == pod && topology.is_none_or(|topology| topology == record.topology.name) {
                found.push((full, (record.clone(), candidate.clone())));
            } else {
                known.push(full);
            }
        }
    }
    match found.len() {
        0 => Err(Error::UnknownPod { pod: name.to_owned(), known }),
        1 => Ok(found.remove(0).1),
        _ => Err(Error::AmbiguousPod {
            pod: name.to_owned(),
            found: found.into_iter().map(|(full, _)| full).collect(),
        }),
    }
}

fn known_names(names: &[String]) -> String {
    const SHOWN: usize = 10;
    match names.len() {
        0 => "; nothing is up".to_owned(),
        n if n > SHOWN => format!("; there is {} and {} more", names[..SHOWN].join(", "), n - SHOWN),
        _ => format!("; there is {}", names.join(", ")),
    }
}

fn rolled_back(errors: &[Error]) -> String {
    if errors.is_empty() {
        return "everything made before was removed again".to_owned();
    }
    format!(
        "of what was made before, {} could not be removed; run `veth down`{}",
        count(errors),
        list(errors)
    )
}

fn changed_back(errors: &[Error]) -> String {
    if errors.is_empty() {
        return "everything is as it was before".to_owned();
    }
    format!("and it could not be changed back; run `veth up` or `veth down`{}", list(errors))
}

fn count(errors: &[Error]) -> String {
    match errors.len() {
        1 => "one thing".to_owned(),
        n => format!("{n} things"),
    }
}

fn list(errors: &[Error]) -> String {
    use std::{error::Error as _, fmt::Write as _};
    let mut text = String::new();
    for error in errors {
        let _unused: std::fmt::Result = write!(text, "\n  - {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            let _unused: std::fmt::Result = write!(text, ": {cause}");
            source = cause.source();
        }
    }
    text
}
