//! Typed access to the maps.

use std::{io, net::IpAddr, path::Path};

use aya::{
    Pod,
    maps::{Array, DevMap, HashMap, Map, MapData, MapError, MapInfo},
    programs::{SchedClassifier, Xdp},
};
use aya_obj::programs::XdpAttachType;
use veth_common::{FdbEntry, FdbKey, Port, SourceKey, Target};

use super::{
    Counters, Error, Hook,
    load::{FDB, INGRESS, PORTS, SOURCES, XDP, fdb_shift, programs, targets},
    map_error, object,
    pins::Pins,
};

/// The pinned programs and maps of one topology. They outlive this value: it only holds handles.
pub struct Datapath {
    pub(super) pins: Pins,
    /// The numbers of programs that are ours to replace.
    pub(super) programs: Vec<u32>,
    classifier: SchedClassifier,
    xdp: Option<Xdp>,
    ports: Array<MapData, Port>,
    overflow: HashMap<MapData, u32, Port>,
    targets: DevMap<MapData>,
    fdb: Array<MapData, FdbEntry>,
    fdb_overflow: HashMap<MapData, FdbKey, Target>,
    sources: HashMap<MapData, SourceKey, u8>,
    counters: Counters,
}

impl Datapath {
    /// Opens what [`load`](super::load) has pinned.
    ///
    /// # Errors
    ///
    /// When it is not there, or of another layout.
    pub fn open(pins: Pins, hook: Hook) -> Result<Self, Error> {
        let program = |name: &'static str| {
            let path = pins.program(name);
            let failed = format!("open {}", path.display());
            (path, move |source| Error::program(failed, name, source))
        };
        let (path, failed) = program(INGRESS);
        let classifier = SchedClassifier::from_pin(path).map_err(failed)?;
        let xdp = if programs(hook).contains(&XDP) {
            let (path, failed) = program(XDP);
            Some(Xdp::from_pin(path, XdpAttachType::Interface).map_err(failed)?)
        } else {
            None
        };
        let targets = MapData::from_pin(pins.map(targets(hook)))
            .and_then(|data| DevMap::try_from(Map::DevMap(data)))
            .map_err(|source| map_error(format!("open the map {}", targets(hook)), source))?;
        Ok(Self {
            ports: typed(Map::Array(open_pinned::<u32, Port>(&pins.map(PORTS))?))?,
            overflow: typed(Map::HashMap(open_pinned::<u32, Port>(&pins.map("PORTS_OVERFLOW"))?))?,
            fdb: typed(Map::Array(open_pinned::<u32, FdbEntry>(&pins.map(FDB))?))?,
            fdb_overflow: typed(Map::HashMap(open_pinned::<FdbKey, Target>(&pins.map("FDB_OVERFLOW"))?))?,
            sources: typed(Map::HashMap(open_pinned::<SourceKey, u8>(&pins.map(SOURCES))?))?,
            counters: Counters::open(&pins)?,
            programs: pins.all_programs(),
            pins,
            classifier,
            xdp,
            targets,
        })
    }

    /// Where it is pinned.
    #[must_use]
    pub const fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The TC program.
    pub(super) const fn classifier(&mut self) -> &mut SchedClassifier {
        &mut self.classifier
    }

    /// The XDP program.
    pub(super) fn xdp(&mut self) -> Result<&mut Xdp, Error> {
        self.xdp.as_mut().ok_or(Error::NotLoaded)
    }

    /// Tells the programs of a port. Its place is chosen by its interface index; where that is taken, it goes
    /// to the overflow.
    ///
    /// # Errors
    ///
    /// When the map is full.
    pub fn set_port(&mut self, port: &Port) -> Result<(), Error> {
        let failed = |source| map_error(format!("register interface {}", port.ifindex), source);
        let place = port.ifindex & (self.ports.len() - 1);
        let there = self.ports.get(&place, 0).map_err(failed)?;
        // A place that is free by now is of no use to a port in the overflow: it would be in both.
        let is_free = there.ifindex == 0 && self.overflow.get(&port.ifindex, 0).is_err();
        if is_free || there.ifindex == port.ifindex {
            self.ports.set(place, port, 0).map_err(failed)
        } else {
            self.overflow.insert(port.ifindex, port, 0).map_err(failed)
        }
    }

    /// Lets the programs forget a port: what comes in there passes, and is counted as nobody's. Succeeds if they do not
    /// know it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn remove_port(&mut self, ifindex: u32) -> Result<(), Error> {
        let failed = |source| map_error(format!("forget interface {ifindex}"), source);
        let place = ifindex & (self.ports.len() - 1);
        let there = self.ports.get(&place, 0).map_err(failed)?;
        if there.ifindex == ifindex {
            self.ports.set(place, Port::default(), 0).map_err(failed)?;
        }
        gone(self.overflow.remove(&ifindex)).map_err(failed)
    }

    /// The same for a port whose interface is gone, by its slot. Looks at every entry.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn remove_slot(&mut self, slot: u32) -> Result<(), Error> {
        let in_place = (0..self.ports.len()).filter_map(|place| self.ports.get(&place, 0).ok());
        let in_overflow =
            self.overflow.keys().flatten().filter_map(|ifindex| self.overflow.get(&ifindex, 0).ok());
        let has_slot = |port: &Port| port.ifindex != 0 && port.slot == slot;
        let found: Vec<Port> = in_place.chain(in_overflow).filter(has_slot).collect();
        found.into_iter().try_for_each(|port| self.remove_port(port.ifindex))
    }

    /// What the programs know of an interface.
    #[must_use]
    pub fn port(&self, ifindex: u32) -> Option<Port> {
        let place = ifindex & (self.ports.len() - 1);
        let there = self.ports.get(&place, 0).ok().filter(|port| port.ifindex == ifindex);
        there.or_else(|| self.overflow.get(&ifindex, 0).ok())
    }

    /// Tells the programs which interface a slot is. The kernel empties the entry when the interface goes.
    ///
    /// # Errors
    ///
    /// When there is no such interface in the calling thread's namespace.
    pub fn set_target(&mut self, slot: u32, ifindex: u32) -> Result<(), Error> {
        let failed = |source| Error::kernel(format!("make interface {ifindex} a target"), source);
        self.targets.set(slot, ifindex, None, 0).map_err(failed)
    }

    /// The interface that the programs think a slot is.
    #[must_use]
    pub fn target(&self, slot: u32) -> Option<u32> {
        self.targets.get(slot, 0).ok().map(|value| value.if_index).filter(|ifindex| *ifindex != 0)
    }

    /// Empties a slot before the kernel does, so that nothing is sent to it any more.
    ///
    /// # Errors
    ///
    /// When there is no such slot.
    pub fn remove_target(&mut self, slot: u32) -> Result<(), Error> {
        let failed = |source| Error::kernel(format!("remove the target of slot {slot}"), source);
        // The kernel takes 0 for "none" (`__dev_map_update_elem` in `kernel/bpf/devmap.c`).
        self.targets.set(slot, 0, None, 0).map_err(failed)
    }

    /// Tells the programs who owns an address. Its place is chosen by a hash; where that is taken, it goes to the
    /// overflow.
    ///
    /// # Errors
    ///
    /// When the map is full.
    pub fn set_fdb(&mut self, key: FdbKey, target: &Target) -> Result<(), Error> {
        let failed = |source| map_error(format!("learn {}", key.mac), source);
        let (place, there) = self.fdb_entry(key)?;
        // A place that is free by now is of no use to an address in the overflow: it would be in both.
        let is_free = there.key == FdbKey::default() && self.fdb_overflow.get(&key, 0).is_err();
        if is_free || there.key == key {
            self.fdb.set(place, FdbEntry { key, target: *target }, 0).map_err(failed)
        } else {
            self.fdb_overflow.insert(key, target, 0).map_err(failed)
        }
    }

    /// The place of an address, and what is there.
    fn fdb_entry(&self, key: FdbKey) -> Result<(u32, FdbEntry), Error> {
        let place = key.place(fdb_shift(self.fdb.len()));
        let there = self.fdb.get(&place, 0);
        Ok((place, there.map_err(|source| map_error(format!("look for {}", key.mac), source))?))
    }

    /// Who the programs think owns an address.
    #[must_use]
    pub fn fdb(&self, key: FdbKey) -> Option<Target> {
        match self.fdb_entry(key) {
            Ok((_, there)) if there.key == key => Some(there.target),
            _ => self.fdb_overflow.get(&key, 0).ok(),
        }
    }

    /// Lets the programs forget who owns an address: the bridge decides. Succeeds if they do not know it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn remove_fdb(&mut self, key: FdbKey) -> Result<(), Error> {
        let failed = |source| map_error(format!("forget {}", key.mac), source);
        let (place, there) = self.fdb_entry(key)?;
        if there.key == key {
            self.fdb.set(place, FdbEntry::default(), 0).map_err(failed)?;
        }
        gone(self.fdb_overflow.remove(&key)).map_err(failed)
    }

    /// Lets a checked port ([`Port::SPOOF_CHECK`]) send from an address. Its own link-local address
    /// ([`Mac::link_local`](veth_common::Mac::link_local)) is no exception.
    ///
    /// # Errors
    ///
    /// When the map is full.
    pub fn set_source(&mut self, slot: u32, address: IpAddr) -> Result<(), Error> {
        let failed = |source| map_error(format!("let slot {slot} send from {address}"), source);
        self.sources.insert(SourceKey::new(slot, address), 1, 0).map_err(failed)
    }

    /// Whether a checked port may send from an address.
    #[must_use]
    pub fn is_source(&self, key: &SourceKey) -> bool {
        self.sources.get(key, 0).is_ok()
    }

    /// Lets a checked port send from an address no longer. Succeeds if it might not.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn remove_source(&mut self, slot: u32, address: IpAddr) -> Result<(), Error> {
        let failed = |source| map_error(format!("let slot {slot} no longer send from {address}"), source);
        gone(self.sources.remove(&SourceKey::new(slot, address))).map_err(failed)
    }

    /// The addresses that a port may send from where it is checked, in no order. Goes through those of all ports.
    pub fn sources(&self, slot: u32) -> impl Iterator<Item = Result<IpAddr, Error>> + '_ {
        self.sources.keys().filter_map(move |key| match key {
            Ok(key) if key.slot == slot => key.address().map(Ok),
            Ok(_) => None,
            Err(source) => Some(Err(map_error(format!("read the addresses of slot {slot}"), source))),
        })
    }

    /// Starts a slot's counters at zero, before another port gets it.
    ///
    /// # Errors
    ///
    /// When there is no such slot.
    pub fn clear_counters(&mut self, slot: u32) -> Result<(), Error> {
        self.counters.clear(slot)
    }
}

/// A removal that succeeds if there is nothing to remove.
fn gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn typed<T: TryFrom<Map, Error = MapError>>(map: Map) -> Result<T, Error> {
    T::try_from(map).map_err(|source| map_error("use a pinned map", source))
}

/// Opens a pinned map and checks that it is what this layout says: the kernel and aya would let us read
/// another one's bytes as ours.
pub(super) fn open_pinned<K: Pod, V: Pod>(path: &Path) -> Result<MapData, Error> {
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
                layout: object::layout(),
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
