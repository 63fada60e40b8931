//! What XDP needs of a veth pair, so that it loses nothing. All changes are on links of our own, before they come up.

use std::collections::BTreeMap;

use super::{Error, Pod, Port};
use crate::net::{
    Netns,
    ethtool::{Ethtool, Setting},
};

/// What a user of XDP should know.
pub(super) const WARNING: &str = "XDP: bulk TCP is several times slower than by TC, because frames lose GSO and are \
    copied; it wins where frames are small, dropped or filtered. In the pods GRO is turned on (without it nothing \
    is received), transmit checksum and VLAN offload off (their results do not cross)";

/// Features of a pod's end, and why:
///
/// * A veth that frames are redirected to drops all of them unless its other end has NAPI, which GRO switches on
///   (`veth_xdp_xmit` in `drivers/net/veth.c`).
/// * A frame in XDP has no state beside its bytes: a checksum or a VLAN tag that the sender left to the device
///   would be lost, and ping would work while TCP never connects.
pub(super) const SETTINGS: [Setting; 5] = [
    Setting { feature: "rx-gro", on: true },
    Setting { feature: "tx-checksum-ip-generic", on: false },
    Setting { feature: "tx-checksum-sctp", on: false },
    Setting { feature: "tx-vlan-hw-insert", on: false },
    Setting { feature: "tx-vlan-stag-hw-insert", on: false },
];

/// Makes a pod's end fit for XDP. Returns what was changed, in words.
pub(super) fn prepare(pod: &Pod, port: &Port) -> Result<Vec<String>, Error> {
    let ethtool = Ethtool::open_in(&Netns::open(&pod.namespace)?)?;
    let before = ethtool.set_features(&port.name, &SETTINGS)?;
    let words = before.iter().map(|Setting { feature, on }| {
        format!("{}/{} {feature} {}", pod.name, port.name, if *on { "off" } else { "on" })
    });
    Ok(words.collect())
}

/// Which features of a pod's end are not as XDP needs them.
pub(super) fn unfit_of(pod: &Pod, port: &Port) -> Result<Vec<Setting>, Error> {
    Ok(unfit(&Ethtool::open_in(&Netns::open(&pod.namespace)?)?.features(&port.name)?))
}

/// Which of some features are not as XDP needs them, and how they should be.
#[must_use]
pub fn unfit(features: &BTreeMap<String, bool>) -> Vec<Setting> {
    let is_wrong =
        |setting: &&Setting| features.get(setting.feature).copied().unwrap_or_default() != setting.on;
    SETTINGS.iter().filter(is_wrong).copied().collect()
}
