//! The TC hook: what an `__sk_buff` says, and what a decision means here.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, tcx_action_base::TCX_NEXT},
    helpers::{bpf_redirect, bpf_redirect_peer, bpf_skb_change_type},
    programs::TcContext,
};
use aya_log_ebpf::{debug, warn};
use veth_common::{Cast, Decision, EthernetHeader, Frame, Packet, Protocol, RedirectMode, Weight, decide};

use crate::{
    count,
    maps::{self, COUNT_FROM, COUNT_TO, Maps, SET_PACKET_HOST, TARGETS},
};

/// `PACKET_HOST` of `linux/if_packet.h`: for this stack.
const PACKET_HOST: u32 = 0;

#[inline(always)]
pub(crate) fn ingress(ctx: &TcContext) -> i32 {
    // SAFETY: the kernel passes a valid context, whose fields the verifier checks one by one.
    let skb: &mut __sk_buff = unsafe { &mut *ctx.skb.skb };
    let header = header(ctx);

    let Some(port) = maps::port(skb.ifindex) else {
        count::unattributed(&weight(ctx, header));
        debug!(ctx, "frame from interface {}, which is no port of ours: passed on", skb.ifindex);
        return TCX_NEXT;
    };
    let frame = Frame { header, length: skb.len, gso: skb.gso_size > 0 };
    let decision = decide(port, &frame, &Skb(ctx), &Maps { targets: &TARGETS });
    // Not before: the verifier would go through the decision once for every protocol.
    count::decision(port.slot, decision, &weight(ctx, header));

    match decision {
        // Never TC_ACT_OK: it would end the chain and silence the programs behind ours.
        Decision::Pass(_) => TCX_NEXT,
        Decision::Redirect { ifindex, mode: RedirectMode::Peer, .. } => {
            // The helper leaves a mark in place that an earlier program may have set, and before kernel
            // commit c43272299488 (CVE-2025-37959, Linux 6.15 and stable branches) the packet type too.
            skb.mark = 0;
            if SET_PACKET_HOST.load() != 0 {
                // SAFETY: a valid context; the helper only writes the packet type.
                unsafe { bpf_skb_change_type(ctx.skb.skb, PACKET_HOST) };
            }
            // SAFETY: plain numbers; the kernel looks the interface up again.
            let returned = unsafe { bpf_redirect_peer(ifindex, 0) };
            action(returned)
        }
        Decision::Redirect { ifindex, mode: RedirectMode::Host, .. } => {
            // SAFETY: as above.
            let returned = unsafe { bpf_redirect(ifindex, 0) };
            action(returned)
        }
        Decision::Drop(reason) => {
            warn!(
                ctx,
                "dropped a frame of {} bytes on interface {}: {}",
                skb.len,
                skb.ifindex,
                reason.name()
            );
            TC_ACT_SHOT
        }
    }
}

/// Counts a frame that came out of a pair whose other end is in another pod, and leaves it alone.
#[inline(always)]
pub(crate) fn count(ctx: &TcContext) -> i32 {
    count::crossing(COUNT_FROM.load(), COUNT_TO.load(), &weight(ctx, header(ctx)));
    TCX_NEXT
}

/// What a redirect helper returns is an action.
#[expect(clippy::cast_possible_truncation, reason = "actions are small numbers")]
#[inline(always)]
pub(crate) const fn action(returned: i64) -> i32 {
    returned as i32
}

/// The Ethernet header, where the linear part of the frame has a whole one.
#[inline(always)]
pub(crate) fn header(ctx: &TcContext) -> Option<&EthernetHeader> {
    let start = ctx.data();
    if start + size_of::<EthernetHeader>() > ctx.data_end() {
        return None;
    }
    // SAFETY: the verifier has seen the comparison above. The kernel aligns an Ethernet header to 2 at least.
    Some(unsafe { &*(start as *const EthernetHeader) })
}

/// What a frame adds to counters.
#[inline(always)]
fn weight(ctx: &TcContext, header: Option<&EthernetHeader>) -> Weight {
    // SAFETY: the kernel passes a valid context, whose fields the verifier checks one by one.
    let skb: &__sk_buff = unsafe { &*ctx.skb.skb };
    let (protocol, cast) = match header {
        Some(header) => {
            // A tag is no part of the frame here, and XDP judges by it: so that both count alike.
            let protocol = if skb.vlan_present == 0 {
                Protocol::number(header.ethertype, |offset| byte(ctx, offset))
            } else {
                Protocol::Other as u8
            };
            (protocol, Cast::of(header.destination))
        }
        None => (Protocol::Other as u8, Cast::Unicast),
    };
    Weight { length: skb.len, gso_segments: skb.gso_segs, protocol, cast }
}

/// A byte of the frame. It is nearly always in the linear part, where it costs no call.
#[inline(always)]
fn byte(ctx: &TcContext, offset: u32) -> Option<u8> {
    let place = ctx.data() + offset as usize;
    if place + 1 > ctx.data_end() {
        return Skb(ctx).load(offset).map(|[byte]| byte);
    }
    // SAFETY: the verifier has seen the comparison above.
    Some(unsafe { *(place as *const u8) })
}

/// The bytes of an `__sk_buff`, wherever the kernel keeps them.
pub(crate) struct Skb<'a>(pub(crate) &'a TcContext);

impl Packet for Skb<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.load(offset as usize).ok()
    }

    #[inline(always)]
    fn has_tag_beside(&self) -> bool {
        // SAFETY: a valid context, whose fields the verifier checks one by one.
        unsafe { (*self.0.skb.skb).vlan_present != 0 }
    }
}
