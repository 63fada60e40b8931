//! The host as it is set up: what we may do, where pins go, and the settings that matter.

use nix::unistd::geteuid;

use super::{AS_ROOT, Finding, Fix, Look, Place, look, mac_policy};
use crate::{
    datapath::pins::{self, BPFFS},
    net::{
        capability::{Capabilities, Capability},
        link::Link,
        rcu, sysctl,
    },
    probe::{Kernel, select::UNHURRIED_PORTS},
    state::Roots,
};

/// What is wanted to do everything, and what for. Any one of a row is enough.
const WANTED: [(&[Capability], &str); 5] = [
    (&[Capability::NetAdmin], "links, addresses and attachments are made by it"),
    (&[Capability::Bpf, Capability::SysAdmin], "programs are loaded and maps made by it"),
    (&[Capability::Perfmon, Capability::SysAdmin], "the verifier lets programs follow packet pointers by it"),
    (&[Capability::NetRaw], "`veth run` pings, and the experiments of `veth doctor` send frames by it"),
    (&[Capability::SysAdmin], "namespaces are made and entered, and a bpffs is mounted by it"),
];

/// Since then memory of BPF objects is not counted against a limit that must be raised.
const NO_MEMLOCK: Kernel = Kernel(5, 11, 0);

/// Values of the reverse-path filter.
const STRICT: u32 = 1;
const LOOSE: &str = "2";

/// What is known.
pub(super) struct Facts {
    pub(super) root: bool,
    pub(super) capabilities: Capabilities,
    pub(super) kernel: Option<Kernel>,
    pub(super) pins: String,
    pub(super) bpffs: pins::Place,
    pub(super) congestion: Look<Option<String>>,
    /// Not every namespace has it.
    pub(super) default_qdisc: Option<String>,
    /// The reverse-path filter of all links, and of new ones.
    pub(super) rp_filter: [(&'static str, Look<Option<u32>>); 2],
    pub(super) hurried: Option<bool>,
    pub(super) can_hurry: bool,
    pub(super) hurry_noted: bool,
    pub(super) mac_policy: mac_policy::Facts,
}

impl Facts {
    pub(super) fn gather(roots: &Roots, capabilities: Capabilities, links: &[Link]) -> Self {
        let read = |key: &str| look(sysctl::read(key));
        let rp_filter = |link| {
            let value = read(&format!("net/ipv4/conf/{link}/rp_filter"));
            (link, value.map(|value| value.and_then(|value| value.parse().ok())))
        };
        Self {
            root: geteuid().is_root(),
            capabilities,
            kernel: Kernel::current().ok(),
            pins: roots.pins.display().to_string(),
            bpffs: pins::place(roots),
            congestion: read("net/ipv4/tcp_congestion_control"),
            default_qdisc: read("net/core/default_qdisc").ok().flatten(),
            rp_filter: ["all", "default"].map(rp_filter),
            hurried: rcu::is_hurried(),
            can_hurry: rcu::is_writable(),
            hurry_noted: roots.has_hurry_note(),
            mac_policy: mac_policy::Facts::gather(roots, links),
        }
    }
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = capabilities(facts);
    findings.push(bpffs(facts));
    findings.push(congestion(facts));
    findings.extend(facts.rp_filter.iter().filter_map(|(link, value)| {
        let key = format!("net/ipv4/conf/{link}/rp_filter");
        rp_filter(&Place::Host, &sysctl::name(&key), &key, value, "links of this host")
    }));
    findings.push(grace_periods(facts));
    findings.push(mac_policy::judge(&facts.mac_policy));
    findings
}

fn capabilities(facts: &Facts) -> Vec<Finding> {
    let Facts { root, capabilities, kernel, .. } = facts;
    let mut findings = Vec::new();
    if *root {
        findings.push(Finding::ok("root", "user 0"));
    } else {
        findings.push(Finding::warn(
            "root",
            "not user 0",
            "`veth up`, `down`, `run`, `exec` and `stats` need root, and much of what follows cannot be seen without",
            AS_ROOT,
        ));
    }
    for (any, what_for) in WANTED {
        // Another user than root has none; what counts is what root would have.
        let has = |one: &Capability| {
            if *root { capabilities.has(*one) } else { capabilities.can_have(*one) }
        };
        let names = any.iter().map(|one| one.name()).collect::<Vec<_>>().join(" or ");
        findings.push(if any.iter().any(has) {
            Finding::ok("capability", if *root { "there" } else { "root would have it" }).about(names)
        } else {
            let seen = if *root { "not in the effective set" } else { "not in the bounding set" };
            let fix = format!(
                "start veth with {names}: `docker run --cap-add`, `setpriv`, systemd's `AmbientCapabilities=`"
            );
            Finding::fail("capability", seen, what_for, fix).about(names)
        });
    }
    let resource = Capability::SysResource;
    let has = if *root { capabilities.has(resource) } else { capabilities.can_have(resource) };
    let finding = if has {
        Finding::ok("capability", "there")
    } else if kernel.is_some_and(|kernel| kernel >= NO_MEMLOCK) {
        Finding::ok("capability", "missing, and not needed from kernel 5.11 on")
    } else {
        Finding::warn(
            "capability",
            "missing",
            "before kernel 5.11 maps are counted against RLIMIT_MEMLOCK, which cannot be raised without",
            "start veth with CAP_SYS_RESOURCE, or with a higher `ulimit -l`",
        )
    };
    findings.push(finding.about(resource.name()));
    findings
}

fn bpffs(facts: &Facts) -> Finding {
    const WHY: &str = "programs, maps and attachments live by their pins, which only a bpffs keeps";
    let Facts { bpffs, pins, .. } = facts;
    match bpffs {
        pins::Place::Ready => Finding::ok("bpffs", format!("{pins} is on one")),
        pins::Place::Mountable => Finding::warn(
            "bpffs",
            format!("none is mounted on {BPFFS}; `veth up` mounts one for as long as it is needed"),
            WHY,
            format!("mount -t bpf bpf {BPFFS}"),
        )
        .fixable(Fix::MountBpffs),
        pins::Place::Hopeless(why) => Finding::fail(
            "bpffs",
            format!("{pins} is not on one: {why}"),
            WHY,
            if pins.starts_with(BPFFS) {
                format!("mount -t bpf bpf {BPFFS}, in the mount namespace that veth is always started in")
            } else {
                format!("mount -t bpf bpf {pins}, or --pin-dir {BPFFS}/veth")
            },
        ),
    }
}

fn congestion(facts: &Facts) -> Finding {
    let Facts { congestion, default_qdisc, .. } = facts;
    let id = "tcp-congestion";
    match congestion {
        Err(unseen) => Finding::unseen(id, unseen, "it decides how fast TCP is measured"),
        Ok(Some(name)) if name == "bbr" && default_qdisc.as_deref() != Some("fq") => {
            let qdisc =
                default_qdisc.as_deref().map_or_else(String::new, |qdisc| format!(", default qdisc {qdisc}"));
            Finding::warn(
                id,
                format!("bbr{qdisc}"),
                "new pods take it over. bbr paces by itself where there is no fq qdisc, and a veth has none: bulk TCP \
                 is about half as fast as with cubic, whatever the datapath",
                "for measurements: `iperf3 -C cubic`, or in the pod `sysctl -w net.ipv4.tcp_congestion_control=cubic`",
            )
        }
        Ok(name) => Finding::ok(id, name.as_deref().unwrap_or("not told")),
    }
}

/// The reverse-path filter of some links; nothing where they have none.
pub(super) fn rp_filter(
    place: &Place,
    subject: &str,
    key: &str,
    value: &Look<Option<u32>>,
    links: &str,
) -> Option<Finding> {
    let id = "rp-filter";
    let finding = match value {
        Err(unseen) => Finding::unseen(id, unseen, "a strict one drops what comes in another way than answers go out"),
        Ok(None) => return None,
        Ok(Some(STRICT)) => Finding::warn(
            id,
            "1, strict",
            format!(
                "{links} drop what comes in on another link than the answer would leave by, without a trace but \
                 `nstat TcpExtIPReversePathFilter`; a pod with two ports loses frames by it"
            ),
            place.command(&format!("sysctl -w {}={LOOSE}", sysctl::name(key))),
        )
        .fixable(Fix::Sysctl {
            place: place.clone(),
            key: key.to_owned(),
            old: STRICT.to_string(),
            new: LOOSE.to_owned(),
        }),
        Ok(Some(value)) => Finding::ok(id, format!("{value}, {}", if *value == 0 { "off" } else { "loose" })),
    };
    Some(finding.about(subject))
}

fn grace_periods(facts: &Facts) -> Finding {
    let id = "rcu-expedited";
    match facts {
        Facts { hurried: Some(true), hurry_noted: true, .. } => Finding::warn(
            id,
            "1, and noted as ours",
            "a veth command was killed, or is at work, while it hurried grace periods: until the next `veth up` or \
             `down` every one interrupts all CPUs",
            "echo 0 > /sys/kernel/rcu_expedited (any `veth up` or `veth down` does)",
        )
        .fixable(Fix::StopHurrying),
        Facts { hurried: Some(true), .. } => Finding::ok(id, "1, and not by us"),
        Facts { hurried: Some(false), can_hurry: true, .. } => Finding::ok(id, "0, and can be raised for bulk work"),
        Facts { root: false, .. } => Finding::warn(
            id,
            "needs root to see",
            "where it cannot be raised, attaching by TCX takes 12 ms a port",
            AS_ROOT,
        ),
        Facts { .. } => Finding::warn(
            id,
            "cannot be raised",
            format!("attaching by TCX takes 12 ms a port; --hook auto takes clsact above {UNHURRIED_PORTS} ports instead"),
            "start veth where /sys/kernel/rcu_expedited can be written: a container needs /sys mounted rw",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    fn facts() -> Facts {
        Facts {
            root: true,
            capabilities: Capabilities { effective: u64::MAX, bounding: u64::MAX },
            kernel: Some(Kernel(6, 18, 0)),
            pins: "/sys/fs/bpf/veth".into(),
            bpffs: pins::Place::Ready,
            congestion: Ok(Some("cubic".into())),
            default_qdisc: None,
            rp_filter: [("all", Ok(Some(0))), ("default", Ok(Some(2)))],
            hurried: Some(false),
            can_hurry: true,
            hurry_noted: false,
            mac_policy: mac_policy::Facts::default(),
        }
    }

    fn without(capability: Capability) -> Capabilities {
        let bits = !(1 << capability as u32);
        Capabilities { effective: bits, bounding: bits }
    }

    #[track_caller]
    fn level(facts: &Facts, id: &str, subject: Option<&str>) -> Level {
        let findings = judge(facts);
        let found = findings.iter().find(|finding| finding.id == id && finding.subject.as_deref() == subject);
        let found = found.unwrap_or_else(|| panic!("no {id} {subject:?} in {findings:?}"));
        assert_eq!(found.fix.is_none(), found.level == Level::Ok, "{found:?}");
        found.level
    }

    #[test]
    fn a_good_host_is_good() {
        for finding in judge(&facts()) {
            assert_eq!(finding.level, Level::Ok, "{finding:?}");
        }
    }

    #[test]
    fn a_missing_capability_is_named() {
        let facts = Facts { capabilities: without(Capability::NetAdmin), ..facts() };
        assert_eq!(level(&facts, "capability", Some("CAP_NET_ADMIN")), Level::Fail);
        let facts = Facts { capabilities: without(Capability::Bpf), ..facts };
        assert_eq!(level(&facts, "capability", Some("CAP_BPF or CAP_SYS_ADMIN")), Level::Ok);
        // Who is not root has none, and no reason to hear of each.
        let nobody = Capabilities { effective: 0, bounding: u64::MAX };
        let facts = Facts { root: false, capabilities: nobody, ..facts };
        assert_eq!(level(&facts, "capability", Some("CAP_NET_ADMIN")), Level::Ok);
        assert_eq!(level(&facts, "root", None), Level::Warn);
    }

    #[test]
    fn limits_matter_to_old_kernels_only() {
        let mut facts = Facts { capabilities: without(Capability::SysResource), ..facts() };
        assert_eq!(level(&facts, "capability", Some("CAP_SYS_RESOURCE")), Level::Ok);
        facts.kernel = Some(Kernel(5, 10, 200));
        assert_eq!(level(&facts, "capability", Some("CAP_SYS_RESOURCE")), Level::Warn);
    }

    #[test]
    fn a_bpffs_can_be_mounted_or_not() {
        let facts = Facts { bpffs: pins::Place::Mountable, ..facts() };
        assert_eq!(bpffs(&facts).repair, Some(Fix::MountBpffs));
        let facts = Facts { bpffs: pins::Place::Hopeless("it would vanish".into()), ..facts };
        let finding = bpffs(&facts);
        assert_eq!((finding.level, finding.repair), (Level::Fail, None));
        assert!(finding.fix.unwrap().contains("mount -t bpf bpf /sys/fs/bpf"));
    }

    #[test]
    fn bbr_is_told_where_nothing_paces_for_it() {
        let facts = Facts { congestion: Ok(Some("bbr".into())), ..facts() };
        assert_eq!(level(&facts, "tcp-congestion", None), Level::Warn);
        let facts = Facts { default_qdisc: Some("fq".into()), ..facts };
        assert_eq!(level(&facts, "tcp-congestion", None), Level::Ok);
    }

    #[test]
    fn a_strict_filter_is_loosened() {
        let facts = Facts { rp_filter: [("all", Ok(Some(1))), ("default", Ok(None))], ..facts() };
        assert_eq!(level(&facts, "rp-filter", Some("net.ipv4.conf.all.rp_filter")), Level::Warn);
        let findings = judge(&facts);
        let finding = findings.iter().find(|finding| finding.id == "rp-filter").unwrap();
        assert_eq!(finding.undo.as_deref(), Some("sysctl -w net.ipv4.conf.all.rp_filter=\"1\""));
        assert_eq!(findings.iter().filter(|finding| finding.id == "rp-filter").count(), 1);
    }

    #[test]
    fn hurried_grace_periods_of_ours_end() {
        let mut facts = Facts { hurried: Some(true), ..facts() };
        assert_eq!(level(&facts, "rcu-expedited", None), Level::Ok, "somebody else's wish");
        facts.hurry_noted = true;
        assert_eq!(grace_periods(&facts).repair, Some(Fix::StopHurrying));
        facts = Facts { hurried: Some(false), can_hurry: false, ..facts };
        assert_eq!(level(&facts, "rcu-expedited", None), Level::Warn);
    }
}
