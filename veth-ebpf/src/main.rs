//! The programs that run in the kernel. This file holds their entry points and nothing else.
//!
//! Built for the BPF target by `cargo xtask build-ebpf`. On any other target the crate still compiles, to
//! nothing that runs, so that `cargo check`, clippy and editors need no BPF toolchain.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the program macros write public functions without documentation"
)]
#![expect(clippy::needless_pass_by_value, reason = "the program macros pass contexts by value")]

mod count;
mod drops;
mod maps;
mod null;
mod tc;
mod variant;
mod watch;
mod xdp;

use aya_ebpf::{
    macros::{btf_tracepoint, classifier, xdp},
    programs::{BtfTracePointContext, TcContext, XdpContext},
};

/// TC ingress of a port's host end, and of the bridge behind a switch.
#[classifier]
pub fn veth_ingress(ctx: TcContext) -> i32 {
    variant::differ();
    tc::ingress(&ctx)
}

/// XDP on a port's host end.
#[xdp(frags)]
pub fn veth_xdp(ctx: XdpContext) -> u32 {
    variant::differ();
    xdp::ingress(&ctx)
}

/// TC ingress of a pod's end whose other end is in another pod: only counts.
#[classifier]
pub fn veth_count(ctx: TcContext) -> i32 {
    variant::differ();
    tc::count(&ctx)
}

/// TC ingress of a port's host end, in front of everything: tells user space what comes in and what will become of it.
#[classifier]
pub fn veth_watch(ctx: TcContext) -> i32 {
    watch::ingress(&ctx)
}

/// TC egress of a port's host end: tells user space what leaves there.
#[classifier]
pub fn veth_watch_out(ctx: TcContext) -> i32 {
    watch::egress(&ctx)
}

/// The kernel drops a packet.
#[btf_tracepoint(function = "kfree_skb")]
pub fn veth_drops(ctx: BtfTracePointContext) -> i32 {
    drops::kfree_skb(&ctx);
    0
}

/// TC ingress that only redirects: what the technique itself does and costs.
#[classifier]
pub fn null_redirect(_ctx: TcContext) -> i32 {
    null::redirect()
}

/// XDP that does nothing: the kernel makes frames by it.
#[xdp]
pub fn null_xdp(_ctx: XdpContext) -> u32 {
    null::xdp_pass()
}

/// TC ingress that does nothing: what the hook itself costs.
#[classifier]
pub fn null_pass(_ctx: TcContext) -> i32 {
    null::pass()
}

/// Lets the kernel lend the helpers that it keeps for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that no program gets here.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
