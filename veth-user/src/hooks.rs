//! What only tests may do, with the feature `test-hooks`; otherwise all of this is nothing.
//!
//! Lets a test end the process after any step: `VETH_STOP_AFTER=n` by SIGKILL, `VETH_PANIC_AFTER=n` by a
//! panic, `VETH_INTERRUPT_AFTER=n` by what Ctrl-C sends. Lets it take another build of the programs: `VETH_OTHER_OBJECT=file`.

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
    for (name, signal) in [("VETH_STOP_AFTER", Signal::SIGKILL), ("VETH_INTERRUPT_AFTER", Signal::SIGINT)] {
        if asked(name) {
            let _unused: nix::Result<()> = raise(signal);
        }
    }
    assert!(!asked("VETH_PANIC_AFTER"), "panic asked for by VETH_PANIC_AFTER");
}

/// Another eBPF object than the embedded one.
#[cfg(not(feature = "test-hooks"))]
#[must_use]
pub const fn object() -> Option<&'static [u8]> {
    None
}

/// Another eBPF object than the embedded one, if `VETH_OTHER_OBJECT` names one.
///
/// # Panics
///
/// When it cannot be read.
#[cfg(feature = "test-hooks")]
#[must_use]
pub fn object() -> Option<&'static [u8]> {
    use std::sync::OnceLock;

    static OBJECT: OnceLock<Option<Vec<u8>>> = OnceLock::new();

    let read = || {
        let path = std::env::var_os("VETH_OTHER_OBJECT")?;
        Some(std::fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display())))
    };
    OBJECT.get_or_init(read).as_deref()
}
