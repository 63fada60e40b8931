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

    /// The same for frames of one ethertype. It hears them when nobody has taken them before the stack.
    #[must_use]
    pub fn open_for(namespace: &Netns, link: &str, protocol: u16) -> Self {
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
        let mut left = frames;
        while !left.is_empty() {
            let sent = self.send_some(left);
            left = &left[sent.unwrap_or_else(|error| panic!("sendmmsg: {error}"))..];
        }
    }

    /// The same, but what the link has no room for is given up, as the link itself does, and counts it as dropped.
    pub fn flood(&self, frames: &[&[u8]]) {
        let mut left = frames;
        while !left.is_empty() {
            let sent = match self.send_some(left) {
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => 0,
                sent => sent.unwrap(),
            };
            // The call ends with the first that is refused, and tells of it only if it is the very first.
            left = left.get(sent + 1..).unwrap_or_default();
        }
    }

    /// Sends frames by one call until one is refused, and returns how many were not, or why if it was the first.
    fn send_some(&self, frames: &[&[u8]]) -> io::Result<usize> {
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
        let count = u32::try_from(messages.len()).unwrap();
        // SAFETY: as many messages as we say, with buffers that live on and are only read.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
        usize::try_from(sent).map_err(|_negative| io::Error::last_os_error())
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

    /// Everything that was received since.
    #[must_use]
    pub fn drain(&self) -> Vec<Received> {
        std::iter::from_fn(|| self.next(Duration::ZERO)).collect()
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

/// A frame as a link received it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arrived {
    /// For whom the kernel takes it: `PACKET_HOST`, `PACKET_BROADCAST`, `PACKET_MULTICAST` or `PACKET_OTHERHOST`.
    pub cast: u8,
    /// The bytes, with every tag where it was sent.
    pub bytes: Vec<u8>,
}

/// A packet socket that receives many frames by one call, and whose queue holds thousands.
pub struct Receiver {
    socket: PacketSocket,
    buffers: Vec<u8>,
}

impl Receiver {
    /// Frames that are received by one call.
    const FRAMES: usize = 64;
    /// The longest frame that is received whole.
    const LENGTH: usize = 4_096;
    /// The size of the queue in bytes.
    const QUEUE: i32 = 16 << 20;

    /// Opens one on a link in a namespace.
    #[must_use]
    pub fn open(namespace: &Netns, link: &str) -> Self {
        let socket = PacketSocket::open(namespace, link);
        let (fd, size) = (socket.socket.as_raw_fd(), Self::QUEUE);
        let option = libc::SO_RCVBUFFORCE;
        // SAFETY: an int of the length that we say.
        let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const size).cast(), 4) };
        assert_eq!(result, 0, "SO_RCVBUFFORCE: {}", io::Error::last_os_error());
        Self { socket, buffers: vec![0; Self::FRAMES * Self::LENGTH] }
    }

    /// Takes everything out of the queue. Does not wait.
    pub fn take(&mut self, mut each: impl FnMut(Arrived)) {
        while self.take_some(&mut each) == Self::FRAMES {}
    }

    fn take_some(&mut self, each: &mut impl FnMut(Arrived)) -> usize {
        let mut vectors: Vec<libc::iovec> = self
            .buffers
            .chunks_exact_mut(Self::LENGTH)
            .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
            .collect();
        // SAFETY: all zero is a valid sockaddr_ll.
        let mut addresses: [libc::sockaddr_ll; Self::FRAMES] = unsafe { mem::zeroed() };
        let mut controls = [[0_u64; 8]; Self::FRAMES];
        let beside = vectors.iter_mut().zip(&mut addresses).zip(&mut controls);
        let mut messages: Vec<libc::mmsghdr> = beside
            .map(|((vector, address), control)| {
                // SAFETY: all zero is a valid mmsghdr.
                let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
                message.msg_hdr.msg_iov = vector;
                message.msg_hdr.msg_iovlen = 1;
                message.msg_hdr.msg_namelen = u32::try_from(size_of_val(address)).unwrap();
                message.msg_hdr.msg_name = (&raw mut *address).cast();
                message.msg_hdr.msg_controllen = size_of_val(control);
                message.msg_hdr.msg_control = control.as_mut_ptr().cast();
                message
            })
            .collect();
        let fd = self.socket.socket.as_raw_fd();
        let count = u32::try_from(messages.len()).unwrap();
        // SAFETY: as many messages as we say, with buffers that live on.
        let received = unsafe {
            libc::recvmmsg(fd, messages.as_mut_ptr(), count, libc::MSG_DONTWAIT, std::ptr::null_mut())
        };
        let Ok(received) = usize::try_from(received) else {
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "recvmmsg: {error}");
            return 0;
        };
        for ((message, address), buffer) in
            messages[..received].iter().zip(&addresses).zip(self.buffers.chunks_exact(Self::LENGTH))
        {
            assert_eq!(message.msg_hdr.msg_flags & libc::MSG_TRUNC, 0, "a frame is longer than its buffer");
            let bytes = &buffer[..usize::try_from(message.msg_len).unwrap()];
            // SAFETY: the kernel has filled the message in.
            let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message.msg_hdr) };
            assert!(!header.is_null(), "the kernel says nothing beside the frame");
            // SAFETY: not null.
            let data = unsafe { libc::CMSG_DATA(header) };
            // SAFETY: the only kind of message that the socket asked for, perhaps unaligned.
            let aux = unsafe { data.cast::<libc::tpacket_auxdata>().read_unaligned() };
            each(Arrived { cast: address.sll_pkttype, bytes: with_tag(bytes, &aux) });
        }
        received
    }

    /// How many frames there was no room for, since the last time.
    #[must_use]
    pub fn lost(&self) -> u32 {
        // SAFETY: all zero is a valid tpacket_stats.
        let mut stats: libc::tpacket_stats = unsafe { mem::zeroed() };
        let mut length = u32::try_from(size_of_val(&stats)).unwrap();
        // SAFETY: room of the length that we say.
        let result = unsafe {
            libc::getsockopt(
                self.socket.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0, "PACKET_STATISTICS: {}", io::Error::last_os_error());
        stats.tp_drops
    }
}

/// A frame as it was sent: the kernel takes the outer tag out.
fn with_tag(bytes: &[u8], aux: &libc::tpacket_auxdata) -> Vec<u8> {
    if aux.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return bytes.to_owned();
    }
    assert_ne!(aux.tp_status & libc::TP_STATUS_VLAN_TPID_VALID, 0, "a tag of unknown kind");
    let (addresses, rest) = bytes.split_at(12);
    [addresses, &aux.tp_vlan_tpid.to_be_bytes(), &aux.tp_vlan_tci.to_be_bytes(), rest].concat()
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
