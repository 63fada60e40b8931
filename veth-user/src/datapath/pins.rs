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

use super::{
    Error, Hook,
    load::{COUNTERS, MAPS, programs},
    object,
};
use crate::state::{DEFAULT_PIN_DIR, Roots, check_folder};

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
        let pins = Self::new(roots, object::layout(), topology);
        // A bpffs is open to all, so that somebody may have been faster.
        check_folder(&roots.pins)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&pins.folder)
            .map_err(pin_error("make the folder", &pins.folder))?;
        check_folder(&pins.folder)?;
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

    /// Where a program is pinned until it has taken the place of that which is there.
    pub(super) fn next_program(&self, name: &str) -> PathBuf {
        self.folder.join(format!("next_{name}"))
    }

    /// Where a program stays pinned that another has taken the place of, as long as it may still be attached.
    pub(super) fn former_program(&self, id: u32) -> PathBuf {
        self.folder.join(format!("former_{id}"))
    }

    /// The numbers of all programs that are pinned here or for another layout of the topology, and of those that they
    /// have taken the place of.
    #[must_use]
    pub fn all_programs(&self) -> Vec<u32> {
        let is_program = |path: &PathBuf| {
            has_prefix(path, "prog_") || has_prefix(path, "former_") || has_prefix(path, "next_")
        };
        let pins = self.layouts().flat_map(|pins| files(&pins.folder)).filter(is_program);
        pins.filter_map(|path| ProgramInfo::from_pin(path).ok()).map(|info| info.id()).collect()
    }

    /// Lets go of programs that others have taken the place of, and of those that came to none.
    ///
    /// # Errors
    ///
    /// When a pin cannot be removed.
    pub fn forget_former(&self) -> Result<(), Error> {
        let is_over = |path: &PathBuf| has_prefix(path, "former_") || has_prefix(path, "next_");
        files(&self.folder).filter(is_over).try_for_each(|path| remove_pin(&path))
    }

    /// Moves the pin of an attachment here that was made by a veth of another layout. Its frames are decided on all the
    /// while.
    ///
    /// # Errors
    ///
    /// When it cannot be moved.
    pub(super) fn adopt(&self, pin: &Path) -> Result<(), Error> {
        let Some(name) = pin.file_name().filter(|_| !pin.exists()) else { return Ok(()) };
        let other = self.layouts().map(|pins| pins.folder.join(name)).find(|path| path.exists());
        other.map_or(Ok(()), |other| fs::rename(&other, pin).map_err(pin_error("move the pin", &other)))
    }

    /// The same topology's pins of every layout.
    fn layouts(&self) -> impl Iterator<Item = Self> + use<> {
        let topology = self.folder.file_name().map(ToOwned::to_owned).unwrap_or_default();
        let layouts = self.folder.parent().and_then(Path::parent).map(files);
        layouts.into_iter().flatten().map(move |layout| Self { folder: layout.join(&topology) })
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

    /// Whether there are counters.
    #[must_use]
    pub fn has_counters(&self) -> bool {
        self.map(COUNTERS).exists()
    }

    /// Whether an attachment is pinned.
    #[must_use]
    pub fn has_attachments(&self) -> bool {
        files(&self.folder).any(|path| has_prefix(&path, "link_"))
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

/// What is in a folder; nothing if there is none.
fn files(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn has_prefix(path: &Path, prefix: &str) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix))
}

fn layout_folder(layout: u32) -> String {
    format!("v{layout}")
}

fn pin_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Pin { action, path, source }
}

/// Removes one pin. Succeeds if there is none, also where nothing may be removed.
///
/// # Errors
///
/// When it cannot be removed.
pub fn remove_pin(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if path.symlink_metadata().is_ok() => Err(pin_error("remove the pin", path)(source)),
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
    remove_layouts(roots, topology, |_| true)
}

/// The same for one layout.
///
/// # Errors
///
/// When a pin cannot be removed.
pub fn remove_layout(roots: &Roots, topology: &str, which: u32) -> Result<(), Error> {
    remove_layouts(roots, topology, |layout| layout == which)
}

fn remove_layouts(roots: &Roots, topology: &str, which: impl Fn(u32) -> bool) -> Result<(), Error> {
    for layout in layouts(roots, topology).into_iter().filter(|layout| which(*layout)) {
        let pins = Pins::new(roots, layout, topology);
        // First: as long as they can be opened, they can be opened whole.
        remove_pin(&pins.map(COUNTERS))?;
        let folder = pins.folder;
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
