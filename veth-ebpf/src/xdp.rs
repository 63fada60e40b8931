//! The XDP hook: what an `xdp_md` says, and what a decision means here.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    programs::XdpContext,
};
use aya_log_ebpf::{debug, warn};
use veth_common::{Cast, Decision, EthernetHeader, Frame, Packet, Protocol, Weight, decide, spoof::is_tag};

use crate::{
    count,
    maps::{self, Maps, XDP_TARGETS},
};

/// A tag's length.
const TAG_LENGTH: u32 = 4;

#[inline(always)]
pub(crate) fn ingress(ctx: &XdpContext) -> u32 {
    // SAFETY: a valid context. A frame is far shorter than 4 GiB.
    #[expect(clippy::cast_possible_truncation, reason = "a frame is far shorter than 4 GiB")]
    let length = unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as u32;
    let header = header(ctx);

    // SAFETY: a valid context, whose fields the verifier checks one by one.
    let ifindex = unsafe { (*ctx.ctx).ingress_ifindex };
    let Some(port) = maps::port(ifindex) else {
        count::unattributed(&weight(ctx, header, length));
        debug!(ctx, "frame from interface {}, which is no port of ours: passed on", ifindex);
        return xdp_action::XDP_PASS;
    };
    let frame = Frame { header, length, gso: false };
    let decision = decide(port, &frame, &Buff(ctx), &Maps { targets: &XDP_TARGETS });
    // Not before: the verifier would go through the decision once for every protocol.
    count::decision(port.slot, decision, &weight(ctx, header, length));

    match decision {
        Decision::Pass(_) => xdp_action::XDP_PASS,
        // Out of the host end is the only way there is here: XDP has no `bpf_redirect_peer`, and the far end
        // looks at the address itself. An interface that goes at this very moment leaves the frame to the slow path.
        Decision::Redirect { slot, .. } => match XDP_TARGETS.redirect(slot, xdp_action::XDP_PASS.into()) {
            Ok(action) | Err(action) => action,
        },
        Decision::Drop(reason) => {
            warn!(ctx, "dropped a frame of {} bytes on interface {}: {}", length, ifindex, reason.name());
            xdp_action::XDP_DROP
        }
    }
}

/// The Ethernet header, where the first buffer of the frame has a whole one.
#[inline(always)]
fn header(ctx: &XdpContext) -> Option<&EthernetHeader> {
    let start = ctx.data();
    if start + size_of::<EthernetHeader>() > ctx.data_end() {
        return None;
    }
    // SAFETY: the verifier has seen the comparison above. The kernel aligns an Ethernet header to 2 at least.
    Some(unsafe { &*(start as *const EthernetHeader) })
}

/// What a frame adds to counters. TC programs see the outer tag beside the frame and not in its length: counters mean
/// the same here.
#[inline(always)]
fn weight(ctx: &XdpContext, header: Option<&EthernetHeader>, length: u32) -> Weight {
    let (length, protocol, cast) = match header {
        Some(header) => {
            // A tag is no protocol that is told apart.
            let protocol = Protocol::number(header.ethertype, |offset| byte(ctx, offset));
            let length = if is_tag(header.ethertype) { length - TAG_LENGTH } else { length };
            (length, protocol, Cast::of(header.destination))
        }
        None => (length, Protocol::Other as u8, Cast::Unicast),
    };
    Weight { length, gso_segments: 0, protocol, cast }
}

/// A byte of the frame. It is nearly always in the first buffer, where it costs no call.
#[inline(always)]
fn byte(ctx: &XdpContext, offset: u32) -> Option<u8> {
    let place = ctx.data() + offset as usize;
    if place + 1 > ctx.data_end() {
        return Buff(ctx).load(offset).map(|[byte]| byte);
    }
    // SAFETY: the verifier has seen the comparison above.
    Some(unsafe { *(place as *const u8) })
}

/// The bytes of an `xdp_md`, whichever of its buffers they are in.
struct Buff<'a>(&'a XdpContext);

impl Packet for Buff<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: a valid context, and as many bytes as there is room for.
        #[expect(clippy::cast_possible_truncation, reason = "headers are short")]
        let failed = unsafe { bpf_xdp_load_bytes(self.0.ctx, offset, bytes.as_mut_ptr().cast(), N as u32) };
        // SAFETY: the helper has written all of them.
        (failed == 0).then(|| unsafe { bytes.assume_init() })
    }

    /// XDP comes before the kernel moves a tag.
    #[inline(always)]
    fn has_tag_beside(&self) -> bool {
        false
    }
}
