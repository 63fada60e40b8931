//! Real namespaces and real traffic: one file a behaviour.
#![expect(clippy::unwrap_used, reason = "everything in a test panics when it fails")]

mod bench;
mod counters;
mod doctor;
mod drops;
mod edge;
mod errors;
mod exact;
mod forwarding;
mod isolation;
mod kill;
mod lifecycle;
mod metrics;
mod random;
mod spoof;
mod stats;
mod switch;
mod topology;
mod traffic;
mod traps;
mod watch;
mod why;
mod wire;
mod xdp;
