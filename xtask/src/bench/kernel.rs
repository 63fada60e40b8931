//! The kernel without anybody's tool: namespaces and veth pairs over one netlink socket. It is the floor of every
//! contestant, and tells when the kernel has come to rest.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};

use super::process;

/// The kernel is given up on after this.
const PATIENCE: Duration = Duration::from_mins(2);

/// Namespaces without names; they go when this is dropped.
pub(super) struct Namespaces(#[expect(dead_code, reason = "held, never read")] Vec<File>);

/// Makes namespaces, each with a veth pair whose host end is up and called after `prefix`.
pub(super) fn make(prefix: &str, count: usize) -> Result<Namespaces> {
    // The thread ends in the last of them.
    let namespaces: Vec<File> = thread::spawn(move || {
        (0..count)
            .map(|_| {
                unshare(CloneFlags::CLONE_NEWNET)?;
                File::open("/proc/thread-self/ns/net")
            })
            .collect::<io::Result<_>>()
    })
    .join()
    .map_err(|_| anyhow::anyhow!("the thread that makes namespaces panicked"))?
    .context("make network namespaces")?;
    let mut socket = Socket::new(NETLINK_ROUTE).context("open a netlink socket")?;
    socket.bind_auto().context("bind a netlink socket")?;
    socket.connect(&SocketAddr::new(0, 0)).context("connect a netlink socket to the kernel")?;
    for (number, namespace) in namespaces.iter().enumerate() {
        request(&socket, pair(&format!("{prefix}{number}"), namespace))
            .with_context(|| format!("make the veth pair {prefix}{number}"))?;
    }
    Ok(Namespaces(namespaces))
}

/// Waits until the kernel has removed all namespaces that were let go before. It does so in the background, in
/// their order, so that one more namespace tells.
pub(super) fn settle() -> Result<()> {
    drop(make("settle", 1)?);
    let start = Instant::now();
    while if_nametoindex("settle0").is_ok() {
        process::check()?;
        ensure!(start.elapsed() < PATIENCE, "the kernel is still removing namespaces after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn pair(host: &str, namespace: &File) -> LinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes =
        vec![LinkAttribute::IfName("eth0".into()), LinkAttribute::NetNsFd(namespace.as_raw_fd())];
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(host.into()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    message
}

/// Sends a request and waits for its acknowledgement.
fn request(socket: &Socket, link: LinkMessage) -> Result<()> {
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(link));
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).context("send to the kernel")?;
    let (answer, _) = socket.recv_from_full().context("receive from the kernel")?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).context("read the answer")?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
        NetlinkPayload::Error(error) => Err(error.to_io().into()),
        other => bail!("the kernel answers {other:?}"),
    }
}
