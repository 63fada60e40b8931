//! Counting: once where a frame came in, once where it was handed to.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use veth_common::{Decision, PassReason, PortCounters, RedirectMode, SLOT_UNATTRIBUTED, Weight};

use crate::maps::{COUNTER_SLOTS, COUNTERS, COUNTING};

/// Counts a decision about a frame that came in at `slot`.
#[inline(always)]
pub(crate) fn decision(slot: u32, decision: Decision, weight: &Weight) {
    match decision {
        Decision::Pass(reason) => with(slot, |counters| counters.count_passed(reason, weight)),
        Decision::Redirect { slot: target, mode, .. } => {
            with(slot, |counters| counters.count_redirected(weight));
            with(target, |counters| match mode {
                RedirectMode::Peer => counters.to_peer.count(weight),
                RedirectMode::Host => counters.to_host.count(weight),
            });
        }
        Decision::Drop(reason) => with(slot, |counters| counters.count_dropped(reason, weight)),
    }
}

/// Counts a frame that went from one port straight to another, where it arrives: no program stood where it left.
#[inline(always)]
pub(crate) fn crossing(from: u32, to: u32, weight: &Weight) {
    with(from, |counters| counters.count_passed(PassReason::NotAccelerated, weight));
    with(to, |counters| counters.to_peer.count(weight));
}

/// Counts a frame from an interface that no map knows.
#[inline(always)]
pub(crate) fn unattributed(weight: &Weight) {
    with(SLOT_UNATTRIBUTED, |counters| counters.count_passed(PassReason::NotAccelerated, weight));
}

/// This CPU's counters of a slot.
#[inline(always)]
fn with(slot: u32, count: impl FnOnce(&mut PortCounters)) {
    if COUNTING.load() == 0 {
        return;
    }
    // SAFETY: the helper takes nothing and returns a number.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    if let Some(counters) = COUNTERS.get_ptr_mut(cpu * COUNTER_SLOTS.load() + slot) {
        // SAFETY: the entry is this CPU's own, and a TC program is not interrupted by another on its CPU.
        count(unsafe { &mut *counters });
    }
}
