//! What a test needs of the kernel. It gives up early on one that is too old, loudly, and never on any other.

use std::{fs::File, io::Write as _, thread};

use aya::util::KernelVersion;

/// Whether the kernel is at least of this version. If not, what it lacks is printed, and noted where
/// `cargo xtask test vm` looks for it; the test must then return.
#[must_use]
pub fn kernel(major: u8, minor: u8, what: &str) -> bool {
    if is_at_least(major, minor) {
        return true;
    }
    let test = thread::current().name().unwrap().to_owned();
    let reason = format!("{what} (needs {major}.{minor})");
    eprintln!("{test}: skipped: {reason}");
    append("VETH_SKIPS", &format!("{test}\t{reason}"));
    false
}

/// Whether the kernel is at least of this version, for tests that can do with less.
#[must_use]
pub fn is_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().unwrap() >= KernelVersion::new(major, minor, 0)
}

/// Notes a number that somebody may want to know.
pub fn fact(name: &str, number: u64) {
    append("VETH_FACTS", &format!("{name}\t{number}"));
}

/// Appends a line to the file that a variable names, if there is one.
fn append(variable: &str, line: &str) {
    if let Some(path) = std::env::var_os(variable) {
        let mut file = File::options().append(true).create(true).open(path).unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}
