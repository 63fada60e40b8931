//! Captures as pcapng: an interface for each port, and what became of a frame as its comment.

use std::{borrow::Cow, collections::BTreeMap, io::Write, time::SystemTime};

use pcap_file::{
    DataLink, PcapError,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            section_header::{SectionHeaderBlock, SectionHeaderOption},
        },
    },
};
use veth_common::watch::Outcome;

use super::{Owner, Seen, checksum, describe};

/// Timestamps are in nanoseconds: ten to the power of minus this.
const NANOSECONDS: u8 = 9;

/// `epb_flags`: towards the host, and away from it.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Writes a capture.
pub struct Writer<W: Write> {
    blocks: PcapNgWriter<W>,
    interfaces: BTreeMap<Owner, u32>,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a capture of some ports.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn new(out: W, owners: &[Owner], snap: u32) -> Result<Self, PcapError> {
        let application = format!("veth {}", env!("CARGO_PKG_VERSION"));
        let options = vec![SectionHeaderOption::UserApplication(Cow::Owned(application))];
        let header = SectionHeaderBlock { options, ..SectionHeaderBlock::default() };
        let mut writer = PcapNgWriter::with_section_header(out, header)?;
        let mut interfaces = BTreeMap::new();
        let mut bytes = 0;
        for owner in owners {
            let block = InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: snap,
                options: vec![
                    InterfaceDescriptionOption::IfName(Cow::Owned(owner.name())),
                    InterfaceDescriptionOption::IfDescription(Cow::Owned(format!("host end {}", owner.link))),
                    InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
                ],
            };
            bytes += writer.write_pcapng_block(block)?;
            interfaces.insert(owner.clone(), u32::try_from(interfaces.len()).unwrap_or(u32::MAX));
        }
        Ok(Self { blocks: writer, interfaces, bytes: length(bytes) })
    }

    /// Writes a frame: in the file of the port where it was decided on, or that it leaves by.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&mut self, seen: &Seen<'_>) -> Result<(), PcapError> {
        let Seen { time, owner, outcome, event, bytes, .. } = seen;
        let Some(interface) = self.interfaces.get(*owner) else { return Ok(()) };
        let mut frame = bytes.to_vec();
        if event.captured == event.length {
            checksum::complete(&mut frame);
        }
        let mut original_len = event.length;
        if event.tag != 0 && frame.len() >= 12 {
            // The kernel keeps it beside the frame.
            let [tci, protocol] = [event.tag >> 16, event.tag & 0xffff];
            let protocol = u16::try_from(protocol).unwrap_or_default().to_ne_bytes();
            let tci = u16::try_from(tci).unwrap_or_default().to_be_bytes();
            frame.splice(12..12, protocol.into_iter().chain(tci));
            original_len += 4;
        }
        let direction = if *outcome == Outcome::Sent { OUTBOUND } else { INBOUND };
        let block = EnhancedPacketBlock {
            interface_id: *interface,
            timestamp: time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
            original_len,
            data: Cow::Owned(frame),
            options: vec![
                EnhancedPacketOption::Comment(Cow::Owned(describe::outcome(seen))),
                EnhancedPacketOption::Flags(direction),
            ],
        };
        self.bytes += length(self.blocks.write_pcapng_block(block)?);
        Ok(())
    }

    /// How many bytes were written.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes out what is still in memory.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.blocks.get_mut().flush()
    }
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use pcap_file::pcapng::{Block, PcapNgReader};
    use veth_common::{PassReason, watch::Event};

    use super::*;

    #[test]
    fn a_capture_can_be_read_again() {
        let owner = |pod: &str| Owner {
            topology: "lab".to_owned(),
            pod: Some(pod.to_owned()),
            port: "eth0".to_owned(),
            link: format!("lab-{pod}"),
        };
        let owners = [owner("a"), owner("b")];
        let event = Event {
            length: 60,
            captured: 14,
            tag: 5 << 16 | u32::from(0x8100_u16.to_be()),
            ..Event::default()
        };
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(1_234_567_891);
        let bytes = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        let seen = Seen {
            time,
            owner: &owners[1],
            outcome: Outcome::Passed(PassReason::Group),
            target: None,
            event: &event,
            bytes: &bytes,
        };
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, &owners, 14).unwrap();
        writer.write(&seen).unwrap();
        assert!(writer.bytes() > 100);
        let mut reader = PcapNgReader::new(file.as_slice()).unwrap();
        let mut packets = Vec::new();
        while let Some(block) = reader.next_block() {
            if let Block::EnhancedPacket(packet) = block.unwrap().into_owned() {
                packets.push(packet);
            }
        }
        assert_eq!(packets.len(), 1);
        let packet = &packets[0];
        assert_eq!((packet.interface_id, packet.original_len), (1, 64));
        assert_eq!(packet.data[12..], [0x81, 0, 0, 5, 8, 0]);
        assert_eq!(packet.timestamp.as_nanos(), 1_234_567_891);
        assert!(packet.options.contains(&EnhancedPacketOption::Comment("passed: group".into())));
        assert!(packet.options.contains(&EnhancedPacketOption::Flags(INBOUND)));
    }
}
