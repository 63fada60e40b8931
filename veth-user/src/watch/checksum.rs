//! Checksums that a pod left to a network card that there is none of.
//!
//! Between pods no checksum is ever computed: the sender leaves the sum of the pseudo-header in its place
//! (`CHECKSUM_PARTIAL`), and the receiver believes it. Tools that read a capture call it wrong, so it is completed there.

use veth_common::{
    ethertype::{IPV4, IPV6},
    ip_protocol::{TCP, UDP},
};

/// Completes the checksum of a whole frame without tags, if it is TCP or UDP and its checksum is one that was left to do.
/// Returns whether it was.
pub fn complete(frame: &mut [u8]) -> bool {
    let Some((start, sum, protocol)) = transport(frame) else { return false };
    let segment = &mut frame[start..];
    let at = match protocol {
        TCP => 16,
        _ => 6,
    };
    let Some(field) = segment.get(at..at + 2) else { return false };
    if u16::from_be_bytes([field[0], field[1]]) != sum {
        return false;
    }
    // The sum of the pseudo-header is in it already.
    let mut whole = !add(0, segment);
    if whole == 0 && protocol == UDP {
        // Zero says that there is none.
        whole = u16::MAX;
    }
    segment[at..at + 2].copy_from_slice(&whole.to_be_bytes());
    true
}

/// Where the segment or datagram begins, the sum of its pseudo-header, and what it is. `None` for what is neither TCP nor
/// UDP, a fragment, or not whole.
fn transport(frame: &[u8]) -> Option<(usize, u16, u8)> {
    const START: usize = 14;
    let ethertype = u16::from_ne_bytes(frame.get(12..14)?.try_into().ok()?);
    let packet = &frame[START..];
    let (header, length, protocol, addresses) = if ethertype == IPV4 {
        let header = usize::from(packet.first()? & 15) * 4;
        let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
        if u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff != 0 {
            return None;
        }
        (header, total.checked_sub(header)?, *packet.get(9)?, packet.get(12..20)?)
    } else if ethertype == IPV6 {
        let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
        (40, length, *packet.get(6)?, packet.get(8..40)?)
    } else {
        return None;
    };
    if !matches!(protocol, TCP | UDP) || packet.len() != header + length {
        return None;
    }
    let length = u32::try_from(length).ok()?;
    Some((START + header, add(u32::from(protocol) + length, addresses), protocol))
}

/// The ones' complement sum of words in the order of the frame.
fn add(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = u64::from(start);
    for word in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or_default()]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

    use super::*;

    /// A frame as a library makes it, and with what a kernel leaves in place of its checksum.
    fn frames(builder: etherparse::PacketBuilderStep<etherparse::UdpHeader>, size: usize) -> [Vec<u8>; 2] {
        let mut whole = Vec::new();
        builder.write(&mut whole, &vec![7; size]).unwrap();
        let (start, sum, _) = transport(&whole).unwrap();
        let mut partial = whole.clone();
        partial[start + 6..start + 8].copy_from_slice(&sum.to_be_bytes());
        [whole, partial]
    }

    #[test]
    fn what_was_left_is_completed() {
        let ethernet = || PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        for size in [0, 1, 10, 1_401] {
            for [whole, mut partial] in [
                frames(ethernet().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2), size),
                frames(ethernet().ipv6([0xfd; 16], [0xfe; 16], 64).udp(1, 2), size),
            ] {
                assert_ne!(whole, partial);
                assert!(complete(&mut partial));
                assert_eq!(whole, partial, "{size}");
            }
        }
        let mut tcp = Vec::new();
        let builder = ethernet().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1, 2, 3, 4);
        builder.write(&mut tcp, b"hello").unwrap();
        let whole = tcp.clone();
        let (start, sum, _) = transport(&tcp).unwrap();
        tcp[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
        assert!(complete(&mut tcp));
        assert_eq!(tcp, whole);
        let sliced = SlicedPacket::from_ethernet(&tcp).unwrap();
        assert!(matches!(sliced.transport, Some(TransportSlice::Tcp(_))));
    }

    #[test]
    fn all_else_stays_as_it_is() {
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2);
        let [whole, partial] = frames(builder, 100);
        let mut wrong = whole.clone();
        wrong[60] ^= 1;
        let mut fragment = partial.clone();
        fragment[20] |= 0x20;
        for frame in [&whole[..], &wrong, &fragment, &partial[..100], &partial[..20], &partial[..3], &[]] {
            let mut copy = frame.to_vec();
            assert!(!complete(&mut copy));
            assert_eq!(copy, frame);
        }
    }
}
