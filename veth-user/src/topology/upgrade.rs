//! From the programs of one veth to those of another, without losing a frame or a count.
//!
//! On the same layout of maps each attachment goes from one program to the next, in place (`Step::Replace`, then
//! `Step::Attach`). On another, the new program has maps of its own, which know everything before the first attachment
//! goes over to them. What was counted in the old ones is added when no program writes to them any more.

use std::cell::Cell;

use veth_common::COUNTERS_VERSION;

use super::{
    Error, Outcome, Plan,
    apply::make,
    check_place,
    observe::Observed,
    plan::{self, Step},
    up::{Goal, Progress, forget_former, reach, save},
};
use crate::{
    datapath::{
        self, Counters, object,
        pins::{self, Pins},
    },
    hooks,
    net::Netlink,
    state::{Phase, Record, Roots},
};

/// Lets this veth's programs take the place of those that a topology runs. Never takes anything down.
///
/// # Errors
///
/// When there is no such topology, it is not whole in a way that cannot be put right in place, or a step fails.
pub async fn upgrade(
    roots: &Roots,
    name: &str,
    progress: &dyn Progress,
    begun: &Cell<bool>,
) -> Result<Outcome, Error> {
    // Said before a lock is made for it.
    super::record(roots, name)?;
    reach(roots, &Goal::Upgraded(name), progress, begun).await
}

/// What brings a topology to maps of our layout, if its own are of another, or if somebody who speaks another was killed
/// while he took it over.
pub(super) fn migration(
    roots: &Roots,
    record: &Record,
    observed: &Observed,
) -> Result<Option<Vec<Step>>, Error> {
    let topology = &record.topology;
    // Those that are only to be removed yet are none.
    let known = [Some(object::layout()), record.carrying];
    let has_others =
        pins::layouts(roots, &topology.name).iter().any(|layout| !known.contains(&Some(*layout)));
    if !record.is_of_our_layout() {
        check(record)?;
    } else if !has_others {
        return Ok(None);
    }
    Ok(Some(match (topology.has_programs(), has_others) {
        (true, _) => plan::migrate(topology, observed),
        // Of the programs that it had.
        (false, true) => vec![Step::Carry],
        (false, false) => Vec::new(),
    }))
}

/// Refuses what is not ours to take over.
fn check(record: &Record) -> Result<(), Error> {
    let (name, version) = (record.topology.name.clone(), record.veth_version.clone());
    if record.others().any(|other| *other != record.topology) {
        return Err(Error::InterruptedElsewhere { name, version });
    }
    let found = record.counters();
    if record.topology.has_programs() && found != COUNTERS_VERSION {
        return Err(Error::OtherCounters { name, found, expected: COUNTERS_VERSION, version });
    }
    Ok(())
}

/// Does what a plan has of [`migration`]. A kill at any moment leaves each port to one program or the other, both of which
/// know everything, and the next veth of either layout goes on from there.
pub(super) async fn migrate(
    roots: &Roots,
    plan: &Plan,
    netlink: &Netlink,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let Some((found, steps)) = plan.migration() else { return Ok(()) };
    let name = found.topology.name.clone();
    let way = if found.is_of_our_layout() { "back to" } else { "over from" };
    progress.note(&format_args!("taking {name} {way} map layout {}", found.layout_version));
    let is_begun = pins::layouts(roots, &name).contains(&object::layout());
    let before = found.before.clone().or_else(|| Some(found.topology.clone()));
    let mut record = Record { phase: Phase::Changing, before, ..found.clone() };
    if record.is_of_our_layout() {
        // From here on it is not known which: should the other layout's pins go before this is done, the next `up` replaces
        // them, and does not take them for those of the build that was here before.
        record.programs.clear();
    }
    roots.save(&record)?;
    hooks::step();
    let changes_what_runs =
        |step: &Step| matches!(step, Step::Guard { .. } | Step::Attach { .. } | Step::Carry);
    let (beside, instead) = steps.split_at(steps.iter().position(changes_what_runs).unwrap_or(steps.len()));
    if let Err((step, source)) = make(roots, &mut record, netlink, beside, progress).await {
        let mut rollback = Vec::new();
        // Unless somebody has come further before, nobody needs what was loaded.
        if is_begun {
            rollback.push(Error::Interrupted(name));
        } else if let Err(error) = pins::remove_layout(roots, &name, object::layout()) {
            rollback.push(error.into());
        } else if let Err((_, error)) = save(roots, found) {
            rollback.push(error);
        }
        return Err(Error::ChangedBack { step, source: Box::new(source), rollback });
    }
    let made = make(roots, &mut record, netlink, instead, progress).await;
    let made = made.and_then(|()| {
        forget_former(roots, &record)?;
        record.set_build();
        // What else was under way still is.
        record = Record { phase: found.phase, before: found.before.clone(), ..record.clone() };
        save(roots, &record)
    });
    let Err((step, source)) = made else {
        hooks::step();
        return Ok(());
    };
    Err(Error::ChangedBack { step, source: Box::new(source), rollback: vec![Error::Interrupted(name)] })
}

/// Does something with the counters of one layout, by those of another, where there are both.
pub(super) fn with_counters(
    roots: &Roots,
    name: &str,
    (from, into): (u32, u32),
    act: impl FnOnce(&Counters, &mut Counters) -> Result<(), datapath::Error>,
) -> Result<(), Error> {
    let [from, into] = [from, into].map(|layout| Pins::new(roots, layout, name));
    if from.has_counters() && into.has_counters() {
        act(&Counters::open(&from)?, &mut Counters::open(&into)?)?;
    }
    Ok(())
}

/// Ends what a veth of any layout was doing when it was killed.
pub(super) fn settle_counts(roots: &Roots, name: &str) -> Result<(), Error> {
    let Some(mut record) = roots.load(name)?.filter(|record| record.carrying.is_some()) else {
        return Ok(());
    };
    if record.is_from_another_boot()? {
        return Ok(());
    }
    check_place(&record)?;
    end_carrying(roots, &mut record)
}

/// Carries over what was counted elsewhere, which goes there.
pub(super) fn end_carrying(roots: &Roots, record: &mut Record) -> Result<(), Error> {
    let Some(from) = record.carrying else { return Ok(()) };
    let name = &record.topology.name;
    with_counters(roots, name, (from, record.layout_version), |from, into| into.carry(from))?;
    hooks::step();
    pins::remove_layout(roots, name, from)?;
    hooks::step();
    record.carrying = None;
    Ok(roots.save(record)?)
}
