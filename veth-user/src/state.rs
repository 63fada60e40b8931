//! What we remember of topologies: one intent file each, written before the first step.
//!
//! The file says what may exist; what does exist is always asked of the kernel.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, FallocateFlags, Flock, FlockArg, RenameFlags, fallocate, renameat2},
    unistd::geteuid,
};
use serde::{Deserialize, Serialize};
use veth_common::COUNTERS_VERSION;

use crate::{
    datapath::object,
    net::sysctl::{Before, Forwarding},
    probe::Selection,
    topology::{
        Topology,
        model::{Invalid, check_name, hash},
    },
};

/// Where state is kept unless `--state-dir` says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/run/veth";

/// Where pins are kept unless `--pin-dir` says otherwise.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/veth";

/// The two folders that are ours. Both can be set, so that two "hosts" on one machine do not meet.
#[derive(Clone, Debug)]
pub struct Roots {
    /// State and locks.
    pub state: PathBuf,
    /// Pinned programs, maps and links; on a bpffs.
    pub pins: PathBuf,
}

/// The mode of a file that everybody may read: `veth ls` needs no root.
const READABLE: u32 = 0o644;

/// That of a lock: whoever can open a file at all can hold a lock on it for ever.
const LOCK: u32 = 0o600;

/// State could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be used.
    #[error("{action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else decides what is in a folder of ours.
    #[error(
        "{} {why}, so that others could put anything into {}: use a folder that only root can change", path.display(),
        folder.display()
    )]
    Open {
        /// What is wrong.
        why: &'static str,
        /// With which part of the way there.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
    },
    /// No topology can be called so.
    #[error(transparent)]
    Name(Invalid),
    /// A file speaks of a topology that cannot be.
    #[error("{} was changed by hand and makes no sense; remove it and run `veth down --all`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Invalid,
    },
    /// A file has something else in it than we wrote.
    #[error(
        "{} is not a state file that this veth understands; if no topology of that name is wanted, remove it \
         and run `veth down --all`", path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// Whether there was no room for a file.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(self, Self::Io { source, .. } if full.contains(&source.kind()))
    }
}

/// How far a topology has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Being made or being removed: anything of it may exist or not.
    Changing,
    /// All of it was made.
    Up,
}

/// What is remembered of a topology.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The layout of its maps.
    pub layout_version: u32,
    /// The layout of its counters, which those of maps may share. Records before layout 6 do not say.
    #[serde(default)]
    pub counters_version: u32,
    /// Which build of the programs it runs. Records before layout 6 do not say.
    #[serde(default)]
    pub programs: String,
    /// The version of veth that made it.
    pub veth_version: String,
    /// The boot it was made in: nothing of it survives another.
    pub boot_id: String,
    /// The network namespace with the host ends, by inode.
    pub host_netns: u64,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// How far it has come.
    pub phase: Phase,
    /// Which hook and redirect were picked, and why. Records of layout 1 do not say.
    #[serde(default)]
    pub selection: Selection,
    /// Features of links that were changed for XDP, as `POD/PORT FEATURE on|off`. The links are ours and go with
    /// the topology, so nothing has to be changed back.
    #[serde(default)]
    pub changed_features: Vec<String>,
    /// How many slots its maps have.
    #[serde(default)]
    pub capacity: u32,
    /// What was declared.
    pub topology: Topology,
    /// What there was before, while it is being changed.
    #[serde(default)]
    pub before: Option<Topology>,
    /// What earlier changes were about, none of which came to its end: anything of it may be there.
    #[serde(default)]
    pub leftovers: Vec<Topology>,
    /// The layout of maps that no program uses any more, whose counts belong to what these ones have carried over: as long
    /// as it is there, that may have to be done again.
    #[serde(default)]
    pub carrying: Option<u32>,
}

impl Record {
    /// A topology about to be made in a host namespace.
    ///
    /// # Errors
    ///
    /// When `/proc` does not say which boot this is.
    pub fn new(topology: Topology, host_netns: u64, selection: Selection) -> Result<Self, Error> {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(Self {
            layout_version: object::layout(),
            counters_version: COUNTERS_VERSION,
            programs: object::id(),
            veth_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: boot_id()?,
            host_netns,
            created,
            phase: Phase::Changing,
            selection,
            changed_features: Vec::new(),
            capacity: 0,
            topology,
            before: None,
            leftovers: Vec::new(),
            carrying: None,
        })
    }

    /// The layout of its counters.
    #[must_use]
    pub const fn counters(&self) -> u32 {
        // The first that could be upgraded, before records said so.
        if self.layout_version == 5 { 1 } else { self.counters_version }
    }

    /// Whether its maps are of the layout that this veth speaks.
    #[must_use]
    pub fn is_of_our_layout(&self) -> bool {
        self.layout_version == object::layout()
    }

    /// Whether it runs other programs than those of this veth, or on maps of another layout.
    #[must_use]
    pub fn is_of_another_build(&self) -> bool {
        !self.is_of_our_layout() || self.programs != object::id()
    }

    /// Notes that the programs are those of this veth, on maps of its layout.
    pub fn set_build(&mut self) {
        self.layout_version = object::layout();
        self.counters_version = COUNTERS_VERSION;
        self.programs = object::id();
        env!("CARGO_PKG_VERSION").clone_into(&mut self.veth_version);
    }

    /// Everything that may be there of it: what was declared, and what there was before.
    pub fn topologies(&self) -> impl Iterator<Item = &Topology> {
        std::iter::once(&self.topology).chain(self.others())
    }

    /// The same without what was declared.
    pub fn others(&self) -> impl Iterator<Item = &Topology> {
        self.before.iter().chain(&self.leftovers)
    }

    /// Whether it was made before the machine was started last, so that nothing of it exists.
    ///
    /// # Errors
    ///
    /// When `/proc` does not say which boot this is.
    pub fn is_from_another_boot(&self) -> Result<bool, Error> {
        Ok(self.boot_id != boot_id()?)
    }
}

fn boot_id() -> Result<String, Error> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let id = fs::read_to_string(path).map_err(io_error("read", path))?;
    Ok(id.trim().to_owned())
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

/// Refuses a folder that somebody else than root and the caller can put files into, or another folder in its place. One
/// that is not there is nobody's.
///
/// # Errors
///
/// Which part of the way there others can change.
pub fn check_folder(folder: &Path) -> Result<(), Error> {
    let failed = |source| io_error("look at", folder)(source);
    let named = std::path::absolute(folder).map_err(failed)?;
    let real = match fs::canonicalize(&named) {
        Ok(real) => real,
        // What leads nowhere is still a link that somebody made.
        Err(source) if source.kind() == io::ErrorKind::NotFound => named.clone(),
        Err(source) => return Err(failed(source)),
    };
    let refuse = |path: &Path, why| Error::Open { why, path: path.to_owned(), folder: folder.to_owned() };
    for path in named.ancestors().chain(real.ancestors()) {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(source) if source.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(io_error("look at", path)(source)),
        };
        if ![0, geteuid().as_raw()].contains(&metadata.uid()) {
            return Err(refuse(path, "belongs to another user"));
        }
        // In a sticky folder, as /tmp, others can only add.
        let is_sticky = metadata.mode() & libc::S_ISVTX != 0 && path != real;
        if !metadata.is_symlink() && metadata.mode() & 0o022 != 0 && !is_sticky {
            return Err(refuse(path, "can be written by others"));
        }
    }
    Ok(())
}

/// Makes a file anew, with a mode whatever the umask. Nothing that stands there, no link either, is followed.
fn write_new(path: &Path, text: &[u8]) -> Result<(), Error> {
    remove_if_there(path)?;
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(READABLE).open(path)?;
        file.set_permissions(fs::Permissions::from_mode(READABLE))?;
        file.write_all(text)
    };
    write().map_err(io_error("write", path))
}

/// Held while a topology is changed. Others wait.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// What tells a file from an earlier one of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    modified: Option<SystemTime>,
    length: u64,
}

impl Roots {
    fn record_path(&self, name: &str) -> PathBuf {
        self.state.join(format!("{name}.json"))
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.state.join(format!("{name}.lock"))
    }

    /// The note that grace periods are hurried because of us.
    fn hurry_note_path(&self) -> PathBuf {
        self.state.join("rcu-expedited")
    }

    /// The note of what the host forwarded before us.
    fn forwarding_note_path(&self) -> PathBuf {
        self.state.join("forwarding")
    }

    /// Where the Open vSwitch of a topology keeps what it needs. A short name: it becomes a part of those of sockets.
    #[must_use]
    pub fn ovs_folder(&self, name: &str) -> PathBuf {
        self.state.join(format!("{name}.ovs"))
    }

    /// The note that the bpffs was mounted by us, and where.
    fn mount_note_path(&self) -> PathBuf {
        self.state.join("bpffs-mount")
    }

    /// The record of a topology, if there is one.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read or understood.
    pub fn load(&self, name: &str) -> Result<Option<Record>, Error> {
        if check_name(name, "topology").is_err() {
            // It would be a path to somewhere else.
            return Ok(None);
        }
        let path = self.record_path(name);
        check_folder(&self.state)?;
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error("read", &path)(source)),
        };
        let record: Record = match serde_json::from_str(&text) {
            Ok(record) => record,
            Err(source) => return Err(Error::Unreadable { path, source }),
        };
        let valid = record.topologies().try_for_each(|topology| {
            if topology.name == name {
                topology.validate()
            } else {
                Err(Invalid::Renamed(topology.name.clone()))
            }
        });
        match valid {
            Ok(()) => Ok(Some(record)),
            Err(source) => Err(Error::Damaged { path, source }),
        }
    }

    /// Writes a record so that a reader sees the old or the new one, never a part. One that is about to change keeps room
    /// for those that end the change: what was begun is finished or undone also where there is no space left.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written. The old record is as it was.
    pub fn save(&self, record: &Record) -> Result<(), Error> {
        let path = self.record_path(&record.topology.name);
        let fresh = fresh_path(&path);
        let text = serde_json::to_vec_pretty(record)
            .map_err(|source| Error::Unreadable { path: path.clone(), source })?;
        // There since an earlier write of this change: it is the room that was kept.
        let has_room = fresh.exists();
        let written = write_over(&fresh, &text).and_then(|file| match record.phase {
            Phase::Changing if !has_room => keep_room(&file, &path, text.len()),
            Phase::Changing | Phase::Up => Ok(()),
        });
        if let Err(source) = written {
            if !has_room {
                remove_if_there(&fresh)?;
            }
            return Err(io_error("write", &fresh)(source));
        }
        // What is taken out of use is the room for the next.
        let flags = match record.phase {
            Phase::Changing if path.exists() => RenameFlags::RENAME_EXCHANGE,
            _ => RenameFlags::empty(),
        };
        let renamed = match renameat2(AT_FDCWD, &fresh, AT_FDCWD, &path, flags) {
            // Not every filesystem that somebody keeps state on can exchange.
            Err(Errno::EINVAL) => fs::rename(&fresh, &path),
            renamed => renamed.map_err(io::Error::from),
        };
        renamed.map_err(io_error("write", &path))
    }

    /// Forgets a topology, with the lock that is held on it, and the folder when it was the last.
    ///
    /// # Errors
    ///
    /// When a file cannot be removed.
    pub fn forget(&self, name: &str, lock: Lock) -> Result<(), Error> {
        let record = self.record_path(name);
        for path in [fresh_path(&record), record, self.lock_path(name)] {
            remove_if_there(&path)?;
        }
        drop(lock);
        self.remove_folder();
        Ok(())
    }

    /// Makes the state folder, unless it is there. Everybody may look into it, and only we may change it.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or others could put files into it.
    pub fn make_folder(&self) -> Result<(), Error> {
        let failed = io_error("make the folder", &self.state);
        // Nothing is made where others have led us, and nobody may have been faster.
        check_folder(&self.state)?;
        if let Some(above) = self.state.parent() {
            fs::create_dir_all(above).map_err(io_error("make the folder", above))?;
        }
        match fs::DirBuilder::new().mode(0o755).create(&self.state) {
            // Whatever the umask. By now, whoever took the last topology down may have removed it again.
            Ok(()) => match fs::set_permissions(&self.state, fs::Permissions::from_mode(0o755)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed(source)),
                _ => {}
            },
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(failed(source)),
        }
        check_folder(&self.state)
    }

    /// Removes the state folder if nothing is in it and nobody but us can have made it.
    pub fn remove_folder(&self) {
        if self.state == Path::new(DEFAULT_STATE_DIR) {
            // Not empty: others are up.
            let _unused: io::Result<()> = fs::remove_dir(&self.state);
        }
    }

    /// The names of all topologies, sorted.
    ///
    /// # Errors
    ///
    /// When the folder is there and cannot be read.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        check_folder(&self.state)?;
        let entries = match fs::read_dir(&self.state) {
            Ok(entries) => entries,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(io_error("read", &self.state)(source)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(io_error("read", &self.state))?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".json"));
            if let Some(name) = name.filter(|name| check_name(name, "topology").is_ok()) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Tries to be the only one that changes a topology: nothing if somebody else is at it.
    ///
    /// # Errors
    ///
    /// When the state folder cannot be made or written.
    pub fn try_lock(&self, name: &str) -> Result<Option<Lock>, Error> {
        self.make_folder()?;
        self.lock_by(name, OpenOptions::new().create(true).truncate(false).mode(LOCK))
    }

    /// The same for one that is there: nothing also if it is not any more, and nothing is made.
    ///
    /// # Errors
    ///
    /// When the lock cannot be opened.
    pub fn try_lock_known(&self, name: &str) -> Result<Option<Lock>, Error> {
        self.lock_by(name, &mut OpenOptions::new())
    }

    fn lock_by(&self, name: &str, options: &mut OpenOptions) -> Result<Option<Lock>, Error> {
        check_name(name, "topology").map_err(Error::Name)?;
        let path = self.lock_path(name);
        options.write(true).custom_flags(libc::O_NOFOLLOW);
        let file = match options.open(&path) {
            // Whoever took the last topology down removed the folder between our two lines.
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                self.remove_folder();
                return Err(io_error("open", &path)(source));
            }
            Ok(file) => file,
        };
        // Made by an earlier version, everybody could open it.
        file.set_permissions(fs::Permissions::from_mode(LOCK)).map_err(io_error("close to others", &path))?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(io_error("lock", &path)(errno.into())),
        };
        // Whoever held it before may have removed the file: then it locks nothing any more.
        let ours = file.metadata().map_err(io_error("look at", &path))?;
        match fs::metadata(&path) {
            Ok(there) if there.ino() == ours.ino() && there.dev() == ours.dev() => {
                Ok(Some(Lock { _file: file }))
            }
            _ => Ok(None),
        }
    }

    /// What the alias of every link of ours begins with. Other roots have another mark, so that two "hosts" on
    /// one machine do not take each other's things for theirs.
    #[must_use]
    pub fn mark(&self) -> String {
        if self.state == Path::new(DEFAULT_STATE_DIR) {
            return "veth".to_owned();
        }
        format!("veth-{:06x}", hash(&[self.state.as_os_str().as_encoded_bytes()]) >> 40)
    }

    /// How the file of a topology's record is at this moment, if there is one: what was read of it is true until that
    /// changes.
    #[must_use]
    pub fn stamp(&self, name: &str) -> Option<Stamp> {
        let metadata = fs::metadata(self.record_path(name)).ok()?;
        Some(Stamp { inode: metadata.ino(), modified: metadata.modified().ok(), length: metadata.len() })
    }

    /// Remembers that grace periods are hurried because of us.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written.
    pub fn note_hurry(&self) -> Result<(), Error> {
        let path = self.hurry_note_path();
        write_new(&path, &[])
    }

    /// Whether they were hurried because of us.
    #[must_use]
    pub fn has_hurry_note(&self) -> bool {
        self.hurry_note_path().exists()
    }

    /// Takes that note back.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub fn remove_hurry_note(&self) -> Result<(), Error> {
        remove_if_there(&self.hurry_note_path())
    }

    /// Remembers what the host forwarded before us in this boot, unless that is remembered already.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written.
    pub fn note_forwarding(&self, before: &Before) -> Result<(), Error> {
        let path = self.forwarding_note_path();
        if self.forwarding_note()?.is_some() {
            return Ok(());
        }
        let Before { forwarding: Forwarding { ipv4, ipv6 }, along } = before;
        let forwarding = format!("{} {} {}\n", boot_id()?, u8::from(*ipv4), u8::from(*ipv6));
        let along = along.iter().map(|(key, value)| format!("{key} {value}\n"));
        let text: String = std::iter::once(forwarding).chain(along).collect();
        write_new(&path, text.as_bytes())
    }

    /// What the host forwarded before us, if we changed it in this boot.
    ///
    /// # Errors
    ///
    /// When the note cannot be read.
    pub fn forwarding_note(&self) -> Result<Option<Before>, Error> {
        let path = self.forwarding_note_path();
        match fs::read_to_string(&path) {
            Ok(text) => {
                let mut lines = text.lines();
                let words: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
                let [boot, ipv4, ipv6] = words[..] else { return Ok(None) };
                let forwarding = Forwarding { ipv4: ipv4 == "1", ipv6: ipv6 == "1" };
                let along = lines.filter_map(|line| line.split_once(' '));
                let along = along.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
                Ok((boot == boot_id()?).then_some(Before { forwarding, along }))
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_error("read", &path)(source)),
        }
    }

    /// Takes that note back.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub fn remove_forwarding_note(&self) -> Result<(), Error> {
        remove_if_there(&self.forwarding_note_path())
    }

    /// Remembers that the bpffs was mounted by us.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written.
    pub fn note_mount(&self, mount_point: &Path) -> Result<(), Error> {
        let path = self.mount_note_path();
        write_new(&path, mount_point.as_os_str().as_encoded_bytes())
    }

    /// Where the bpffs was mounted, if it was by us.
    ///
    /// # Errors
    ///
    /// When the note cannot be read.
    pub fn mount_note(&self) -> Result<Option<PathBuf>, Error> {
        let path = self.mount_note_path();
        match fs::read_to_string(&path) {
            Ok(mount_point) => Ok(Some(mount_point.into())),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_error("read", &path)(source)),
        }
    }

    /// Takes that note back.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub fn remove_mount_note(&self) -> Result<(), Error> {
        remove_if_there(&self.mount_note_path())
    }
}

/// Where the next record is written.
fn fresh_path(record: &Path) -> PathBuf {
    record.with_extension("new")
}

/// Writes a file from its beginning and leaves it as long as that. It keeps the room that it has until then.
fn write_over(path: &Path, text: &[u8]) -> io::Result<File> {
    if path.is_symlink() {
        fs::remove_file(path)?;
    }
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(READABLE).custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(path)?;
    file.set_permissions(fs::Permissions::from_mode(READABLE))?;
    file.write_all(text)?;
    file.set_len(text.len().try_into().unwrap_or(u64::MAX))?;
    Ok(file)
}

/// Makes room behind the ends of a record that was written and of the one that it replaces, for somewhat longer ones.
fn keep_room(fresh: &File, replaced: &Path, length: usize) -> io::Result<()> {
    const MORE: usize = 4096;
    let length = (length + MORE).try_into().unwrap_or(i64::MAX);
    let keep = |file: &File| match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
        // Not every filesystem that somebody keeps state on can.
        Err(Errno::EOPNOTSUPP) => Ok(()),
        kept => kept.map_err(io::Error::from),
    };
    keep(fresh)?;
    match OpenOptions::new().write(true).open(replaced) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        file => keep(&file?),
    }
}

/// Also where nothing may be removed, if there is nothing.
fn remove_if_there(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if path.symlink_metadata().is_ok() => Err(io_error("remove", path)(source)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots() -> (tempfile::TempDir, Roots) {
        let folder = tempfile::tempdir().unwrap();
        let roots = Roots { state: folder.path().join("state"), pins: folder.path().join("pins") };
        (folder, roots)
    }

    #[test]
    fn remembers_and_forgets() {
        let (_folder, roots) = roots();
        assert!(roots.names().unwrap().is_empty());
        let lock = roots.try_lock("wire").unwrap().unwrap();
        let record = Record::new(Topology::wire("wire", 1_500).unwrap(), 7, Selection::default()).unwrap();
        roots.save(&record).unwrap();
        assert_eq!(roots.names().unwrap(), ["wire"]);
        let loaded = roots.load("wire").unwrap().unwrap();
        assert_eq!(loaded.topology, record.topology);
        assert!(!loaded.is_from_another_boot().unwrap());
        assert!(roots.load("other").unwrap().is_none());
        roots.forget("wire", lock).unwrap();
        assert_eq!(
            fs::read_dir(&roots.state).unwrap().count(),
            0,
            "the folder is the user's, what is in it ours"
        );
    }

    #[test]
    fn a_change_keeps_room_until_it_ends() {
        let (_folder, roots) = roots();
        let _lock = roots.try_lock("wire").unwrap().unwrap();
        let record = Record::new(Topology::wire("wire", 1_500).unwrap(), 7, Selection::default()).unwrap();
        let fresh = fresh_path(&roots.record_path("wire"));
        let up = Record { phase: Phase::Up, ..record.clone() };
        for (record, has_room) in
            [(&record, false), (&up, false), (&record, true), (&record, true), (&up, false)]
        {
            roots.save(record).unwrap();
            assert_eq!(roots.load("wire").unwrap().unwrap().phase, record.phase);
            assert_eq!(fresh.exists(), has_room, "{:?}", record.phase);
        }
    }

    #[test]
    fn a_lock_is_held_by_one_and_survives_the_removal_of_its_file() {
        let (_folder, roots) = roots();
        let lock = roots.try_lock("wire").unwrap().unwrap();
        assert!(roots.try_lock("wire").unwrap().is_none());
        assert!(roots.try_lock("other").unwrap().is_some());
        // Forgetting removes the very file that others try.
        roots.forget("wire", lock).unwrap();
        let _lock = roots.try_lock("wire").unwrap().unwrap();
        assert!(roots.lock_path("wire").exists());
        assert!(roots.try_lock("wire").unwrap().is_none());
    }

    /// Nobody's, or somebody's who is neither root nor us.
    const STRANGER: u32 = 65_534;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn others_may_read_and_nothing_else_whatever_the_umask() {
        let (_folder, roots) = roots();
        let record = Record::new(Topology::wire("wire", 1_500).unwrap(), 7, Selection::default()).unwrap();
        // The umask is the whole process's, and other tests do not look at modes.
        for umask in [0o000, 0o077] {
            let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
            let lock = roots.try_lock("wire").unwrap().unwrap();
            roots.save(&record).unwrap();
            roots.note_hurry().unwrap();
            nix::sys::stat::umask(before);
            assert_eq!(mode(&roots.state), 0o755);
            assert_eq!(mode(&roots.record_path("wire")), 0o644);
            assert_eq!(mode(&roots.hurry_note_path()), 0o644);
            // Whoever could open it could keep everybody waiting.
            assert_eq!(mode(&roots.lock_path("wire")), 0o600);
            drop(lock);
            fs::remove_dir_all(&roots.state).unwrap();
        }
    }

    #[test]
    fn a_folder_that_others_can_change_is_refused() {
        let (folder, roots) = roots();
        let record = Record::new(Topology::wire("wire", 1_500).unwrap(), 7, Selection::default()).unwrap();
        drop(roots.try_lock("wire").unwrap());
        roots.save(&record).unwrap();
        let refused = |why: &str| {
            for error in
                [roots.names().map(drop), roots.load("wire").map(drop), roots.try_lock("wire").map(drop)]
            {
                let error = error.unwrap_err().to_string();
                assert!(error.contains(why), "{error}");
            }
        };
        let permit = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for mode in [0o777, 0o775, 0o1777] {
            permit(&roots.state, mode);
            refused("can be written by others");
        }
        permit(&roots.state, 0o755);
        // Above it, others may add where they can change nothing.
        permit(folder.path(), 0o777);
        refused("can be written by others");
        permit(folder.path(), 0o1777);
        assert_eq!(roots.names().unwrap(), ["wire"]);
        // Another's link to a folder of ours, and another's folder.
        if geteuid().is_root() {
            let elsewhere = folder.path().join("elsewhere");
            fs::rename(&roots.state, &elsewhere).unwrap();
            std::os::unix::fs::symlink(&elsewhere, &roots.state).unwrap();
            assert_eq!(roots.names().unwrap(), ["wire"], "our own link");
            std::os::unix::fs::lchown(&roots.state, Some(STRANGER), None).unwrap();
            refused("belongs to another user");
            fs::remove_file(&roots.state).unwrap();
            fs::rename(&elsewhere, &roots.state).unwrap();
            std::os::unix::fs::chown(&roots.state, Some(STRANGER), None).unwrap();
            refused("belongs to another user");
        }
    }

    #[test]
    fn no_link_is_followed_when_something_is_written() {
        let (folder, roots) = roots();
        let victim = folder.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        roots.make_folder().unwrap();
        let record = Record::new(Topology::wire("wire", 1_500).unwrap(), 7, Selection::default()).unwrap();
        let fresh = roots.record_path("wire").with_extension("new");
        for path in [&fresh, &roots.record_path("wire"), &roots.hurry_note_path(), &roots.lock_path("wire")] {
            std::os::unix::fs::symlink(&victim, path).unwrap();
        }
        roots.save(&record).unwrap();
        roots.note_hurry().unwrap();
        assert!(roots.try_lock("wire").is_err());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert!(fs::symlink_metadata(roots.record_path("wire")).unwrap().is_file());
    }

    #[test]
    fn other_roots_have_another_mark() {
        let (_folder, roots) = roots();
        let default = Roots { state: DEFAULT_STATE_DIR.into(), pins: DEFAULT_PIN_DIR.into() };
        assert_eq!(default.mark(), "veth");
        assert!(roots.mark().starts_with("veth-") && roots.mark() == roots.clone().mark());
    }

    #[test]
    fn damaged_state_is_named() {
        let (_folder, roots) = roots();
        roots.make_folder().unwrap();
        fs::write(roots.record_path("wire"), "{").unwrap();
        let error = roots.load("wire").unwrap_err().to_string();
        assert!(error.contains("wire.json") && error.contains("veth down --all"), "{error}");
        let record = Record::new(Topology::wire("wire", 1_500).unwrap(), 7, Selection::default()).unwrap();
        let text = serde_json::to_string(&record).unwrap().replace("\"path\":0", "\"path\":9");
        fs::write(roots.record_path("wire"), text).unwrap();
        assert!(matches!(roots.load("wire"), Err(Error::Damaged { .. })));
        // One topology's record under another's name would take the wrong one down.
        fs::write(roots.record_path("other"), serde_json::to_string(&record).unwrap()).unwrap();
        assert!(matches!(roots.load("other"), Err(Error::Damaged { .. })));
    }
}
