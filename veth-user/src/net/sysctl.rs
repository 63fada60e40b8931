//! Values under `/proc/sys/net`, which are those of the calling thread's namespace.
//!
//! Only written for links and namespaces that we made: they go when those go, so nothing has to be restored. What
//! `veth doctor --fix` writes beside is told with its old value.

use std::{fs, path::Path};

use super::{Error, Result};

/// Keeps a host end or a bridge quiet: no IPv6 of its own, so no multicast reports, no router solicitations
/// and no address that a pod could talk to. Frames that cross it are not concerned.
///
/// # Errors
///
/// When the value cannot be written.
pub fn disable_ipv6(link: &str) -> Result<()> {
    write_ipv6(link, "disable_ipv6", "1")
}

/// Makes addresses of the calling thread's namespace usable at once: no duplicate address detection.
///
/// # Errors
///
/// When a value cannot be written.
pub fn disable_dad() -> Result<()> {
    write_ipv6("all", "accept_dad", "0")?;
    write_ipv6("default", "accept_dad", "0")
}

/// Whether the kernel speaks IPv6 at all.
#[must_use]
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// A value by its path below `/proc/sys`, as `net/core/bpf_jit_enable`. Nothing where the namespace or the kernel has
/// no such value.
///
/// # Errors
///
/// When it may not be read.
pub fn read(key: &str) -> Result<Option<String>> {
    let path = Path::new("/proc/sys").join(key);
    match fs::read_to_string(&path) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::new(format!("read {}", path.display()), source)),
    }
}

/// Writes a value by its path below `/proc/sys`.
///
/// # Errors
///
/// When there is no such value, or it may not be written.
pub fn write(key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(key);
    fs::write(&path, value)
        .map_err(|source| Error::new(format!("write {value} to {}", path.display()), source))
}

/// A value's name, as `sysctl` has it.
#[must_use]
pub fn name(key: &str) -> String {
    // A dot in a link's name is a slash there.
    let turned = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    key.chars().map(turned).collect()
}

fn write_ipv6(link: &str, key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net/ipv6/conf").join(link).join(key);
    match fs::write(&path, value) {
        // A kernel without IPv6 sends none.
        Err(source) if source.kind() == std::io::ErrorKind::NotFound && !has_ipv6() => Ok(()),
        result => result.map_err(|source| Error::new(format!("write {value} to {}", path.display()), source)),
    }
}
