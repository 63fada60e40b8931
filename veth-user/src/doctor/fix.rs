//! What `--fix` does: only what is safe and can be taken back by a command, which it tells.

use std::{cell::Cell, fmt};

use super::Error;
use crate::{
    datapath::pins::{self, BPFFS},
    net::{
        Netlink, Netns,
        ethtool::{Ethtool, Setting},
        rcu, sysctl,
    },
    state::Roots,
    topology::{self, Progress},
};

/// The namespace that something is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Ours.
    Host,
    /// A pod's.
    Pod {
        /// `TOPOLOGY/POD`, as `veth exec` takes it.
        pod: String,
        /// Its namespace.
        namespace: String,
    },
}

impl Place {
    /// A command that is meant for the place, as it is typed on the host.
    #[must_use]
    pub fn command(&self, command: &str) -> String {
        match self {
            Self::Host => command.to_owned(),
            Self::Pod { pod, .. } => format!("veth exec {pod} -- {command}"),
        }
    }

    /// Does something there.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        match self {
            Self::Host => Ok(work()),
            Self::Pod { namespace, .. } => Ok(Netns::open(namespace)?.run(work)?),
        }
    }

    fn netlink(&self) -> Result<Netlink, Error> {
        match self {
            Self::Host => Ok(Netlink::open()?),
            Self::Pod { namespace, .. } => Ok(Netns::open(namespace)?.netlink()?),
        }
    }
}

/// Something that `--fix` can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fix {
    /// Mount a bpffs, noted as ours.
    MountBpffs,
    /// Write a value below `/proc/sys`.
    Sysctl {
        /// Where.
        place: Place,
        /// Its path below `/proc/sys`.
        key: String,
        /// What it is.
        old: String,
        /// What it becomes.
        new: String,
    },
    /// Set features of a device.
    Features {
        /// Where.
        place: Place,
        /// The device.
        link: String,
        /// What they become. All of them are otherwise now.
        settings: Vec<Setting>,
    },
    /// Set a link's MTU.
    Mtu {
        /// Where.
        place: Place,
        /// The link.
        link: String,
        /// What it is.
        old: u32,
        /// What it becomes.
        new: u32,
    },
    /// Set a link up.
    SetUp {
        /// Where.
        place: Place,
        /// The link.
        link: String,
    },
    /// Put right in place what has drifted, as a second `veth up` does.
    Repair {
        /// The topology.
        topology: String,
    },
    /// Let grace periods take their time again.
    StopHurrying,
}

impl Fix {
    /// How to take it back, in words.
    #[must_use]
    pub fn undo(&self) -> String {
        match self {
            Self::MountBpffs => format!("umount {BPFFS} (the last `veth down` does)"),
            Self::Sysctl { place, key, old, .. } => {
                place.command(&format!("sysctl -w {}=\"{old}\"", sysctl::name(key)))
            }
            Self::Features { place, link, settings } => {
                let turned = settings.iter().map(|setting| Setting { on: !setting.on, ..*setting });
                place.command(&ethtool(link, &turned.collect::<Vec<_>>()))
            }
            Self::Mtu { place, link, old, .. } => place.command(&format!("ip link set dev {link} mtu {old}")),
            Self::SetUp { place, link } => place.command(&format!("ip link set dev {link} down")),
            Self::Repair { topology } => format!("veth down {topology}"),
            Self::StopHurrying => "echo 1 > /sys/kernel/rcu_expedited".to_owned(),
        }
    }

    /// Does it.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub(super) async fn apply(&self, roots: &Roots) -> Result<(), Error> {
        match self {
            Self::MountBpffs => {
                // Where the mount is noted.
                roots.make_folder()?;
                let mounted = pins::prepare(roots);
                if mounted.is_err() {
                    roots.remove_folder();
                }
                Ok(mounted?)
            }
            Self::Sysctl { place, key, new, .. } => Ok(place.run(|| sysctl::write(key, new))??),
            Self::Features { place, link, settings } => {
                place.run(|| Ethtool::open()?.set_features(link, settings).map(drop))??;
                Ok(())
            }
            Self::Mtu { place, link, new, .. } => {
                let netlink = place.netlink()?;
                Ok(netlink.set_mtu(netlink.link(link).await?.index, *new).await?)
            }
            Self::SetUp { place, link } => {
                let netlink = place.netlink()?;
                Ok(netlink.set_up(netlink.link(link).await?.index).await?)
            }
            Self::Repair { topology } => Ok(repair(roots, topology).await.map_err(Box::new)?),
            Self::StopHurrying => {
                rcu::expedite(false);
                Ok(roots.remove_hurry_note()?)
            }
        }
    }
}

async fn repair(roots: &Roots, name: &str) -> Result<(), topology::Error> {
    let record = topology::record(roots, name)?;
    topology::up(roots, &record.topology, &Silent, &Cell::new(false)).await.map(drop)
}

/// `ethtool -K` with the kernel's names, which it takes as well as its own.
pub(super) fn ethtool(link: &str, settings: &[Setting]) -> String {
    let words = settings
        .iter()
        .map(|Setting { feature, on }| format!(" {feature} {}", if *on { "on" } else { "off" }));
    format!("ethtool -K {link}{}", words.collect::<String>())
}

/// What the doctor does is told as findings.
struct Silent;

impl Progress for Silent {
    fn start(&self, _total: usize) {}

    fn step(&self, _what: &dyn fmt::Display) {}

    fn note(&self, what: &dyn fmt::Display) {
        log::info!("{what}");
    }

    fn finish(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fix_says_how_to_undo_it() {
        let pod = || Place::Pod { pod: "wire/ns1".into(), namespace: "ns1".into() };
        let features =
            vec![Setting { feature: "rx-gro", on: true }, Setting { feature: "tx-checksum-sctp", on: false }];
        let key = "net/ipv4/conf/eth0.1/rp_filter".to_owned();
        for (fix, undo) in [
            (Fix::MountBpffs, "umount /sys/fs/bpf (the last `veth down` does)"),
            (
                Fix::Sysctl { place: Place::Host, key, old: "1".into(), new: "2".into() },
                "sysctl -w net.ipv4.conf.eth0/1.rp_filter=\"1\"",
            ),
            (
                Fix::Features { place: pod(), link: "eth0".into(), settings: features },
                "veth exec wire/ns1 -- ethtool -K eth0 rx-gro off tx-checksum-sctp on",
            ),
            (
                Fix::Mtu { place: pod(), link: "eth0".into(), old: 1_400, new: 1_500 },
                "veth exec wire/ns1 -- ip link set dev eth0 mtu 1400",
            ),
            (Fix::SetUp { place: Place::Host, link: "wire-ns1".into() }, "ip link set dev wire-ns1 down"),
            (Fix::Repair { topology: "wire".into() }, "veth down wire"),
            (Fix::StopHurrying, "echo 1 > /sys/kernel/rcu_expedited"),
        ] {
            assert_eq!(fix.undo(), undo);
        }
    }
}
