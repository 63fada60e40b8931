//! The watching programs: loaded beside those of a topology, on attachments that end with this process.

use std::time::Duration;

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, RingBuf},
    programs::{LinkOrder, Program, TcAttachType, tc::TcAttachOptions},
};
use veth_common::watch::{Event, Filter, WATCHED_MAX};

use super::{
    Error, check_look_up,
    load::{Shared, load_object, load_program, loader},
    map_error,
    pins::Pins,
};
use crate::net::tc::Direction;

/// Events for whoever watches.
const EVENTS: &str = "EVENTS";

/// Events that there was no room for.
const EVENTS_LOST: &str = "EVENTS_LOST";

/// The program where frames come in.
pub const WATCH: &str = "veth_watch";

/// The program where they leave.
pub const WATCH_OUT: &str = "veth_watch_out";

/// How long events may wait until somebody looks. The buffer must hold what comes in that time.
pub const PERIOD: Duration = Duration::from_millis(10);

/// What is to be told of.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many bytes of each frame.
    pub snap: u32,
    /// One frame in so many.
    pub sample: u32,
    /// The host ends whose frames are meant; zero for none, and all zero for any.
    pub ports: [u32; WATCHED_MAX],
    /// Whether those are also watched on their way out.
    pub egress: bool,
    /// Which frames are meant besides.
    pub filter: Filter,
    /// The size of the buffer in bytes, a power of two.
    pub buffer: u32,
}

/// Loaded programs, and what they tell.
pub struct Watch {
    ebpf: Ebpf,
    events: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
}

impl Watch {
    /// Loads the programs. They decide by the maps of a topology, where it has any.
    ///
    /// # Errors
    ///
    /// When the maps are of another layout, or the kernel refuses a program.
    pub fn load(pins: Option<&Pins>, options: &Options) -> Result<Self, Error> {
        let Options { snap, sample, ports, egress, filter, buffer } = options;
        let chance = if *sample > 1 { u32::MAX / sample } else { u32::MAX };
        let egress = u32::from(*egress);
        let shared = pins.map(Shared::open).transpose()?;
        let mut loader = loader()?;
        loader
            .override_global("WATCH_SNAP", snap, true)
            .override_global("WATCH_CHANCE", &chance, true)
            .override_global("WATCH_PORTS", ports, true)
            .override_global("WATCH_EGRESS", &egress, true)
            .override_global("WATCH_FILTER", filter, true)
            .map_max_entries(EVENTS, *buffer);
        if let Some(shared) = &shared {
            shared.tell(&mut loader);
        }
        let mut ebpf = load_object(&mut loader)?;
        for name in [WATCH, WATCH_OUT] {
            load_program(&mut ebpf, name)?;
        }
        let mut take = |name: &str| ebpf.take_map(name).ok_or(Error::NotLoaded);
        let typed = |source| map_error("use the events", source);
        let events = RingBuf::try_from(take(EVENTS)?).map_err(typed)?;
        let lost = PerCpuArray::try_from(take(EVENTS_LOST)?).map_err(typed)?;
        Ok(Self { ebpf, events, lost })
    }

    /// Watches a link of the calling thread's namespace, in front of all others, until this value is dropped or the process
    /// ends in any way.
    ///
    /// Minimum kernel version: 6.6 (TCX).
    ///
    /// # Errors
    ///
    /// When the link is gone or the kernel refuses.
    pub fn attach(&mut self, link: &str, direction: Direction) -> Result<(), Error> {
        let (name, hook) = match direction {
            Direction::Ingress => (WATCH, TcAttachType::Ingress),
            Direction::Egress => (WATCH_OUT, TcAttachType::Egress),
        };
        let Some(Program::SchedClassifier(program)) = self.ebpf.program_mut(name) else {
            return Err(Error::NotLoaded);
        };
        let action = format!("watch {link}");
        check_look_up(&action)?;
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        program
            .attach_with_options(link, hook, first)
            .map(drop)
            .map_err(|source| Error::program(action, name, source))
    }

    /// The next event and the bytes of its frame, if there is one.
    pub fn next<T>(&mut self, read: impl FnOnce(&Event, &[u8]) -> T) -> Option<T> {
        let item = self.events.next()?;
        let (head, bytes) = item.split_at_checked(Event::LENGTH)?;
        // SAFETY: as many bytes as an event has, of which any are one; perhaps not aligned.
        let event = unsafe { head.as_ptr().cast::<Event>().read_unaligned() };
        let captured = usize::try_from(event.captured).unwrap_or_default().min(bytes.len());
        Some(read(&event, &bytes[..captured]))
    }

    /// How many events there was no room for, so far.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub fn lost(&self) -> Result<u64, Error> {
        let lost = self.lost.get(&0, 0).map_err(|source| map_error("count lost events", source))?;
        Ok(lost.iter().sum())
    }
}
