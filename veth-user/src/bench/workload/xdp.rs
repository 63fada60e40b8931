//! Frames that the kernel makes itself: `BPF_PROG_TEST_RUN` with live frames, as if they came in on a link.
//!
//! Minimum kernel version: 5.18 (`BPF_F_TEST_XDP_LIVE_FRAMES`).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, TestRun as _,
    programs::{Program, ProgramError, TestRunAttrs, TestRunOptions, Xdp},
};
use veth_common::Mac;

use super::{End, Ends, Error, Failed, Part, Setting};
use crate::{bench::cpu, datapath::NULL_XDP, net::Netlink};

/// Frames that the kernel makes in one call, and hands over at once.
const FRAMES: u32 = 6_400;
const BATCH: u32 = 64;

/// How long the last frames may be on their way.
const SETTLE: Duration = Duration::from_millis(2);

/// The length of the headers: Ethernet, IPv6, UDP.
const HEADERS: usize = 14 + 40 + 8;

/// The protocol number of UDP.
const UDP: u8 = 17;

/// Where frames come in, and what decides about them there.
pub(in super::super) struct Injection {
    pub(in super::super) generator: Generator,
    /// The link on which they come in.
    pub(in super::super) ifindex: u32,
    /// The Ethernet addresses that they go to and come from.
    pub(in super::super) macs: [Mac; 2],
    /// The receiving pod's link.
    pub(in super::super) link: String,
}

/// A program that decides about every frame.
pub(in super::super) enum Generator {
    /// Leaves it to the stack, where programs of TC, bridges and routes are.
    Pass(Ebpf),
    /// Ours.
    Own(Box<Xdp>),
}

impl Injection {
    fn run(&self, frame: &[u8]) -> Result<(), ProgramError> {
        let words = [0, u32::try_from(frame.len()).unwrap_or_default(), 0, self.ifindex, 0, 0];
        let context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat: FRAMES,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        match &self.generator {
            Generator::Own(program) => program.test_run(options)?,
            Generator::Pass(object) => match object.program(NULL_XDP) {
                Some(Program::Xdp(program)) => program.test_run(options)?,
                _ => return Err(ProgramError::NotLoaded),
            },
        };
        Ok(())
    }
}

/// What counts is what the receiving pod's link counts.
pub(super) fn flood(ends: &Ends, setting: &Setting, injection: &Injection) -> Result<Part, Error> {
    let [client, server] = ends;
    let explain = |failed| super::explain("receiving end", failed, ends);
    // Somebody must be there for it, or each frame is answered.
    let sink = server.namespace.run(|| UdpSocket::bind(SocketAddr::new(server.address, 0)))?;
    let sink = sink.map_err(|source| explain(("make a socket", source)))?;
    let port = sink.local_addr().map_err(|source| explain(("make a socket", source)))?.port();
    let frame = frame(injection.macs, client.address, SocketAddr::new(server.address, port), setting.size);
    let before = received(server, injection)?;
    let work = || {
        cpu::pin(setting.cpus[0]).map_err(|source| explain(("bind it to a CPU", source)))?;
        let (mut sent, start) = (0_u64, Instant::now());
        while start.elapsed() < setting.duration {
            injection.run(&frame).map_err(|source| explain(("make frames", io::Error::other(source))))?;
            sent += u64::from(FRAMES);
        }
        Ok::<_, Error>((sent, start.elapsed()))
    };
    let (sent, elapsed) =
        thread::scope(|scope| scope.spawn(work).join()).map_err(|_panic| Error::Panic)??;
    thread::sleep(SETTLE);
    let received = received(server, injection)? - before;
    if received == 0 {
        return Err(explain(("receive", io::Error::from(io::ErrorKind::TimedOut))));
    }
    #[expect(clippy::cast_precision_loss, reason = "there are millions at most")]
    let operations = received as f64;
    let lost = Some((sent, sent.saturating_sub(received)));
    Ok(Part { rate: operations / elapsed.as_secs_f64(), operations, latency: None, lost })
}

fn received(end: &End, injection: &Injection) -> Result<u64, Error> {
    let look = || -> Result<u64, Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| ("start a runtime", source))?;
        runtime.block_on(async {
            let netlink = Netlink::open().map_err(|error| ("open netlink", io::Error::other(error)))?;
            let link = netlink.link(&injection.link).await;
            Ok(link.map_err(|error| ("look at the link", io::Error::other(error)))?.stats.rx_packets)
        })
    };
    let explain = |(action, source)| Error::Socket { end: "receiving end", action, source };
    end.namespace.run(look)?.map_err(explain)
}

/// A UDP datagram as it is on a cable.
fn frame([to, from]: [Mac; 2], source: IpAddr, target: SocketAddr, size: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADERS + size);
    frame.extend(to.bytes());
    frame.extend(from.bytes());
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
    match (source, target.ip()) {
        (IpAddr::V4(source), IpAddr::V4(to)) => {
            frame.extend([0x08, 0x00]);
            frame.extend(ipv4(source, to, length(20 + 8 + size)));
        }
        (IpAddr::V6(source), IpAddr::V6(to)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length(8 + size));
            frame.extend([UDP, 64]);
            frame.extend([source, to].map(|address| address.octets()).concat());
        }
        // Both ends are of one family.
        _ => {}
    }
    // From the discard port, without a checksum: over IPv6 that is refused later, after the link has counted it.
    frame.extend(9_u16.to_be_bytes());
    frame.extend(target.port().to_be_bytes());
    frame.extend(length(8 + size));
    frame.extend([0, 0]);
    frame.resize(frame.len() + size, 0x5a);
    frame
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, length: [u8; 2]) -> [u8; 20] {
    let ([a, b, c, d], [e, f, g, h], [high, low]) = (from.octets(), to.octets(), length);
    let mut header = [0x45, 0, high, low, 0, 0, 0x40, 0, 64, UDP, 0, 0, a, b, c, d, e, f, g, h];
    let words = header.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [high, low] = (!u16::try_from(sum).unwrap_or_default()).to_be_bytes();
    (header[10], header[11]) = (high, low);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 1071's usual tutorials: the sum over a header with its checksum is all ones.
    #[test]
    fn a_header_with_its_checksum_adds_up_to_ones() {
        let header = ipv4([192, 168, 0, 1].into(), [192, 168, 0, 199].into(), [0, 0x73]);
        let mut sum: u32 =
            header.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        sum = (sum & 0xffff) + (sum >> 16);
        assert_eq!(sum, 0xffff);
        assert_eq!(header[10..12], [0xb8, 0x61]);
    }

    #[test]
    fn frames_are_as_long_as_they_say() {
        let macs = [Mac::new([2; 6]), Mac::new([4; 6])];
        let v4 = frame(macs, [10, 0, 0, 1].into(), "10.0.0.2:7".parse().unwrap(), 64);
        assert_eq!((v4.len(), &v4[16..18]), (14 + 20 + 8 + 64, &[0_u8, 92][..]));
        let v6 = frame(macs, "fd00::1".parse().unwrap(), "[fd00::2]:7".parse().unwrap(), 64);
        assert_eq!((v6.len(), &v6[18..20]), (14 + 40 + 8 + 64, &[0_u8, 72][..]));
    }
}
