//! Which hook and redirect are used: a pure function of what is wished for and what the kernel can do.

use serde::{Deserialize, Serialize};

use super::{Abilities, Error, Kernel};
use crate::datapath::{Hook, Redirect};

/// XDP redirects on veth crash or corrupt before.
const XDP: Kernel = Kernel(6, 2, 0);

/// Up to so many ports, attaching one after the other by TCX takes no more than 0.1 s.
pub const UNHURRIED_PORTS: usize = 8;

/// What the user asks for. Nothing is `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// `--hook`.
    pub hook: Option<Hook>,
    /// `--redirect`.
    pub redirect: Option<Redirect>,
}

/// What is used, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Where the programs of ports are attached.
    pub hook: Hook,
    /// Where that of a bridge is, which has no XDP of its own.
    pub bridge_hook: Hook,
    /// How frames are handed over.
    pub redirect: Redirect,
    /// Why these.
    pub why: String,
}

impl Selection {
    /// Where the programs of a path are attached: those that only count have no use for XDP.
    #[must_use]
    pub const fn hook_of(&self, forwards: bool) -> Hook {
        if forwards { self.hook } else { self.bridge_hook }
    }
}

/// What there was before anything was picked.
impl Default for Selection {
    fn default() -> Self {
        let (hook, redirect) = (Hook::Tcx, Redirect::Peer);
        Self { hook, bridge_hook: hook, redirect, why: "made before hooks could be picked".to_owned() }
    }
}

/// The first kernel that merges IPv4 frames above 64 KiB; IPv6 came in 5.19.
const BIG_TCP: Kernel = Kernel(6, 3, 0);

/// Before this kernel XDP drops frames of several buffers when it redirects them, after the verdict.
const XDP_FRAGS: Kernel = Kernel(6, 3, 0);

/// The largest MTU whose frames are one buffer: a page less the headroom, an Ethernet header and what the kernel keeps
/// behind a buffer.
const XDP_ONE_BUFFER: u32 = 3_506;

/// Whether frames of an MTU cross by a hook.
///
/// # Errors
///
/// When they would be lost.
pub fn check_mtu(hook: Hook, kernel: Kernel, mtu: u32) -> Result<(), Error> {
    if hook.is_xdp() && mtu > XDP_ONE_BUFFER && kernel < XDP_FRAGS {
        return Err(Error::Unsupported {
            feature: "XDP redirects of frames above 3,506 bytes",
            needs: "6.3",
            has: kernel,
            instead: "; use a smaller --mtu, or --hook auto",
        });
    }
    Ok(())
}

/// Refuses merged frames above 64 KiB where the kernel has none in both families.
///
/// # Errors
///
/// On kernels before 6.3.
pub fn check_big_tcp(kernel: Kernel) -> Result<(), Error> {
    if kernel < BIG_TCP {
        return Err(Error::Unsupported {
            feature: "BIG TCP in both families",
            needs: "6.3",
            has: kernel,
            instead: "; leave `big_tcp` out",
        });
    }
    Ok(())
}

/// Picks the fastest pair that is safe on this kernel, or what was asked for by name.
///
/// # Errors
///
/// When what was asked for by name is not there, or does not go together.
pub fn select(wish: Wish, abilities: Abilities, ports: usize) -> Result<Selection, Error> {
    let Abilities { kernel, tcx, redirect_peer, hurry } = abilities;
    let unsupported = |feature, needs, instead| Error::Unsupported { feature, needs, has: kernel, instead };
    let (tc, why_tc) = if !tcx {
        (Hook::Clsact, format!("kernel {kernel} has no TCX (needs 6.6)"))
    } else if ports > UNHURRIED_PORTS && !hurry {
        let why =
            format!("{ports} ports, and rcu_expedited cannot be written: each TCX attachment takes 12 ms");
        (Hook::Clsact, why)
    } else {
        (Hook::Tcx, "the kernel has TCX".to_owned())
    };
    let (hook, why_hook) = match wish.hook {
        None if wish.redirect == Some(Redirect::Devmap) => {
            (Hook::Xdp, "asked for by --redirect devmap".to_owned())
        }
        None => (tc, why_tc),
        Some(hook) => (hook, "asked for by --hook".to_owned()),
    };
    match hook {
        Hook::Tcx if !tcx => {
            return Err(unsupported("TCX", "6.6", "; use --hook clsact, or leave the choice to --hook auto"));
        }
        Hook::Xdp | Hook::XdpGeneric if kernel < XDP => {
            return Err(unsupported("XDP on veth that can be trusted", "6.2", "; use --hook auto"));
        }
        _ => {}
    }
    let (redirect, why_redirect) = match (hook.is_xdp(), wish.redirect) {
        (true, None | Some(Redirect::Devmap)) => {
            (Redirect::Devmap, "XDP hands over by the device map".to_owned())
        }
        (true, Some(redirect)) => {
            let why = "XDP hands over by the device map only; leave --redirect out";
            return Err(Error::Mismatch { redirect, hook, why });
        }
        (false, Some(redirect @ Redirect::Devmap)) => {
            let why = "the device map is XDP's; use --hook xdp, or --redirect peer or host";
            return Err(Error::Mismatch { redirect, hook, why });
        }
        (false, Some(Redirect::Peer)) if !redirect_peer => {
            return Err(unsupported("bpf_redirect_peer", "5.10", "; use --redirect host"));
        }
        (false, Some(redirect)) => (redirect, "asked for by --redirect".to_owned()),
        (false, None) if redirect_peer => {
            (Redirect::Peer, "bpf_redirect_peer is there, and the fastest".to_owned())
        }
        (false, None) => (Redirect::Host, "the kernel has no bpf_redirect_peer".to_owned()),
    };
    let bridge_hook = if hook.is_xdp() { tc } else { hook };
    let why = format!("{hook}: {why_hook}; {redirect}: {why_redirect}");
    Ok(Selection { hook, bridge_hook, redirect, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Abilities =
        Abilities { kernel: Kernel(6, 18, 0), tcx: true, redirect_peer: true, hurry: true };
    const OLD: Abilities = Abilities { kernel: Kernel(5, 10, 0), tcx: false, ..NEW };

    fn pick(wish: Wish, abilities: Abilities, ports: usize) -> (Hook, Hook, Redirect) {
        let Selection { hook, bridge_hook, redirect, why } = select(wish, abilities, ports).unwrap();
        assert!(why.contains(hook.name()) && why.contains(redirect.name()), "{why}");
        (hook, bridge_hook, redirect)
    }

    fn by(hook: Hook) -> Wish {
        Wish { hook: Some(hook), redirect: None }
    }

    #[test]
    fn auto_is_the_fastest_safe_pair() {
        let auto = Wish::default();
        assert_eq!(pick(auto, NEW, 2), (Hook::Tcx, Hook::Tcx, Redirect::Peer));
        assert_eq!(pick(auto, NEW, 1_000), (Hook::Tcx, Hook::Tcx, Redirect::Peer));
        assert_eq!(pick(auto, OLD, 2), (Hook::Clsact, Hook::Clsact, Redirect::Peer));
        let unhurried = Abilities { hurry: false, ..NEW };
        assert_eq!(pick(auto, unhurried, 8).0, Hook::Tcx);
        assert_eq!(pick(auto, unhurried, 9).0, Hook::Clsact);
        let peerless = Abilities { redirect_peer: false, ..NEW };
        assert_eq!(pick(auto, peerless, 2).2, Redirect::Host);
    }

    #[test]
    fn what_is_asked_for_is_taken_or_refused() {
        assert_eq!(pick(by(Hook::Clsact), NEW, 2), (Hook::Clsact, Hook::Clsact, Redirect::Peer));
        assert_eq!(pick(by(Hook::Xdp), NEW, 2), (Hook::Xdp, Hook::Tcx, Redirect::Devmap));
        let middle = Abilities { kernel: Kernel(6, 2, 0), ..OLD };
        assert_eq!(pick(by(Hook::XdpGeneric), middle, 2), (Hook::XdpGeneric, Hook::Clsact, Redirect::Devmap));
        let devmap = Wish { hook: None, redirect: Some(Redirect::Devmap) };
        assert_eq!(pick(devmap, NEW, 2).0, Hook::Xdp);
        let refused = |wish, abilities: Abilities| select(wish, abilities, 2).unwrap_err().to_string();
        assert_eq!(
            refused(by(Hook::Tcx), OLD),
            "kernel 5.10.0 has no TCX (needs 6.6 or newer); use --hook clsact, or leave the choice to --hook auto"
        );
        assert!(refused(by(Hook::Xdp), OLD).contains("needs 6.2"));
    }

    #[test]
    fn jumbo_frames_by_xdp_need_a_kernel_that_redirects_them() {
        check_mtu(Hook::Xdp, Kernel(6, 2, 0), 3_506).unwrap();
        check_mtu(Hook::Tcx, Kernel(5, 10, 0), 65_535).unwrap();
        check_mtu(Hook::Xdp, Kernel(6, 3, 0), 65_535).unwrap();
        let error = check_mtu(Hook::Xdp, Kernel(6, 2, 9), 9_000).unwrap_err().to_string();
        assert!(error.contains("needs 6.3") && error.contains("--mtu"), "{error}");
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (hook, redirect) in [
            (Hook::Xdp, Redirect::Peer),
            (Hook::XdpGeneric, Redirect::Host),
            (Hook::Tcx, Redirect::Devmap),
            (Hook::Clsact, Redirect::Devmap),
        ] {
            let wish = Wish { hook: Some(hook), redirect: Some(redirect) };
            let error = select(wish, NEW, 2).unwrap_err().to_string();
            assert!(error.contains(redirect.name()) && error.contains(hook.name()), "{error}");
        }
    }
}
