//! The counters of a running topology, read out of the memory that the programs write to.

use std::{
    io,
    ops::Range,
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use aya::{
    maps::{Array, Map, MapData, MapInfo},
    util::nr_cpus,
};
use memmap2::{MmapOptions, MmapRaw};
use veth_common::PortCounters;

use super::{
    Error,
    load::{COUNTERS, PORTS},
    map_error,
    maps::{open_pinned, typed},
    pins::Pins,
};

/// The counters of every slot, in parts: one for each processor, and one of what was carried over from other maps.
pub struct Counters {
    map: Array<MapData, PortCounters>,
    memory: MmapRaw,
    slots: u32,
    parts: u32,
}

impl Counters {
    /// Opens a topology's pinned counters.
    ///
    /// # Errors
    ///
    /// When they are not there, or of another layout.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        let path = pins.map(COUNTERS);
        let data = open_pinned::<u32, PortCounters>(&path)?;
        let failed = |source| Error::kernel(format!("map {} into memory", path.display()), source);
        let info = data.info().map_err(|source| map_error(format!("open {}", path.display()), source))?;
        let path_of_ports = pins.map(PORTS);
        let slots = MapInfo::from_pin(&path_of_ports)
            .map_err(|source| map_error(format!("open {}", path_of_ports.display()), source))?
            .max_entries();
        let parts = info.max_entries() / slots;
        let length = usize::try_from(slots * parts).unwrap_or_default() * size_of::<PortCounters>();
        let memory = MmapOptions::new().len(length).map_raw_read_only(&data.fd().as_fd()).map_err(failed)?;
        let map = typed(Map::Array(data))?;
        Ok(Self { map, memory, slots, parts })
    }

    /// A slot's counters on each processor, in their order, and those that were carried over.
    ///
    /// # Errors
    ///
    /// When there is no such slot.
    pub fn read_each(&self, slot: u32) -> Result<(Vec<PortCounters>, PortCounters), Error> {
        let read = |part| {
            let mut copy = [0; PortCounters::WORDS];
            for (copy, word) in copy.iter_mut().zip(self.words(slot, part)?) {
                *copy = word.load(Ordering::Relaxed);
            }
            Ok(from_words(&copy))
        };
        let carried = self.parts - 1;
        Ok(((0..carried).map(read).collect::<Result<_, Error>>()?, read(carried)?))
    }

    /// Sets a slot's counters to zero, all parts.
    pub(super) fn clear(&mut self, slot: u32) -> Result<(), Error> {
        let failed = |source| map_error(format!("clear the counters of slot {slot}"), source);
        for part in 0..self.parts {
            // Those that are zero already are most, and reading costs no call.
            if self.words(slot, part)?.iter().any(|word| word.load(Ordering::Relaxed) != 0) {
                let index = part * self.slots + slot;
                self.map.set(index, PortCounters::default(), 0).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Takes what each slot has counted in other maps, whose programs have come to their ends, for what was carried over.
    /// It may be done again.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn carry(&mut self, from: &Self) -> Result<(), Error> {
        (0..self.slots.min(from.slots))
            .try_for_each(|slot| self.set_carried(slot, &from.sum(slot, 0..from.parts)?))
    }

    /// Takes only what each slot of other maps had carried over itself.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn copy_carried(&mut self, from: &Self) -> Result<(), Error> {
        (0..self.slots.min(from.slots))
            .try_for_each(|slot| self.set_carried(slot, &from.sum(slot, from.parts - 1..from.parts)?))
    }

    fn sum(&self, slot: u32, parts: Range<u32>) -> Result<[u64; PortCounters::WORDS], Error> {
        let mut sum = [0; PortCounters::WORDS];
        for part in parts {
            for (sum, word) in sum.iter_mut().zip(self.words(slot, part)?) {
                *sum += word.load(Ordering::Relaxed);
            }
        }
        Ok(sum)
    }

    /// Behind the last processor: no program writes there.
    fn set_carried(&mut self, slot: u32, sum: &[u64; PortCounters::WORDS]) -> Result<(), Error> {
        let index = (self.parts - 1) * self.slots + slot;
        let failed = |source| map_error(format!("carry the counters of slot {slot} over"), source);
        self.map.set(index, from_words(sum), 0).map_err(failed)
    }

    /// The numbers of a slot in a part, where they are written.
    fn words(&self, slot: u32, part: u32) -> Result<&[AtomicU64; PortCounters::WORDS], Error> {
        if slot >= self.slots {
            let what = io::Error::new(io::ErrorKind::InvalidInput, "there are not so many");
            return Err(Error::kernel(format!("read the counters of slot {slot}"), what));
        }
        let index = usize::try_from(part * self.slots + slot).unwrap_or_default();
        // SAFETY: the mapping has `slots` times `parts` entries of that size, of which this is one.
        let entry = unsafe { self.memory.as_ptr().add(index * size_of::<PortCounters>()) };
        #[expect(
            clippy::cast_ptr_alignment,
            reason = "a mapping begins at a page, and entries are cache lines"
        )]
        let words = entry.cast::<[AtomicU64; PortCounters::WORDS]>();
        // SAFETY: an entry consists of 64-bit numbers, is aligned to a cache line, and is there as long as `self` is. The
        // programs write to it meanwhile, in whole numbers, which is what atomic loads are for.
        Ok(unsafe { &*words })
    }
}

/// Waits until programs that ran when it was called have come to their ends.
pub fn wait_for_programs() {
    /// Of `linux/membarrier.h`: a grace period of RCU, under which programs run.
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    /// Where the kernel has no such call: far longer than any program runs.
    const LONG: Duration = Duration::from_millis(500);
    // SAFETY: plain numbers, and no memory.
    if unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } != 0 {
        std::thread::sleep(LONG);
    }
}

/// How many parts `COUNTERS` has: one for each processor that there may ever be, and one of what was carried over.
pub(super) fn parts() -> Result<u32, Error> {
    let cpus = nr_cpus()
        .map_err(|(what, source)| Error::kernel(format!("count the processors in {what}"), source))?;
    Ok(u32::try_from(cpus).unwrap_or(u32::MAX).saturating_add(1))
}

const fn from_words(words: &[u64; PortCounters::WORDS]) -> PortCounters {
    // SAFETY: `repr(C)`, and nothing but 64-bit numbers.
    unsafe { std::mem::transmute(*words) }
}
