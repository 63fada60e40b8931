//! Values under `/proc/sys/net`, which are those of the calling thread's namespace.
//!
//! Only written for links and namespaces that we made: they go when those go, so nothing has to be restored. What
//! `veth doctor --fix` writes beside is told with its old value.

use std::{
    cell::OnceCell,
    fs::{self, File},
    io::{self, Write as _},
    os::fd::AsRawFd as _,
    path::{Component, Path, PathBuf},
    sync::OnceLock,
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

use super::{Error, Netns, Result};

/// Keeps a host end or a bridge quiet: no IPv6 of its own, so no multicast reports, no router solicitations
/// and no address that a pod could talk to. Frames that cross it are not concerned.
///
/// # Errors
///
/// When the value cannot be written.
pub fn disable_ipv6(link: &str) -> Result<()> {
    write_ipv6(link, "disable_ipv6", "1")
}

/// Makes a link of the calling thread's namespace fit for an address that pods send to: it listens to no router, uses
/// addresses at once, makes none of its own, and takes from IPv4 senders only what it would answer there. Before the
/// link is set up.
///
/// # Errors
///
/// When a value cannot be written.
pub fn make_router_end(link: &str) -> Result<()> {
    for (key, value) in
        [("addr_gen_mode", "1"), ("accept_ra", "0"), ("accept_dad", "0"), ("disable_ipv6", "0")]
    {
        write_ipv6(link, key, value)?;
    }
    write(&format!("net/ipv4/conf/{link}/rp_filter"), "1")
}

/// Keeps the host from hearing IPv4 at a link without addresses that is no port of a bridge: from no sender is anything to be
/// expected there, and nobody is answered who asks for an address. Only what comes from 0.0.0.0 for all is still heard, as
/// DHCP is by whoever listens at every link.
///
/// # Errors
///
/// When a value cannot be written.
pub fn deafen(link: &str) -> Result<()> {
    write(&format!("net/ipv4/conf/{link}/rp_filter"), "1")?;
    write(&format!("net/ipv4/conf/{link}/arp_ignore"), "8")
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
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| Path::new("/proc/sys/net/ipv6").exists())
}

/// A value by its name, `net.core.bpf_jit_enable` or `net/core/bpf_jit_enable`. Nothing where the namespace or the
/// kernel has no such value.
///
/// # Errors
///
/// When it may not be read, or the name is none.
pub fn read(key: &str) -> Result<Option<String>> {
    let path = path(key)?;
    match fs::read_to_string(&path) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::new(format!("read {}", path.display()), source)),
    }
}

/// Writes a value by its name.
///
/// # Errors
///
/// When there is no such value, or it may not be written, or the name is none.
pub fn write(key: &str, value: &str) -> Result<()> {
    let path = path(key)?;
    fs::write(&path, value)
        .map_err(|source| Error::new(format!("write {value} to {}", path.display()), source))
}

/// A value of another namespace. See [`read`].
///
/// # Errors
///
/// As [`read`]; and when the value is not one of a network namespace, `net.…`.
pub fn read_in(namespace: &Netns, key: &str) -> Result<Option<String>> {
    of_namespace(key)?;
    namespace.run(|| read(key))?
}

/// Writes a value of another namespace, unless it is so already. See [`write`].
///
/// # Errors
///
/// As [`write`]; and when the value is not one of a network namespace, `net.…`: the whole machine would have it.
pub fn write_in(namespace: &Netns, key: &str, value: &str) -> Result<()> {
    of_namespace(key)?;
    namespace.run(|| ensure(key, value))?
}

/// What a namespace forwards between its links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// IPv4.
    pub ipv4: bool,
    /// IPv6.
    pub ipv6: bool,
}

const FORWARD_IPV4: &str = "net/ipv4/ip_forward";
const FORWARD_IPV6: &str = "net/ipv6/conf/all/forwarding";

/// What the calling thread's namespace forwards.
///
/// # Errors
///
/// When a value may not be read.
pub fn forwarding() -> Result<Forwarding> {
    // Any number but 0 means on.
    let is_on = |key| Ok(read(key)?.is_some_and(|value| value != "0"));
    Ok(Forwarding { ipv4: is_on(FORWARD_IPV4)?, ipv6: is_on(FORWARD_IPV6)? })
}

/// Lets the calling thread's namespace forward, or not. What is so already is not written: each change resets other
/// values, and a host that begins to forward IPv6 no longer listens to routers (`accept_ra` must be 2 for that).
///
/// # Errors
///
/// When a value cannot be written.
pub fn set_forwarding(wanted: Forwarding) -> Result<()> {
    let Forwarding { ipv4, ipv6 } = wanted;
    let before = forwarding()?;
    if ipv4 != before.ipv4 {
        write(FORWARD_IPV4, digit(ipv4))?;
    }
    if ipv6 != before.ipv6 && has_ipv6() {
        write(FORWARD_IPV6, digit(ipv6))?;
    }
    Ok(())
}

/// What a namespace forwards, with what the kernel changes along where that is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Between all its links.
    pub forwarding: Forwarding,
    /// Values that are not what not forwarding makes them, by name: links that forward all the same, and redirects that
    /// are not listened to.
    pub along: Vec<(String, String)>,
}

/// What the calling thread's namespace forwards, to be restored.
///
/// # Errors
///
/// When a value may not be read.
pub fn before_forwarding() -> Result<Before> {
    const REDIRECTS: &str = "net/ipv4/conf/all/accept_redirects";
    let forwarding = forwarding()?;
    let mut along = Vec::new();
    if !forwarding.ipv4 {
        along.extend(forwarding_links("net/ipv4/conf")?);
        // Turned off by who forwards, and on by who does not (`inet_forward_change` in `net/ipv4/devinet.c`).
        along
            .extend(read(REDIRECTS)?.filter(|value| value != "1").map(|value| (REDIRECTS.to_owned(), value)));
    }
    if !forwarding.ipv6 && has_ipv6() {
        along.extend(forwarding_links("net/ipv6/conf")?);
    }
    Ok(Before { forwarding, along })
}

/// The links, and the default of those to come, that forward below a folder of values, with what says so.
fn forwarding_links(folder: &str) -> Result<Vec<(String, String)>> {
    let path = Path::new("/proc/sys").join(folder);
    let failed = |source| Error::new(format!("read {}", path.display()), source);
    // Opened once: see `write_ipv6`.
    let opened = File::open(&path).map_err(failed)?;
    let below = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    let mut links = Vec::new();
    for link in fs::read_dir(&below).map_err(failed)? {
        let link = link.map_err(failed)?.file_name();
        // One that has gone meanwhile does not forward.
        let value = fs::read_to_string(below.join(&link).join("forwarding")).unwrap_or_default();
        if link != "all" && !["", "0"].contains(&value.trim()) {
            links.push((format!("{folder}/{}/forwarding", link.display()), value.trim().to_owned()));
        }
    }
    Ok(links)
}

/// Lets the calling thread's namespace forward what it did.
///
/// # Errors
///
/// When a value cannot be written.
pub fn restore_forwarding(before: &Before) -> Result<()> {
    let Before { forwarding, along } = before;
    set_forwarding(*forwarding)?;
    for (key, value) in along {
        // A link that has gone has none.
        if read(key)?.is_some() {
            ensure(key, value)?;
        }
    }
    Ok(())
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

/// Writes a value, unless it is so already.
fn ensure(key: &str, value: &str) -> Result<()> {
    // The kernel separates the numbers of a list by tabs.
    let is_same = |before: String| before.split_whitespace().eq(value.split_whitespace());
    if read(key).is_ok_and(|before| before.is_some_and(is_same)) {
        return Ok(());
    }
    write(key, value)
}

const fn digit(on: bool) -> &'static str {
    if on { "1" } else { "0" }
}

/// The file of a name. As `sysctl` has it, the first separator says which form it is: in one with dots, a slash
/// stands for a dot in a link's name.
fn path(key: &str) -> Result<PathBuf> {
    let below = match key.find(['.', '/']) {
        Some(at) if key[at..].starts_with('.') => name(key),
        _ => key.to_owned(),
    };
    let below = Path::new(&below);
    let is_plain = |part| matches!(part, Component::Normal(_));
    if below.as_os_str().is_empty() || !below.components().all(is_plain) {
        return Err(Error::new(
            format!("find the sysctl `{key}`"),
            io::Error::new(io::ErrorKind::InvalidInput, "that is no name, as net.ipv4.ip_forward is"),
        ));
    }
    Ok(Path::new("/proc/sys").join(below))
}

fn of_namespace(key: &str) -> Result<()> {
    if path(key)?.starts_with("/proc/sys/net") {
        return Ok(());
    }
    Err(Error::new(
        format!("find the sysctl `{key}` in a network namespace"),
        io::Error::new(io::ErrorKind::InvalidInput, "only those that begin with `net.` belong to one"),
    ))
}

fn write_ipv6(link: &str, key: &str, value: &str) -> Result<()> {
    const FOLDER: &str = "/proc/sys/net/ipv6/conf";
    thread_local! {
        // Every namespace has a `/proc/sys/net` of its own, and the kernel walks past those of all others to find it:
        // with thousands of them a thread, which stays in one, should ask once.
        static OPENED: OnceCell<File> = const { OnceCell::new() };
    }
    let path = Path::new(FOLDER).join(link).join(key);
    let failed = |source| Error::new(format!("write {value} to {}", path.display()), source);
    OPENED.with(|opened| {
        let folder = match opened.get() {
            Some(folder) => folder,
            None => match File::open(FOLDER) {
                // A kernel without IPv6 sends none.
                Err(source) if source.kind() == io::ErrorKind::NotFound && !has_ipv6() => return Ok(()),
                Err(source) => return Err(failed(source)),
                Ok(folder) => opened.get_or_init(|| folder),
            },
        };
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = openat(folder, &Path::new(link).join(key), flags, Mode::empty());
        File::from(file.map_err(|errno| failed(errno.into()))?).write_all(value.as_bytes()).map_err(failed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_two_forms() {
        for (key, file) in [
            ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/1.rp_filter", "/proc/sys/net/ipv4/conf/eth0.1/rp_filter"),
            ("net/ipv4/conf/eth0.1/rp_filter", "/proc/sys/net/ipv4/conf/eth0.1/rp_filter"),
        ] {
            assert_eq!(path(key).unwrap(), Path::new(file));
        }
        for key in ["", ".", "..", "/etc/passwd", "net/../../../etc/passwd", "net.//.//.x"] {
            assert!(path(key).is_err(), "{key}");
        }
    }

    #[test]
    fn only_values_of_a_namespace_are_written_in_one() {
        assert!(of_namespace("net.core.somaxconn").is_ok());
        for key in ["kernel.panic", "network.x", "kernel/net/x", "net/../kernel/panic"] {
            assert!(of_namespace(key).is_err(), "{key}");
        }
    }
}
