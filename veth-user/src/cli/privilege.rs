//! What each command needs of what root may do: one table. Commands ask by it before they begin, docs/privileges.md and
//! the unit in contrib/systemd are held to it, and tests run every command with exactly that and with less.

use anyhow::{Result, ensure};
use nix::unistd::geteuid;

use crate::{
    net::capability::{Capabilities, Capability},
    probe::Kernel,
};

/// A capability that a command needs.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Which.
    pub capability: Capability,
    /// What for, after "to".
    pub why: &'static str,
    /// The first kernel that does not ask for it any more.
    pub until: Option<Kernel>,
}

const fn need(capability: Capability, why: &'static str) -> Need {
    Need { capability, why, until: None }
}

const ENTER: Need = need(Capability::SysAdmin, "enter pods");
const OPEN: Need = Need { until: Some(Kernel(5, 19, 0)), ..need(Capability::Bpf, "open maps") };
const LOAD: Need = need(Capability::Bpf, "load programs");
const ATTACH: Need = need(Capability::NetAdmin, "attach them to links");
const POINTERS: Need = need(Capability::Perfmon, "let programs compare pointers into packets");
const LINKS: Need = need(Capability::NetAdmin, "change links");
const LINKS_OF_PODS: Need = need(Capability::NetAdmin, "see the links of pods");
const NAMESPACES: Need = need(Capability::SysAdmin, "make and enter pods, load programs and mount a bpffs");
const HEAR: Need = need(Capability::NetBroadcast, "hear what happens to the links of pods");
const PING: Need = need(Capability::NetRaw, "ping");
const CUBIC: Need = need(Capability::NetAdmin, "use cubic for TCP where the machine has another default");
const EXPERIMENT: Need = Need {
    until: Some(Kernel(6, 15, 0)),
    ..need(Capability::NetRaw, "try out bpf_redirect_peer with a frame")
};

/// Commands, and what they need beside what the files that they open ask for: pins, and the state where it is written,
/// belong to root. What is not here needs nothing.
pub const COMMANDS: [(&str, &[Need]); 18] = [
    ("stats", &[OPEN]),
    ("metrics", &[OPEN]),
    ("top", &[OPEN]),
    ("why", &[ENTER]),
    ("drops", &[need(Capability::SysAdmin, "enter pods and load programs")]),
    ("trace", &[LOAD, ATTACH, POINTERS]),
    ("capture", &[LOAD, ATTACH, POINTERS]),
    ("check --live", &[ENTER, PING, CUBIC]),
    ("exec", &[ENTER]),
    ("plan", &[ENTER, LINKS_OF_PODS]),
    ("up", &[NAMESPACES, LINKS, EXPERIMENT]),
    ("upgrade", &[NAMESPACES, LINKS, EXPERIMENT]),
    ("down", &[NAMESPACES, LINKS]),
    ("agent", &[HEAR, LINKS_OF_PODS, ENTER]),
    ("run", &[NAMESPACES, LINKS, PING]),
    ("bench", &[NAMESPACES, LINKS, PING]),
    ("bench prog", &[NAMESPACES, LINKS, PING]),
    ("bench observe", &[NAMESPACES, LINKS, PING]),
];

/// What a command needs on a kernel.
pub fn needs(command: &str, kernel: Kernel) -> impl Iterator<Item = &'static Need> {
    let listed = COMMANDS.iter().find(|(name, _)| *name == command).map_or(&[][..], |(_, needs)| needs);
    listed.iter().filter(move |need| need.until.is_none_or(|until| kernel < until))
}

/// Refuses early, with a sentence, what would fail late with "permission denied".
pub(super) fn require(command: &str) -> Result<()> {
    let lacks = lacks(command, Kernel::current()?, geteuid().is_root(), Capabilities::current()?);
    ensure!(
        lacks.is_empty(),
        "`veth {command}` needs {}: use `sudo veth {command}`, or give it what docs/privileges.md says",
        lacks.join(" and ")
    );
    Ok(())
}

fn lacks(command: &str, kernel: Kernel, is_root: bool, has: Capabilities) -> Vec<String> {
    let owns_files = is_root || has.has(Capability::DacOverride);
    let files = (!owns_files)
        .then(|| format!("to be root, or {} to open files that are root's", Capability::DacOverride.name()));
    // The kernel takes this one for either of these two.
    let is_admin = has.has(Capability::SysAdmin);
    let implied = |capability| is_admin && matches!(capability, Capability::Bpf | Capability::Perfmon);
    let lacking =
        needs(command, kernel).filter(|need| !has.has(need.capability) && !implied(need.capability));
    files
        .into_iter()
        .chain(lacking.map(|need| format!("{} to {}", need.capability.name(), need.why)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Kernel = Kernel(6, 18, 0);

    fn having(capabilities: &[Capability]) -> Capabilities {
        let effective = capabilities.iter().fold(0, |bits, one| bits | 1 << *one as u32);
        Capabilities { effective, bounding: effective }
    }

    #[test]
    fn what_is_missing_is_named() {
        let none = having(&[]);
        assert_eq!(lacks("stats", NEW, true, none), [""; 0]);
        assert_eq!(lacks("stats", Kernel(5, 10, 0), true, none), ["CAP_BPF to open maps"]);
        assert!(lacks("stats", NEW, false, none)[0].contains("CAP_DAC_OVERRIDE"));
        assert_eq!(lacks("stats", NEW, false, having(&[Capability::DacOverride])), [""; 0]);
        let some = having(&[Capability::Bpf, Capability::NetAdmin]);
        assert_eq!(
            lacks("trace", NEW, true, some),
            ["CAP_PERFMON to let programs compare pointers into packets"]
        );
        let admin = having(&[Capability::SysAdmin, Capability::NetAdmin]);
        assert_eq!(lacks("trace", NEW, true, admin), [""; 0]);
    }

    #[test]
    fn the_document_has_the_table() {
        let document = include_str!("../../../docs/privileges.md");
        for (command, needs) in COMMANDS {
            let cell = |need: &Need| {
                let until = need.until.map(|Kernel(major, minor, _)| format!(" (before {major}.{minor})"));
                format!("`{}` to {}{}", need.capability.name(), need.why, until.unwrap_or_default())
            };
            let needs: Vec<String> = needs.iter().map(cell).collect();
            let row = format!("| `veth {command}` | {} |", needs.join("; "));
            assert!(document.contains(&row), "not in docs/privileges.md: {row}");
        }
    }

    #[test]
    fn the_units_give_what_is_needed_and_nothing_else() {
        for (command, unit) in [
            ("metrics", include_str!("../../../contrib/systemd/veth-metrics.service")),
            ("agent", include_str!("../../../contrib/systemd/veth-agent.service")),
        ] {
            let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
            let needs: Vec<&str> =
                needs(command, Kernel(5, 10, 0)).map(|need| need.capability.name()).collect();
            assert_eq!(line, needs.join(" "));
            assert!(unit.contains("\nNoNewPrivileges=yes\n"));
        }
    }
}
