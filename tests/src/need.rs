//! What a test needs of the kernel. A test that is skipped says why; on a kernel that has it, none can be.

use std::{fs::OpenOptions, io::Write as _};

use veth_user::probe::Kernel;

/// Whether the running kernel is new enough. If not, says so, and notes it in the file that `VETH_SKIPS` names.
#[must_use]
pub fn kernel(major: u8, minor: u8, what: &str) -> bool {
    if Kernel::current().unwrap() >= Kernel(major, minor, 0) {
        return true;
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("?");
    let line = format!("{test}\t{what} (needs {major}.{minor})\n");
    print!("skipped: {line}");
    if let Some(path) = std::env::var_os("VETH_SKIPS") {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
    false
}
