//! `/sys/kernel/rcu_expedited`: whether the kernel hurries grace periods, on the whole machine.
//!
//! Attaching or removing a TCX program waits for a grace period under RTNL, 12 ms each. Expedited ones take
//! 0.02 ms, at the price of an interrupt on every CPU. It is raised for bulk work and lowered after it, by
//! whoever raised it: see `topology::teardown`, which also remembers it over a crash.

use std::{fs, io};

const PATH: &str = "/sys/kernel/rcu_expedited";

/// Whether grace periods could be hurried and are not.
#[must_use]
pub fn is_normal() -> bool {
    fs::read_to_string(PATH).is_ok_and(|value| value.trim() == "0")
}

/// Whether grace periods are hurried, by whomever. Nothing where the kernel does not say.
#[must_use]
pub fn is_hurried() -> Option<bool> {
    Some(fs::read_to_string(PATH).ok()?.trim() != "0")
}

/// Whether we may hurry them. Looks only.
#[must_use]
pub fn is_writable() -> bool {
    fs::OpenOptions::new().write(true).open(PATH).is_ok()
}

/// Hurries them, or stops hurrying them. Not being allowed to is no error: things take longer.
pub fn expedite(on: bool) {
    let result: io::Result<()> = fs::write(PATH, if on { "1" } else { "0" });
    match result {
        Ok(()) => log::info!("set {PATH} to {}", u8::from(on)),
        Err(error) => log::info!("{PATH} cannot be written ({error}); many attachments take 12 ms each"),
    }
}
