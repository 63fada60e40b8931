//! Drops by the kernel: what a program on its `kfree_skb` tracepoint must know, and what it counts by.

/// Where a packet can be dropped that is of interest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct DropPlace {
    /// The network namespace: the inode of `/proc/PID/ns/net`.
    pub namespace: u32,
    /// The link in it, or 0 for what no link is known of.
    pub ifindex: u32,
}

/// What dropped packets are counted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct DropKey {
    /// The instruction that dropped.
    pub location: u64,
    /// The number of the place.
    pub place: u32,
    /// The kernel's own number of the reason, or [`NO_REASON`](Self::NO_REASON).
    pub reason: u32,
    /// The number of a [`Protocol`](crate::Protocol).
    pub protocol: u32,
    /// Zero.
    pub reserved: u32,
}

impl DropKey {
    /// Kernels before 5.17 give no reason.
    pub const NO_REASON: u32 = u32::MAX;
}

/// Where the running kernel keeps what is read of its structures, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KernelOffsets {
    /// `sk_buff.dev`.
    pub skb_dev: u32,
    /// `sk_buff.sk`.
    pub skb_sk: u32,
    /// `sk_buff.protocol`.
    pub skb_protocol: u32,
    /// `sk_buff.head`.
    pub skb_head: u32,
    /// `sk_buff.network_header`.
    pub skb_network_header: u32,
    /// `net_device.ifindex`.
    pub device_ifindex: u32,
    /// `net_device.nd_net.net`.
    pub device_net: u32,
    /// `sock.__sk_common.skc_net.net`.
    pub sock_net: u32,
    /// `net.ns.inum`.
    pub net_inum: u32,
    /// How many arguments the tracepoint has: with 3 also a reason, with 4 also the socket that it was for.
    pub arguments: u32,
}

const _: () = assert!(size_of::<DropPlace>() == 8);
const _: () = assert!(size_of::<DropKey>() == 24);
const _: () = assert!(size_of::<KernelOffsets>() == 40);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, integers only, and by the size assertions above without padding.
    unsafe impl aya::Pod for super::DropPlace {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::DropKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::KernelOffsets {}
}
