//! The packet filter, by nfnetlink: its base chains, where somebody's rules see frames, and what questions and changes
//! are made of.

use std::io;

use netlink_packet_core::{
    NLA_TYPE_MASK, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use nix::sys::socket::{setsockopt, sockopt};

use super::{Error, Result};

/// `NFNL_SUBSYS_NFTABLES` and its messages, of `linux/netfilter/nfnetlink.h` and `nf_tables.h`.
const SUBSYSTEM: u16 = 10;
const NFTABLES: u16 = SUBSYSTEM << 8;
pub(super) const NEWTABLE: u16 = NFTABLES;
pub(super) const GETTABLE: u16 = NFTABLES | 1;
pub(super) const DELTABLE: u16 = NFTABLES | 2;
pub(super) const NEWCHAIN: u16 = NFTABLES | 3;
const GETCHAIN: u16 = NFTABLES | 4;
pub(super) const NEWRULE: u16 = NFTABLES | 6;
pub(super) const GETRULE: u16 = NFTABLES | 7;

/// What is between these is done whole or not at all.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// `enum nft_chain_attributes`.
pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_USE: u16 = 6;

/// `enum nft_hook_attributes` and `nft_devices_attributes`.
pub(super) const HOOK_NUMBER: u16 = 1;
const HOOK_DEVICE: u16 = 3;
const HOOK_DEVICES: u16 = 4;
const DEVICE_NAME: u16 = 1;

/// `struct nfgenmsg`: family, version, and a number that is nothing but in a batch.
const HEADER: usize = 4;

/// The verdict `NF_DROP`, as a chain's policy.
const DROP: u32 = 0;

/// A family of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// ARP.
    Arp,
    /// One device's ingress or egress.
    Netdev,
    /// Frames that a bridge forwards.
    Bridge,
    /// IPv6.
    Ip6,
    /// One that we do not know.
    Other(u8),
}

impl Family {
    const fn new(number: u8) -> Self {
        match number {
            1 => Self::Inet,
            2 => Self::Ip,
            3 => Self::Arp,
            5 => Self::Netdev,
            7 => Self::Bridge,
            10 => Self::Ip6,
            other => Self::Other(other),
        }
    }

    /// The name, as `nft` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Arp => "arp",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Ip6 => "ip6",
            Self::Other(_) => "?",
        }
    }
}

/// `NF_INET_FORWARD`, the same in IPv4, IPv6, inet and bridge tables.
pub const FORWARD: u32 = 2;

/// A chain that the kernel sends frames through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The family of its table.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// The number of its hook, in its family.
    pub hook: u32,
    /// The devices that it is for; none where it is for all.
    pub devices: Vec<String>,
    /// How many rules it has.
    pub rules: u32,
    /// Whether it drops what no rule accepts.
    pub drops: bool,
}

/// Every base chain of the calling thread's namespace. None where the kernel has no nftables.
///
/// # Errors
///
/// `EPERM` without `CAP_NET_ADMIN`.
pub fn base_chains() -> Result<Vec<Chain>> {
    let failed = |source| Error::new("list the chains of nftables", source);
    match dump(Row { kind: GETCHAIN, family: 0, attributes: Vec::new() }) {
        Ok(rows) => Ok(rows.iter().filter_map(chain).collect()),
        // No nfnetlink, or nobody behind this number of it.
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// Whether an answer means that the kernel has no nftables.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP))
}

/// Everything that a question is answered with.
pub(super) fn dump(question: Row) -> io::Result<Vec<Row>> {
    let mut request = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(question));
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    'attempt: loop {
        let socket = connect()?;
        socket.send(&bytes, 0)?;
        let mut rows = Vec::new();
        loop {
            let (answer, _) = socket.recv_from_full()?;
            for message in messages(&answer) {
                let message = message?;
                // The rules changed under our reading.
                if message.header.flags & NLM_F_DUMP_INTR != 0 {
                    continue 'attempt;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(rows),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(row) => rows.push(row),
                    _ => {}
                }
            }
        }
    }
}

/// Does some changes in one transaction: all or none. An error comes with the number of the change that failed, or
/// with nothing where the whole did.
pub(super) fn transact(
    changes: impl IntoIterator<Item = (Row, u16)>,
) -> std::result::Result<(), (Option<usize>, io::Error)> {
    let all = |error| (None, error);
    let mut bytes = Vec::new();
    let mut count = 0_u32;
    let mut push = |row: Row, flags: u16| {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(row));
        message.header.sequence_number = count;
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        // `finalize` counts no padding, and the kernel looks for the next message behind it.
        let start = bytes.len();
        let length = message.buffer_len();
        bytes.resize(start + length.next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..start + length]);
        count += 1;
    };
    push(Row { kind: BATCH_BEGIN, family: 0, attributes: Vec::new() }, 0);
    for (row, flags) in changes {
        push(row, flags | NLM_F_ACK);
    }
    push(Row { kind: BATCH_END, family: 0, attributes: Vec::new() }, 0);
    let socket = connect().map_err(all)?;
    // A change is refused where it does not fit, and so is an answer to each, which the kernel writes at once.
    let room = 2 * bytes.len() + 1024 * usize::try_from(count).unwrap_or_default();
    setsockopt(&socket, sockopt::SndBufForce, &room).map_err(|errno| all(errno.into()))?;
    setsockopt(&socket, sockopt::RcvBufForce, &room).map_err(|errno| all(errno.into()))?;
    socket.send(&bytes, 0).map_err(all)?;
    // The kernel has done it all, and answered, before `send` returned.
    socket.set_non_blocking(true).map_err(all)?;
    let mut done = 0;
    loop {
        let answer = match socket.recv_from_full() {
            Ok((answer, _)) => answer,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(all(error)),
        };
        for message in messages(&answer) {
            let message = message.map_err(all)?;
            if let NetlinkPayload::Error(error) = message.payload {
                if error.code.is_some() {
                    // The first is the begin of the batch.
                    let change = usize::try_from(message.header.sequence_number).ok();
                    return Err((change.and_then(|number| number.checked_sub(1)), error.to_io()));
                }
                done += 1;
            }
        }
    }
    if done + 2 == count { Ok(()) } else { Err(all(io::ErrorKind::UnexpectedEof.into())) }
}

fn connect() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// The messages in what the kernel sent at once.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = io::Result<NetlinkMessage<Row>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let message = NetlinkMessage::<Row>::deserialize(bytes).map_err(io::Error::other);
        let length = message.as_ref().map_or(bytes.len(), |message| {
            usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4)
        });
        bytes = bytes.get(length..).unwrap_or_default();
        Some(message)
    })
}

/// A message of nfnetlink: what every one has, and attributes.
#[derive(Debug)]
pub(super) struct Row {
    /// What it is about, and what is done: subsystem and message.
    pub(super) kind: u16,
    /// The family of the table.
    pub(super) family: u8,
    /// What [`attributes`] reads.
    pub(super) attributes: Vec<u8>,
}

impl NetlinkSerializable for Row {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        // Of a batch, the header says which subsystem it is for.
        let resource = if matches!(self.kind, BATCH_BEGIN | BATCH_END) { SUBSYSTEM } else { 0 };
        let [high, low] = resource.to_be_bytes();
        buffer[..HEADER].copy_from_slice(&[self.family, 0, high, low]);
        buffer[HEADER..].copy_from_slice(&self.attributes);
    }
}

impl NetlinkDeserializable for Row {
    type Error = io::Error;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> io::Result<Self> {
        let (head, attributes) = payload.split_at_checked(HEADER).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Self { kind: header.message_type, family: head[0], attributes: attributes.to_vec() })
    }
}

/// A base chain out of its row. Chains that only others jump to have no hook and are none.
fn chain(row: &Row) -> Option<Chain> {
    if row.kind != NEWCHAIN {
        return None;
    }
    let mut chain = Chain {
        family: Family::new(row.family),
        table: String::new(),
        name: String::new(),
        hook: u32::MAX,
        devices: Vec::new(),
        rules: 0,
        drops: false,
    };
    for (kind, value) in attributes(&row.attributes) {
        match kind {
            CHAIN_TABLE => chain.table = text(value),
            CHAIN_NAME => chain.name = text(value),
            // Nothing can jump to a base chain, so what uses it are its own rules.
            CHAIN_USE => chain.rules = number(value),
            CHAIN_POLICY => chain.drops = number(value) == DROP,
            CHAIN_HOOK => {
                for (kind, value) in attributes(value) {
                    match kind {
                        HOOK_NUMBER => chain.hook = number(value),
                        HOOK_DEVICE => chain.devices.push(text(value)),
                        HOOK_DEVICES => {
                            let names = attributes(value).filter(|(kind, _)| *kind == DEVICE_NAME);
                            chain.devices.extend(names.map(|(_, name)| text(name)));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    chain.devices.sort();
    chain.devices.dedup();
    (chain.hook != u32::MAX).then_some(chain)
}

/// The attributes in some bytes, as far as they make sense: kind and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (head, _) = bytes.split_first_chunk::<4>()?;
        let [a, b, c, d] = *head;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(head.len()..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK, value))
    })
}

/// An attribute, padded as the kernel wants it.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // No value of ours is long.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn number(value: &[u8]) -> u32 {
    value.try_into().map_or(0, u32::from_be_bytes)
}

pub(super) fn text(value: &[u8]) -> String {
    let value = value.strip_suffix(&[0]).unwrap_or(value);
    String::from_utf8_lossy(value).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_chain_is_read() {
        let hook = [attribute(HOOK_NUMBER, &2_u32.to_be_bytes()), attribute(HOOK_DEVICE, b"eth0\0")].concat();
        let attributes = [
            attribute(CHAIN_TABLE, b"filter\0"),
            attribute(CHAIN_NAME, b"forward\0"),
            attribute(CHAIN_HOOK | 0x8000, &hook),
            attribute(CHAIN_POLICY, &DROP.to_be_bytes()),
            attribute(CHAIN_USE, &3_u32.to_be_bytes()),
        ]
        .concat();
        let found = chain(&Row { kind: NEWCHAIN, family: 1, attributes }).unwrap();
        let expected = Chain {
            family: Family::Inet,
            table: "filter".into(),
            name: "forward".into(),
            hook: FORWARD,
            devices: vec!["eth0".into()],
            rules: 3,
            drops: true,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_chain_without_a_hook_is_none() {
        let attributes = attribute(CHAIN_NAME, b"sub\0");
        assert_eq!(chain(&Row { kind: NEWCHAIN, family: 2, attributes }), None);
    }

    #[test]
    fn nonsense_ends_the_reading() {
        for bytes in [&[][..], &[3, 0, 1, 0], &[200, 0, 1, 0, 0], &[4]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }
}
