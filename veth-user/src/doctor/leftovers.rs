//! What is left of topologies that nobody remembers.

use std::{fs, path::PathBuf};

use super::{Finding, Look, Unseen, look};
use crate::{datapath::pins, net::netns, state::Roots, topology};

/// What is known.
pub(super) struct Facts {
    /// Topologies that are remembered, readable or not.
    pub(super) recorded: Look<Vec<String>>,
    /// Of those, the ones that cannot be read, and why.
    pub(super) unreadable: Vec<(String, String)>,
    /// Topologies that have pins.
    pub(super) pinned: Look<Vec<String>>,
    /// Topologies of which anything is there.
    pub(super) all: Look<Vec<String>>,
    /// Names in `/run/netns` without a namespace behind.
    pub(super) stale: Look<Vec<String>>,
    /// Files of ours without a record.
    pub(super) files: Vec<PathBuf>,
}

impl Facts {
    pub(super) async fn gather(roots: &Roots) -> Self {
        let recorded = look(roots.names());
        let names = recorded.clone().unwrap_or_default();
        let unreadable =
            names.iter().filter_map(|name| Some((name.clone(), roots.load(name).err()?.to_string())));
        Self {
            unreadable: unreadable.collect(),
            pinned: pinned(roots),
            all: look(topology::names(roots, true).await),
            stale: look(stale()),
            files: files(roots, &names),
            recorded,
        }
    }
}

fn pinned(roots: &Roots) -> Look<Vec<String>> {
    match look(fs::read_dir(&roots.pins).map(drop)) {
        Err(hidden @ Unseen::NotAllowed(_)) => Err(hidden),
        // Not there: no pins.
        _ => Ok(pins::topologies(roots)),
    }
}

fn stale() -> Result<Vec<String>, crate::net::Error> {
    let is_stale = |name: &String| matches!(netns::look_up(name), Ok(netns::Name::Stale));
    Ok(netns::names()?.into_iter().filter(is_stale).collect())
}

/// Locks and half-written records. A command that is at work has a lock before it has a record, for a moment.
fn files(roots: &Roots, names: &[String]) -> Vec<PathBuf> {
    let entries = fs::read_dir(&roots.state).into_iter().flatten().flatten();
    let is_left = |path: &PathBuf| {
        let of = |ending: &str| path.file_name()?.to_str()?.strip_suffix(ending).map(str::to_owned);
        of(".new").is_some() || of(".lock").is_some_and(|name| !names.contains(&name))
    };
    entries.map(|entry| entry.path()).filter(is_left).collect()
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let recorded = match &facts.recorded {
        Ok(recorded) => recorded.clone(),
        Err(unseen) => {
            findings.push(Finding::unseen("record", unseen, "what is up is remembered there"));
            Vec::new()
        }
    };
    findings.extend(facts.unreadable.iter().map(|(name, error)| {
        let why = "nothing that is up under this name can be seen, and `veth up` and `down` refuse it";
        Finding::fail("record", error, why, "remove the file that is named, and run `veth down --all`")
            .about(name)
    }));
    let pinned = facts.pinned.clone().unwrap_or_default();
    match (&facts.all, &facts.pinned) {
        (Err(unseen), _) | (_, Err(unseen)) => {
            findings.push(Finding::unseen(
                "leftover",
                unseen,
                "pins and marks of topologies that nobody remembers",
            ));
        }
        (Ok(all), Ok(_)) => {
            let lost: Vec<&String> = all.iter().filter(|name| !recorded.contains(name)).collect();
            if lost.is_empty() {
                findings.push(Finding::ok(
                    "leftover",
                    "every pin and mark belongs to a topology that is remembered",
                ));
            }
            findings.extend(lost.into_iter().map(|name| {
                let what = if pinned.contains(name) { "pins" } else { "links or namespaces with its mark" };
                Finding::warn(
                    "leftover",
                    format!("{what}, and no record"),
                    "its state file was removed. Programs may go on redirecting, and names are taken",
                    format!("veth down {name}"),
                )
                .about(name)
            }));
        }
    }
    match &facts.stale {
        Err(unseen) => {
            findings.push(Finding::unseen("stale-namespace", unseen, "names are taken by what is not there"));
        }
        Ok(stale) => findings.extend(stale.iter().map(|name| {
            Finding::warn(
                "stale-namespace",
                "a name without a namespace behind",
                "a command was killed while it made it; `ip netns` lists what cannot be entered",
                format!("the `veth down NAME` of its topology, or ip netns del {name}"),
            )
            .about(name)
        })),
    }
    findings.extend(facts.files.iter().map(|path| {
        Finding::warn(
            "state-file",
            "a lock or a half-written record of a topology that is not there",
            "a command was killed, or is at work this moment; it does no harm",
            format!("rm {}", path.display()),
        )
        .about(path.display().to_string())
    }));
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    fn facts() -> Facts {
        Facts {
            recorded: Ok(vec!["wire".into()]),
            unreadable: Vec::new(),
            pinned: Ok(vec!["wire".into()]),
            all: Ok(vec!["wire".into()]),
            stale: Ok(Vec::new()),
            files: Vec::new(),
        }
    }

    #[test]
    fn what_nobody_remembers_is_named() {
        let findings = judge(&facts());
        assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
        let facts = Facts {
            all: Ok(vec!["lost".into(), "wire".into()]),
            stale: Ok(vec!["ns9".into()]),
            files: vec!["/run/veth/x.lock".into()],
            unreadable: vec![("wire".into(), "broken".into())],
            ..facts()
        };
        let findings = judge(&facts);
        let found: Vec<_> =
            findings.iter().map(|finding| (finding.id, finding.subject.as_deref().unwrap())).collect();
        let expected = [
            ("record", "wire"),
            ("leftover", "lost"),
            ("stale-namespace", "ns9"),
            ("state-file", "/run/veth/x.lock"),
        ];
        assert_eq!(found, expected);
        assert_eq!(findings[1].fix.as_deref(), Some("veth down lost"));
        assert!(findings.iter().all(|finding| finding.fix.is_some()));
    }

    #[test]
    fn hidden_pins_are_not_taken_for_none() {
        let findings = judge(&Facts { pinned: Err(Unseen::NotAllowed("EACCES".into())), ..facts() });
        assert!(findings[0].seen.contains("needs root"), "{findings:?}");
    }
}
