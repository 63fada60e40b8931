//! What may happen to a frame, with numbers that never change meaning: they index counters.

/// The outcome of a decision, without its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Verdict {
    /// Left to whatever comes after us: programs of others, then the kernel's own bridge.
    Passed = 0,
    /// Handed to another port.
    Redirected = 1,
    /// Ended here, for a [`DropReason`].
    Dropped = 2,
}

impl Verdict {
    /// The name in tables, JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Redirected => "redirected",
            Self::Dropped => "dropped",
        }
    }
}

/// Why a frame was dropped by one of our programs.
///
/// The numbers index [`PortCounters::dropped`](crate::PortCounters): append, never reorder, and raise
/// [`LAYOUT_VERSION`](crate::LAYOUT_VERSION).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum DropReason {
    /// The other end of a wire is gone. A wire has no slow path that could take the frame.
    NoPeer = 0,
    /// Longer than the far port of a wire accepts, and not a GSO frame.
    MtuExceeded = 1,
    /// Sent to the host by a pod of a switch that has no gateway.
    NoGateway = 2,
    /// Sent by a pod from a hardware address that is not its port's. Only where the port is
    /// [checked](crate::Port::SPOOF_CHECK).
    SpoofedMac = 3,
    /// Sent by a pod from an IPv4 or IPv6 address that is not its port's, or claims such an address or another
    /// hardware address in ARP or Neighbour Discovery, or cannot be judged. Only where the port is
    /// [checked](crate::Port::SPOOF_CHECK).
    SpoofedAddress = 4,
}

impl DropReason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 5] =
        [Self::NoPeer, Self::MtuExceeded, Self::NoGateway, Self::SpoofedMac, Self::SpoofedAddress];

    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The name in tables, JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoPeer => "no_peer",
            Self::MtuExceeded => "mtu_exceeded",
            Self::NoGateway => "no_gateway",
            Self::SpoofedMac => "spoofed_mac",
            Self::SpoofedAddress => "spoofed_address",
        }
    }

    /// The counter that belongs to this reason.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Why a frame was left to the slow path.
///
/// The numbers index [`PortCounters::passed_for`](crate::PortCounters): append, never reorder, and raise
/// [`LAYOUT_VERSION`](crate::LAYOUT_VERSION).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum PassReason {
    /// The port is only counted: its path is the kernel's own. Or the frame came in on no port of ours.
    NotAccelerated = 0,
    /// No whole Ethernet header.
    NoHeader = 1,
    /// For a group or for all: the bridge copies it.
    Group = 2,
    /// The source address is zero or a group's: the bridge drops it.
    InvalidSource = 3,
    /// No port of the switch has the destination address: the bridge, the gateway, or nobody.
    UnknownDestination = 4,
    /// The destination is where it came from: the bridge drops it.
    SamePort = 5,
    /// Longer than the far pod's link takes, and not GSO: the bridge drops it.
    TooLong = 6,
    /// The far port's host end is gone.
    TargetGone = 7,
}

impl PassReason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 8] = [
        Self::NotAccelerated,
        Self::NoHeader,
        Self::Group,
        Self::InvalidSource,
        Self::UnknownDestination,
        Self::SamePort,
        Self::TooLong,
        Self::TargetGone,
    ];

    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The name in tables, JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotAccelerated => "not_accelerated",
            Self::NoHeader => "no_header",
            Self::Group => "group",
            Self::InvalidSource => "invalid_source",
            Self::UnknownDestination => "unknown_destination",
            Self::SamePort => "same_port",
            Self::TooLong => "too_long",
            Self::TargetGone => "target_gone",
        }
    }

    /// The counter that belongs to this reason.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_by_their_place() {
        for (place, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), place, "{}", reason.name());
        }
        for (place, reason) in PassReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), place, "{}", reason.name());
        }
    }
}
