//! Loading: the object becomes programs and maps, pinned under the topology's name.

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::MapError,
    programs::{ProgramError, SchedClassifier},
    util::KernelVersion,
};
use veth_common::DEFAULT_CAPACITY;

use super::{Error, object, pins::Pins};
use crate::{state::Roots, topology::model::LogLevel};

/// The TC ingress program, as the object names it.
pub(super) const INGRESS: &str = "veth_ingress";

/// Maps that are pinned. All grow with the topology.
pub(super) const MAPS: [&str; 5] = ["PORTS", "PORTS_OVERFLOW", "FDB", "TARGETS", "COUNTERS"];

/// What is decided when the programs are loaded, so that the verifier removes what is not wanted.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Slots that the maps must hold.
    pub slots: u32,
    /// How much the programs log.
    pub log: LogLevel,
}

/// Loaded programs and maps of one topology. They outlive this value: it only holds handles.
#[derive(Debug)]
pub struct Datapath {
    pub(super) ebpf: Ebpf,
    pub(super) pins: Pins,
    pub(super) capacity: u32,
}

impl Datapath {
    /// Loads the embedded object, with new maps, and pins programs and maps.
    ///
    /// # Errors
    ///
    /// When there is no object, or the kernel refuses it.
    pub fn load(roots: &Roots, topology: &str, options: &LoadOptions) -> Result<Self, Error> {
        object::check()?;
        raise_memlock();
        let capacity = options.slots.next_power_of_two().max(DEFAULT_CAPACITY);
        let mask = capacity - 1;
        let set_packet_host = u32::from(!redirect_peer_scrubs(KernelVersion::current().ok()));
        let log_level = log_level(options.log);
        let verifier_log = if log::log_enabled!(log::Level::Debug) {
            VerifierLogLevel::DEBUG | VerifierLogLevel::STATS
        } else {
            VerifierLogLevel::STATS
        };
        let mut loader = EbpfLoader::new();
        loader
            .verifier_log_level(verifier_log)
            .override_global("PORTS_MASK", &mask, true)
            .override_global("SET_PACKET_HOST", &set_packet_host, true)
            .override_global(aya_log::LEVEL, &log_level, true);
        for map in MAPS {
            loader.map_max_entries(map, capacity);
        }
        let ebpf = loader.load(object::OBJECT).map_err(|source| match source {
            EbpfError::MapError(MapError::CreateError { name, io_error }) => {
                Error::kernel(format!("make the map {name}"), io_error)
            }
            source => Error::kernel("load the eBPF object", source),
        })?;
        let pins = Pins::create(roots, topology)?;
        let mut datapath = Self { ebpf, pins, capacity };
        let program = datapath.program()?;
        program.load().map_err(|source| Error::program(format!("load {INGRESS}"), INGRESS, source))?;
        let path = datapath.pins.program(INGRESS);
        datapath.program()?.pin(&path).map_err(|source| super::pin_error("pin the program", path, source))?;
        for name in MAPS {
            let path = datapath.pins.map(name);
            let map =
                datapath.ebpf.map(name).ok_or_else(|| Error::BadObject(format!("it has no map {name}")))?;
            map.pin(&path).map_err(|source| super::pin_error("pin the map", path, source))?;
        }
        Ok(datapath)
    }

    pub(super) fn program(&mut self) -> Result<&mut SchedClassifier, Error> {
        self.ebpf
            .program_mut(INGRESS)
            .ok_or(())
            .and_then(|program| program.try_into().map_err(|_: ProgramError| ()))
            .map_err(|()| Error::BadObject(format!("it has no TC program {INGRESS}")))
    }
}

const fn log_level(level: LogLevel) -> u8 {
    match level {
        LogLevel::Off => 0,
        LogLevel::Warn => aya_log::Level::Warn as u8,
        LogLevel::Debug => aya_log::Level::Debug as u8,
    }
}

/// Whether `bpf_redirect_peer` makes the far stack accept a frame by itself: kernel commit c43272299488
/// (CVE-2025-37959). Stable branches have it too; there the extra call costs 7 ns and does no harm.
fn redirect_peer_scrubs(kernel: Option<KernelVersion>) -> bool {
    kernel.is_some_and(|kernel| kernel >= KernelVersion::new(6, 15, 0))
}

/// Kernels before 5.11 count maps against a limit. Where it may not be raised, it is not needed either, or
/// making a map says so.
fn raise_memlock() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    if let Err(errno) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        log::debug!("RLIMIT_MEMLOCK cannot be raised ({errno}); kernels from 5.11 on do not need it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_get_the_packet_type_set() {
        assert!(!redirect_peer_scrubs(None));
        assert!(!redirect_peer_scrubs(Some(KernelVersion::new(6, 6, 0))));
        assert!(redirect_peer_scrubs(Some(KernelVersion::new(6, 15, 0))));
        assert!(redirect_peer_scrubs(Some(KernelVersion::new(6, 18, 44))));
    }
}
