//! Experiments on the running kernel, in throw-away namespaces without a name: whatever happens, they end with us.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant},
};

use nix::sys::socket::{LinkAddr, recvfrom};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use veth_common::Mac;

use super::Error;
use crate::{
    datapath,
    net::{
        self, Netlink, Netns,
        link::{End, Pair},
        sysctl,
        tc::{Direction, Position},
    },
};

/// How long a link may take to carry frames: the kernel looks at links in turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a frame may take to arrive.
const ARRIVAL: Duration = Duration::from_millis(500);

/// How often that is looked at.
const POLL: Duration = Duration::from_millis(1);

/// An ethertype that nobody uses (IEEE local experimental 1).
const ETHERTYPE: u16 = 0x88b5;

/// The addresses of the two pods, and of the two host ends.
const MACS: [Mac; 4] = [mac(1), mac(2), mac(3), mac(4)];

const fn mac(number: u8) -> Mac {
    Mac::new([2, 0x76, 0x65, 0x74, 0x68, number])
}

/// What `bpf_redirect_peer` does with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Whether the frame arrived.
    pub arrives: bool,
    /// Whether the far stack takes it for its own: the packet type is set, and no state of the sender leaks.
    pub scrubs: bool,
    /// Whether the pod's link counts it.
    pub counts: bool,
}

/// A host and two pods that nobody sees.
pub struct Scratch {
    host: Netns,
    netlink: Netlink,
    pods: [(Netns, Netlink); 2],
}

impl Scratch {
    /// Makes them, with a veth pair from the host to each pod.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn new() -> Result<Self, Error> {
        let (host, netlink) = Netns::throw_away()?;
        let pods = [Netns::throw_away()?, Netns::throw_away()?];
        for (number, (pod, inside)) in pods.iter().enumerate() {
            netlink
                .add_pair(&Pair {
                    host: End { name: HOST_ENDS[number], mac: MACS[number + 2] },
                    pod: End { name: "eth0", mac: MACS[number] },
                    namespace: Some(pod),
                    mtu: 1_500,
                    group: 0,
                    queues: 1,
                })
                .await?;
            // What a host end says by itself when it comes up would be counted in the pod.
            host.run(|| sysctl::disable_ipv6(HOST_ENDS[number]))??;
            inside.set_up(inside.link("eth0").await?.index).await?;
            netlink.set_up(netlink.link(HOST_ENDS[number]).await?.index).await?;
        }
        let scratch = Self { host, netlink, pods };
        scratch.wait_until_ready().await?;
        Ok(scratch)
    }

    /// Hands a frame of the first pod to the second, by a program that only calls `bpf_redirect_peer`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses something on the way. A frame that does not arrive is no error.
    pub async fn redirect_peer(&self) -> Result<Peer, Error> {
        let [one, two] = [0, 1].map(|number| HOST_ENDS[number]);
        let (one, two) = (self.netlink.link(one).await?.index, self.netlink.link(two).await?.index);
        let program = datapath::null_redirect(two)?;
        self.netlink.add_clsact(one).await?;
        let position = Position { priority: 1, handle: 1 };
        self.netlink.put_filter(one, Direction::Ingress, position, program.as_fd(), "null_redirect").await?;

        let [(sender, _), (receiver, inside)] = &self.pods;
        let before = inside.link("eth0").await?.stats.rx_packets;
        let [out, into] = [sender.run(open_eth0)?, receiver.run(open_eth0)?];
        let (out, into) = (out.map_err(socket)?, into.map_err(socket)?);
        let frame = [&MACS[1].bytes()[..], &MACS[0].bytes(), &ETHERTYPE.to_be_bytes(), &[0; 46]].concat();
        out.send(&frame).map_err(socket)?;
        let kind = receive(&into, &frame).map_err(socket)?;
        let after = inside.link("eth0").await?.stats.rx_packets;
        Ok(Peer { arrives: kind.is_some(), scrubs: kind == Some(libc::PACKET_HOST), counts: after > before })
    }

    /// Attaches our XDP program to a veth, in the driver.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn xdp(&self) -> Result<(), Error> {
        Ok(self.host.run(|| datapath::verify_xdp_attach(HOST_ENDS[0]))??)
    }

    /// Makes a clsact qdisc.
    ///
    /// # Errors
    ///
    /// Why not.
    pub async fn clsact(&self) -> Result<(), Error> {
        let link = self.netlink.link(HOST_ENDS[1]).await?.index;
        Ok(self.netlink.add_clsact(link).await?)
    }

    /// Makes a netkit pair, the kernel's own successor of veth for programs.
    ///
    /// # Errors
    ///
    /// Why not.
    pub async fn netkit(&self) -> Result<(), Error> {
        Ok(self.netlink.add_kind("nk0", "netkit").await?)
    }

    async fn wait_until_ready(&self) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let mut ready = true;
            for (number, (_, inside)) in self.pods.iter().enumerate() {
                ready &= self.netlink.link(HOST_ENDS[number]).await?.operational;
                ready &= inside.link("eth0").await?.operational;
            }
            if ready {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                let timeout = io::Error::from(io::ErrorKind::TimedOut);
                return Err(net::Error::new("wait until a veth pair carries frames", timeout).into());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// The host ends.
const HOST_ENDS: [&str; 2] = ["probe1", "probe2"];

fn socket(source: io::Error) -> Error {
    net::Error::new("send a frame through a veth pair", source).into()
}

/// A packet socket on `eth0` of the calling thread's namespace, for frames of our ethertype.
fn open_eth0() -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(ETHERTYPE.to_be()))))?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a sockaddr_ll is one of the addresses that the storage is for, and zero is a valid one.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    address.sll_protocol = ETHERTYPE.to_be();
    address.sll_ifindex = nix::net::if_::if_nametoindex("eth0")?.cast_signed();
    let length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
    // SAFETY: filled in above, of that length.
    socket.bind(&unsafe { SockAddr::new(storage, length) })?;
    socket.set_read_timeout(Some(ARRIVAL))?;
    Ok(socket)
}

/// Waits for a frame and returns its packet type; nothing if it does not come.
fn receive(socket: &Socket, frame: &[u8]) -> io::Result<Option<u8>> {
    let mut buffer = vec![0; frame.len()];
    match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
        Ok((_, from)) if buffer == frame => Ok(from.map(|from| from.pkttype())),
        Ok(_) | Err(nix::errno::Errno::EAGAIN) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
