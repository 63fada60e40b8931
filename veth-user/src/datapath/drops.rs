//! The program that counts the kernel's drops, on an attachment that ends with this process.

use aya::{
    Btf, Ebpf,
    maps::{HashMap, MapData, PerCpuArray, PerCpuHashMap},
    programs::Program,
};
use veth_common::drops::{DropKey, DropPlace, KernelOffsets};

use super::{
    Error,
    load::{load_object, loader},
    map_error,
};

/// The program.
const PROGRAM: &str = "veth_drops";

/// The tracepoint.
const TRACEPOINT: &str = "kfree_skb";

/// How many kinds of drops are told apart.
const KINDS: u32 = 4_096;

/// The program, attached.
pub struct KernelDrops {
    _ebpf: Ebpf,
    drops: PerCpuHashMap<MapData, DropKey, u64>,
    other: PerCpuArray<MapData, u64>,
}

impl KernelDrops {
    /// Counts from now on what the kernel drops in places, until this value is dropped or the process ends in any way.
    ///
    /// Minimum kernel version: 5.5 (BTF tracepoints); 5.17 for reasons.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn attach(kernel: &KernelOffsets, places: &[(DropPlace, u32)]) -> Result<Self, Error> {
        let mut loader = loader()?;
        let room = u32::try_from(places.len()).unwrap_or(u32::MAX).max(1);
        loader.override_global("KERNEL", kernel, true);
        loader.map_max_entries("DROP_PLACES", room).map_max_entries("DROPS", KINDS);
        let mut ebpf = load_object(&mut loader)?;
        let typed = |source| map_error("use the maps of drops", source);
        let map = ebpf.map_mut("DROP_PLACES").ok_or(Error::NotLoaded)?;
        let mut known: HashMap<_, DropPlace, u32> = HashMap::try_from(map).map_err(typed)?;
        for (place, number) in places {
            known
                .insert(place, number, 0)
                .map_err(|source| map_error("note where to look for drops", source))?;
        }
        let failed = |source| Error::program(format!("attach to {TRACEPOINT}"), PROGRAM, source);
        let btf = Btf::from_sys_fs().map_err(|source| failed(source.into()))?;
        let Some(Program::BtfTracePoint(program)) = ebpf.program_mut(PROGRAM) else {
            return Err(Error::NotLoaded);
        };
        program.load(TRACEPOINT, &btf).map_err(failed)?;
        program.attach().map_err(failed)?;
        let mut take = |name: &str| ebpf.take_map(name).ok_or(Error::NotLoaded);
        let drops = PerCpuHashMap::try_from(take("DROPS")?).map_err(typed)?;
        let other = PerCpuArray::try_from(take("DROPS_OTHER")?).map_err(typed)?;
        Ok(Self { _ebpf: ebpf, drops, other })
    }

    /// What was dropped so far, by kind.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub fn counts(&self) -> Result<Vec<(DropKey, u64)>, Error> {
        let read = |entry: Result<(DropKey, aya::maps::PerCpuValues<u64>), _>| {
            let (key, cpus) = entry.map_err(|source| map_error("read drops", source))?;
            Ok((key, cpus.iter().sum()))
        };
        self.drops.iter().map(read).collect()
    }

    /// How many more there were that could not be told apart.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub fn other(&self) -> Result<u64, Error> {
        let cpus = self.other.get(&0, 0).map_err(|source| map_error("read drops", source))?;
        Ok(cpus.iter().sum())
    }
}
