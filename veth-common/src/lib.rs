//! What the kernel side and the user side of `veth` share: map layouts, verdicts, and the pure
//! forwarding decision. Nothing in this crate touches a kernel, so all of it is tested on any machine.
#![no_std]

pub mod class;
pub mod drops;
pub mod forward;
pub mod frame;
pub mod layout;
pub mod spoof;
pub mod verdict;
pub mod watch;

pub use class::{Cast, Protocol, SIZE_ENDS, SIZES, size_index};
pub use forward::{Decision, Tables, decide};
pub use frame::{EthernetHeader, Frame, Mac, Packet, ethertype, ip_protocol};
pub use layout::{
    COUNTERS_VERSION, DEFAULT_CAPACITY, DropRow, FDB_PLACES_PER_SLOT, FdbEntry, FdbKey, LAYOUT_VERSION, Port,
    PortCounters, PortKind, RedirectMode, Row, SLOT_UNATTRIBUTED, SOURCES_PER_SLOT, SourceKey, Tally, Target,
    Weight,
};
pub use verdict::{DropReason, PassReason, Verdict};
