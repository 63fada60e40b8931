//! The counters of a running topology, read out of the memory that the programs write to.

use std::{
    io,
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    maps::{Array, Map, MapData},
    util::nr_cpus,
};
use memmap2::{MmapOptions, MmapRaw};
use veth_common::PortCounters;

use super::{
    Error,
    load::COUNTERS,
    map_error,
    maps::{open_pinned, typed},
    pins::Pins,
};

/// The counters of every slot, for each processor.
pub struct Counters {
    map: Array<MapData, PortCounters>,
    memory: MmapRaw,
    slots: u32,
    cpus: u32,
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
        let cpus = processors()?;
        let info = data.info().map_err(|source| map_error(format!("open {}", path.display()), source))?;
        let slots = info.max_entries() / cpus;
        let length = usize::try_from(slots * cpus).unwrap_or_default() * size_of::<PortCounters>();
        let memory = MmapOptions::new().len(length).map_raw_read_only(&data.fd().as_fd()).map_err(failed)?;
        let map = typed(Map::Array(data))?;
        Ok(Self { map, memory, slots, cpus })
    }

    /// A slot's counters on each processor, in their order.
    ///
    /// # Errors
    ///
    /// When there is no such slot.
    pub fn read_each(&self, slot: u32) -> Result<Vec<PortCounters>, Error> {
        let read = |cpu| {
            let mut copy = [0; PortCounters::WORDS];
            for (copy, word) in copy.iter_mut().zip(self.words(slot, cpu)?) {
                *copy = word.load(Ordering::Relaxed);
            }
            Ok(from_words(&copy))
        };
        (0..self.cpus).map(read).collect()
    }

    /// Sets a slot's counters to zero on all processors.
    pub(super) fn clear(&mut self, slot: u32) -> Result<(), Error> {
        let failed = |source| map_error(format!("clear the counters of slot {slot}"), source);
        for cpu in 0..self.cpus {
            // Those that are zero already are most, and reading costs no call.
            if self.words(slot, cpu)?.iter().any(|word| word.load(Ordering::Relaxed) != 0) {
                let index = cpu * self.slots + slot;
                self.map.set(index, PortCounters::default(), 0).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// The numbers of a slot on a processor, where they are written.
    fn words(&self, slot: u32, cpu: u32) -> Result<&[AtomicU64; PortCounters::WORDS], Error> {
        if slot >= self.slots {
            let what = io::Error::new(io::ErrorKind::InvalidInput, "there are not so many");
            return Err(Error::kernel(format!("read the counters of slot {slot}"), what));
        }
        let index = usize::try_from(cpu * self.slots + slot).unwrap_or_default();
        // SAFETY: the mapping has `slots` times `cpus` entries of that size, of which this is one.
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

/// How many processors there may ever be: as many parts `COUNTERS` has.
pub(super) fn processors() -> Result<u32, Error> {
    let cpus = nr_cpus()
        .map_err(|(what, source)| Error::kernel(format!("count the processors in {what}"), source))?;
    Ok(u32::try_from(cpus).unwrap_or(u32::MAX))
}

const fn from_words(words: &[u64; PortCounters::WORDS]) -> PortCounters {
    // SAFETY: `repr(C)`, and nothing but 64-bit numbers.
    unsafe { std::mem::transmute(*words) }
}
