//! Two pods of a topology that has just been brought up, and packet sockets in them.

use veth_common::Mac;
use veth_user::{datapath::Hook, net::Netns};

use crate::{Lab, lab::with_netlink, packet::PacketSocket};

/// Two pods with a packet socket each.
#[derive(Debug)]
pub struct Pair {
    /// The pod that sends.
    pub one: Netns,
    /// The pod that receives.
    pub two: Netns,
    /// The address of the first.
    pub a: Mac,
    /// The address of the second.
    pub b: Mac,
    /// A socket on the first one's link.
    pub out: PacketSocket,
    /// A socket on the second one's link.
    pub into: PacketSocket,
}

impl Pair {
    /// Brings a topology up by a hook and opens two of its namespaces.
    #[must_use]
    pub fn up(lab: &Lab, hook: Hook, args: &[&str], namespaces: [&str; 2]) -> Self {
        lab.up(hook, args);
        Self::open(lab, namespaces)
    }

    /// Opens two namespaces of a topology that is up.
    #[must_use]
    pub fn open(lab: &Lab, namespaces: [&str; 2]) -> Self {
        let [one, two] = namespaces.map(|name| lab.pod(name));
        let [a, b] = [&one, &two].map(mac);
        let [out, into] = [&one, &two].map(|pod| PacketSocket::open(pod, "eth0"));
        Self { one, two, a, b, out, into }
    }

    /// The tutorial's wire, by a hook.
    #[must_use]
    pub fn wire(lab: &Lab, hook: Hook) -> Self {
        Self::up(lab, hook, &[], ["ns1", "ns2"])
    }

    /// A switch with two pods, by a hook.
    #[must_use]
    pub fn switch(lab: &Lab, hook: Hook) -> Self {
        Self::up(lab, hook, &["--pods", "2"], ["switch-pod1", "switch-pod2"])
    }
}

/// The address of a pod's link `eth0`.
#[must_use]
pub fn mac(pod: &Netns) -> Mac {
    pod.run(|| with_netlink(async |netlink| netlink.link("eth0").await.unwrap().mac.unwrap())).unwrap()
}
