//! Where programs are attached, how they hand over, and in which order with the programs of others.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a program is attached to a link's ingress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// A TCX link. Minimum kernel version: 6.6.
    Tcx,
    /// A filter on a clsact qdisc, which every kernel has.
    Clsact,
    /// XDP in the driver. Minimum kernel version: 6.2.
    Xdp,
    /// XDP in the network stack, for every driver. Minimum kernel version: 6.2.
    XdpGeneric,
}

impl Hook {
    /// The name, as options and tables have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdp-generic",
        }
    }

    /// Whether it runs before the network stack has seen the frame.
    #[must_use]
    pub const fn is_xdp(self) -> bool {
        matches!(self, Self::Xdp | Self::XdpGeneric)
    }

    /// Whether an attachment lives as long as its pin, and not as long as its link.
    #[must_use]
    pub const fn is_pinned(self) -> bool {
        !matches!(self, Self::Clsact)
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a frame is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Redirect {
    /// Straight into the pod: `bpf_redirect_peer`. Minimum kernel version: 5.10.
    Peer,
    /// Out of the host end: `bpf_redirect`.
    Host,
    /// Out of the host end, by XDP's device map.
    Devmap,
}

impl Redirect {
    /// The name, as options and tables have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Host => "host",
            Self::Devmap => "devmap",
        }
    }
}

impl fmt::Display for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where our program stands among those of others on a link, when it is attached.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Behind all that are there when it is attached, so that a policy can drop before we redirect. By clsact also
    /// behind all that come later; TCX programs run before every filter by tc
    #[default]
    Last,
    /// Before all that are there when it is attached: they see only what is left to the slow path
    First,
}
