//! The kernel's counters of all links, and nothing else of them: `RTM_GETSTATS`. A dump of links says so much of each that
//! with a thousand it takes a hundred times as long.

use std::{collections::HashMap, io};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{Error, Result, link::LinkStats};

const RTM_NEWSTATS: u16 = 92;
const RTM_GETSTATS: u16 = 94;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;

/// Lengths of `struct nlmsghdr`, `struct if_stats_msg` and `struct nlattr`.
const HEADER: usize = 16;
const MESSAGE: usize = 12;
const ATTRIBUTE: usize = 4;

/// `IFLA_STATS_LINK_64`, and its bit in the mask of what is wanted.
const LINK_64: u16 = 1;
const WANTED: u32 = 1;

/// What the kernel sends at once, at most.
const BUFFER: usize = 64 * 1024;

/// A socket by which the counters of the links of one namespace are asked for.
#[derive(Debug)]
pub struct LinkCounters {
    socket: Socket,
}

impl LinkCounters {
    /// Connects in the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self> {
        let connect = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = connect().map_err(|source| Error::new("open a netlink socket", source))?;
        Ok(Self { socket })
    }

    /// The counters of every link, by its index.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub fn read(&mut self) -> Result<HashMap<u32, LinkStats>> {
        self.dump().map_err(|source| Error::new("read the counters of links", source))
    }

    fn dump(&mut self) -> io::Result<HashMap<u32, LinkStats>> {
        let mut request = Vec::with_capacity(HEADER + MESSAGE);
        let length = u32::try_from(HEADER + MESSAGE).unwrap_or_default();
        request.extend(length.to_ne_bytes());
        request.extend(RTM_GETSTATS.to_ne_bytes());
        request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
        // A number of ours and one of the socket's, a family and an index: none.
        request.extend([0; 16]);
        request.extend(WANTED.to_ne_bytes());
        self.socket.send(&request, 0)?;
        let mut counters = HashMap::new();
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            let (_, _) = self.socket.recv_from(&mut buffer, 0)?;
            let mut rest = buffer.as_slice();
            if rest.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            while let Some((kind, message, next)) = split(rest) {
                match kind {
                    NLMSG_DONE => return Ok(counters),
                    NLMSG_ERROR => {
                        let code = message.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
                        return Err(io::Error::from_raw_os_error(-code.unwrap_or(-libc::EIO)));
                    }
                    RTM_NEWSTATS => counters.extend(parse(message)),
                    _ => {}
                }
                rest = next;
            }
        }
    }
}

/// The kind of the first message, what is in it, and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let message = bytes.get(HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, message, next))
}

/// A link's index and counters.
fn parse(message: &[u8]) -> Option<(u32, LinkStats)> {
    let index = u32::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    let mut attributes = message.get(MESSAGE..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        let value = attributes.get(ATTRIBUTE..length)?;
        if kind == LINK_64 {
            // `struct rtnl_link_stats64`: received and sent packets, received and sent bytes, errors, dropped.
            let number =
                |place: usize| value.get(8 * place..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
            let stats = LinkStats {
                rx_packets: number(0)?,
                tx_packets: number(1)?,
                rx_bytes: number(2)?,
                tx_bytes: number(3)?,
                rx_dropped: number(6)?,
                tx_dropped: number(7)?,
            };
            return Some((index, stats));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_this_machines_links() {
        let mut counters = LinkCounters::open().unwrap();
        let first = counters.read().unwrap();
        let lo = first.get(&1).copied().unwrap_or_default();
        assert_eq!(lo.rx_bytes, lo.tx_bytes, "what a loopback sends it receives");
        assert_eq!(counters.read().unwrap().len(), first.len(), "it can be asked again");
    }

    #[test]
    fn what_is_cut_off_is_not_understood() {
        assert!(split(&[]).is_none() && split(&[40, 0, 0, 0, 92, 0]).is_none());
        assert!(parse(&[0; 11]).is_none() && parse(&[0; 16]).is_none());
    }
}
