//! What the running kernel can do, found out by trying wherever it can be tried, and what follows from it.

mod scratch;
pub mod select;

use std::io;

use aya::{
    programs::{ProgramError, ProgramType, SchedClassifier, TcAttachType},
    sys::{BpfHelper, is_helper_supported},
    util::KernelVersion,
};

use crate::{datapath, net};

pub use scratch::{Peer, Scratch};
pub use select::{Selection, Wish, select};

/// The oldest kernel that is supported: `bpf_redirect_peer`, and the device map that TC programs can read.
const MINIMUM: Kernel = Kernel(5, 10, 0);

/// From here on `bpf_redirect_peer` scrubs what it hands over (commit c43272299488), without a look.
const SCRUBS: Kernel = Kernel(6, 15, 0);

/// A kernel's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel(pub u8, pub u8, pub u16);

impl std::fmt::Display for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(major, minor, patch) = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

impl Kernel {
    /// The running one.
    ///
    /// # Errors
    ///
    /// When it does not say.
    pub fn current() -> Result<Self, Error> {
        let code = KernelVersion::current().map_err(|error| Error::Version(error.to_string()))?.code();
        let part = |shift: u32| u8::try_from(code >> shift & 0xff).unwrap_or(u8::MAX);
        Ok(Self(part(16), part(8), part(0).into()))
    }
}

/// Why the kernel could not be found out about, or lacks what is asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not tell its version.
    #[error("the kernel does not say its version: {0}")]
    Version(String),
    /// It lacks something.
    #[error("kernel {has} has no {feature} (needs {needs} or newer){instead}")]
    Unsupported {
        /// What it lacks.
        feature: &'static str,
        /// Since when there is such a thing.
        needs: &'static str,
        /// The running kernel.
        has: Kernel,
        /// What to do instead.
        instead: &'static str,
    },
    /// Two options that cannot go together.
    #[error("--redirect {redirect} does not go with --hook {hook}: {why}")]
    Mismatch {
        /// The redirect.
        redirect: datapath::Redirect,
        /// The hook.
        hook: datapath::Hook,
        /// Why not.
        why: &'static str,
    },
    /// From the operating system's edge.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// From the eBPF edge.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
}

/// What the running kernel can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Its version.
    pub kernel: Kernel,
    /// Whether links have TCX chains.
    pub tcx: bool,
    /// Whether TC programs may call `bpf_redirect_peer`.
    pub redirect_peer: bool,
    /// Whether grace periods can be hurried, so that TCX is quick for many ports.
    pub hurry: bool,
}

impl Abilities {
    /// Finds out. Changes nothing.
    ///
    /// # Errors
    ///
    /// When the kernel is too old for anything of ours, or does not tell.
    pub fn probe() -> Result<Self, Error> {
        let kernel = Kernel::current()?;
        require(kernel)?;
        Ok(Self {
            kernel,
            tcx: has_tcx(),
            redirect_peer: is_helper_supported(
                ProgramType::SchedClassifier,
                BpfHelper::BPF_FUNC_redirect_peer,
            )
            .unwrap_or_default(),
            hurry: net::rcu::is_writable(),
        })
    }
}

/// Whether a TCX chain can be asked for. `lo` is in every namespace; kernels without TCX do not know the question.
#[must_use]
pub fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// Like [`has_tcx`], but tells a kernel that does not know the question from one that does not answer us.
///
/// # Errors
///
/// `EPERM` without `CAP_NET_ADMIN`.
pub fn look_for_tcx() -> Result<bool, Error> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok(true),
        Err(ProgramError::SyscallError(error))
            if error.io_error.kind() == io::ErrorKind::PermissionDenied =>
        {
            Err(net::Error::new("ask for the TCX chain of lo", error.io_error).into())
        }
        Err(_) => Ok(false),
    }
}

/// Whether programs of a type may call a helper, found out by loading one that does.
///
/// # Errors
///
/// When we may not load programs.
pub fn has_helper(hook: datapath::Hook, helper: BpfHelper) -> Result<bool, Error> {
    let kind = if hook.is_xdp() { ProgramType::Xdp } else { ProgramType::SchedClassifier };
    is_helper_supported(kind, helper).map_err(|error| {
        let source = match error {
            ProgramError::SyscallError(error) => error.io_error,
            ProgramError::LoadError { io_error, .. } => io_error,
            other => io::Error::other(other),
        };
        net::Error::new("load a program that calls a helper", source).into()
    })
}

/// Whether the program must set the packet type because `bpf_redirect_peer` does not scrub. Tried out with a real
/// frame in throw-away namespaces where the version leaves it open: stable branches have the cure too.
///
/// # Errors
///
/// When the experiment cannot be made.
pub async fn must_set_packet_host(kernel: Kernel) -> Result<bool, Error> {
    if kernel >= SCRUBS {
        return Ok(false);
    }
    let peer = Scratch::new().await?.redirect_peer().await?;
    log::info!("tried bpf_redirect_peer: {peer:?}");
    Ok(!peer.scrubs)
}

fn require(kernel: Kernel) -> Result<(), Error> {
    if kernel >= MINIMUM {
        return Ok(());
    }
    Err(Error::Unsupported {
        feature: "bpf_redirect_peer, by which veth hands frames over",
        needs: "5.10",
        has: kernel,
        instead: "",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_told_what_it_lacks() {
        let error = require(Kernel(5, 4, 7)).unwrap_err().to_string();
        assert_eq!(
            error,
            "kernel 5.4.7 has no bpf_redirect_peer, by which veth hands frames over (needs 5.10 or newer)"
        );
        require(Kernel(5, 10, 0)).unwrap();
    }

    #[test]
    fn versions_are_ordered() {
        assert!(Kernel(5, 10, 200) < Kernel(5, 11, 0) && Kernel(6, 18, 44) < Kernel(7, 0, 0));
    }
}
