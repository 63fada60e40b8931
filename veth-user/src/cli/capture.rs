//! `veth capture`.

use std::{
    io::{self, BufWriter, IsTerminal as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pcap_file::PcapError;

use super::{
    options::period,
    trace::{Told, wanted, watch},
};
use crate::{
    state::Roots,
    watch::{Owner, Session, Wish, filter, pcapng::Writer},
};

/// Room for what comes while nobody looks: half a second of a fast pod.
const BUFFER: u32 = 64 << 20;

/// The most of a frame that is taken, and what 0 means.
const SNAP_MAX: u32 = 65_535;

/// Write the frames of a pod to a pcapng file, both directions
///
/// Frames are taken where they are decided on, so that also those are there that no tool on the host end sees because
/// they are redirected past it. Each has the port as its interface and what became of it as its comment. Checksums that
/// the pod left to a network card are completed. The programs that take them stand in front of all others and go with
/// this process, however it ends. Needs Linux 6.6 and the hooks tcx or clsact.
///
/// The filter has a few of the words of pcap-filter(7), with their meaning there: arp, ip, ip6, tcp, udp, icmp, icmp6,
/// [src|dst] host ADDRESS, [src|dst] port NUMBER, joined by `and`. Two hosts and two ports at most.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth capture lab/a -w a.pcapng
  sudo veth capture lab/a -s 96 tcp and port 80 -w a.pcapng
  sudo veth capture lab/a -w - | wireshark -k -i -
  sudo veth capture lab/a -w a.pcapng --rotate 100 --files 5")]
pub(super) struct Args {
    /// The pod, or TOPOLOGY/POD
    pod: String,

    /// Which frames [default: all]
    filter: Vec<String>,

    /// The file; `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,

    /// Bytes taken of each frame; 0 takes all, up to 65,535
    #[arg(short, long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=i64::from(SNAP_MAX)))]
    snap: u32,

    /// End after so many frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,

    /// End after this long [default: never]
    #[arg(long = "for", value_name = "TIME", value_parser = period)]
    duration: Option<Duration>,

    /// Begin another file after so many megabytes (10^6): a.pcapng, a.1.pcapng, a.2.pcapng, …
    #[arg(long, value_name = "MEGABYTES", value_parser = clap::value_parser!(u64).range(1..))]
    rotate: Option<u64>,

    /// Keep so many files and overwrite the oldest
    #[arg(long, value_name = "N", requires = "rotate", value_parser = clap::value_parser!(u64).range(1..))]
    files: Option<u64>,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    super::privilege::require("capture")?;
    let Args { pod, filter, write, snap, limit, duration, rotate, files } = args;
    let filter = filter::parse(&filter.join(" "))?;
    let snap = if snap == 0 { SNAP_MAX } else { snap };
    let to_output = write.as_os_str() == "-";
    ensure!(
        !to_output || !io::stdout().is_terminal(),
        "a capture is no text for a terminal: write it to a file, or pipe it to `wireshark -k -i -`"
    );
    ensure!(!to_output || rotate.is_none(), "standard output is one file: --rotate needs another");
    let (records, Some(pod)) = wanted(roots, Some(&pod))? else {
        anyhow::bail!("{pod} is a topology: name one of its pods, as {pod}/POD");
    };
    let mut files =
        Files { path: write, snap, rotate: rotate.map(|rotate| rotate * 1_000_000), keep: files, number: 0 };
    let wish = Wish { snap, sample: 1, filter, both_ways: true, buffer: BUFFER };
    let mut session = Session::start(roots, &records, Some(&pod), &wish).await?;
    let owners: Vec<Owner> = session.owners().cloned().collect();
    // Not before there is something to write: a file of that name stays as it is when nothing can be captured.
    let mut writer = Writer::new(files.open()?, &owners, snap).map_err(|error| files.failed(error))?;
    let mut taken = 0_u64;
    let limit = limit.unwrap_or(u64::MAX);
    let each = |told: Told<'_, '_>| {
        let seen = match told {
            Told::Frame(seen) => seen,
            Told::NoMore => {
                writer.flush().map_err(|error| files.failed(PcapError::IoError(error)))?;
                return Ok(true);
            }
        };
        if files.is_full(writer.bytes()) {
            writer = files.next(&mut writer, &owners)?;
        }
        writer.write(seen).map_err(|error| files.failed(error))?;
        taken += 1;
        Ok(taken < limit)
    };
    let result = watch(&mut session, duration, each).await;
    let lost = session.lost()?;
    session.stop()?;
    eprintln!("{taken} frames of {pod} captured, {lost} lost for want of room");
    result.map(|()| ExitCode::SUCCESS)
}

type Out = BufWriter<Box<dyn Write>>;

/// The files of a capture.
struct Files {
    path: PathBuf,
    snap: u32,
    rotate: Option<u64>,
    keep: Option<u64>,
    number: u64,
}

impl Files {
    /// Opens the file that it is the turn of.
    fn open(&self) -> Result<Out> {
        if self.path.as_os_str() == "-" {
            return Ok(BufWriter::new(Box::new(io::stdout())));
        }
        let path = numbered(&self.path, self.number);
        // What pods say to each other is nobody else's business.
        let file = super::output().truncate(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("write {}", path.display()))?;
        Ok(BufWriter::new(Box::new(file)))
    }

    fn is_full(&self, bytes: u64) -> bool {
        self.rotate.is_some_and(|rotate| bytes >= rotate)
    }

    /// Ends one file and begins another.
    fn next(&mut self, writer: &mut Writer<Out>, owners: &[Owner]) -> Result<Writer<Out>> {
        writer.flush().map_err(|error| self.failed(PcapError::IoError(error)))?;
        self.number += 1;
        if let Some(keep) = self.keep {
            self.number %= keep;
        }
        Writer::new(self.open()?, owners, self.snap).map_err(|error| self.failed(error))
    }

    /// An error with the file that it is about.
    fn failed(&self, error: PcapError) -> anyhow::Error {
        let path = numbered(&self.path, self.number);
        let what = format!("write {}", path.display());
        match error {
            // So that a reader that has gone is known as such.
            PcapError::IoError(error) => anyhow::Error::new(error).context(what),
            other => anyhow::Error::new(other).context(what),
        }
    }
}

/// `a.pcapng`, `a.1.pcapng`, …
fn numbered(path: &Path, number: u64) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".{number}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_numbered_before_their_extension() {
        let name = |path: &str, number| numbered(Path::new(path), number).display().to_string();
        assert_eq!(name("/x/a.pcapng", 0), "/x/a.pcapng");
        assert_eq!(name("/x/a.pcapng", 3), "/x/a.3.pcapng");
        assert_eq!(name("a", 1), "a.1");
    }
}
