//! The operating system's edge: namespaces, links, addresses, routes, bridges, filters, sysctls. Knows nothing of
//! topologies or programs. Every change goes through netlink, mounts or `/proc/sys`, never through `ip`.

pub mod address;
pub mod bridge;
pub mod capability;
pub mod counters;
pub mod ethtool;
pub mod events;
pub mod forwarding;
pub mod link;
pub mod neighbour;
pub mod netlink;
pub mod netns;
pub mod nftables;
pub mod ovs;
pub mod rcu;
pub mod route;
pub mod sysctl;
pub mod tc;

use std::{fs::File, io};

pub use netlink::Netlink;
pub use netns::Netns;

/// What went wrong at the operating system's edge: what was being done, and the system's answer.
#[derive(Debug, thiserror::Error)]
#[error("{action}")]
pub struct Error {
    /// What was being done, to what.
    pub action: String,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

impl Error {
    /// Pairs an action with the system's answer.
    pub fn new(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { action: action.into(), source: source.into() }
    }

    /// The kernel's error number, where it gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// The result of a change to the operating system.
pub type Result<T> = std::result::Result<T, Error>;

/// Makes sure that so many files could be opened at once, for what would fail half-way without them, or in a way that says
/// nothing of it.
///
/// # Errors
///
/// When they could not.
pub fn check_files(count: usize, action: &str) -> Result<()> {
    let files: io::Result<Vec<File>> = (0..count).map(|_| File::open("/proc/self")).collect();
    files.map(drop).map_err(|source| Error::new(action, source))
}
