//! A throw-away host: namespaces of our own, so that nothing of the machine is touched, and nothing is left however
//! this process ends.

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::Error;

/// Moves the calling thread, and those that it starts, to one: a network namespace, and a mount namespace with an
/// empty `/run`, a `/sys` of its own and an empty bpffs.
///
/// # Errors
///
/// When we may not.
pub fn enter() -> Result<(), Error> {
    let failed =
        |action: &'static str| move |errno| Error::Host { action, source: std::io::Error::from(errno) };
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .map_err(failed("make namespaces of our own"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)
        .map_err(failed("keep mounts to ourselves"))?;
    for (kind, place) in [("tmpfs", "/run"), ("sysfs", "/sys"), ("bpf", "/sys/fs/bpf")] {
        mount(Some(kind), place, Some(kind), MsFlags::empty(), none)
            .map_err(failed("mount what a host has"))?;
    }
    Ok(())
}
