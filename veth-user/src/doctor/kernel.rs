//! The kernel: what it can do, found out by trying, and what its version is known for.

use std::path::Path;

use aya::sys::BpfHelper;

use super::{Finding, Fix, Level, Look, Place, Unseen, look};
use crate::{
    datapath::{self, Hook, Verified},
    net::{rcu, sysctl},
    probe::{self, Abilities, Kernel, Peer, Scratch, Wish, select::UNHURRIED_PORTS},
};

/// The oldest that is supported.
const OLDEST: Kernel = Kernel(5, 10, 0);

/// XDP redirects on veth crash or corrupt before.
const XDP: Kernel = Kernel(6, 2, 0);

/// CVE-2025-68232: the transmit queue of a veth may stall for ever, from this version to before the other.
const STALLS: [Kernel; 2] = [Kernel(6, 16, 0), Kernel(6, 17, 10)];

const BTF: &str = "/sys/kernel/btf/vmlinux";
const JIT: &str = "net/core/bpf_jit_enable";

/// Helpers that our programs call: by which hook, their name, and whether nothing goes without.
const HELPERS: [(Hook, BpfHelper, &str, bool); 5] = [
    (Hook::Clsact, BpfHelper::BPF_FUNC_redirect, "tc bpf_redirect", true),
    (Hook::Clsact, BpfHelper::BPF_FUNC_redirect_peer, "tc bpf_redirect_peer", false),
    (Hook::Clsact, BpfHelper::BPF_FUNC_skb_change_type, "tc bpf_skb_change_type", false),
    (Hook::Xdp, BpfHelper::BPF_FUNC_redirect_map, "xdp bpf_redirect_map", false),
    (Hook::Xdp, BpfHelper::BPF_FUNC_xdp_get_buff_len, "xdp bpf_xdp_get_buff_len", false),
];

/// What is known.
pub(super) struct Facts {
    pub(super) version: Look<Kernel>,
    pub(super) btf: bool,
    /// The switch, where this namespace has it.
    pub(super) jit: Look<Option<String>>,
    pub(super) object: Result<(), String>,
    /// The programs of a TC hook, and of XDP.
    pub(super) programs: [(Hook, Look<Vec<Verified>>); 2],
    pub(super) helpers: Vec<(&'static str, bool, Look<bool>)>,
    pub(super) tcx: Look<bool>,
    pub(super) clsact: Look<()>,
    pub(super) xdp: Look<()>,
    pub(super) peer: Look<Peer>,
    pub(super) netkit: Look<()>,
    pub(super) hurry: bool,
}

impl Facts {
    pub(super) async fn gather() -> Self {
        let programs = |hook| {
            let verified = look(datapath::verify(hook));
            // XDP brings the TC program with it, which has been told already.
            let own = |verified: &Verified| !hook.is_xdp() || verified.name == datapath::XDP;
            (hook, verified.map(|verified| verified.into_iter().filter(own).collect()))
        };
        let helper = |(hook, helper, name, vital)| (name, vital, look(probe::has_helper(hook, helper)));
        let mut facts = Self {
            version: look(Kernel::current()),
            btf: Path::new(BTF).exists(),
            jit: look(sysctl::read(JIT)),
            object: datapath::object::check().map_err(|error| error.to_string()),
            programs: [Hook::Clsact, Hook::Xdp].map(programs),
            helpers: HELPERS.into_iter().map(helper).collect(),
            tcx: look(probe::look_for_tcx()),
            clsact: Ok(()),
            xdp: Ok(()),
            peer: Err(Unseen::Failed(String::new())),
            netkit: Ok(()),
            hurry: rcu::is_writable(),
        };
        match Scratch::new().await {
            Ok(scratch) => {
                facts.clsact = look(scratch.clsact().await);
                facts.xdp = look(scratch.xdp());
                facts.peer = look(scratch.redirect_peer().await);
                facts.netkit = look(scratch.netkit().await);
            }
            Err(error) => {
                let unseen = look::<()>(Err(error));
                let why = unseen.clone().err().unwrap_or_else(|| Unseen::Failed(String::new()));
                facts.peer = Err(why);
                [facts.clsact, facts.xdp, facts.netkit] = [unseen.clone(), unseen.clone(), unseen];
            }
        }
        facts
    }
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = version(facts);
    findings.push(if facts.btf {
        Finding::ok("btf", format!("{BTF} is there"))
    } else {
        Finding::warn(
            "btf",
            format!("no {BTF}"),
            "veth itself works without; tools that trace the kernel do not",
            "a kernel with CONFIG_DEBUG_INFO_BTF=y",
        )
    });
    findings.push(jit(facts));
    findings.extend(programs(facts));
    findings
        .extend(facts.helpers.iter().map(|(name, vital, there)| helper(name, *vital, there).about(*name)));
    findings.extend(hooks(facts));
    findings.extend(redirect_peer(facts));
    findings.push(match &facts.netkit {
        Ok(()) => Finding::ok("netkit", "there; veth does not need it"),
        Err(Unseen::NotAllowed(_)) => {
            Finding::ok("netkit", "not looked for without root; veth does not need it")
        }
        Err(Unseen::Failed(_)) => Finding::ok("netkit", "not there; veth does not need it"),
    });
    findings.push(selection(facts));
    findings
}

fn version(facts: &Facts) -> Vec<Finding> {
    let kernel = match &facts.version {
        Ok(kernel) => *kernel,
        Err(unseen) => {
            return vec![Finding::unseen("kernel", unseen, "what is known to be broken goes by it")];
        }
    };
    let mut findings = vec![if kernel < OLDEST {
        Finding::fail(
            "kernel",
            kernel.to_string(),
            "it has no bpf_redirect_peer, and TC programs cannot read a device map",
            format!("a kernel from {OLDEST} on"),
        )
    } else {
        Finding::ok("kernel", kernel.to_string())
    }];
    findings.push(if (STALLS[0]..STALLS[1]).contains(&kernel) {
        Finding::warn(
            "cve-2025-68232",
            format!("{kernel} is one of {} to before {}", STALLS[0], STALLS[1]),
            "the transmit queue of a veth that was full once may stall for ever, and its pod with it",
            format!("a kernel from {} on; your distribution may have mended this one", STALLS[1]),
        )
    } else {
        Finding::ok("cve-2025-68232", format!("{kernel} is not concerned"))
    });
    findings.push(if kernel < XDP {
        Finding::warn(
            "xdp-on-veth",
            format!("{kernel} is before {XDP}"),
            "XDP redirects on veth crash or corrupt frames there, so veth refuses --hook xdp",
            format!("--hook auto, which takes TC; or a kernel from {XDP} on"),
        )
    } else {
        Finding::ok("xdp-on-veth", format!("{kernel} is not before {XDP}"))
    });
    findings
}

fn jit(facts: &Facts) -> Finding {
    let id = "jit";
    let programs = facts.programs.iter().filter_map(|(_, verified)| verified.as_ref().ok()).flatten();
    let compiled = programs.filter_map(|verified| verified.compiled).reduce(|one, other| one && other);
    match (&facts.jit, compiled) {
        (_, Some(true)) => Finding::ok(id, "our programs are compiled"),
        (Ok(Some(value)), None) if value != "0" => Finding::ok(id, format!("bpf_jit_enable is {value}")),
        (Ok(Some(value)), _) if value == "0" => {
            let fix = Fix::Sysctl {
                place: Place::Host,
                key: JIT.to_owned(),
                old: value.clone(),
                new: "1".to_owned(),
            };
            Finding::warn(id, "bpf_jit_enable is 0", SLOW, "sysctl -w net.core.bpf_jit_enable=1").fixable(fix)
        }
        (_, Some(false)) => Finding::warn(
            id,
            "our programs are interpreted",
            SLOW,
            "in the machine's first network namespace: `nsenter -t 1 -n sysctl -w net.core.bpf_jit_enable=1`",
        ),
        (Err(unseen), None) => Finding::unseen(id, unseen, SLOW),
        (Ok(_), None) => {
            let hidden = Unseen::NotAllowed("bpf_jit_enable is not in this network namespace".to_owned());
            Finding::unseen(id, &hidden, SLOW)
        }
    }
}

const SLOW: &str = "an interpreted program costs several times as much a frame";

fn programs(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![match &facts.object {
        Ok(()) => Finding::ok("object", "embedded, and of our layout"),
        Err(error) => Finding::fail("object", error, "without it nothing can be loaded", "cargo xtask build"),
    }];
    if facts.object.is_err() {
        return findings;
    }
    for (hook, verified) in &facts.programs {
        let name = if hook.is_xdp() { datapath::XDP } else { datapath::INGRESS };
        match verified {
            Ok(verified) => {
                findings.extend(verified.iter().map(|Verified { name, instructions, .. }| {
                    let seen = instructions.map_or_else(
                        || "loads".to_owned(),
                        |count| format!("loads; the verifier went through {count} instructions"),
                    );
                    Finding::ok("program", seen).about(*name)
                }));
            }
            Err(Unseen::Failed(error)) if hook.is_xdp() => findings.push(
                Finding::warn("program", error, "--hook xdp cannot be used", "--hook auto, which takes TC")
                    .about(name),
            ),
            Err(Unseen::Failed(error)) => findings.push(
                Finding::fail(
                    "program",
                    error,
                    "`veth up` cannot load it either",
                    "`veth -vv doctor` shows the verifier's whole log; please report it with `uname -r`",
                )
                .about(name),
            ),
            Err(unseen @ Unseen::NotAllowed(_)) => findings.push(
                Finding::unseen("program", unseen, "whether the verifier takes it is seen by loading it")
                    .about(name),
            ),
        }
    }
    findings
}

fn helper(name: &str, vital: bool, there: &Look<bool>) -> Finding {
    match there {
        Ok(true) => Finding::ok("helper", "there"),
        Ok(false) if vital => Finding::fail(
            "helper",
            "not there",
            "no frame can be redirected",
            "a newer kernel, or one with CONFIG_NET",
        ),
        Ok(false) => {
            let (why, fix) = if name.starts_with("xdp") {
                ("--hook xdp cannot be used", "--hook auto, which takes TC")
            } else {
                ("--redirect peer cannot be used", "--redirect host")
            };
            Finding::warn("helper", "not there", why, fix)
        }
        Err(unseen) => Finding::unseen("helper", unseen, "our programs call it"),
    }
}

fn hooks(facts: &Facts) -> [Finding; 3] {
    let Facts { tcx, clsact, xdp, .. } = facts;
    let tcx = match tcx {
        Ok(true) => Finding::ok("hook", "there"),
        Ok(false) => Finding::ok("hook", "not there (needs 6.6); clsact does the same"),
        Err(unseen) => Finding::unseen("hook", unseen, "it is what --hook auto prefers"),
    };
    let alone = facts.tcx == Ok(false);
    let clsact = match clsact {
        Ok(()) => Finding::ok("hook", "a qdisc can be made"),
        Err(Unseen::Failed(error)) => {
            let fix = "a kernel with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF, or `modprobe sch_ingress cls_bpf`";
            let why = "programs of TC hang on it where there is no TCX";
            let level = if alone { Level::Fail } else { Level::Warn };
            Finding { level, ..Finding::warn("hook", error, why, fix) }
        }
        Err(unseen) => Finding::unseen("hook", unseen, "programs of TC hang on it where there is no TCX"),
    };
    let xdp = match xdp {
        Ok(()) => Finding::ok("hook", "our program goes onto a veth, in the driver"),
        Err(Unseen::Failed(error)) => {
            Finding::warn("hook", error, "--hook xdp cannot be used", "--hook auto, which takes TC")
        }
        Err(unseen) => Finding::unseen("hook", unseen, "--hook xdp needs it"),
    };
    [tcx.about("tcx"), clsact.about("clsact"), xdp.about("xdp")]
}

/// What became of a frame that was handed over between throw-away namespaces.
fn redirect_peer(facts: &Facts) -> Vec<Finding> {
    let Peer { arrives, scrubs, counts } = match &facts.peer {
        Ok(peer) => *peer,
        Err(Unseen::Failed(error)) => {
            return vec![Finding::warn(
                "redirect-peer-arrives",
                format!("the experiment failed: {error}"),
                "--redirect peer may not work",
                "--redirect host",
            )];
        }
        Err(unseen) => {
            return vec![Finding::unseen(
                "redirect-peer-arrives",
                unseen,
                "it is tried with a frame between namespaces",
            )];
        }
    };
    if !arrives {
        return vec![Finding::fail(
            "redirect-peer-arrives",
            "a frame was handed over and did not arrive",
            "with --redirect peer pods would not reach each other",
            "--redirect host",
        )];
    }
    vec![
        Finding::ok("redirect-peer-arrives", "a frame was handed over and arrived"),
        if scrubs {
            Finding::ok("redirect-peer-scrubs", "the far stack takes it for its own")
        } else {
            Finding::warn(
                "redirect-peer-scrubs",
                "it arrives with the packet type of the sender (CVE-2025-37959)",
                "the far stack would drop it. Our program sets the packet type here; state of IPsec still leaks into \
                 the pod",
                "a kernel from 6.15, 6.14.7, 6.12.29, 6.6.91 or 6.1.139 on; or --redirect host for pods with IPsec",
            )
        },
        if counts {
            Finding::ok("redirect-peer-counts", "the pod's link counts it")
        } else {
            Finding::warn(
                "redirect-peer-counts",
                "the pod's link does not count it",
                "RX of eth0 in the pod stands still (`ip -s link`, /proc/net/dev); `veth stats` counts all the same",
                "a kernel from 6.7 on, or --redirect host",
            )
        },
    ]
}

/// What `--hook auto` would take.
fn selection(facts: &Facts) -> Finding {
    let id = "selection";
    let peer =
        facts.helpers.iter().find(|(name, ..)| *name == "tc bpf_redirect_peer").map(|(_, _, there)| there);
    let (kernel, tcx, redirect_peer) = match (&facts.version, &facts.tcx, peer) {
        (Ok(kernel), Ok(tcx), Some(Ok(peer))) => (*kernel, *tcx, *peer),
        (Err(unseen), ..) | (_, Err(unseen), _) | (.., Some(Err(unseen))) => {
            return Finding::unseen(
                id,
                unseen,
                "`--hook auto` and `--redirect auto` go by what the kernel can do",
            );
        }
        (.., None) => return Finding::ok(id, "not asked"),
    };
    let abilities = Abilities { kernel, tcx, redirect_peer, hurry: facts.hurry };
    let pick = |ports| probe::select(Wish::default(), abilities, ports).map(|selection| selection.why);
    match (pick(2), pick(UNHURRIED_PORTS + 1)) {
        (Ok(few), Ok(many)) if few == many => Finding::ok(id, few),
        (Ok(few), Ok(many)) => Finding::ok(id, format!("{few}. Above {UNHURRIED_PORTS} ports {many}")),
        (Err(error), _) | (_, Err(error)) => Finding::fail(
            id,
            error.to_string(),
            "`veth up` says the same",
            format!("a kernel from {OLDEST} on"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let verified = |name| Verified { name, instructions: Some(1_234), compiled: Some(true) };
        Facts {
            version: Ok(Kernel(6, 18, 44)),
            btf: true,
            jit: Ok(Some("1".into())),
            object: Ok(()),
            programs: [
                (Hook::Clsact, Ok(vec![verified(datapath::INGRESS)])),
                (Hook::Xdp, Ok(vec![verified(datapath::XDP)])),
            ],
            helpers: HELPERS.into_iter().map(|(_, _, name, vital)| (name, vital, Ok(true))).collect(),
            tcx: Ok(true),
            clsact: Ok(()),
            xdp: Ok(()),
            peer: Ok(Peer { arrives: true, scrubs: true, counts: true }),
            netkit: Err(Unseen::Failed("no such kind".into())),
            hurry: true,
        }
    }

    #[track_caller]
    fn find(facts: &Facts, id: &str, subject: Option<&str>) -> Finding {
        let findings = judge(facts);
        let found = findings.iter().find(|finding| finding.id == id && finding.subject.as_deref() == subject);
        let found = found.unwrap_or_else(|| panic!("no {id} {subject:?} in {findings:?}")).clone();
        assert_eq!(found.fix.is_none(), found.level == Level::Ok, "{found:?}");
        found
    }

    #[test]
    fn a_good_kernel_is_good() {
        for finding in judge(&facts()) {
            assert_eq!(finding.level, Level::Ok, "{finding:?}");
        }
        assert!(find(&facts(), "program", Some("veth_xdp")).seen.contains("1234"));
        assert!(find(&facts(), "selection", None).seen.contains("tcx"));
    }

    #[test]
    fn known_bugs_go_by_version() {
        for (kernel, stalls, xdp) in [
            (Kernel(5, 10, 200), Level::Ok, Level::Warn),
            (Kernel(6, 1, 139), Level::Ok, Level::Warn),
            (Kernel(6, 2, 0), Level::Ok, Level::Ok),
            (Kernel(6, 15, 9), Level::Ok, Level::Ok),
            (Kernel(6, 16, 0), Level::Warn, Level::Ok),
            (Kernel(6, 17, 9), Level::Warn, Level::Ok),
            (Kernel(6, 17, 10), Level::Ok, Level::Ok),
            (Kernel(6, 18, 0), Level::Ok, Level::Ok),
        ] {
            let facts = Facts { version: Ok(kernel), ..facts() };
            assert_eq!(find(&facts, "cve-2025-68232", None).level, stalls, "{kernel}");
            assert_eq!(find(&facts, "xdp-on-veth", None).level, xdp, "{kernel}");
        }
        assert_eq!(
            find(&Facts { version: Ok(Kernel(5, 4, 0)), ..facts() }, "kernel", None).level,
            Level::Fail
        );
    }

    #[test]
    fn an_interpreter_is_slow() {
        let mut facts = facts();
        for (_, verified) in &mut facts.programs {
            for program in verified.as_mut().unwrap() {
                program.compiled = Some(false);
            }
        }
        facts.jit = Ok(Some("0".into()));
        let finding = find(&facts, "jit", None);
        assert_eq!(finding.undo.as_deref(), Some("sysctl -w net.core.bpf_jit_enable=\"0\""));
        facts.jit = Ok(None);
        let finding = find(&facts, "jit", None);
        assert_eq!((finding.level, finding.repair), (Level::Warn, None), "not from this namespace");
    }

    #[test]
    fn what_xdp_lacks_is_no_failure() {
        let mut facts = Facts { xdp: Err(Unseen::Failed("no".into())), ..facts() };
        facts.programs[1].1 = Err(Unseen::Failed("unknown func".into()));
        assert_eq!(find(&facts, "hook", Some("xdp")).level, Level::Warn);
        assert_eq!(find(&facts, "program", Some("veth_xdp")).level, Level::Warn);
        facts.programs[0].1 = Err(Unseen::Failed("unknown func".into()));
        assert_eq!(find(&facts, "program", Some("veth_ingress")).level, Level::Fail);
    }

    #[test]
    fn clsact_is_vital_without_tcx() {
        let mut facts = Facts { clsact: Err(Unseen::Failed("no".into())), ..facts() };
        assert_eq!(find(&facts, "hook", Some("clsact")).level, Level::Warn);
        facts.tcx = Ok(false);
        assert_eq!(find(&facts, "hook", Some("clsact")).level, Level::Fail);
        assert!(find(&facts, "selection", None).seen.contains("clsact"));
    }

    #[test]
    fn peer_redirect_is_told_as_it_is() {
        let with = |arrives, scrubs, counts| Facts { peer: Ok(Peer { arrives, scrubs, counts }), ..facts() };
        assert_eq!(find(&with(false, false, false), "redirect-peer-arrives", None).level, Level::Fail);
        assert_eq!(find(&with(true, false, true), "redirect-peer-scrubs", None).level, Level::Warn);
        assert_eq!(find(&with(true, true, false), "redirect-peer-counts", None).level, Level::Warn);
        let hidden = Facts { peer: Err(Unseen::NotAllowed("EPERM".into())), ..facts() };
        assert!(find(&hidden, "redirect-peer-arrives", None).seen.contains("needs root"));
    }
}
