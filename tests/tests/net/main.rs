//! Real namespaces and real traffic: one file a behaviour.
#![expect(clippy::unwrap_used, reason = "everything in a test panics when it fails")]

mod agent;
mod attack;
mod bench;
mod counters;
mod differential;
mod doctor;
mod drops;
mod edge;
mod errors;
mod exact;
mod flood;
mod forwarding;
mod isolation;
mod kill;
mod lifecycle;
mod limits;
mod metrics;
mod privilege;
mod random;
mod soak;
mod spoof;
mod stale;
mod stats;
mod switch;
mod topology;
mod traffic;
mod traps;
mod upgrade;
mod watch;
mod why;
mod wire;
mod xdp;
