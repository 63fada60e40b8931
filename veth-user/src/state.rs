//! What we remember of topologies: one intent file each, written before the first step.
//!
//! The file says what may exist; what does exist is always asked of the kernel.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use veth_common::LAYOUT_VERSION;

use crate::{
    net::sysctl::Forwarding,
    probe::Selection,
    topology::{
        Topology,
        model::{Invalid, hash},
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
            layout_version: LAYOUT_VERSION,
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
        })
    }

    /// Everything that may be there of it: what was declared, and what there was before.
    pub fn topologies(&self) -> impl Iterator<Item = &Topology> {
        std::iter::once(&self.topology).chain(&self.before)
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
        let path = self.record_path(name);
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

    /// Writes a record so that a reader sees the old or the new one, never a part.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written.
    pub fn save(&self, record: &Record) -> Result<(), Error> {
        let path = self.record_path(&record.topology.name);
        let fresh = path.with_extension("new");
        let text = serde_json::to_vec_pretty(record)
            .map_err(|source| Error::Unreadable { path: path.clone(), source })?;
        File::create(&fresh).and_then(|mut file| file.write_all(&text)).map_err(io_error("write", &fresh))?;
        fs::rename(&fresh, &path).map_err(io_error("write", &path))
    }

    /// Forgets a topology, with the lock that is held on it, and the folder when it was the last.
    ///
    /// # Errors
    ///
    /// When a file cannot be removed.
    pub fn forget(&self, name: &str, lock: Lock) -> Result<(), Error> {
        let record = self.record_path(name);
        for path in [record.with_extension("new"), record, self.lock_path(name)] {
            remove_if_there(&path)?;
        }
        drop(lock);
        self.remove_folder();
        Ok(())
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
        let entries = match fs::read_dir(&self.state) {
            Ok(entries) => entries,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(io_error("read", &self.state)(source)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(io_error("read", &self.state))?.file_name();
            if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".json")) {
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
        let path = self.lock_path(name);
        fs::create_dir_all(&self.state).map_err(io_error("make the folder", &self.state))?;
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let file = match options.open(&path) {
            // Whoever took the last topology down removed the folder between our two lines.
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(io_error("open", &path))?,
        };
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
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
        format!("veth-{:06x}", hash(&[&self.state.to_string_lossy()]) >> 40)
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
        fs::write(&path, []).map_err(io_error("write", &path))
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
    pub fn note_forwarding(&self, before: Forwarding) -> Result<(), Error> {
        let path = self.forwarding_note_path();
        if self.forwarding_note()?.is_some() {
            return Ok(());
        }
        let Forwarding { ipv4, ipv6 } = before;
        let text = format!("{} {} {}\n", boot_id()?, u8::from(ipv4), u8::from(ipv6));
        fs::write(&path, text).map_err(io_error("write", &path))
    }

    /// What the host forwarded before us, if we changed it in this boot.
    ///
    /// # Errors
    ///
    /// When the note cannot be read.
    pub fn forwarding_note(&self) -> Result<Option<Forwarding>, Error> {
        let path = self.forwarding_note_path();
        match fs::read_to_string(&path) {
            Ok(text) => {
                let words: Vec<&str> = text.split_whitespace().collect();
                let [boot, ipv4, ipv6] = words[..] else { return Ok(None) };
                Ok((boot == boot_id()?).then(|| Forwarding { ipv4: ipv4 == "1", ipv6: ipv6 == "1" }))
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
        fs::write(&path, mount_point.as_os_str().as_encoded_bytes()).map_err(io_error("write", &path))
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

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(source)),
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
        fs::create_dir_all(&roots.state).unwrap();
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
