//! The library behind the `veth` binary: topologies, the operating system's edge, the eBPF edge, counters
//! and checks. Data flows one way, from [`cli`] through [`topology`] to [`net`] and [`datapath`], and back
//! from the kernel through [`stats`] to a renderer.

pub mod agent;
pub mod bench;
pub mod check;
pub mod cli;
pub mod datapath;
pub mod doctor;
pub mod drops;
pub mod hooks;
pub mod net;
pub mod probe;
pub mod show;
pub mod state;
pub mod stats;
pub mod text;
pub mod top;
pub mod topology;
pub mod watch;
pub mod why;
