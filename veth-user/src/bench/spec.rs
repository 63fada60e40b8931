//! What is to be measured, by the names that people write.

use std::{fmt, str::FromStr, time::Duration};

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::topology::model::{HookWish, RedirectWish, SWITCH_PODS_MAX};

/// What carries the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Base {
    /// Both ends in one namespace, over its loopback: the limit of the stack
    Loopback,
    /// One veth pair: the limit of any veth path
    Direct,
    /// Two veth pairs and a program that only calls `bpf_redirect_peer`: the floor of the technique
    NullRedirect,
    /// Two veth pairs, cross-connected by veth
    Wire,
    /// Two pods on an accelerated switch
    Switch,
    /// Two pods on a Linux bridge
    Bridge,
    /// Two pods on routed links
    Route,
    /// Two macvlan links on one parent
    Macvlan,
    /// Two pods on an Open vSwitch in user space
    Ovs,
}

impl Base {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Direct => "direct",
            Self::NullRedirect => "null-redirect",
            Self::Wire => "wire",
            Self::Switch => "switch",
            Self::Bridge => "bridge",
            Self::Route => "route",
            Self::Macvlan => "macvlan",
            Self::Ovs => "ovs",
        }
    }

    /// What it is, in words.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::Loopback => "both ends in one namespace: the limit of the stack",
            Self::Direct => "a bare veth pair: the limit of any veth path",
            Self::NullRedirect => "a program that only calls bpf_redirect_peer: the floor of the technique",
            Self::Wire => "veth: two pairs, cross-connected, every frame counted",
            Self::Switch => "veth: pods on an accelerated switch, every frame counted",
            Self::Bridge => "a Linux bridge",
            Self::Route => "routed by the host, as many CNI plugins do",
            Self::Macvlan => "two macvlan links on one parent",
            Self::Ovs => "Open vSwitch, user-space datapath",
        }
    }

    /// Whether it takes more than two pods.
    #[must_use]
    pub const fn is_for_many(self) -> bool {
        matches!(self, Self::Switch | Self::Bridge | Self::Route | Self::Ovs)
    }

    /// Whether programs of ours are on it, so that a hook and a redirect can be chosen.
    #[must_use]
    pub const fn is_accelerated(self) -> bool {
        matches!(self, Self::Wire | Self::Switch)
    }
}

/// A path: `switch`, `switch:clsact`, `switch:tcx:host`, `switch+xdp`, `switch+big-tcp`, `switch@128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathSpec {
    /// What carries the frames.
    pub base: Base,
    /// Where programs are attached.
    pub hook: HookWish,
    /// How they hand over.
    pub redirect: RedirectWish,
    /// Whether merged frames may be of 192 KiB.
    pub big_tcp: bool,
    /// Pods on it, of which the first and the last talk.
    pub pods: usize,
    /// Whether pods come and go meanwhile.
    pub churn: bool,
}

impl From<Base> for PathSpec {
    fn from(base: Base) -> Self {
        Self {
            base,
            hook: HookWish::Auto,
            redirect: RedirectWish::Auto,
            big_tcp: false,
            pods: 2,
            churn: false,
        }
    }
}

impl fmt::Display for PathSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.base.name())?;
        match (self.hook, self.redirect) {
            (HookWish::Auto, RedirectWish::Auto) => {}
            (HookWish::Xdp, RedirectWish::Auto) => f.write_str("+xdp")?,
            (hook, RedirectWish::Auto) => write!(f, ":{}", word(&hook))?,
            (hook, redirect) => {
                write!(f, ":{}:{}", word(&hook), word(&redirect))?;
            }
        }
        f.write_str(if self.big_tcp { "+big-tcp" } else { "" })?;
        f.write_str(if self.churn { "+churn" } else { "" })?;
        if self.pods == 2 { Ok(()) } else { write!(f, "@{}", self.pods) }
    }
}

impl FromStr for PathSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, pods) = match text.split_once('@') {
            Some((text, pods)) => {
                let known = pods.parse().ok().filter(|pods| (2..=SWITCH_PODS_MAX).contains(pods));
                let wrong = || format!("`{pods}` is no number of pods: use 2 to {SWITCH_PODS_MAX}");
                (text, known.ok_or_else(wrong)?)
            }
            None => (text, 2),
        };
        let mut parts = text.split('+');
        let mut words = parts.next().unwrap_or_default().split(':');
        let base = words.next().unwrap_or_default();
        let base = Base::from_str(base, false).map_err(|_| {
            let known: Vec<&str> = Base::value_variants().iter().map(|base| base.name()).collect();
            let nearest = known
                .iter()
                .max_by(|a, b| strsim::jaro_winkler(a, base).total_cmp(&strsim::jaro_winkler(b, base)));
            let hint = nearest.map(|name| format!("did you mean `{name}`? ")).unwrap_or_default();
            format!("there is no path `{base}`; {hint}There are: {}", known.join(", "))
        })?;
        let mut spec = Self { pods, ..Self::from(base) };
        if let Some(hook) = words.next() {
            spec.hook = HookWish::from_str(hook, false)
                .map_err(|_| format!("`{hook}` is no hook: use tcx, clsact, xdp or xdp-generic"))?;
        }
        if let Some(redirect) = words.next() {
            spec.redirect = RedirectWish::from_str(redirect, false)
                .map_err(|_| format!("`{redirect}` is no redirect: use peer, host or devmap"))?;
        }
        if let Some(more) = words.next() {
            return Err(format!("`{more}` is too much: a path is BASE[:HOOK[:REDIRECT]][+big-tcp]"));
        }
        for part in parts {
            match part {
                "xdp" => spec.hook = HookWish::Xdp,
                "big-tcp" => spec.big_tcp = true,
                "churn" => spec.churn = true,
                other => return Err(format!("`+{other}` is unknown: use +xdp, +big-tcp or +churn")),
            }
        }
        let is_chosen = (spec.hook, spec.redirect) != (HookWish::Auto, RedirectWish::Auto);
        if is_chosen && !base.is_accelerated() {
            return Err(format!(
                "`{}` has no hook to choose: no program of veth forwards on it",
                base.name()
            ));
        }
        if spec.big_tcp && matches!(base, Base::Loopback | Base::Macvlan | Base::Ovs) {
            return Err(format!("`{}` is not tuned by veth, so there is no `+big-tcp` of it", base.name()));
        }
        if (spec.pods != 2 || spec.churn) && !base.is_for_many() {
            return Err(format!(
                "`{}` connects two pods, not more: use switch, bridge, route or ovs",
                base.name()
            ));
        }
        Ok(spec)
    }
}

/// A value as options and files have it.
pub(super) fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// What the ends do.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Workload {
    /// TCP request and response on one connection: transactions a second
    TcpRr,
    /// Bulk TCP in one direction: bits a second
    TcpStream,
    /// A new connection for each request and response: transactions a second
    TcpCrr,
    /// UDP request and response: transactions a second
    UdpRr,
    /// UDP datagrams in one direction by sendmmsg: datagrams a second that arrive
    UdpPps,
    /// Frames that the kernel makes itself, as if they came in on the host end: frames a second that arrive
    XdpPps,
    /// The highest rate of UDP datagrams at which none is lost (RFC 2544): datagrams a second
    UdpNdr,
}

impl Workload {
    /// Its name, as options and JSON have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcpRr => "tcp_rr",
            Self::TcpStream => "tcp_stream",
            Self::TcpCrr => "tcp_crr",
            Self::UdpRr => "udp_rr",
            Self::UdpPps => "udp_pps",
            Self::XdpPps => "xdp_pps",
            Self::UdpNdr => "udp_ndr",
        }
    }

    /// What is counted.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::TcpRr | Self::TcpCrr | Self::UdpRr => "transactions/s",
            Self::TcpStream => "bit/s",
            Self::UdpPps | Self::UdpNdr => "datagrams/s",
            Self::XdpPps => "frames/s",
        }
    }

    /// What one operation is, of which the CPU time is told.
    #[must_use]
    pub const fn operation(self) -> &'static str {
        match self {
            Self::TcpRr | Self::TcpCrr | Self::UdpRr => "transaction",
            Self::TcpStream => "megabyte",
            Self::UdpPps | Self::UdpNdr => "datagram",
            Self::XdpPps => "frame",
        }
    }

    /// How much one operation adds to the rate.
    #[must_use]
    pub const fn per_operation(self) -> f64 {
        match self {
            Self::TcpStream => 8e6,
            _ => 1.0,
        }
    }

    /// Whether each transaction waits for the one before, so that the time of one is known.
    #[must_use]
    pub const fn is_request_response(self) -> bool {
        matches!(self, Self::TcpRr | Self::TcpCrr | Self::UdpRr)
    }

    /// How much is sent at once unless something else is said, in bytes.
    #[must_use]
    pub const fn usual_size(self) -> usize {
        match self {
            Self::TcpRr | Self::TcpCrr | Self::UdpRr => 1,
            Self::TcpStream => 128 * 1024,
            Self::UdpPps | Self::UdpNdr | Self::XdpPps => 64,
        }
    }
}

/// Where both ends run.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Both on the same CPU: shows the path, for nobody has to be woken elsewhere
    One,
    /// On two CPUs: shows the path and the wake-up of the other CPU
    Two,
}

impl Placement {
    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::One => "ends on one CPU",
            Self::Two => "ends on two CPUs",
        }
    }
}

/// A workload under one condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// What the ends do.
    pub workload: Workload,
    /// Where they run.
    pub placement: Placement,
    /// How much is sent at once, in bytes.
    pub size: usize,
    /// Rounds that count.
    pub rounds: u32,
    /// How long one sample takes.
    pub duration: Duration,
}

/// What is measured without being asked: request and response on one CPU is the sharp instrument, so that it has most
/// of the rounds. Many short samples tell more than few long ones in the same time: the machine's own speed changes
/// over tenths of seconds, and within 20 ms it is the same for one path and the next.
#[must_use]
pub fn usual_cells(quick: bool) -> Vec<Cell> {
    use Placement::{One, Two};
    let cell = |workload: Workload, placement, rounds, milliseconds| Cell {
        workload,
        placement,
        size: workload.usual_size(),
        rounds,
        duration: Duration::from_millis(milliseconds),
    };
    if quick {
        return vec![
            cell(Workload::TcpRr, One, 35, 15),
            cell(Workload::TcpStream, Two, 8, 30),
            cell(Workload::UdpPps, One, 20, 10),
        ];
    }
    vec![
        cell(Workload::TcpRr, One, 100, 20),
        cell(Workload::TcpRr, Two, 25, 20),
        cell(Workload::TcpStream, One, 20, 30),
        cell(Workload::TcpStream, Two, 20, 30),
        cell(Workload::TcpCrr, One, 30, 20),
        cell(Workload::UdpRr, One, 30, 15),
        cell(Workload::UdpPps, One, 50, 10),
        cell(Workload::UdpPps, Two, 20, 20),
    ]
}

/// A workload that is measured for what it says of something else: one cell.
#[must_use]
pub const fn single_cell(rounds: u32, duration: Duration) -> Cell {
    let workload = Workload::TcpRr;
    Cell { workload, placement: Placement::One, size: workload.usual_size(), rounds, duration }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_written_as_it_is_read() {
        for text in [
            "loopback",
            "direct",
            "null-redirect",
            "wire",
            "switch",
            "switch+xdp",
            "switch:clsact",
            "switch:tcx:host",
            "wire:xdp:devmap",
            "bridge+big-tcp",
            "switch:tcx:peer+big-tcp",
            "bridge@16",
            "switch+xdp+big-tcp+churn@1000",
        ] {
            assert_eq!(text.parse::<PathSpec>().unwrap().to_string(), text);
        }
        assert_eq!("switch:xdp".parse::<PathSpec>().unwrap().to_string(), "switch+xdp");
    }

    #[test]
    fn what_is_no_path_is_refused_with_a_hint() {
        for (text, hint) in [
            ("switchh", "did you mean `switch`"),
            ("switch:tc", "is no hook"),
            ("switch:tcx:direct", "is no redirect"),
            ("switch:tcx:peer:x", "is too much"),
            ("switch+fast", "is unknown"),
            ("bridge:tcx", "has no hook to choose"),
            ("loopback+big-tcp", "not tuned by veth"),
            ("switch@1", "no number of pods"),
            ("wire@3", "two pods, not more"),
            ("direct+churn", "two pods, not more"),
            ("", "there is no path"),
        ] {
            let error = text.parse::<PathSpec>().unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
