//! What changes about links, here and in every namespace that is known here by a number, told by the kernel as it happens.

use std::{collections::BTreeSet, io, mem::MaybeUninit, os::fd::AsFd as _};

use netlink_sys::{Socket as NetlinkSocket, protocols::NETLINK_ROUTE};
use socket2::{MaybeUninitSlice, MsgHdrMut, Socket};
use tokio::io::unix::AsyncFd;

use super::{Error, Result};

/// Groups of `linux/rtnetlink.h`: links, and filters.
const GROUPS: [u32; 2] = [1, 4];

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;

/// `SOL_NETLINK` and `NETLINK_LISTEN_ALL_NSID`: which namespace a message is about.
const OTHER_NAMESPACE: (i32, i32) = (270, 8);

/// Lengths of `struct nlmsghdr` and `struct cmsghdr`, and where the index stands in `struct ifinfomsg` and in
/// `struct tcmsg`: in both behind four bytes.
const HEADER: usize = 16;
const CONTROL_HEADER: usize = 16;
const INDEX: usize = HEADER + 4;

/// What the kernel sends at once, at most; more is cut off, and read all the same as an event.
const BUFFER: usize = 32 * 1024;

/// Which link something has happened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touched {
    /// The number of its namespace; nothing for our own.
    pub namespace: Option<i32>,
    /// Its index there.
    pub index: u32,
    /// Whether something about the link itself has changed, and not of its filters.
    pub is_link: bool,
}

/// Everything that happened since the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// To these links.
    To(BTreeSet<Touched>),
    /// More than the kernel could keep: to any link.
    TooMuch,
}

/// A socket that the kernel tells.
#[derive(Debug)]
pub struct Events {
    socket: AsyncFd<Socket>,
}

impl Events {
    /// Subscribes, in the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket, or lets us hear only of our own namespace.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn open() -> Result<Self> {
        let subscribe = || -> io::Result<Self> {
            let mut socket = NetlinkSocket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.set_listen_all_namespaces(true)?;
            for group in GROUPS {
                socket.add_membership(group)?;
            }
            socket.set_non_blocking(true)?;
            let socket = Socket::from(socket.as_fd().try_clone_to_owned()?);
            // SAFETY: the socket owns its descriptor, always gives the same, and lives as long as this.
            Ok(Self { socket: unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)? })
        };
        subscribe().map_err(|source| Error::new("listen for changes of links", source))
    }

    /// Waits until something has happened.
    ///
    /// # Errors
    ///
    /// When the socket fails.
    pub async fn next(&mut self) -> Result<Happened> {
        let failed = |source| Error::new("hear of changes of links", source);
        loop {
            let mut ready = self.socket.readable().await.map_err(failed)?;
            let mut touched = BTreeSet::new();
            loop {
                match ready.try_io(|socket| receive(socket.get_ref(), &mut touched)) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        return Ok(Happened::TooMuch);
                    }
                    Ok(Err(error)) => return Err(failed(error)),
                    // Nothing more at the moment.
                    Err(_would_block) => break,
                }
            }
            if !touched.is_empty() {
                return Ok(Happened::To(touched));
            }
        }
    }
}

/// Reads what was sent at once.
fn receive(socket: &Socket, touched: &mut BTreeSet<Touched>) -> io::Result<()> {
    let mut data = Vec::with_capacity(BUFFER);
    let mut control = [MaybeUninit::new(0_u8); 64];
    let (length, control_length) = {
        let mut parts = [MaybeUninitSlice::new(data.spare_capacity_mut())];
        let mut message = MsgHdrMut::new().with_buffers(&mut parts).with_control(&mut control);
        let length = socket.recvmsg(&mut message, 0)?;
        (length, message.control_len())
    };
    // SAFETY: the kernel has written so many bytes.
    unsafe { data.set_len(length.min(BUFFER)) };
    // SAFETY: all of it was zero before the kernel wrote to it.
    let control = control.map(|byte| unsafe { byte.assume_init() });
    let namespace = namespace(control.get(..control_length).unwrap_or_default());
    touched.extend(messages(&data).map(|(index, is_link)| Touched { namespace, index, is_link }));
    Ok(())
}

/// The number of the namespace that a message is about, if not of our own.
fn namespace(control: &[u8]) -> Option<i32> {
    let number = |at: usize| control.get(at..at + 4)?.try_into().ok().map(i32::from_ne_bytes);
    let kind = (number(8)?, number(12)?);
    number(CONTROL_HEADER).filter(|_| kind == OTHER_NAMESPACE)
}

/// The links that messages are about.
fn messages(mut data: &[u8]) -> impl Iterator<Item = (u32, bool)> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(data.get(..4)?.try_into().ok()?);
        let kind = u16::from_ne_bytes(data.get(4..6)?.try_into().ok()?);
        let index = u32::from_ne_bytes(data.get(INDEX..INDEX + 4)?.try_into().ok()?);
        // A message takes a multiple of four bytes.
        let next = usize::try_from(length).ok()?.max(HEADER).next_multiple_of(4);
        data = data.get(next..).unwrap_or_default();
        Some((index, matches!(kind, RTM_NEWLINK | RTM_DELLINK)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, index: u32, length: usize) -> Vec<u8> {
        let mut bytes = u32::try_from(length).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(INDEX, 0);
        bytes.extend(index.to_ne_bytes());
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_are_read_one_after_the_other() {
        let both = [message(RTM_NEWLINK, 7, 33), message(44, 9, 40)].concat();
        assert_eq!(messages(&both).collect::<Vec<_>>(), [(7, true), (9, false)]);
        assert_eq!(messages(&both[..20]).count(), 0);
        let endless = message(RTM_DELLINK, 3, 32);
        let mut zero = endless.clone();
        zero[..4].fill(0);
        assert!(messages(&zero).count() <= 2, "a length of zero ends");
    }

    #[test]
    fn the_namespace_stands_beside_the_message() {
        let mut control = 20_usize.to_ne_bytes().to_vec();
        control.extend(270_i32.to_ne_bytes());
        control.extend(8_i32.to_ne_bytes());
        control.extend(5_i32.to_ne_bytes());
        assert_eq!(namespace(&control), Some(5));
        assert_eq!(namespace(&[]), None);
        control[12] = 9;
        assert_eq!(namespace(&control), None);
    }
}
