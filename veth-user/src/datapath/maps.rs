//! Typed access to the maps.

use std::path::Path;

use aya::{
    Pod,
    maps::{Array, DevMap, HashMap, Map, MapData, MapInfo, PerCpuArray},
};
use veth_common::{FdbKey, LAYOUT_VERSION, Port, PortCounters, Target};

use super::{Datapath, Error, map_error, pins::Pins};

impl Datapath {
    /// Tells the programs of a port. Its place is chosen by its interface index; where that is taken, it goes
    /// to the overflow.
    ///
    /// # Errors
    ///
    /// When the map is full.
    pub fn set_port(&mut self, port: &Port) -> Result<(), Error> {
        let action = || format!("register interface {}", port.ifindex);
        let place = port.ifindex & (self.capacity - 1);
        let mut ports: Array<_, Port> = self.map("PORTS")?;
        let there = ports.get(&place, 0).map_err(|source| map_error(action(), source))?;
        if there.ifindex == 0 || there.ifindex == port.ifindex {
            return ports.set(place, port, 0).map_err(|source| map_error(action(), source));
        }
        let mut overflow: HashMap<_, u32, Port> = self.map("PORTS_OVERFLOW")?;
        overflow.insert(port.ifindex, port, 0).map_err(|source| map_error(action(), source))
    }

    /// Tells the programs which interface a slot is. The kernel empties the entry when the interface goes.
    ///
    /// # Errors
    ///
    /// When there is no such interface in the calling thread's namespace.
    pub fn set_target(&mut self, slot: u32, ifindex: u32) -> Result<(), Error> {
        let mut targets: DevMap<_> = self.map("TARGETS")?;
        targets
            .set(slot, ifindex, None, 0)
            .map_err(|source| Error::kernel(format!("make interface {ifindex} a target"), source))
    }

    /// Tells the programs who owns an address.
    ///
    /// # Errors
    ///
    /// When the map is full.
    pub fn set_fdb(&mut self, key: FdbKey, target: &Target) -> Result<(), Error> {
        let mut fdb: HashMap<_, FdbKey, Target> = self.map("FDB")?;
        fdb.insert(key, target, 0).map_err(|source| map_error(format!("learn {}", key.mac), source))
    }

    fn map<'a, T: TryFrom<&'a mut Map, Error = aya::maps::MapError>>(
        &'a mut self,
        name: &str,
    ) -> Result<T, Error> {
        let map = self.ebpf.map_mut(name).ok_or_else(|| Error::BadObject(format!("it has no map {name}")))?;
        T::try_from(map).map_err(|source| map_error(format!("use the map {name}"), source))
    }
}

/// The counters of a running topology.
pub struct Counters {
    map: PerCpuArray<MapData, PortCounters>,
}

impl Counters {
    /// Opens a topology's pinned counters.
    ///
    /// # Errors
    ///
    /// When they are not there, or of another layout.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        let path = pins.map("COUNTERS");
        let data = open_pinned::<u32, PortCounters>(&path)?;
        let map = PerCpuArray::try_from(Map::PerCpuArray(data))
            .map_err(|source| map_error(format!("use {}", path.display()), source))?;
        Ok(Self { map })
    }

    /// The sum over all CPUs of a slot's counters.
    ///
    /// # Errors
    ///
    /// When there is no such slot.
    pub fn read(&self, slot: u32) -> Result<PortCounters, Error> {
        let cpus = self
            .map
            .get(&slot, 0)
            .map_err(|source| map_error(format!("read the counters of slot {slot}"), source))?;
        let mut sum = PortCounters::default();
        for cpu in cpus.iter() {
            sum.add(cpu);
        }
        Ok(sum)
    }
}

/// Opens a pinned map and checks that it is what this layout says: the kernel and aya would let us read
/// another one's bytes as ours.
fn open_pinned<K: Pod, V: Pod>(path: &Path) -> Result<MapData, Error> {
    let info =
        MapInfo::from_pin(path).map_err(|source| map_error(format!("open {}", path.display()), source))?;
    let sizes = [
        ("the key's size", info.key_size(), size_of::<K>()),
        ("the value's size", info.value_size(), size_of::<V>()),
    ];
    for (what, found, expected) in sizes {
        let expected = u32::try_from(expected).unwrap_or(u32::MAX);
        if found != expected {
            return Err(Error::MapLayout {
                path: path.to_owned(),
                layout: LAYOUT_VERSION,
                what,
                found,
                expected,
            });
        }
    }
    let data =
        MapData::from_pin(path).map_err(|source| map_error(format!("open {}", path.display()), source))?;
    Ok(data)
}
