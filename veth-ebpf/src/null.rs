//! A program that only redirects. By it is seen what `bpf_redirect_peer` does on the running kernel, and what the
//! technique costs without looking anything up.

use aya_ebpf::helpers::bpf_redirect_peer;

use crate::{maps::NULL_TARGET, tc::action};

#[inline(always)]
pub(crate) fn redirect() -> i32 {
    // SAFETY: plain numbers; the kernel looks the interface up.
    action(unsafe { bpf_redirect_peer(NULL_TARGET.load(), 0) })
}
