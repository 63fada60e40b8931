//! The packet filter of somebody else, through nfnetlink, so that tests need no `nft`.

use std::{io, io::Read as _};

use socket2::{Domain, Protocol, Socket, Type};

/// `NETLINK_NETFILTER`.
const NETFILTER: i32 = 12;

/// Messages of nfnetlink and, in its subsystem, of nftables.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const NEWCHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEWRULE: u16 = SUBSYSTEM << 8 | 6;

/// `NFPROTO_INET` and `NF_INET_FORWARD`.
const INET: u8 = 1;
const FORWARD: u32 = 2;

/// Flags: request, answer, create.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;

/// Makes a table with a base chain on the forward hook, and a rule that matches all and does nothing, in the calling
/// thread's namespace. Returns false where the kernel has no nftables.
#[must_use]
pub fn forward_rule() -> bool {
    let chain = [attribute(1, b"theirs\0"), attribute(3, b"forward\0")].concat();
    let hook = [attribute(1, &FORWARD.to_be_bytes()), attribute(2, &0_u32.to_be_bytes())].concat();
    let chain = [chain, attribute(4 | 0x8000, &hook), attribute(7, b"filter\0")].concat();
    let rule = [attribute(1, b"theirs\0"), attribute(2, b"forward\0")].concat();
    let batch = [
        message(BATCH_BEGIN, REQUEST, [0, 0, 0, 10], &[]),
        message(NEWTABLE, REQUEST | ACK | CREATE, [INET, 0, 0, 0], &attribute(1, b"theirs\0")),
        message(NEWCHAIN, REQUEST | ACK | CREATE, [INET, 0, 0, 0], &chain),
        message(NEWRULE, REQUEST | ACK | CREATE, [INET, 0, 0, 0], &rule),
        message(BATCH_END, REQUEST, [0, 0, 0, 10], &[]),
    ]
    .concat();
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(NETFILTER)));
    let mut socket = match socket {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return false,
        socket => socket.unwrap(),
    };
    socket.send(&batch).unwrap();
    // The kernel has done it all, and answered, before `send` returned.
    socket.set_nonblocking(true).unwrap();
    let mut answers = 0;
    let mut buffer = vec![0; 16_384];
    loop {
        let length = match socket.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            length => length.unwrap(),
        };
        let mut rest = &buffer[..length];
        while let [a, b, c, d, ..] = *rest {
            let code = i32::from_ne_bytes(rest[16..20].try_into().unwrap());
            if code == -libc::EINVAL || code == -libc::EOPNOTSUPP {
                return false;
            }
            assert_eq!(code, 0, "{}", io::Error::from_raw_os_error(-code));
            answers += 1;
            let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap();
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
    assert_eq!(answers, 3, "table, chain and rule");
    true
}

fn message(kind: u16, flags: u16, header: [u8; 4], attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + header.len() + attributes.len()).unwrap();
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]].concat();
    bytes.extend(header);
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
