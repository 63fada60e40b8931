//! Packet sockets: frames in and out of a link, byte for byte.

use std::{
    ffi::CString,
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use veth_user::net::Netns;

/// A packet socket on a link, open to every frame that the link receives.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
}

/// A frame as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The bytes, without a tag that the kernel keeps beside the frame.
    pub bytes: Vec<u8>,
    /// That tag.
    pub vlan: Option<u16>,
}

impl PacketSocket {
    /// Opens a socket on a link in a namespace.
    #[must_use]
    pub fn open(namespace: &Netns, link: &str) -> Self {
        Self::open_for(namespace, link, u16::try_from(libc::ETH_P_ALL).unwrap())
    }

    /// The same for one that only sends: nothing that the link receives is kept for it.
    #[must_use]
    pub fn sender(namespace: &Netns, link: &str) -> Self {
        Self::open_for(namespace, link, 0)
    }

    fn open_for(namespace: &Netns, link: &str, protocol: u16) -> Self {
        let link = CString::new(link).unwrap();
        namespace.run(|| open(&link, protocol)).unwrap().unwrap()
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the buffer is as long as we say.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(usize::try_from(sent).ok(), Some(frame.len()), "send: {}", io::Error::last_os_error());
    }

    /// Sends frames, many by one call.
    pub fn send_all(&self, frames: &[&[u8]]) {
        let mut vectors: Vec<libc::iovec> = frames
            .iter()
            .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = vectors
            .iter_mut()
            .map(|vector| {
                // SAFETY: all zero is a valid mmsghdr.
                let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
                message.msg_hdr.msg_iov = vector;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let mut messages = &mut messages[..];
        while !messages.is_empty() {
            let count = u32::try_from(messages.len()).unwrap();
            // SAFETY: as many messages as we say, with buffers that live on and are only read.
            let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
            let sent = usize::try_from(sent);
            let sent = sent.unwrap_or_else(|_| panic!("sendmmsg: {}", io::Error::last_os_error()));
            messages = &mut messages[sent..];
        }
    }

    /// Waits for a frame that ends with some bytes. Others are passed over.
    #[must_use]
    pub fn receive(&self, ending: &[u8], patience: Duration) -> Option<Received> {
        let start = Instant::now();
        while let Some(left) = patience.checked_sub(start.elapsed()) {
            let received = self.next(left)?;
            if received.bytes.ends_with(ending) {
                return Some(received);
            }
        }
        None
    }

    fn next(&self, patience: Duration) -> Option<Received> {
        let fd = self.socket.as_raw_fd();
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, as we say.
        let ready = unsafe { libc::poll(&raw mut poll, 1, i32::try_from(patience.as_millis()).unwrap()) };
        if ready != 1 {
            return None;
        }
        let (bytes, aux) = receive_with::<libc::tpacket_auxdata>(fd);
        let vlan =
            aux.filter(|aux| aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0).map(|aux| aux.tp_vlan_tci);
        Some(Received { bytes, vlan })
    }
}

/// Receives from any socket: the bytes, and what the kernel says beside them (the socket must have asked for one
/// kind of message only, and `T` be its type).
#[must_use]
pub fn receive_with<T: Copy>(socket: RawFd) -> (Vec<u8>, Option<T>) {
    let mut bytes = vec![0_u8; 70_000];
    let mut control = [0_u64; 16];
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message points to buffers that live on.
    let length = unsafe { libc::recvmsg(socket, &raw mut message, 0) };
    let length =
        usize::try_from(length).unwrap_or_else(|_| panic!("recvmsg: {}", io::Error::last_os_error()));
    bytes.truncate(length);
    // SAFETY: the kernel has filled the message in.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        return (bytes, None);
    }
    // SAFETY: not null.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: a whole `T`, by the caller's word, perhaps unaligned.
    (bytes, Some(unsafe { data.cast::<T>().read_unaligned() }))
}

fn open(link: &CString, protocol: u16) -> io::Result<PacketSocket> {
    let check = |result: i32| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    let protocol = protocol.to_be();
    // SAFETY: plain numbers.
    let fd = check(unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into())
    })?;
    // SAFETY: just opened, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a string that ends with zero.
    let index = unsafe { libc::if_nametoindex(link.as_ptr()) };
    // SAFETY: all zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    address.sll_protocol = protocol;
    address.sll_ifindex = index.try_into().unwrap();
    let length = u32::try_from(size_of_val(&address)).unwrap();
    // SAFETY: an address of the length that we say.
    check(unsafe { libc::bind(fd, (&raw const address).cast(), length) })?;
    for (option, value) in [(libc::PACKET_AUXDATA, 1_i32), (libc::PACKET_IGNORE_OUTGOING, 1)] {
        // SAFETY: an int of the length that we say.
        check(unsafe { libc::setsockopt(fd, libc::SOL_PACKET, option, (&raw const value).cast(), 4) })?;
    }
    Ok(PacketSocket { socket })
}
