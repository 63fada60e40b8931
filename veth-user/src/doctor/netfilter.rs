//! The packet filter. Redirected frames go past all of it; those of the slow path may not.

use std::{fs, io};

use super::{Finding, Look, look};
use crate::net::{
    Error,
    link::Link,
    nftables::{self, Chain, FORWARD, Family},
    sysctl,
};

/// The switches that send bridged frames through the packet filter, and for what.
const SWITCHES: [&str; 3] =
    ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"];

/// The tables of legacy iptables, of the calling thread's namespace.
const LEGACY: [&str; 3] = ["ip_tables_names", "ip6_tables_names", "arp_tables_names"];

/// What is known.
pub(super) struct Facts {
    /// The switches that are on.
    pub(super) bridged: Look<Vec<&'static str>>,
    pub(super) chains: Look<Vec<Chain>>,
    /// Tables of legacy iptables. Whether they have rules is not told.
    pub(super) legacy: Look<Vec<String>>,
    /// Connections that are tracked; nothing where none can be.
    pub(super) tracked: Look<Option<u64>>,
    /// Links of this namespace.
    pub(super) links: Vec<String>,
}

impl Facts {
    pub(super) fn gather(links: &[Link]) -> Self {
        let is_on = |name: &&'static str| {
            Ok::<_, Error>(sysctl::read(&format!("net/bridge/{name}"))?.is_some_and(|value| value != "0"))
        };
        let bridged = SWITCHES.iter().try_fold(Vec::new(), |mut on, name| {
            if is_on(name)? {
                on.push(*name);
            }
            Ok::<_, Error>(on)
        });
        let tracked = sysctl::read("net/netfilter/nf_conntrack_count");
        Self {
            bridged: look(bridged),
            chains: look(nftables::base_chains()),
            legacy: look(legacy()),
            tracked: look(tracked).map(|count| count.and_then(|count| count.parse().ok())),
            links: links.iter().map(|link| link.name.clone()).collect(),
        }
    }
}

fn legacy() -> Result<Vec<String>, Error> {
    let mut tables = Vec::new();
    for file in LEGACY {
        let path = format!("/proc/thread-self/net/{file}");
        match fs::read_to_string(&path) {
            Ok(names) => {
                let family = file.strip_suffix("_names").unwrap_or(file);
                tables.extend(names.lines().map(|table| format!("{family} {table}")));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::new(format!("read {path}"), error)),
        }
    }
    Ok(tables)
}

/// Whether a chain does anything to a frame.
fn acts(chain: &Chain) -> bool {
    chain.rules > 0 || chain.drops
}

/// Whether a chain is for frames that go from one link to another here.
fn forwards(chain: &Chain, links: &[String]) -> bool {
    match chain.family {
        Family::Bridge => true,
        Family::Ip | Family::Ip6 | Family::Inet => chain.hook == FORWARD,
        Family::Netdev => chain.devices.iter().any(|device| links.contains(device)),
        Family::Arp | Family::Other(_) => false,
    }
}

fn describe(chain: &Chain) -> String {
    let Chain { family, table, name, rules, drops, .. } = chain;
    let drops = if *drops { ", policy drop" } else { "" };
    format!("{} {table} {name} ({rules} rules{drops})", family.name())
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    vec![rules(facts), bridged(facts), tracked(facts)]
}

/// Rules that redirected frames go past.
fn rules(facts: &Facts) -> Finding {
    const WHY: &str =
        "frames that veth redirects never reach them, so they are neither filtered nor counted there";
    let id = "netfilter-rules";
    let (chains, legacy) = match (&facts.chains, &facts.legacy) {
        (Ok(chains), Ok(legacy)) => (chains, legacy),
        (Err(unseen), _) | (_, Err(unseen)) => return Finding::unseen(id, unseen, WHY),
    };
    let chains = chains.iter().filter(|chain| acts(chain) && forwards(chain, &facts.links)).map(describe);
    let legacy = legacy.iter().map(|table| format!("{table} (legacy; whether it has rules is not told)"));
    let seen: Vec<String> = chains.chain(legacy).collect();
    if seen.is_empty() {
        return Finding::ok(id, "no rules for forwarded frames");
    }
    Finding::warn(
        id,
        seen.join(", "),
        WHY,
        "no --redirect changes that, --redirect host neither. What must be filtered between pods has to be filtered \
         in a pod (`veth exec POD -- nft …`), or by a TC program before ours (--place last is the default)",
    )
}

/// Bridge netfilter: the slow path of a switch goes through IP rules, and the fast one does not.
fn bridged(facts: &Facts) -> Finding {
    const WHY: &str = "frames of a switch's slow path go through these rules, as if they were routed, and those that \
        veth redirects do not: what a rule drops is cut off for the first frame and let through for the rest";
    let id = "bridge-netfilter";
    let on = match &facts.bridged {
        Ok(on) if on.is_empty() => return Finding::ok(id, "off"),
        Ok(on) => on.join(", "),
        Err(unseen) => return Finding::unseen(id, unseen, WHY),
    };
    let (chains, legacy) = match (&facts.chains, &facts.legacy) {
        (Ok(chains), Ok(legacy)) => (chains, legacy),
        (Err(unseen), _) | (_, Err(unseen)) => return Finding::unseen(id, unseen, WHY),
    };
    let is_hit = |chain: &&Chain| {
        acts(chain) && matches!(chain.family, Family::Ip | Family::Ip6 | Family::Inet | Family::Arp)
    };
    let seen: Vec<String> =
        chains.iter().filter(is_hit).map(describe).chain(legacy.iter().cloned()).collect();
    if seen.is_empty() {
        return Finding::ok(id, format!("{on} on, and there are no rules"));
    }
    let off = on.split(", ").map(|name| format!("net.bridge.{name}=0")).collect::<Vec<_>>().join(" ");
    Finding::warn(
        id,
        format!("{on} on, and there are rules: {}", seen.join(", ")),
        WHY,
        format!("sysctl -w {off}, if nobody else needs it (Kubernetes and Docker do)"),
    )
}

fn tracked(facts: &Facts) -> Finding {
    const WHY: &str = "connections between pods are tracked by the frames of the slow path only, so rules about their \
        state see the beginning and never the rest";
    let id = "conntrack";
    let bridged = facts.bridged.as_ref().is_ok_and(|on| !on.is_empty());
    match &facts.tracked {
        Err(unseen) => Finding::unseen(id, unseen, WHY),
        Ok(None) => Finding::ok(id, "not there"),
        Ok(Some(0)) => Finding::ok(id, "no connection is tracked"),
        Ok(Some(count)) if bridged => Finding::warn(
            id,
            format!("{count} connections are tracked, and bridge netfilter is on"),
            WHY,
            "write no rules about the state of connections between pods; no --redirect changes that",
        ),
        Ok(Some(count)) => {
            Finding::ok(id, format!("{count} connections are tracked; those between pods are not among them"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Level, Unseen},
        *,
    };

    fn chain(family: Family, hook: u32, rules: u32) -> Chain {
        Chain {
            family,
            table: "t".into(),
            name: "c".into(),
            hook,
            devices: vec!["s-pod1".into()],
            rules,
            drops: false,
        }
    }

    fn facts(chains: Vec<Chain>) -> Facts {
        Facts {
            bridged: Ok(vec![SWITCHES[0]]),
            chains: Ok(chains),
            legacy: Ok(Vec::new()),
            tracked: Ok(Some(0)),
            links: vec!["s-pod1".into()],
        }
    }

    fn levels(facts: &Facts) -> [Level; 3] {
        [rules(facts), bridged(facts), tracked(facts)].map(|finding| {
            assert_eq!(finding.fix.is_none(), finding.level == Level::Ok, "{finding:?}");
            finding.level
        })
    }

    #[test]
    fn rules_are_told_where_frames_go_past_them() {
        let (ok, warn) = (Level::Ok, Level::Warn);
        assert_eq!(levels(&facts(vec![])), [ok, ok, ok]);
        assert_eq!(
            levels(&facts(vec![chain(Family::Inet, FORWARD, 0)])),
            [ok, ok, ok],
            "an empty chain does nothing"
        );
        assert_eq!(levels(&facts(vec![chain(Family::Inet, FORWARD, 1)])), [warn, warn, ok]);
        assert_eq!(levels(&facts(vec![chain(Family::Ip, 0, 1)])), [ok, warn, ok], "prerouting");
        assert_eq!(levels(&facts(vec![chain(Family::Bridge, 0, 1)])), [warn, ok, ok]);
        assert_eq!(levels(&facts(vec![chain(Family::Netdev, 0, 1)])), [warn, ok, ok]);
        assert_eq!(
            levels(&Facts { links: vec![], ..facts(vec![chain(Family::Netdev, 0, 1)]) }),
            [ok, ok, ok]
        );
        let drops = Chain { drops: true, ..chain(Family::Ip6, FORWARD, 0) };
        assert_eq!(levels(&facts(vec![drops.clone()])), [warn, warn, ok]);
        assert!(rules(&facts(vec![drops])).seen.contains("ip6 t c (0 rules, policy drop)"));
    }

    #[test]
    fn legacy_tables_count() {
        let facts = Facts { legacy: Ok(vec!["ip_tables filter".into()]), ..facts(vec![]) };
        assert_eq!(levels(&facts), [Level::Warn, Level::Warn, Level::Ok]);
    }

    #[test]
    fn bridge_netfilter_is_the_slow_paths() {
        let mut facts = facts(vec![chain(Family::Inet, FORWARD, 1)]);
        facts.tracked = Ok(Some(7));
        assert_eq!(levels(&facts), [Level::Warn; 3]);
        facts.bridged = Ok(vec![]);
        assert_eq!(levels(&facts), [Level::Warn, Level::Ok, Level::Ok]);
    }

    #[test]
    fn what_may_not_be_seen_is_said() {
        let facts = Facts { chains: Err(Unseen::NotAllowed("EPERM".into())), ..facts(vec![]) };
        assert!(rules(&facts).seen.contains("needs root"));
    }
}
