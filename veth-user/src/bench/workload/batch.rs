//! Many datagrams in one system call: `sendmmsg` and `recvmmsg`.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsRawFd as _, RawFd},
    ptr,
};

/// Datagrams a call.
pub(super) const LENGTH: usize = 64;

/// Buffers for as many datagrams as one call handles.
pub(super) struct Batch {
    /// What all datagrams are sent from, or received to: nobody reads it.
    _buffer: Vec<u8>,
    /// The only piece of each.
    _pieces: Vec<libc::iovec>,
    messages: Vec<libc::mmsghdr>,
}

impl Batch {
    /// For datagrams of a size, in bytes.
    pub(super) fn new(size: usize) -> Self {
        let mut buffer = vec![0x5a; size.max(1)];
        let mut pieces = vec![libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: size }; LENGTH];
        let messages = pieces
            .iter_mut()
            .map(|piece| {
                // SAFETY: numbers and pointers, of which zero is a valid value: no address, no control data.
                let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
                header.msg_iov = ptr::from_mut(piece);
                header.msg_iovlen = 1;
                libc::mmsghdr { msg_hdr: header, msg_len: 0 }
            })
            .collect();
        Self { _buffer: buffer, _pieces: pieces, messages }
    }

    /// Sends up to so many and returns how many went.
    pub(super) fn send(&mut self, socket: &UdpSocket, count: usize) -> io::Result<usize> {
        let (socket, length) = (socket.as_raw_fd(), count.min(LENGTH));
        self.call(length, |messages, length| {
            // SAFETY: as many headers as said, each with one piece of a buffer, all alive and where they were:
            // vectors of a value that is borrowed here, and none of them grows.
            unsafe { libc::sendmmsg(socket, messages, length, 0) }
        })
    }

    /// Waits for one, takes all that are there, up to a batch, and returns how many came.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let socket: RawFd = socket.as_raw_fd();
        self.call(LENGTH, |messages, length| {
            // SAFETY: as above. All are received to the same buffer, which nobody reads.
            unsafe { libc::recvmmsg(socket, messages, length, libc::MSG_WAITFORONE, ptr::null_mut()) }
        })
    }

    fn call(
        &mut self,
        length: usize,
        call: impl FnOnce(*mut libc::mmsghdr, libc::c_uint) -> libc::c_int,
    ) -> io::Result<usize> {
        let length = libc::c_uint::try_from(length).map_err(io::Error::other)?;
        usize::try_from(call(self.messages.as_mut_ptr(), length)).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_arrives() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        let (mut out, mut into) = (Batch::new(100), Batch::new(100));
        assert_eq!(out.send(&a, 3).unwrap(), 3);
        assert_eq!(into.receive(&b).unwrap(), 3);
        assert_eq!(into.messages[2].msg_len, 100);
        assert_eq!(out.send(&a, 1_000).unwrap(), LENGTH);
    }
}
