//! Counting: once where a frame came in, once where it was handed to.

use veth_common::{Decision, PortCounters, RedirectMode, SLOT_UNATTRIBUTED, Tally};

use crate::maps::COUNTERS;

/// What one frame adds to a [`Tally`].
#[derive(Clone, Copy)]
pub(crate) struct Weight {
    /// Bytes from the destination address on.
    pub(crate) length: u32,
    /// What the frame will be cut into; 0 for a frame that is not GSO.
    pub(crate) gso_segments: u32,
}

/// Counts a decision about a frame that came in at `slot`.
#[inline(always)]
pub(crate) fn decision(slot: u32, decision: Decision, weight: Weight) {
    match decision {
        Decision::Pass => add(slot, weight, |counters| &mut counters.passed),
        Decision::Redirect { slot: target, mode, .. } => {
            add(slot, weight, |counters| &mut counters.redirected);
            match mode {
                RedirectMode::Peer => add(target, weight, |counters| &mut counters.to_peer),
                RedirectMode::Host => add(target, weight, |counters| &mut counters.to_host),
            }
        }
        Decision::Drop(reason) => add(slot, weight, |counters| &mut counters.dropped[reason.index()]),
    }
}

/// Counts a frame that went from one port straight to another, where it arrives: no program stood where it left.
#[inline(always)]
pub(crate) fn crossing(from: u32, to: u32, weight: Weight) {
    add(from, weight, |counters| &mut counters.passed);
    add(to, weight, |counters| &mut counters.to_peer);
}

/// Counts a frame from an interface that no map knows.
#[inline(always)]
pub(crate) fn unattributed(weight: Weight) {
    add(SLOT_UNATTRIBUTED, weight, |counters| &mut counters.passed);
}

#[inline(always)]
fn add(slot: u32, weight: Weight, field: impl FnOnce(&mut PortCounters) -> &mut Tally) {
    if let Some(counters) = COUNTERS.get_ptr_mut(slot) {
        // SAFETY: the entry is this CPU's own, and a TC program is not interrupted by another on its CPU.
        let tally = field(unsafe { &mut *counters });
        tally.packets += 1;
        tally.bytes += u64::from(weight.length);
        tally.segments += u64::from(weight.gso_segments.max(1));
    }
}
