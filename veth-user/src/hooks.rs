//! Lets a test end the process after any step: `VETH_STOP_AFTER=n` by SIGKILL, `VETH_PANIC_AFTER=n` by a
//! panic. Only with the feature `test-hooks`; otherwise [`step`] is nothing.

/// A step has been done.
#[cfg(not(feature = "test-hooks"))]
pub const fn step() {}

/// A step has been done.
///
/// # Panics
///
/// After the step that `VETH_PANIC_AFTER` says.
#[cfg(feature = "test-hooks")]
pub fn step() {
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::sys::signal::{Signal, raise};

    static DONE: AtomicU32 = AtomicU32::new(0);

    let done = DONE.fetch_add(1, Ordering::Relaxed) + 1;
    let asked = |name: &str| std::env::var(name).is_ok_and(|value| value == done.to_string());
    if asked("VETH_STOP_AFTER") {
        let _unused: nix::Result<()> = raise(Signal::SIGKILL);
    }
    assert!(!asked("VETH_PANIC_AFTER"), "panic asked for by VETH_PANIC_AFTER");
}
