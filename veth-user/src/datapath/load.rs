//! Loading: the object becomes programs and maps, pinned under the topology's name.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::{MapError, MapInfo},
    programs::{Program, ProgramFd, ProgramInfo, XdpMode},
};
use veth_common::{FDB_PLACES_PER_SLOT, SOURCES_PER_SLOT};

use super::{
    Error, Hook,
    counters::parts,
    map_error, object, pin_error,
    pins::{Pins, remove_pin},
};
use crate::{hooks, state::Roots, topology::model::LogLevel};

/// The TC ingress program, as the object names it.
pub const INGRESS: &str = "veth_ingress";

/// The XDP program.
pub const XDP: &str = "veth_xdp";

/// The TC program that only counts, at the other end of a pair.
pub(super) const COUNT: &str = "veth_count";

/// The TC program that does nothing.
pub const NULL_PASS: &str = "null_pass";

/// The XDP program that does nothing.
pub const NULL_XDP: &str = "null_xdp";

/// The TC program that only redirects.
pub const NULL_REDIRECT: &str = "null_redirect";

/// The programs that are loaded for a hook. Bridges have no XDP of their own, so XDP brings the TC program with it.
#[must_use]
pub const fn programs(hook: Hook) -> &'static [&'static str] {
    if hook.is_xdp() { &[INGRESS, XDP] } else { &[INGRESS] }
}

/// Maps that are pinned. All grow with the topology.
pub(super) const MAPS: [&str; 8] =
    [PORTS, "PORTS_OVERFLOW", FDB, "FDB_OVERFLOW", SOURCES, TARGETS, XDP_TARGETS, COUNTERS];

/// Ports by interface index: one for each slot.
pub(super) const PORTS: &str = "PORTS";

/// Counters by processor and slot.
pub(super) const COUNTERS: &str = "COUNTERS";

/// Who owns an address: several places for a port.
pub(super) const FDB: &str = "FDB";

/// Addresses that checked ports may send from: several for a port.
pub(super) const SOURCES: &str = "SOURCES";

/// Host ends by slot, for TC programs and for XDP: the kernel does not let both use one.
const TARGETS: &str = "TARGETS";
const XDP_TARGETS: &str = "XDP_TARGETS";

/// How far the hash of an address is shifted to choose one of so many places, a power of two.
pub(super) const fn fdb_shift(places: u32) -> u32 {
    places.leading_zeros() + 1
}

/// The map of host ends that a hook's program looks at.
pub(super) const fn targets(hook: Hook) -> &'static str {
    if hook.is_xdp() { XDP_TARGETS } else { TARGETS }
}

/// What is decided when the programs are loaded, so that the verifier removes what is not wanted.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Slots that the maps must hold.
    pub slots: u32,
    /// How much the programs log.
    pub log: LogLevel,
    /// Where they will be attached.
    pub hook: Hook,
    /// Whether the TC program must set the packet type, because `bpf_redirect_peer` leaves it as it is.
    pub set_packet_host: bool,
}

impl LoadOptions {
    /// What programs are told that does not depend on the maps.
    fn constants(self) -> (u32, u8) {
        (u32::from(self.set_packet_host), log_level(self.log))
    }
}

/// The fewest slots that maps get: they take 75 KiB, and 480 KiB for each processor.
const SLOTS_MIN: u32 = 256;

/// How many slots the maps of a topology get: room for as many again, so that pods can be added without loading
/// anew.
#[must_use]
pub fn capacity(slots: u32) -> u32 {
    slots.saturating_mul(2).next_power_of_two().max(SLOTS_MIN)
}

/// Loads the embedded object, with new maps, and pins programs and maps. They outlive this process.
///
/// # Errors
///
/// When there is no object, or the kernel refuses it.
pub fn load(roots: &Roots, topology: &str, options: &LoadOptions) -> Result<(), Error> {
    let capacity = options.slots;
    let counter_parts = parts()?;
    let mask = capacity - 1;
    let shift = fdb_shift(capacity * FDB_PLACES_PER_SLOT);
    let (set_packet_host, log_level) = options.constants();
    let mut loader = loader()?;
    loader
        .override_global("PORTS_MASK", &mask, true)
        .override_global("FDB_SHIFT", &shift, true)
        .override_global("COUNTER_SLOTS", &capacity, true)
        .override_global("SET_PACKET_HOST", &set_packet_host, true)
        .override_global(aya_log::LEVEL, &log_level, true);
    for map in MAPS {
        let each = match map {
            FDB => FDB_PLACES_PER_SLOT,
            SOURCES => SOURCES_PER_SLOT,
            COUNTERS => counter_parts,
            _ => 1,
        };
        loader.map_max_entries(map, capacity * each);
    }
    let mut ebpf = load_object(&mut loader)?;
    let pins = Pins::create(roots, topology)?;
    for &name in programs(options.hook) {
        let path = pins.program(name);
        load_program(&mut ebpf, name)?;
        let pinned = match ebpf.program_mut(name) {
            Some(program) => program.pin(&path),
            None => continue,
        };
        pinned.map_err(|source| pin_error("pin the program", path, source))?;
    }
    hooks::step();
    for name in MAPS {
        let path = pins.map(name);
        let map = ebpf.map(name).ok_or_else(|| Error::BadObject(format!("it has no map {name}")))?;
        map.pin(&path).map_err(|source| pin_error("pin the map", path, source))?;
    }
    Ok(())
}

/// Loads the programs of the embedded object on the maps that are pinned, and lets them take the place of those that
/// are pinned there. What is attached stays so until it is attached again.
///
/// # Errors
///
/// When the maps are not there, or the kernel refuses a program; nothing is changed then.
pub fn reload(pins: &Pins, options: &LoadOptions) -> Result<(), Error> {
    let shared = Shared::open(pins)?;
    let (set_packet_host, log_level) = options.constants();
    let mut loader = loader()?;
    shared.tell(&mut loader);
    loader.override_global("SET_PACKET_HOST", &set_packet_host, true).override_global(
        aya_log::LEVEL,
        &log_level,
        true,
    );
    let mut ebpf = load_object(&mut loader)?;
    for &name in programs(options.hook) {
        load_program(&mut ebpf, name)?;
    }
    for &name in programs(options.hook) {
        let (path, next) = (pins.program(name), pins.next_program(name));
        remove_pin(&next)?;
        let pinned = match ebpf.program_mut(name) {
            Some(program) => program.pin(&next),
            None => continue,
        };
        pinned.map_err(|source| pin_error("pin the program", next.clone(), source))?;
        // Ours by this name as long as a link may carry it.
        if let Some(id) = pins.program_id(name) {
            let former = pins.former_program(id);
            // That of somebody who was killed here.
            remove_pin(&former)?;
            let kept = fs::hard_link(&path, &former);
            kept.map_err(|source| Error::Pin { action: "keep the program at", path: former, source })?;
            hooks::step();
        }
        let moved = fs::rename(&next, &path);
        moved.map_err(|source| Error::Pin { action: "replace the program", path, source })?;
    }
    Ok(())
}

/// Loads one program of the object and returns what the kernel says of it.
pub(super) fn load_program(ebpf: &mut Ebpf, name: &str) -> Result<ProgramInfo, Error> {
    let info = match ebpf.program_mut(name) {
        Some(Program::SchedClassifier(program)) => program.load().and_then(|()| program.info()),
        Some(Program::Xdp(program)) => program.load().and_then(|()| program.info()),
        _ => return Err(Error::BadObject(format!("it has no program {name}"))),
    };
    info.map_err(|source| Error::program(format!("load {name}"), name, source))
}

/// Loads `null_redirect`, which hands every frame to the peer of a link, whoever it is for.
///
/// # Errors
///
/// When there is no object, or the kernel refuses it.
pub fn null_redirect(target: u32) -> Result<ProgramFd, Error> {
    let ebpf = load_null_redirect(target)?;
    let info = match ebpf.program(NULL_REDIRECT) {
        Some(program) => program.info(),
        None => return Err(Error::NotLoaded),
    };
    info.and_then(|info| info.fd())
        .map_err(|source| Error::program(format!("load {NULL_REDIRECT}"), NULL_REDIRECT, source))
}

/// The same, as a part of the object.
///
/// # Errors
///
/// When there is no object, or the kernel refuses it.
pub fn load_null_redirect(target: u32) -> Result<Ebpf, Error> {
    let mut ebpf = load_object(loader()?.override_global("NULL_TARGET", &target, true))?;
    load_program(&mut ebpf, NULL_REDIRECT)?;
    Ok(ebpf)
}

/// Loads a program that does nothing: [`NULL_PASS`] or [`NULL_XDP`].
///
/// # Errors
///
/// When there is no object, or the kernel refuses it.
pub fn null(name: &str) -> Result<Ebpf, Error> {
    let mut ebpf = load_object(&mut loader()?)?;
    load_program(&mut ebpf, name)?;
    Ok(ebpf)
}

/// Loads the TC program of a topology again, on its maps, without counting: what counting costs. Attached nowhere.
///
/// # Errors
///
/// When the maps are not there, or the kernel refuses the program.
pub fn uncounted(pins: &Pins) -> Result<Ebpf, Error> {
    let shared = Shared::open(pins)?;
    let (counting, log_level) = (0_u32, log_level(LogLevel::Off));
    let mut loader = loader()?;
    shared.tell(&mut loader);
    loader.override_global("COUNTING", &counting, true).override_global(aya_log::LEVEL, &log_level, true);
    let mut ebpf = load_object(&mut loader)?;
    load_program(&mut ebpf, INGRESS)?;
    Ok(ebpf)
}

/// The pinned maps of a topology, for programs that are loaded beside its own.
pub(super) struct Shared {
    mask: u32,
    shift: u32,
    slots: u32,
    paths: [(&'static str, PathBuf); MAPS.len()],
}

impl Shared {
    /// Looks how large they are.
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        let path = pins.map(PORTS);
        let info = MapInfo::from_pin(&path);
        let slots =
            info.map_err(|source| map_error(format!("open {}", path.display()), source))?.max_entries();
        Ok(Self {
            mask: slots - 1,
            shift: fdb_shift(slots * FDB_PLACES_PER_SLOT),
            slots,
            paths: MAPS.map(|map| (map, pins.map(map))),
        })
    }

    /// Lets programs be loaded on them.
    pub(super) fn tell<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        let Self { mask, shift, slots, paths } = self;
        loader
            .override_global("PORTS_MASK", mask, true)
            .override_global("FDB_SHIFT", shift, true)
            .override_global("COUNTER_SLOTS", slots, true);
        for (map, path) in paths {
            loader.map_pin_path(map, path);
        }
    }
}

/// Loads `veth_count` for one end of a pair: what comes in there, `from` a slot, is counted as sent `to` another. It
/// shares the counters of the topology.
pub(super) fn count(pins: &Pins, from: u32, to: u32) -> Result<Ebpf, Error> {
    let shared = Shared::open(pins)?;
    let mut loader = loader()?;
    shared.tell(&mut loader);
    loader.override_global("COUNT_FROM", &from, true).override_global("COUNT_TO", &to, true);
    let mut ebpf = load_object(&mut loader)?;
    load_program(&mut ebpf, COUNT)?;
    Ok(ebpf)
}

/// A program as the verifier saw it.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Its name.
    pub name: &'static str,
    /// How many instructions the verifier went through, where the kernel tells: 5.16 and newer.
    pub instructions: Option<u32>,
    /// Whether it was compiled to machine code, where the kernel tells.
    pub compiled: Option<bool>,
}

/// Loads every program as it would be for a hook and lets go of it again.
///
/// # Errors
///
/// When there is no object, or the kernel refuses a program.
pub fn verify(hook: Hook) -> Result<Vec<Verified>, Error> {
    let log_level = log_level(LogLevel::Off);
    let mut ebpf = load_object(loader()?.override_global(aya_log::LEVEL, &log_level, true))?;
    programs(hook)
        .iter()
        .map(|&name| {
            let info = load_program(&mut ebpf, name)?;
            let instructions = info.verified_instruction_count().filter(|count| *count > 0);
            Ok(Verified { name, instructions, compiled: is_compiled(&info) })
        })
        .collect()
}

/// Whether a program was compiled to machine code, as its descriptor says.
fn is_compiled(info: &ProgramInfo) -> Option<bool> {
    let program = info.fd().ok()?;
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd())).ok()?;
    Some(text.lines().find_map(|line| line.strip_prefix("prog_jited:"))?.trim() == "1")
}

/// Attaches the XDP program to a link of the calling thread's namespace, in the driver, and lets go of it again.
///
/// # Errors
///
/// When the kernel refuses.
pub fn verify_xdp_attach(link: &str) -> Result<(), Error> {
    let mut ebpf = load_object(&mut loader()?)?;
    load_program(&mut ebpf, XDP)?;
    let Some(Program::Xdp(program)) = ebpf.program_mut(XDP) else {
        return Err(Error::BadObject(format!("it has no program {XDP}")));
    };
    let attached = program.attach(link, XdpMode::Driver);
    attached.map(drop).map_err(|source| Error::program("attach xdp to a veth".to_owned(), XDP, source))
}

/// A loader for the embedded object that is as talkative as the log level asks for.
pub(super) fn loader() -> Result<EbpfLoader<'static>, Error> {
    object::check()?;
    raise_memlock();
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(if log::log_enabled!(log::Level::Debug) {
        VerifierLogLevel::DEBUG | VerifierLogLevel::STATS
    } else {
        VerifierLogLevel::STATS
    });
    Ok(loader)
}

pub(super) fn load_object(loader: &mut EbpfLoader<'_>) -> Result<Ebpf, Error> {
    loader.load(object::bytes()).map_err(|source| match source {
        EbpfError::MapError(MapError::CreateError { name, io_error }) => {
            Error::kernel(format!("make the map {name}"), io_error)
        }
        source => Error::kernel("load the eBPF object", source),
    })
}

const fn log_level(level: LogLevel) -> u8 {
    match level {
        LogLevel::Off => 0,
        LogLevel::Warn => aya_log::Level::Warn as u8,
        LogLevel::Debug => aya_log::Level::Debug as u8,
    }
}

/// Kernels before 5.11 count maps against a limit. Where it may not be raised, it is not needed either, or
/// making a map says so.
fn raise_memlock() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    if let Err(errno) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        log::debug!("RLIMIT_MEMLOCK cannot be raised ({errno}); kernels from 5.11 on do not need it");
    }
}
