//! Arguments that several subcommands share.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    datapath::Place,
    topology::{
        self, Topology, file,
        model::{self, DEFAULT_MTU, HookWish, LogLevel, RedirectWish, SWITCH, TUTORIAL},
    },
};

/// Which of the topologies that are up.
#[derive(Debug, clap::Args)]
pub(super) struct WhichArgs {
    /// The topology [default: the only one]
    name: Option<String>,

    /// Every topology
    #[arg(long, conflicts_with = "name")]
    pub(super) all: bool,
}

impl WhichArgs {
    /// Refuses a name that no topology can have.
    pub(super) fn check(&self) -> Result<()> {
        Ok(self.name.as_deref().map_or(Ok(()), |name| model::check_name(name, "topology"))?)
    }

    /// Their names, of those that are there.
    pub(super) fn names(self, there: Vec<String>) -> Result<Vec<String>> {
        let Self { name, all } = self;
        ensure!(
            name.is_some() || all || there.len() < 2,
            "there are several topologies ({}); name one, or use --all",
            there.join(", ")
        );
        Ok(name.map_or(there, |name| vec![name]))
    }
}

/// What to make: what a file declares, or a wire between two pods, or a switch with many.
#[derive(Debug, clap::Args)]
pub(super) struct TopologyArgs {
    /// Make what a file declares; `veth init` writes one
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["name", "pods", "mtu"])]
    file: Option<PathBuf>,

    /// Name of the topology [default: wire, or switch with --pods]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Make N pods (2 to 1000) on one switch, `10.200.0.0/16` and `fd00:200::/64`, instead of the two-pod wire
    #[arg(long, value_name = "N")]
    pods: Option<usize>,

    /// MTU of every link, in bytes (1280 to 65535)
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MTU)]
    mtu: u32,

    /// Where the programs are attached [default: what the file says, or auto]
    #[arg(long, value_enum)]
    hook: Option<HookWish>,

    /// How frames are handed over [default: what the file says, or auto]
    #[arg(long, value_enum)]
    redirect: Option<RedirectWish>,

    /// Where our program stands among those of others on a link. XDP takes only one program [default: what the file
    /// says, or last]
    #[arg(long, value_enum)]
    place: Option<Place>,

    /// What the programs log; shown by `run` and `stats --watch`. What is off costs nothing [default: what the file
    /// says, or off]
    #[arg(long, value_enum)]
    ebpf_log: Option<LogLevel>,
}

impl TopologyArgs {
    /// The topology that the arguments declare.
    pub(super) fn topology(&self) -> Result<Topology> {
        let Self { file, name, pods, mtu, hook, redirect, place, ebpf_log } = self;
        let mut topology = match (file, pods) {
            (Some(file), _) => {
                let absolute = fs::canonicalize(file).with_context(|| format!("find {}", file.display()))?;
                Topology { file: Some(absolute), ..parse(file)? }
            }
            (None, None) => Topology::wire(name.as_deref().unwrap_or(TUTORIAL), *mtu)?,
            (None, Some(pods)) => Topology::switch(name.as_deref().unwrap_or(SWITCH), *pods, *mtu)?,
        };
        topology.hook = hook.unwrap_or(topology.hook);
        topology.redirect = redirect.unwrap_or(topology.redirect);
        topology.place = place.unwrap_or(topology.place);
        topology.ebpf_log = ebpf_log.unwrap_or(topology.ebpf_log);
        Ok(topology)
    }

    /// Points an error at the line of the file that it is about, if there is a file.
    pub(super) fn point_out(&self, error: topology::Error) -> anyhow::Error {
        let Some(path) = &self.file else { return error.into() };
        let Ok(text) = fs::read_to_string(path) else { return error.into() };
        match file::point_out(&path.to_string_lossy(), &text, &error) {
            Some(diagnostics) => diagnostics.into(),
            None => error.into(),
        }
    }
}

/// Reads a topology file.
pub(super) fn parse(path: &std::path::Path) -> Result<Topology> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(file::parse(&path.to_string_lossy(), &text)?)
}

/// Reads `10s`, `500ms`, `2m 30s`; a period of no length would never come round.
pub(super) fn period(text: &str) -> Result<Duration, String> {
    let period =
        humantime::parse_duration(text).map_err(|error| format!("{error}; write it like 10s or 500ms"))?;
    if period.is_zero() { Err("it must be longer than nothing".to_owned()) } else { Ok(period) }
}
