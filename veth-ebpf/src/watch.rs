//! Watching: tells user space of frames, and leaves them alone. Attached in front of everything else, and only while somebody
//! watches.

use core::hint::black_box;

use aya_ebpf::{
    Global,
    bindings::{__sk_buff, BPF_RB_NO_WAKEUP, tcx_action_base::TCX_NEXT},
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_skb_load_bytes},
    macros::map,
    maps::{PerCpuArray, RingBuf},
    programs::TcContext,
};
use veth_common::{
    Decision, Frame, PassReason, RedirectMode, decide,
    watch::{Event, Filter, Outcome, WATCHED_MAX},
};

use crate::{
    maps::{self, Maps, TARGETS},
    tc::{Skb, header},
};

/// How much of a frame goes with its event: the fewest of these that hold what is wanted. A reservation has to be of a
/// constant size.
const ROOMS: [u32; 4] = [96, 256, 1_536, 65_536];

/// Events, for whoever watches. User space makes it larger.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4_096, 0);

/// Events that there was no room for.
#[map]
static EVENTS_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// How many bytes of a frame are wanted.
#[unsafe(no_mangle)]
static WATCH_SNAP: Global<u32> = Global::new(0);

/// A frame is looked at if a random number is not above this.
#[unsafe(no_mangle)]
static WATCH_CHANCE: Global<u32> = Global::new(u32::MAX);

/// The host ends whose frames are wanted, those that come in there and those that are redirected there; all zero for any.
#[unsafe(no_mangle)]
static WATCH_PORTS: Global<[u32; WATCHED_MAX]> = Global::new([0; WATCHED_MAX]);

/// Not zero where those are also watched on their way out, so that what leaves by the host end is not told of twice.
#[unsafe(no_mangle)]
static WATCH_EGRESS: Global<u32> = Global::new(0);

/// Which frames are wanted besides.
#[unsafe(no_mangle)]
static WATCH_FILTER: Global<Filter> = Global::new(Filter {
    hosts: [veth_common::watch::HostTerm { side: 0, family: 0, address: [0; 4] }; 2],
    ports: [veth_common::watch::PortTerm { side: 0, port: 0 }; 2],
    ethertype: 0,
    protocol: 0,
});

/// Where a port's frames come in.
#[inline(always)]
pub(crate) fn ingress(ctx: &TcContext) -> i32 {
    if is_sampled() {
        // SAFETY: the kernel passes a valid context, whose fields the verifier checks one by one.
        let skb: &__sk_buff = unsafe { &*ctx.skb.skb };
        let frame = Frame { header: header(ctx), length: skb.len, gso: skb.gso_size > 0 };
        let decision = match maps::port(skb.ifindex) {
            Some(port) => decide(port, &frame, &Skb(ctx), &Maps { targets: &TARGETS }),
            None => Decision::Pass(PassReason::NotAccelerated),
        };
        let (target, peer) = match decision {
            Decision::Redirect { ifindex, mode, .. } => (ifindex, matches!(mode, RedirectMode::Peer)),
            _ => (0, false),
        };
        let comes = is_watched(skb.ifindex);
        let goes = target != 0 && (peer || WATCH_EGRESS.load() == 0) && is_watched(target);
        if comes || goes {
            tell(ctx, &frame, decision.into(), target);
        }
    }
    TCX_NEXT
}

/// Where frames leave for a port's pod.
#[inline(always)]
pub(crate) fn egress(ctx: &TcContext) -> i32 {
    if is_sampled() {
        // SAFETY: as above.
        let skb: &__sk_buff = unsafe { &*ctx.skb.skb };
        let frame = Frame { header: header(ctx), length: skb.len, gso: skb.gso_size > 0 };
        tell(ctx, &frame, Outcome::Sent, 0);
    }
    TCX_NEXT
}

#[inline(always)]
fn is_sampled() -> bool {
    let chance = WATCH_CHANCE.load();
    // SAFETY: the helper takes nothing and returns a number.
    chance == u32::MAX || unsafe { bpf_get_prandom_u32() } <= chance
}

#[inline(always)]
fn is_watched(ifindex: u32) -> bool {
    let [a, b, c, d, e, f, g, h] = WATCH_PORTS.load();
    a == 0 || [a, b, c, d, e, f, g, h].contains(&ifindex)
}

/// Writes an event, if the frame is one that is meant.
#[inline(always)]
fn tell(ctx: &TcContext, frame: &Frame<'_>, outcome: Outcome, target: u32) {
    let ethertype = frame.header.map_or(0, |header| header.ethertype);
    if !WATCH_FILTER.load().matches(ethertype, &Skb(ctx)) {
        return;
    }
    // SAFETY: the kernel passes a valid context, whose fields the verifier checks one by one.
    let skb: &__sk_buff = unsafe { &*ctx.skb.skb };
    let (outcome, reason, mode) = outcome.numbers();
    let event = Event {
        // SAFETY: the helper takes nothing and returns a number.
        time_ns: unsafe { bpf_ktime_get_ns() },
        ifindex: skb.ifindex,
        target,
        length: skb.len,
        captured: skb.len.min(WATCH_SNAP.load()),
        gso_segments: skb.gso_segs,
        tag: if skb.vlan_present == 0 { 0 } else { skb.vlan_tci << 16 | skb.vlan_proto & 0xffff },
        outcome,
        reason,
        mode,
        reserved: [0; 5],
    };
    let [a, b, c, d] = ROOMS;
    let wanted = event.captured;
    // The verifier takes away what the constant above makes impossible.
    let told = if wanted <= a {
        write::<{ ROOMS[0] }>(ctx, event)
    } else if wanted <= b {
        write::<{ ROOMS[1] }>(ctx, event)
    } else if wanted <= c {
        write::<{ ROOMS[2] }>(ctx, event)
    } else {
        write::<{ ROOMS[3] }>(ctx, Event { captured: wanted.min(d), ..event })
    };
    if !told && let Some(lost) = EVENTS_LOST.get_ptr_mut(0) {
        // SAFETY: the entry is this CPU's own.
        unsafe { *lost += 1 };
    }
}

/// Writes an event with room for so many bytes of the frame. Nobody is woken up: who watches looks by itself, for a wake-up
/// costs more than all else here.
#[inline(always)]
fn write<const ROOM: u32>(ctx: &TcContext, event: Event) -> bool {
    let Some(mut entry) = EVENTS.reserve_bytes(Event::LENGTH + ROOM as usize, 0) else {
        return false;
    };
    let start = entry.as_mut_ptr();
    #[expect(clippy::cast_ptr_alignment, reason = "the kernel aligns an entry to eight bytes")]
    let head = start.cast::<Event>();
    // SAFETY: aligned, and there is room for more than an event.
    unsafe { head.write(event) };
    // Nobody wants nothing, and no frame is empty. The compiler knows how long it may be and the verifier does not, so that
    // it must not be left out.
    let length = black_box(event.captured).clamp(1, ROOM);
    // SAFETY: there are `ROOM` bytes behind the event.
    let bytes = unsafe { start.add(Event::LENGTH) };
    // SAFETY: a valid context, and no more bytes than there is room for. It cannot fail: the frame is no shorter.
    unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), 0, bytes.cast(), length) };
    entry.submit(BPF_RB_NO_WAKEUP.into());
    true
}
