//! Programs that do the least: one that only redirects, by which is seen what `bpf_redirect_peer` does on the running
//! kernel and what the technique costs without looking anything up, and those that do nothing.

use aya_ebpf::{
    bindings::{tcx_action_base::TCX_NEXT, xdp_action::XDP_PASS},
    helpers::bpf_redirect_peer,
};

use crate::{maps::NULL_TARGET, tc::action};

#[inline(always)]
pub(crate) fn redirect() -> i32 {
    // SAFETY: plain numbers; the kernel looks the interface up.
    action(unsafe { bpf_redirect_peer(NULL_TARGET.load(), 0) })
}

#[inline(always)]
pub(crate) const fn pass() -> i32 {
    TCX_NEXT
}

#[inline(always)]
pub(crate) const fn xdp_pass() -> u32 {
    XDP_PASS
}
