//! The packet filter, through nfnetlink, so that tests need no `nft`: somebody else's rules, and a look at all there is.

use std::{io, io::Read as _, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};

use crate::fingerprint::digest;

/// `NETLINK_NETFILTER`.
const NETFILTER: i32 = 12;

/// Messages of nfnetlink and, in its subsystem, of nftables.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const NEWCHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEWRULE: u16 = SUBSYSTEM << 8 | 6;

/// Questions for all tables, chains, rules, sets, objects and flow tables.
const QUESTIONS: [u16; 6] = [1, 4, 7, 10, 19, 23];

/// What ends the answer to one.
const DONE: u16 = 3;

/// `NFPROTO_INET` and `NF_INET_FORWARD`.
const INET: u8 = 1;
const FORWARD: u32 = 2;

/// Flags: request, answer, create.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const DUMP: u16 = 0x300;

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
    let Some(mut socket) = connect() else { return false };
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

/// Every table, chain, rule and so on of the calling thread's namespace, as lines of text.
#[must_use]
pub fn objects() -> Vec<String> {
    let Some(mut socket) = connect() else { return Vec::new() };
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut lines = Vec::new();
    let mut buffer = vec![0; 65_536];
    for question in QUESTIONS {
        socket.send(&message(SUBSYSTEM << 8 | question, REQUEST | DUMP, [0; 4], &[])).unwrap();
        'answer: loop {
            let length = socket.read(&mut buffer).unwrap();
            let mut rest = &buffer[..length];
            while let [a, b, c, d, kind, kind2, ..] = *rest {
                let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap();
                let kind = u16::from_ne_bytes([kind, kind2]);
                // The end, or an error: the kernel has no such thing.
                if kind <= DONE {
                    break 'answer;
                }
                lines.push(object(question, rest[16], &rest[20..length]));
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
    lines
}

/// One of them: its names, and all that it says but how often it was passed.
fn object(question: u16, family: u8, attributes: &[u8]) -> String {
    const NAME: &[u8] = b"counter\0";
    let mut names = Vec::new();
    let mut rest = attributes;
    while let [a, b, kind, 0, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        // Of a rule: its table and its chain. Of a chain: its table, and its name behind its number.
        let is_name = matches!((question, kind), (_, 1) | (4, 3) | (7 | 10 | 19 | 23, 2));
        if is_name {
            names.push(String::from_utf8_lossy(&rest[4..length]).trim_end_matches('\0').to_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let mut bytes = attributes.to_vec();
    let counters = attributes.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME);
    for (at, _) in counters {
        let data = at + NAME.len();
        let length = usize::from(u16::from_ne_bytes([bytes[data], bytes[data + 1]]));
        bytes[data + 4..data + length].fill(0);
    }
    format!("nft {question} {family} {} #{:016x}", names.join(" "), digest(&bytes))
}

/// Nothing where the kernel has no nfnetlink.
fn connect() -> Option<Socket> {
    match Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(NETFILTER))) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => None,
        socket => Some(socket.unwrap()),
    }
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
