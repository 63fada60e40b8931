//! Builds that only tests want: what an upgrade replaces the programs by.

/// Does nothing, and with the feature `other` by an instruction that no other build has.
#[inline(always)]
pub(crate) fn differ() {
    #[cfg(feature = "other")]
    // SAFETY: the helper takes nothing and returns a number.
    core::hint::black_box(unsafe { aya_ebpf::helpers::bpf_ktime_get_ns() });
}
