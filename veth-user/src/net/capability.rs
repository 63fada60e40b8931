//! What the calling thread may do: its capabilities, of `/proc/thread-self/status`.

use std::fs;

use super::{Error, Result};

const STATUS: &str = "/proc/thread-self/status";

/// A capability that something of ours needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Files of others.
    DacOverride = 1,
    /// Hearing of other namespaces.
    NetBroadcast = 11,
    /// Links, addresses, qdiscs, attachments.
    NetAdmin = 12,
    /// Packet sockets.
    NetRaw = 13,
    /// Namespaces and mounts, and whatever the two youngest were cut out of.
    SysAdmin = 21,
    /// Raising limits.
    SysResource = 24,
    /// Pointers and bounds that the verifier allows to tracers. Minimum kernel version: 5.8.
    Perfmon = 38,
    /// Loading programs and making maps. Minimum kernel version: 5.8.
    Bpf = 39,
}

impl Capability {
    /// Its name, as the manual has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DacOverride => "CAP_DAC_OVERRIDE",
            Self::NetBroadcast => "CAP_NET_BROADCAST",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysResource => "CAP_SYS_RESOURCE",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// The capabilities of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Those it has.
    pub effective: u64,
    /// Those that it, and whatever it starts, can have at most: what root would have here.
    pub bounding: u64,
}

impl Capabilities {
    /// Those of the calling thread.
    ///
    /// # Errors
    ///
    /// When `/proc` is not there.
    pub fn current() -> Result<Self> {
        let status =
            fs::read_to_string(STATUS).map_err(|source| Error::new(format!("read {STATUS}"), source))?;
        Ok(Self::parse(&status))
    }

    fn parse(status: &str) -> Self {
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default()
        };
        Self { effective: set("CapEff:"), bounding: set("CapBnd:") }
    }

    /// Whether the thread has one.
    #[must_use]
    pub const fn has(self, capability: Capability) -> bool {
        self.effective >> capability as u32 & 1 == 1
    }

    /// Whether root would have it here.
    #[must_use]
    pub const fn can_have(self, capability: Capability) -> bool {
        self.bounding >> capability as u32 & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read() {
        let status =
            "Name:\tveth\nCapPrm:\t0000000000000000\nCapEff:\t0000000000001000\nCapBnd:\t000001fffeffffff\n";
        let capabilities = Capabilities::parse(status);
        assert!(capabilities.has(Capability::NetAdmin) && !capabilities.has(Capability::NetRaw));
        assert!(capabilities.can_have(Capability::Bpf) && !capabilities.can_have(Capability::SysResource));
        assert_eq!(Capabilities::parse(""), Capabilities::default());
    }
}
