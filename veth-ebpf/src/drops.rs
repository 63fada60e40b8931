//! The kernel's own drops: counts what it frees unread, where it concerns one of our pods or links. Attached only while
//! somebody looks.

use aya_ebpf::{
    Global,
    btf_maps::{HashMap, PerCpuArray, PerCpuHashMap},
    helpers::bpf_probe_read_kernel,
    macros::btf_map,
    programs::BtfTracePointContext,
};
use veth_common::{
    EthernetHeader, Protocol,
    drops::{DropKey, DropPlace, KernelOffsets},
};

/// The places that are of interest, by number. User space makes it larger.
#[btf_map]
static DROP_PLACES: HashMap<DropPlace, u32, 1> = HashMap::new();

/// Dropped packets. User space makes it larger.
#[btf_map]
static DROPS: PerCpuHashMap<DropKey, u64, 1> = PerCpuHashMap::new();

/// Dropped packets that there was no room to tell apart.
#[btf_map]
static DROPS_OTHER: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Where the running kernel keeps things.
#[unsafe(no_mangle)]
static KERNEL: Global<KernelOffsets> = Global::new(KernelOffsets {
    skb_dev: 0,
    skb_sk: 0,
    skb_protocol: 0,
    skb_head: 0,
    skb_network_header: 0,
    device_ifindex: 0,
    device_net: 0,
    sock_net: 0,
    net_inum: 0,
    arguments: 0,
});

#[inline(always)]
pub(crate) fn kfree_skb(ctx: &BtfTracePointContext) {
    let kernel = KERNEL.load();
    let skb: usize = ctx.arg(0);
    let location: usize = ctx.arg(1);
    let reason: u32 = if kernel.arguments > 2 { ctx.arg(2) } else { DropKey::NO_REASON };
    let socket: usize = if kernel.arguments > 3 { ctx.arg(3) } else { 0 };
    let Some(place) = place(&kernel, skb, socket) else { return };
    let protocol = protocol(&kernel, skb).into();
    let key = DropKey { location: location as u64, place, reason, protocol, reserved: 0 };
    if let Some(count) = DROPS.get_ptr_mut(key) {
        // SAFETY: the value is this CPU's own.
        unsafe { *count += 1 };
    } else if DROPS.insert(key, 1, 0).is_err()
        && let Some(count) = DROPS_OTHER.get_ptr_mut(0)
    {
        // SAFETY: as above.
        unsafe { *count += 1 };
    }
}

/// The number of the place where a packet was: by its link, or, once a socket had it and the link is forgotten, by that
/// socket's namespace.
#[inline(always)]
fn place(kernel: &KernelOffsets, skb: usize, socket: usize) -> Option<u32> {
    let by_link = || {
        let device = pointer(skb, kernel.skb_dev)?;
        let ifindex: u32 = read(device, kernel.device_ifindex)?;
        let namespace: u32 = read(pointer(device, kernel.device_net)?, kernel.net_inum)?;
        find(DropPlace { namespace, ifindex })
    };
    let by_socket = |socket: usize| {
        let namespace: u32 = read(pointer(socket, kernel.sock_net)?, kernel.net_inum)?;
        find(DropPlace { namespace, ifindex: 0 })
    };
    if let Some(place) = by_link() {
        return Some(place);
    }
    if socket != 0 { by_socket(socket) } else { by_socket(pointer(skb, kernel.skb_sk)?) }
}

#[inline(always)]
fn find(place: DropPlace) -> Option<u32> {
    // SAFETY: copied out at once; entries are written before the program is attached.
    unsafe { DROP_PLACES.get(place) }.copied()
}

/// The number of what a packet carries.
#[inline(always)]
fn protocol(kernel: &KernelOffsets, skb: usize) -> u8 {
    let ethertype: u16 = read(skb, kernel.skb_protocol).unwrap_or_default();
    Protocol::number(ethertype, |offset| {
        let head = pointer(skb, kernel.skb_head)?;
        let header: u16 = read(skb, kernel.skb_network_header)?;
        // Offsets count from the Ethernet header, which stands in front of the network header.
        read((head + usize::from(header)).wrapping_sub(EthernetHeader::LENGTH as usize), offset)
    })
}

#[inline(always)]
fn pointer(base: usize, offset: u32) -> Option<usize> {
    read(base, offset).filter(|pointer| *pointer != 0)
}

/// Reads from the kernel's memory.
#[inline(always)]
fn read<T>(base: usize, offset: u32) -> Option<T> {
    // SAFETY: the helper fails where nothing can be read.
    unsafe { bpf_probe_read_kernel((base + offset as usize) as *const T) }.ok()
}
