//! Pins: what keeps programs, maps and links alive when no process does. One folder a layout and topology,
//! `<pins>/v1/<topology>`, all on a bpffs that we mount if nobody has.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use aya::programs::ProgramInfo;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use veth_common::LAYOUT_VERSION;

use super::{
    Error, Hook,
    load::{MAPS, programs},
};
use crate::state::{DEFAULT_PIN_DIR, Roots};

/// Where a bpffs belongs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The pins of one topology.
#[derive(Clone, Debug)]
pub struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// The pins of a topology of some layout, there or not.
    #[must_use]
    pub fn new(roots: &Roots, layout: u32, topology: &str) -> Self {
        Self { folder: roots.pins.join(layout_folder(layout)).join(topology) }
    }

    /// The pins of a topology, with their folder made.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made.
    pub(super) fn create(roots: &Roots, topology: &str) -> Result<Self, Error> {
        let pins = Self::new(roots, LAYOUT_VERSION, topology);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&pins.folder)
            .map_err(pin_error("make the folder", &pins.folder))?;
        Ok(pins)
    }

    /// Where a map is pinned.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.folder.join(format!("map_{name}"))
    }

    /// Where a program is pinned.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(format!("prog_{name}"))
    }

    /// The number of a pinned program, if it is there and may be asked.
    #[must_use]
    pub fn program_id(&self, name: &str) -> Option<u32> {
        ProgramInfo::from_pin(self.program(name)).ok().map(|info| info.id())
    }

    /// Where the attachment to a link is pinned.
    #[must_use]
    pub fn link(&self, link: &str) -> PathBuf {
        self.folder.join(format!("link_{link}"))
    }

    /// Where the attachment to a pod's end is pinned. No link's name has a colon.
    #[must_use]
    pub fn inner_link(&self, pod: &str, port: &str) -> PathBuf {
        self.folder.join(format!("link_{pod}:{port}"))
    }

    /// Which pins of maps and programs are missing, where these programs are attached.
    #[must_use]
    pub fn missing(&self, hook: Hook) -> Vec<PathBuf> {
        let maps = MAPS.iter().map(|name| self.map(name));
        let programs = programs(hook).iter().map(|name| self.program(name));
        maps.chain(programs).filter(|path| !path.exists()).collect()
    }

    /// Whether the pins may not be looked at, so that nothing is known of them.
    #[must_use]
    pub fn are_hidden(&self) -> bool {
        fs::read_dir(&self.folder).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    }
}

fn layout_folder(layout: u32) -> String {
    format!("v{layout}")
}

fn pin_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Pin { action, path, source }
}

/// Removes one pin. Succeeds if there is none.
///
/// # Errors
///
/// When it cannot be removed.
pub fn remove_pin(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(pin_error("remove the pin", path)(source))
        }
        _ => Ok(()),
    }
}

/// The layouts under which a topology has pins.
#[must_use]
pub fn layouts(roots: &Roots, topology: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(&roots.pins) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix('v')?.parse().ok())
        .filter(|layout| Pins::new(roots, *layout, topology).folder.exists())
        .collect()
}

/// The topologies that have pins of any layout.
#[must_use]
pub fn topologies(roots: &Roots) -> Vec<String> {
    let folders = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = folders(&roots.pins)
        .flat_map(|layout| folders(&layout.path()).collect::<Vec<_>>())
        .filter_map(|topology| topology.file_name().into_string().ok())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Removes every pin of a topology, of every layout, and the folders that get empty by it. Succeeds if there
/// are none.
///
/// # Errors
///
/// When a pin cannot be removed.
pub fn remove_all(roots: &Roots, topology: &str) -> Result<(), Error> {
    for layout in layouts(roots, topology) {
        let folder = Pins::new(roots, layout, topology).folder;
        fs::remove_dir_all(&folder).map_err(pin_error("remove", &folder))?;
        // Not empty: others are up.
        let _unused: io::Result<()> = fs::remove_dir(roots.pins.join(layout_folder(layout)));
    }
    if roots.pins == Path::new(DEFAULT_PIN_DIR) {
        let _unused: io::Result<()> = fs::remove_dir(&roots.pins);
    }
    Ok(())
}

/// Whether pins can be made and stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The folder is on a bpffs.
    Ready,
    /// It would be if a bpffs were mounted, which we can.
    Mountable,
    /// It is not, and a mount of ours would not help: why, and what to do.
    Hopeless(String),
}

/// Looks whether pins can be made and stay. Changes nothing.
#[must_use]
pub fn place(roots: &Roots) -> Place {
    if is_on_bpffs(&roots.pins) {
        return Place::Ready;
    }
    if !roots.pins.starts_with(BPFFS) {
        return Place::Hopeless(format!(
            "mount one there (`mount -t bpf bpf {}`), or use {BPFFS}/…",
            roots.pins.display()
        ));
    }
    if mounts_vanish_with_us() {
        return Place::Hopeless(format!(
            "{BPFFS} is not mounted in this mount namespace, and a mount made here would vanish with it. \
             `ip netns exec` is such a place: use `nsenter --net=/run/netns/NAME veth …`, or mount it before \
             (`mount -t bpf bpf {BPFFS}`)"
        ));
    }
    Place::Mountable
}

/// Makes sure that pins can be made and stay: the folder is on a bpffs, which is mounted if need be.
///
/// # Errors
///
/// When there is none and none can be mounted, or when a mount would vanish with this process.
pub fn prepare(roots: &Roots) -> Result<(), Error> {
    let error = |why: String| Error::NoBpffs { path: roots.pins.clone(), why };
    match place(roots) {
        Place::Ready => return Ok(()),
        Place::Mountable => {}
        Place::Hopeless(why) => return Err(error(why)),
    }
    // The note first: a crash in between leaves a note of nothing, and not a mount that nobody knows of.
    roots.note_mount(Path::new(BPFFS))?;
    if let Err(errno) = mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700")) {
        roots.remove_mount_note()?;
        return Err(error(format!("mounting a bpffs on {BPFFS} failed: {}", errno.desc())));
    }
    log::info!("mounted a bpffs on {BPFFS}");
    Ok(())
}

/// Unmounts the bpffs if it was mounted by us and nobody else has pinned anything there.
///
/// # Errors
///
/// When our note of it cannot be read.
pub fn unmount_if_ours(roots: &Roots) -> Result<(), Error> {
    let Some(mount_point) = roots.mount_note()? else {
        return Ok(());
    };
    let is_empty = fs::read_dir(&mount_point).is_ok_and(|entries| {
        // The kernel puts its own iterators there at mount.
        entries.flatten().all(|entry| entry.path().extension().is_some_and(|extension| extension == "debug"))
    });
    if is_empty {
        // Busy: somebody uses it, and then it is theirs.
        let _unused: nix::Result<()> = umount2(&mount_point, MntFlags::empty());
    }
    Ok(roots.remove_mount_note()?)
}

/// Whether we are in a mount namespace that is not the machine's (or the container's), so that it ends with us.
///
/// The machine's is that of the first process; where that may not be seen, of our farthest ancestor that may.
fn mounts_vanish_with_us() -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let parent = |process: &str| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        Some(status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().to_owned())
    };
    let mut machine = None;
    let mut process = Some("self".to_owned());
    while let Some(current) = process.filter(|process| process != "0") {
        machine = namespace(&current).or(machine);
        process = parent(&current);
    }
    machine.is_some_and(|machine| namespace("self") != Some(machine))
}

fn is_on_bpffs(path: &Path) -> bool {
    let there = path.ancestors().find(|path| path.exists());
    there.is_some_and(|path| statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC))
}
