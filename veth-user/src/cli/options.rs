//! Arguments that several subcommands share.

use std::time::Duration;

use anyhow::Result;

use crate::{
    datapath::Place,
    topology::{
        Topology,
        model::{DEFAULT_MTU, HookWish, LogLevel, RedirectWish, SWITCH, TUTORIAL},
    },
};

/// What to make: a wire between two pods, or a switch with many.
#[derive(Debug, clap::Args)]
pub(super) struct TopologyArgs {
    /// Name of the topology [default: wire, or switch with --pods]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Make N pods (2 to 1000) on one switch, `10.200.0.0/16` and `fd00:200::/64`, instead of the two-pod wire
    #[arg(long, value_name = "N")]
    pods: Option<usize>,

    /// MTU of every link, in bytes (1280 to 65535)
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MTU)]
    mtu: u32,

    /// Where the programs are attached
    #[arg(long, value_enum, default_value_t)]
    hook: HookWish,

    /// How frames are handed over
    #[arg(long, value_enum, default_value_t)]
    redirect: RedirectWish,

    /// Where our program stands among those of others on a link. XDP takes only one program
    #[arg(long, value_enum, default_value_t)]
    place: Place,

    /// What the programs log; shown by `run` and `stats --watch`. What is off costs nothing
    #[arg(long, value_enum, default_value_t)]
    ebpf_log: LogLevel,
}

impl TopologyArgs {
    /// The topology that the arguments declare.
    pub(super) fn topology(&self) -> Result<Topology> {
        let Self { name, pods, mtu, hook, redirect, place, ebpf_log } = self;
        let mut topology = match pods {
            None => Topology::wire(name.as_deref().unwrap_or(TUTORIAL), *mtu)?,
            Some(pods) => Topology::switch(name.as_deref().unwrap_or(SWITCH), *pods, *mtu)?,
        };
        topology.hook = *hook;
        topology.redirect = *redirect;
        topology.place = *place;
        topology.ebpf_log = *ebpf_log;
        Ok(topology)
    }
}

/// Reads `10s`, `500ms`, `2m 30s`; a period of no length would never come round.
pub(super) fn period(text: &str) -> Result<Duration, String> {
    let period =
        humantime::parse_duration(text).map_err(|error| format!("{error}; write it like 10s or 500ms"))?;
    if period.is_zero() { Err("it must be longer than nothing".to_owned()) } else { Ok(period) }
}
