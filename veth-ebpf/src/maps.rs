//! The maps and the constants that user space sets when it loads the programs. Sizes are raised then too.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, DevMap, HashMap},
    macros::btf_map,
};
use veth_common::{
    DEFAULT_CAPACITY, FDB_PLACES_PER_SLOT, FdbEntry, FdbKey, LAYOUT_VERSION, Port, PortCounters,
    SOURCES_PER_SLOT, SourceKey, Tables, Target,
};

/// Every map starts at this size.
const ENTRIES: usize = DEFAULT_CAPACITY as usize;

/// `FDB` starts at this size.
const FDB_ENTRIES: usize = ENTRIES * FDB_PLACES_PER_SLOT as usize;

/// `SOURCES` starts at this size.
const SOURCES_ENTRIES: usize = ENTRIES * SOURCES_PER_SLOT as usize;

/// The port of an interface, by the low bits of its index: an array look-up is nearly free. The stored
/// index is checked, and `PORTS_OVERFLOW` has the ports whose entry was taken.
#[btf_map]
static PORTS: Array<Port, ENTRIES> = Array::new();

/// Ports whose entry in `PORTS` belongs to another, by interface index. Usually empty.
#[btf_map]
static PORTS_OVERFLOW: HashMap<u32, Port, ENTRIES> = HashMap::new();

/// Who owns an address in a forwarding domain, by a hash of both: as with `PORTS`, a look-up is nearly free. The stored
/// address is checked, and `FDB_OVERFLOW` has those whose entry was taken.
#[btf_map]
static FDB: Array<FdbEntry, FDB_ENTRIES> = Array::new();

/// Addresses whose entry in `FDB` belongs to another. Usually nearly empty.
#[btf_map]
static FDB_OVERFLOW: HashMap<FdbKey, Target, ENTRIES> = HashMap::new();

/// The addresses that a checked port may send from. Not looked at for any other port, and without entries it takes no
/// memory to speak of.
#[btf_map]
static SOURCES: HashMap<SourceKey, u8, SOURCES_ENTRIES, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Host ends by slot. A `DEVMAP`, because the kernel empties an entry when its interface goes.
#[btf_map]
pub(crate) static TARGETS: DevMap<ENTRIES> = DevMap::new();

/// The same for XDP. The kernel gives a `DEVMAP` to the first type of program that uses it and refuses every other
/// (`__bpf_prog_map_compatible` in `kernel/bpf/core.c`).
#[btf_map]
pub(crate) static XDP_TARGETS: DevMap<ENTRIES> = DevMap::new();

/// Counters: those of every slot for the first CPU, then for the second, and so on, and behind the last what was carried
/// over from the maps of another layout, which no program touches. No `PERCPU_ARRAY`: the kernel begins
/// none of its values at a cache line, and user space cannot map it, which reads a thousand ports without a call.
#[btf_map]
pub(crate) static COUNTERS: Array<PortCounters, ENTRIES, { BPF_F_MMAPABLE as usize }> = Array::new();

/// How many slots `COUNTERS` has for each CPU.
#[unsafe(no_mangle)]
pub(crate) static COUNTER_SLOTS: Global<u32> = Global::new(DEFAULT_CAPACITY);

/// Which bits of an interface index choose an entry of `PORTS`: its size less one.
#[unsafe(no_mangle)]
static PORTS_MASK: Global<u32> = Global::new(DEFAULT_CAPACITY - 1);

/// How far a hash is shifted to choose an entry of `FDB`.
#[unsafe(no_mangle)]
static FDB_SHIFT: Global<u32> = Global::new((DEFAULT_CAPACITY * FDB_PLACES_PER_SLOT).leading_zeros() + 1);

/// Zero only where a benchmark asks what counting costs.
#[unsafe(no_mangle)]
pub(crate) static COUNTING: Global<u32> = Global::new(1);

/// Not zero where `bpf_redirect_peer` does not scrub frames, so that they keep the packet type of the
/// host end and the far stack would refuse them.
#[unsafe(no_mangle)]
pub(crate) static SET_PACKET_HOST: Global<u32> = Global::new(0);

/// Where `null_redirect` redirects to.
#[unsafe(no_mangle)]
pub(crate) static NULL_TARGET: Global<u32> = Global::new(0);

/// Whose frames come in where a `veth_count` is attached, by slot.
#[unsafe(no_mangle)]
pub(crate) static COUNT_FROM: Global<u32> = Global::new(0);

/// Who gets them.
#[unsafe(no_mangle)]
pub(crate) static COUNT_TO: Global<u32> = Global::new(0);

/// Read by user space from the object, never by a program.
#[used]
#[unsafe(no_mangle)]
static VETH_LAYOUT_VERSION: Global<u32> = Global::new(LAYOUT_VERSION);

/// The port that an interface is.
#[inline(always)]
pub(crate) fn port(ifindex: u32) -> Option<&'static Port> {
    match PORTS.get(ifindex & PORTS_MASK.load()) {
        Some(port) if port.ifindex == ifindex => Some(port),
        // SAFETY: an entry is written before a program sees its interface, and emptied when it does no longer. While it
        // is attached only the redirect byte of the target and the flags change; a reused entry would still be a whole `Port`.
        _ => unsafe { PORTS_OVERFLOW.get(ifindex) },
    }
}

/// The tables of a decision, as maps: those that a type of program may use.
pub(crate) struct Maps {
    pub(crate) targets: &'static DevMap<ENTRIES>,
}

impl Tables for Maps {
    #[inline(always)]
    fn lookup(&self, key: FdbKey) -> Option<Target> {
        match FDB.get(key.place(FDB_SHIFT.load())) {
            // User space empties an entry before it gives it to another address, so that what is half-written has slot
            // 0, which nobody is reached by, or is too short for any frame.
            Some(entry) if entry.key == key => Some(entry.target),
            // SAFETY: copied out at once. An entry that is replaced meanwhile can only be an older or a newer
            // whole value of the same address: user space writes entries, programs never do.
            _ => unsafe { FDB_OVERFLOW.get(key) }.copied(),
        }
    }

    #[inline(always)]
    fn interface(&self, slot: u32) -> Option<u32> {
        self.targets.get_ifindex(slot)
    }

    #[inline(always)]
    fn is_source(&self, key: &SourceKey) -> bool {
        // SAFETY: the value is not read.
        unsafe { SOURCES.get(key) }.is_some()
    }
}
