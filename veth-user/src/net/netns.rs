//! Network namespaces, named the way `ip netns` names them.
//!
//! A namespace belongs to a thread: nothing here ever changes the namespace of the caller.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use super::{Error, Netlink, Result, netlink::on_own_thread, sysctl};

/// Where `ip netns` keeps names.
pub const NETNS_DIR: &str = "/run/netns";

/// The mode of the files that we mount namespaces on. `ip netns add` uses 0.
const MODE: u32 = 0o444;

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Netns {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// When `/proc` is not there.
    pub fn current() -> Result<Self> {
        // Not /proc/self: that is the main thread's, which may be elsewhere.
        Self::open_path(Path::new("/proc/thread-self/ns/net"))
    }

    /// A namespace by the name that `ip netns` shows.
    ///
    /// # Errors
    ///
    /// When there is none of that name, or it cannot be opened.
    pub fn open(name: &str) -> Result<Self> {
        Self::open_path(&path(name))
    }

    /// That of the machine's, or the container's, first process: where values of the whole machine can be seen.
    ///
    /// # Errors
    ///
    /// When we may not look at that process.
    pub fn first() -> Result<Self> {
        Self::open_path(Path::new("/proc/1/ns/net"))
    }

    /// A namespace by the file that stands for it: below `/run/netns`, or a process' `/proc/PID/ns/net`.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn open_path(path: &Path) -> Result<Self> {
        match File::open(path) {
            Ok(file) => Ok(Self { file }),
            Err(source) => Err(Error::new(format!("open the network namespace {}", path.display()), source)),
        }
    }

    /// Makes a namespace that has no name yet: it ends when this value and every socket in it are dropped.
    /// `prepare` runs inside it, on a thread of its own.
    ///
    /// # Errors
    ///
    /// When the kernel makes no namespace.
    pub fn anonymous<T: Send>(prepare: impl FnOnce() -> Result<T> + Send) -> Result<(Self, T)> {
        let action = "make a network namespace";
        on_own_thread(action, || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Error::new(action, errno))?;
            let prepared = prepare()?;
            Ok((Self::current()?, prepared))
        })?
    }

    /// Makes such a namespace whose addresses can be used at once, and connects to netlink inside.
    ///
    /// # Errors
    ///
    /// When the kernel makes no namespace.
    pub fn throw_away() -> Result<(Self, Netlink)> {
        let runtime = tokio::runtime::Handle::current();
        Self::anonymous(move || {
            let _entered = runtime.enter();
            sysctl::disable_dad()?;
            Netlink::open()
        })
    }

    /// Gives the namespace a name, so that it stays and `ip netns` shows it. The folder of names must be there:
    /// [`share_names`].
    ///
    /// # Errors
    ///
    /// `EEXIST` when the name is taken.
    pub fn publish(&self, name: &str) -> Result<()> {
        let path = path(name);
        let action = || format!("name a network namespace {name}");
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(&path)
            .map_err(|source| Error::new(action(), source))?;
        let source = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        mount(Some(source.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|errno| {
            let _unused: io::Result<()> = fs::remove_file(&path);
            Error::new(action(), errno)
        })
    }

    /// Runs a closure inside the namespace, on a thread of its own.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let action = "enter a network namespace";
        on_own_thread(action, || {
            self.enter()?;
            Ok(work())
        })?
    }

    /// Moves the calling thread into the namespace, for good. Only for a thread that does nothing else
    /// afterwards, or a process that is about to `exec`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses: usually, not root.
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::new("enter a network namespace", errno))
    }

    /// Connects to netlink inside.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered or the kernel gives no socket.
    pub fn netlink(&self) -> Result<Netlink> {
        Netlink::open_in(self)
    }

    /// The number that identifies the namespace while it lives.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn inode(&self) -> Result<u64> {
        self.file
            .metadata()
            .map(|metadata| metadata.ino())
            .map_err(|source| Error::new("identify a network namespace", source))
    }
}

/// What stands under a name in `/run/netns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// Nothing.
    Free,
    /// A namespace.
    Namespace,
    /// A file that no namespace is mounted on, as we leave when we die while we make one.
    Stale,
    /// A file that somebody else put there.
    Foreign,
}

/// Looks a name up without entering what it stands for.
///
/// # Errors
///
/// When `/run/netns` cannot be read.
pub fn look_up(name: &str) -> Result<Name> {
    let path = path(name);
    match nix::sys::statfs::statfs(&path) {
        Ok(found) if found.filesystem_type().0 == NSFS_MAGIC => Ok(Name::Namespace),
        Ok(_) => match fs::symlink_metadata(&path) {
            Ok(file) if file.is_file() && file.len() == 0 && file.mode() & 0o777 == MODE => Ok(Name::Stale),
            Ok(_) => Ok(Name::Foreign),
            Err(source) => Err(Error::new(format!("look at {}", path.display()), source)),
        },
        Err(nix::errno::Errno::ENOENT) => Ok(Name::Free),
        Err(errno) => Err(Error::new(format!("look at {}", path.display()), errno)),
    }
}

/// Removes a name. The namespace ends when its last process and socket do. Succeeds if there is none.
///
/// # Errors
///
/// When the kernel refuses.
pub fn remove(name: &str) -> Result<()> {
    let path = path(name);
    let action = || format!("remove the network namespace {name}");
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: a plain file, nothing mounted on it.
        Ok(()) | Err(nix::errno::Errno::ENOENT | nix::errno::Errno::EINVAL) => {}
        Err(errno) => return Err(Error::new(action(), errno)),
    }
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::new(action(), source)),
        _ => Ok(()),
    }
}

/// Every name in `/run/netns`.
///
/// # Errors
///
/// When the folder cannot be read.
pub fn names() -> Result<Vec<String>> {
    let entries = match fs::read_dir(NETNS_DIR) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::new(format!("read {NETNS_DIR}"), source)),
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

fn path(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Does to `/run/netns` what `ip netns add` does, so that names made by either are seen by both, in every
/// mount namespace. Once before many names: the kernel goes through all that are there.
///
/// # Errors
///
/// When the folder cannot be made or mounted.
pub fn share_names() -> Result<()> {
    let action = "prepare /run/netns";
    fs::create_dir_all(NETNS_DIR).map_err(|source| Error::new(action, source))?;
    let share =
        || mount(None::<&str>, NETNS_DIR, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        // Not a mount point yet.
        Err(nix::errno::Errno::EINVAL) => {
            mount(Some(NETNS_DIR), NETNS_DIR, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
                .and_then(|()| share())
        }
        result => result,
    }
    .map_err(|errno| Error::new(action, errno))
}
