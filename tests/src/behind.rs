//! A machine that is no pod: a namespace behind a veth pair of the test's own.

use veth_common::Mac;
use veth_user::net::{
    Netns,
    link::{End, Pair},
};

use crate::lab::with_netlink;

/// A namespace with a link `eth0`, whose other end is on the host.
#[derive(Debug)]
pub struct Behind {
    /// The namespace.
    pub namespace: Netns,
    /// The host's end.
    pub link: String,
}

impl Behind {
    /// Makes one, both ends up, with addresses of the host's end and of its own. On a thread of the host.
    #[must_use]
    pub fn new(number: u8, group: u32, host: &[&str], own: &[&str]) -> Self {
        let (namespace, ()) = Netns::anonymous(|| Ok(())).unwrap();
        let link = format!("host{number}");
        with_netlink(async |netlink| {
            let mac = |last| Mac::new([2, 0, 0, 0, number, last]);
            let (host_end, pod) = (End { name: &link, mac: mac(1) }, End { name: "eth0", mac: mac(2) });
            let pair =
                Pair { host: host_end, pod, namespace: Some(&namespace), mtu: 1_500, group, queues: 1 };
            netlink.add_pair(&pair).await.unwrap();
            let inside = namespace.netlink().unwrap();
            for (netlink, name, addresses) in [(netlink, link.as_str(), host), (&inside, "eth0", own)] {
                let index = netlink.link(name).await.unwrap().index;
                for address in addresses {
                    netlink.add_address(index, address.parse().unwrap()).await.unwrap();
                }
                netlink.set_up(index).await.unwrap();
            }
        });
        Self { namespace, link }
    }
}
