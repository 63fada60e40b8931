//! The eBPF edge: the object, loading it, its maps, attaching it, and the pins that keep it all alive
//! without us. Knows nothing of topologies.

pub mod attach;
mod counters;
pub mod drops;
mod hook;
mod load;
pub mod log;
mod maps;
mod null_redirect;
pub mod object;
pub mod pins;
pub mod watch;

use std::{io, path::PathBuf};

use aya::{
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};

pub use counters::{Counters, wait_for_programs};
pub use hook::{Hook, Place, Redirect};
pub use load::{
    INGRESS, LoadOptions, NULL_PASS, NULL_REDIRECT, NULL_XDP, Verified, XDP, capacity, load,
    load_null_redirect, null, null_redirect, programs, reload, uncounted, verify, verify_xdp_attach,
};
pub use maps::Datapath;
pub use null_redirect::NullRedirect;

/// Why programs or maps could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The binary was built without the BPF toolchain.
    #[error(
        "this veth was built without its eBPF object, as plain `cargo build` does; build it with `cargo xtask build`"
    )]
    NoObject,
    /// The embedded object is none of ours.
    #[error("the eBPF object cannot be read: {0}; build it again with `cargo xtask build`")]
    BadObject(String),
    /// The embedded object speaks another layout.
    #[error(
        "the eBPF object has map layout {found}, and this veth speaks {expected}; build both together with \
         `cargo xtask build`"
    )]
    ObjectLayout {
        /// The object's.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// A pinned map is of another layout, whatever its path says.
    #[error(
        "the pinned map {} is not of layout {layout}: {what} is {found}, not {expected}; it was made by another \
         veth. Take the topology down (`veth down`) and bring it up again", path.display()
    )]
    MapLayout {
        /// The pin.
        path: PathBuf,
        /// Our layout.
        layout: u32,
        /// What differs.
        what: &'static str,
        /// How it is.
        found: u32,
        /// How it should be.
        expected: u32,
    },
    /// The kernel lacks something.
    #[error("kernel {has} has no {feature} (needs {needs} or newer)")]
    Unsupported {
        /// What it lacks.
        feature: &'static str,
        /// Since when there is such a thing.
        needs: &'static str,
        /// The running kernel's version.
        has: String,
    },
    /// There is no bpffs, and none could be mounted.
    #[error("{} is not on a bpffs: {why}", path.display())]
    NoBpffs {
        /// Where pins should go.
        path: PathBuf,
        /// Why not, and what to do.
        why: String,
    },
    /// A program of ours is attached that this topology did not attach.
    #[error(
        "{link} already carries a veth program by {hook} (program {program}) that belongs to another topology or \
         another --pin-dir; a second one would count and redirect every frame twice. Take the other down first"
    )]
    AttachedTwice {
        /// The link.
        link: String,
        /// Where the other is attached.
        hook: Hook,
        /// The other's number.
        program: u32,
    },
    /// A link takes one XDP program, and somebody else's is there.
    #[error(
        "{link} already carries the XDP program {program} of somebody else, and a link takes only one; remove it \
         (`ip link set dev {link} xdp off`), or use --hook tcx or clsact, which run beside it"
    )]
    XdpTaken {
        /// The link.
        link: String,
        /// The other program.
        program: String,
    },
    /// A priority holds filters of one kind and protocol.
    #[error(
        "{link} has a filter of another kind at priority {priority}, where ours belongs; remove that \
         (`tc filter del dev {link} ingress prio {priority}`), or use the other --place"
    )]
    PriorityTaken {
        /// The link.
        link: String,
        /// The priority.
        priority: u16,
    },
    /// From the operating system's edge.
    #[error(transparent)]
    Net(#[from] crate::net::Error),
    /// Something is used before it was loaded: a mistake in this program.
    #[error("the eBPF programs are not loaded yet")]
    NotLoaded,
    /// A pin could not be made or removed.
    #[error("{action} {}", path.display())]
    Pin {
        /// What was being done.
        action: &'static str,
        /// To which path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The state folder, where a mount of ours is noted, could not be used.
    #[error(transparent)]
    State(#[from] crate::state::Error),
    /// A map has no room for another entry.
    #[error(
        "{action}: the map is full; its size follows from the number of ports, by which `veth down` and `veth up` make it \
         anew: declare fewer addresses, or more than one topology"
    )]
    MapFull {
        /// What was being done, to what.
        action: String,
    },
    /// The verifier refused a program.
    #[error("the kernel refused the program {program}: {reason} (the whole log with -vv)")]
    Refused {
        /// The program.
        program: String,
        /// The last line of the verifier's log that says something.
        reason: String,
    },
    /// The kernel refused something else.
    #[error("{action}")]
    Kernel {
        /// What was being done, to what.
        action: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    fn kernel(action: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Kernel { action: action.into(), source: Box::new(source) }
    }

    /// An error about a program, with the verifier's log cut down to the line that matters.
    pub(crate) fn program(action: String, program: &str, source: ProgramError) -> Self {
        match source {
            ProgramError::LoadError { io_error, verifier_log } => {
                let log = verifier_log.to_string();
                ::log::debug!("verifier log of {program}:\n{log}");
                match verifier_reason(&log) {
                    Some(reason) => Self::Refused { program: program.to_owned(), reason: reason.to_owned() },
                    // It had nothing against it: something else was missing.
                    None => Self::kernel(action, io_error),
                }
            }
            source => Self::kernel(action, source),
        }
    }
}

/// Makes sure that a link can be looked up by its name: libc opens a socket for that, and where it gets none it says that
/// there is no such link.
fn check_look_up(action: &str) -> Result<(), Error> {
    Ok(crate::net::check_files(1, action)?)
}

/// The last line of a verifier log before its statistics.
fn verifier_reason(log: &str) -> Option<&str> {
    log.lines().map(str::trim).rfind(|line| {
        !line.is_empty()
            && !["processed ", "verification time", "stack depth"].iter().any(|s| line.starts_with(s))
    })
}

/// The system's answer inside an aya error, for messages that say more than "syscall failed".
pub(crate) fn pin_error(action: &'static str, path: PathBuf, source: PinError) -> Error {
    let source = match source {
        PinError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    };
    Error::Pin { action, path, source }
}

fn map_error(action: impl Into<String>, source: MapError) -> Error {
    match source {
        MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::E2BIG) => {
            Error::MapFull { action: action.into() }
        }
        MapError::SyscallError(error) => Error::kernel(action, error.io_error),
        source => Error::kernel(action, source),
    }
}

fn link_error(action: impl Into<String>, source: LinkError) -> Error {
    match source {
        LinkError::SyscallError(error) => Error::kernel(action, error.io_error),
        source => Error::kernel(action, source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_log_is_one_line() {
        let log = "0: R1=ctx()\n1: (61) r2 = *(u32 *)(r1 +999)\ninvalid bpf_context access off=999 size=4\n\
                   processed 2 insns (limit 1000000) max_states_per_insn 0\nstack depth 0\n\n";
        assert_eq!(verifier_reason(log), Some("invalid bpf_context access off=999 size=4"));
        assert_eq!(verifier_reason("\n"), None);
    }
}
