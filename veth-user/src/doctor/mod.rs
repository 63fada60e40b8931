//! `veth doctor`: what matters to the datapath on this host, with evidence and the way out.
//!
//! One file a group of checks. Each gathers facts at the edge, and judges them by a pure function: facts in, findings
//! out. What cannot be seen is a finding too.

mod fix;
mod host;
mod kernel;
mod leftovers;
mod mac_policy;
mod netfilter;
mod port;
mod topologies;

use serde::Serialize;

use crate::{
    datapath, hooks,
    net::{self, Netlink, Netns, capability::Capabilities},
    probe,
    state::{self, Roots},
    text::with_causes,
    topology,
};

pub use fix::{Fix, Place};

/// What to do about what cannot be seen.
pub const AS_ROOT: &str = "sudo veth doctor";

/// Why the doctor could not look, or could not fix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From the operating system's edge.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// From the eBPF edge.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// From an experiment.
    #[error(transparent)]
    Probe(#[from] probe::Error),
    /// From the state folder.
    #[error(transparent)]
    State(#[from] state::Error),
    /// From a topology.
    #[error(transparent)]
    Topology(#[from] Box<topology::Error>),
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but not as well, or not for all; or it could not be seen.
    Warn,
    /// Does not work.
    Fail,
}

impl Level {
    /// The level in a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check, for ever.
    pub id: &'static str,
    /// What it is about, where there are several: a port as `TOPOLOGY/POD/PORT`, a topology, a link.
    pub subject: Option<String>,
    /// How bad it is.
    pub level: Level,
    /// The evidence.
    pub seen: String,
    /// Why it matters. Empty where all is well.
    pub why: String,
    /// What to do: a command, an option, or the truth that nothing helps. Nothing where all is well.
    pub fix: Option<String>,
    /// How to take back what `--fix` does or has done.
    pub undo: Option<String>,
    /// What `--fix` has done about it, or why it could not.
    pub fixed: Option<String>,
    /// What `--fix` would do.
    #[serde(skip)]
    pub repair: Option<Fix>,
}

impl Finding {
    fn new(id: &'static str, level: Level, seen: impl Into<String>) -> Self {
        Self {
            id,
            subject: None,
            level,
            seen: seen.into(),
            why: String::new(),
            fix: None,
            undo: None,
            fixed: None,
            repair: None,
        }
    }

    fn ok(id: &'static str, seen: impl Into<String>) -> Self {
        Self::new(id, Level::Ok, seen)
    }

    fn warn(
        id: &'static str,
        seen: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { why: why.into(), fix: Some(fix.into()), ..Self::new(id, Level::Warn, seen) }
    }

    fn fail(
        id: &'static str,
        seen: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { level: Level::Fail, ..Self::warn(id, seen, why, fix) }
    }

    /// What could not be looked at.
    fn unseen(id: &'static str, unseen: &Unseen, why: impl Into<String>) -> Self {
        match unseen {
            Unseen::NotAllowed(error) => Self::warn(id, format!("needs root to see ({error})"), why, AS_ROOT),
            Unseen::Failed(error) => {
                Self::warn(id, format!("could not be seen: {error}"), why, "veth -vv doctor says more")
            }
        }
    }

    fn about(self, subject: impl Into<String>) -> Self {
        Self { subject: Some(subject.into()), ..self }
    }

    fn fixable(self, fix: Fix) -> Self {
        Self { undo: Some(fix.undo()), repair: Some(fix), ..self }
    }
}

/// Something looked at: what was found, or why it could not be seen.
type Look<T> = Result<T, Unseen>;

/// Why something could not be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Unseen {
    /// We may not look.
    NotAllowed(String),
    /// Looking failed.
    Failed(String),
}

/// Turns an error into a fact. Errors of the eBPF edge carry the system's answer only in words, so these are looked at.
fn look<T>(result: Result<T, impl std::error::Error + 'static>) -> Look<T> {
    result.map_err(|error| {
        let words = with_causes(&error);
        let denied = ["(os error 1)", "(os error 13)"].iter().any(|code| words.contains(code));
        if denied { Unseen::NotAllowed(words) } else { Unseen::Failed(words) }
    })
}

/// Looks at everything; with `fix`, does what is safe and can be taken back, and looks again.
///
/// # Errors
///
/// When nothing can be looked at at all.
pub async fn run(roots: &Roots, fix: bool) -> Result<Vec<Finding>, Error> {
    let findings = examine(roots).await?;
    let mut done: Vec<(Finding, Result<(), Error>)> = Vec::new();
    for finding in findings.iter().filter(|_| fix) {
        let Some(repair) = &finding.repair else { continue };
        let twice = done.iter().any(|(other, _)| other.repair.as_ref() == Some(repair));
        if !twice {
            done.push((finding.clone(), repair.apply(roots).await));
            hooks::step();
        }
    }
    if done.is_empty() {
        return Ok(findings);
    }
    let mut findings = examine(roots).await?;
    for (before, result) in done {
        let said = match result {
            Ok(()) => format!("was: {}; fixed", before.seen),
            Err(error) => format!("could not be fixed: {}", with_causes(&error)),
        };
        let same = |finding: &&mut Finding| finding.id == before.id && finding.subject == before.subject;
        match findings.iter_mut().find(same) {
            Some(finding) => {
                finding.fixed = Some(said);
                finding.undo = before.undo;
            }
            None => findings.push(Finding {
                level: Level::Ok,
                seen: "as it should be".to_owned(),
                why: String::new(),
                fix: None,
                fixed: Some(said),
                repair: None,
                ..before
            }),
        }
    }
    Ok(findings)
}

async fn examine(roots: &Roots) -> Result<Vec<Finding>, Error> {
    let netlink = Netlink::open()?;
    let links = netlink.links().await?;
    let host_netns = Netns::current()?.inode()?;
    let capabilities = Capabilities::current()?;
    let mut findings = host::judge(&host::Facts::gather(roots, capabilities, &links));
    findings.extend(kernel::judge(&kernel::Facts::gather().await));
    let topologies = topologies::gather(roots, capabilities, host_netns, &netlink, &links).await;
    findings.extend(netfilter::judge(&netfilter::Facts::gather(&links)));
    findings.extend(topologies::judge(&topologies));
    findings.extend(leftovers::judge(&leftovers::Facts::gather(roots).await));
    Ok(findings)
}

/// The worst of some findings.
#[must_use]
pub fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_may_not_be_seen_needs_root() {
        let refused = |errno| {
            look::<()>(Err(net::Error::new("look", io::Error::from_raw_os_error(errno)))).unwrap_err()
        };
        assert!(matches!(refused(libc::EPERM), Unseen::NotAllowed(words) if words.starts_with("look: ")));
        assert!(matches!(refused(libc::EACCES), Unseen::NotAllowed(_)));
        assert!(matches!(refused(libc::ENOENT), Unseen::Failed(_)));
        let finding = Finding::unseen("btf", &refused(libc::EPERM), "");
        assert_eq!((finding.level, finding.fix.as_deref()), (Level::Warn, Some("sudo veth doctor")));
        assert!(finding.seen.starts_with("needs root to see"), "{finding:?}");
    }

    #[test]
    fn the_worst_counts() {
        assert_eq!(worst(&[]), Level::Ok);
        let findings = [Finding::ok("a", ""), Finding::fail("b", "", "", ""), Finding::warn("c", "", "", "")];
        assert_eq!(worst(&findings), Level::Fail);
    }
}
