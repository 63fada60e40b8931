//! The XDP hook: what an `xdp_md` says, and what a decision means here.

use aya_ebpf::{bindings::xdp_action, helpers::bpf_xdp_get_buff_len, programs::XdpContext};
use aya_log_ebpf::{debug, warn};
use veth_common::{Decision, EthernetHeader, Frame, decide};

use crate::{
    count::{self, Weight},
    maps::{self, Maps, XDP_TARGETS},
};

/// The ethertypes of 802.1Q and 802.1ad tags, as they stand in a frame.
const TAGS: [u16; 2] = [0x8100_u16.to_be(), 0x88a8_u16.to_be()];

/// A tag's length.
const TAG_LENGTH: u32 = 4;

#[inline(always)]
pub(crate) fn ingress(ctx: &XdpContext) -> u32 {
    // SAFETY: a valid context. A frame is far shorter than 4 GiB.
    #[expect(clippy::cast_possible_truncation, reason = "a frame is far shorter than 4 GiB")]
    let length = unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as u32;
    let head = head(ctx);
    // TC programs see the outer tag beside the frame and not in its length. Counters mean the same here.
    let counted = match head {
        Some(head) if TAGS.contains(&head.ethertype) => length - TAG_LENGTH,
        _ => length,
    };
    let weight = Weight { length: counted, gso_segments: 0 };

    // SAFETY: a valid context, whose fields the verifier checks one by one.
    let ifindex = unsafe { (*ctx.ctx).ingress_ifindex };
    let Some(port) = maps::port(ifindex) else {
        count::unattributed(weight);
        debug!(ctx, "frame from interface {}, which is no port of ours: passed on", ifindex);
        return xdp_action::XDP_PASS;
    };
    let frame = Frame { header: head.map(|head| &head.ethernet), length, gso: false };
    let decision = decide(port, &frame, &Maps { targets: &XDP_TARGETS });
    count::decision(port.slot, decision, weight);

    match decision {
        Decision::Pass => xdp_action::XDP_PASS,
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

/// What is looked at of a frame.
#[repr(C)]
struct Head {
    ethernet: EthernetHeader,
    ethertype: u16,
}

/// The Ethernet header, where the first buffer of the frame has a whole one.
#[inline(always)]
fn head(ctx: &XdpContext) -> Option<&Head> {
    let start = ctx.data();
    if start + size_of::<Head>() > ctx.data_end() {
        return None;
    }
    // SAFETY: the verifier has seen the comparison above. The kernel aligns an Ethernet header to 2 at least.
    Some(unsafe { &*(start as *const Head) })
}
