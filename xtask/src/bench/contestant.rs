//! Who is measured: each makes pods (a namespace, a veth pair that is up, an IPv4 and an IPv6 address) on one
//! switch or bridge, and removes them.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nameindex;
use serde_json::json;

use super::{
    kernel,
    process::{self, Usage},
};

/// Files of contestants, in the folder that only the throw-away host has.
const FOLDER: &str = "/run/bench";

/// The topology's name, and that of the bridge of others.
const NAME: &str = "bench";

/// The switches of the contestant with several.
const SWITCHES: usize = 4;

/// A contestant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Contestant {
    /// Veth with one switch.
    Veth(Veth),
    /// Veth with as many pods on each of several switches.
    VethSwitches(Veth),
    /// Scripts of iproute2, and a plain bridge.
    Iproute,
    /// The reference CNI plugin `bridge` from this folder, called as a kubelet would.
    Cni(PathBuf),
    /// One netlink socket: no tool, no addresses, no bridge.
    Kernel,
    /// The same, with as many pods as [`VethSwitches`](Self::VethSwitches) makes.
    KernelSwitches,
}

/// A veth that was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Veth {
    pub(super) program: PathBuf,
}

/// What one contestant took in one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) up: Usage,
    /// What `veth plan` took that had nothing to change.
    pub(super) plan: Option<Usage>,
    pub(super) ls: Option<Usage>,
    pub(super) down: Usage,
    /// From the start of `down` until the kernel had removed everything in the background too.
    pub(super) gone: Duration,
}

impl Contestant {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Veth(_) => "veth",
            Self::VethSwitches(_) => "veth, 4 switches",
            Self::Iproute => "iproute2 scripts",
            Self::Cni(_) => "CNI bridge plugin",
            Self::Kernel | Self::KernelSwitches => "kernel, pairs only",
        }
    }

    /// How many pods it makes, of those that were asked for.
    pub(super) const fn pods(&self, pods: usize, cni_pods: usize) -> usize {
        match self {
            Self::Veth(_) | Self::Iproute | Self::Kernel => pods,
            Self::VethSwitches(_) | Self::KernelSwitches => pods * SWITCHES,
            Self::Cni(_) => cni_pods,
        }
    }

    /// Makes so many pods, removes them, and waits until the kernel is at rest again.
    pub(super) fn measure(&self, pods: usize) -> Result<Sample> {
        fs::create_dir_all(FOLDER).with_context(|| format!("create {FOLDER}"))?;
        let sample = match self {
            Self::Veth(veth) => veth.measure(1, pods),
            Self::VethSwitches(veth) => veth.measure(SWITCHES, pods),
            Self::Iproute => iproute(pods),
            Self::Cni(plugins) => cni(plugins, pods),
            Self::Kernel | Self::KernelSwitches => bare_kernel(pods),
        }
        .with_context(|| format!("measure {} with {pods} pods", self.name()))?;
        fs::remove_dir_all(FOLDER).with_context(|| format!("remove {FOLDER}"))?;
        let left = links()?;
        ensure!(left == 1, "{} leaves {left} links on the host, where lo was alone before", self.name());
        Ok(sample)
    }
}

impl Veth {
    fn measure(&self, switches: usize, pods: usize) -> Result<Sample> {
        let path = format!("{FOLDER}/{NAME}.toml");
        write(&path, &declaration(switches, pods / switches))?;
        let up = process::measure(&mut self.command(&["up", "--file", &path]))?;
        check_links(pods)?;
        let plan = Some(process::measure(&mut self.command(&["plan", "--file", &path]))?);
        let ls = Some(process::measure(&mut self.command(&["ls"]))?);
        let (down, gone) = remove(|| process::measure(&mut self.command(&["down", NAME])))?;
        Ok(Sample { up, plan, ls, down, gone })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        // What the caller's own veth is told is not meant for this one.
        command.env_remove("VETH_STATE_DIR").env_remove("VETH_PIN_DIR").stdin(Stdio::null());
        command
    }
}

/// A topology file.
fn declaration(switches: usize, pods: usize) -> String {
    let mut text = format!("name = \"{NAME}\"\n");
    for switch in 0..switches {
        let name = if switches == 1 { "lan".to_owned() } else { format!("lan{}", switch + 1) };
        let _unused: std::fmt::Result = write!(
            text,
            "\n[switch.{name}]\nsubnet = [\"10.{}.0.0/16\", \"fd00:{}::/64\"]\npods = {pods}\n",
            200 + switch,
            200 + switch
        );
    }
    text
}

/// Two scripts as an expert would write them. As few processes as can be: one for everything on the host, and one a
/// pod, because `ip` works in one namespace. Entered by nsenter, which is faster than `ip -n`: that copies all mounts
/// and mounts a `/sys` each time.
fn iproute(pods: usize) -> Result<Sample> {
    let folder = Path::new(FOLDER).join("pods");
    fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
    let mut host = String::new();
    let mut gone = String::new();
    let mut pairs = String::new();
    for pod in 1..=pods {
        let _unused: std::fmt::Result = writeln!(host, "netns add pod{pod}");
        let _unused: std::fmt::Result = writeln!(gone, "netns del pod{pod}");
        let _unused: std::fmt::Result =
            writeln!(pairs, "link add port{pod} up master {NAME} type veth peer name eth0 netns pod{pod}");
        let (v4, v6) = addresses(pod);
        write(
            folder.join(format!("pod{pod}")),
            &format!(
                "link set lo up\naddr add {v4}/16 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n"
            ),
        )?;
    }
    let path = |name: &str| Path::new(FOLDER).join(name);
    write(path("host.batch"), &format!("{host}link add {NAME} up type bridge\n{pairs}"))?;
    write(path("gone.batch"), &gone)?;
    write(
        path("up.sh"),
        "set -e\nip -batch host.batch\ncd pods\nfor pod in *; do nsenter --net=/run/netns/$pod ip -batch $pod; done\n",
    )?;
    write(path("down.sh"), &format!("set -e\nip link del {NAME}\nip -batch gone.batch\n"))?;
    let script = |name| process::measure(process::fed("sh", &path(name))?.current_dir(FOLDER));
    let up = script("up.sh")?;
    check_links(pods)?;
    let (down, gone) = remove(|| script("down.sh"))?;
    Ok(Sample { up, plan: None, ls: None, down, gone })
}

/// One ADD a pod, then one DEL a pod, one after the other. The namespaces are made and removed in bulk, which is
/// faster than what a container runtime does.
fn cni(plugins: &Path, pods: usize) -> Result<Sample> {
    let path = |name: &str| Path::new(FOLDER).join(name);
    let ranges = [[json!({"subnet": "10.200.0.0/16"})], [json!({"subnet": "fd00:200::/64"})]];
    let configuration = json!({
        "cniVersion": "1.0.0", "name": NAME, "type": "bridge", "bridge": NAME,
        "ipam": {"type": "host-local", "dataDir": path("ipam"), "ranges": ranges},
    });
    write(path("bridge.json"), &configuration.to_string())?;
    let namespaces = |verb: &str| {
        let mut batch = String::new();
        for pod in 1..=pods {
            let _unused: std::fmt::Result = writeln!(batch, "netns {verb} pod{pod}");
        }
        batch
    };
    write(path("add.batch"), &namespaces("add"))?;
    write(path("del.batch"), &namespaces("del"))?;
    let batch = |name| process::measure(process::fed("ip", &path(name))?.args(["-batch", "-"]));
    let call = |verb: &str, pod: usize| {
        let mut plugin = process::fed(plugins.join("bridge"), &path("bridge.json"))?;
        plugin.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", format!("pod{pod}")).env("CNI_IFNAME", "eth0");
        plugin.env("CNI_NETNS", format!("/run/netns/pod{pod}")).env("CNI_PATH", plugins);
        process::measure(&mut plugin)
    };
    let mut up = batch("add.batch")?;
    for pod in 1..=pods {
        up += call("ADD", pod)?;
    }
    check_links(pods)?;
    let (down, gone) = remove(|| {
        let mut down = Usage::default();
        for pod in 1..=pods {
            down += call("DEL", pod)?;
        }
        down += batch("del.batch")?;
        down += process::measure(Command::new("ip").args(["link", "del", NAME]).stdin(Stdio::null()))?;
        Ok(down)
    })?;
    Ok(Sample { up, plan: None, ls: None, down, gone })
}

/// Without any process, so that there is no memory to tell.
fn bare_kernel(pods: usize) -> Result<Sample> {
    let usage = |start: Instant| Usage { wall: start.elapsed(), memory: 0 };
    let start = Instant::now();
    let namespaces = kernel::make("port", pods)?;
    let up = usage(start);
    check_links(pods)?;
    let (down, gone) = remove(|| {
        let start = Instant::now();
        drop(namespaces);
        Ok(usage(start))
    })?;
    Ok(Sample { up, plan: None, ls: None, down, gone })
}

/// Removes pods; returns also how long it takes until the kernel has removed everything.
fn remove(remove: impl FnOnce() -> Result<Usage>) -> Result<(Usage, Duration)> {
    let start = Instant::now();
    let down = remove()?;
    kernel::settle()?;
    Ok((down, start.elapsed()))
}

/// Fails unless every pod has a link on the host: otherwise what was measured is not the work.
fn check_links(pods: usize) -> Result<()> {
    let links = links()?;
    ensure!(links > pods, "there are only {links} links on the host for {pods} pods");
    Ok(())
}

fn links() -> Result<usize> {
    Ok(if_nameindex().context("list the links of the host")?.iter().count())
}

/// The addresses of a pod, without their prefix lengths. The first of each subnet is a gateway's.
fn addresses(pod: usize) -> (String, String) {
    let host = pod + 1;
    (format!("10.200.{}.{}", host / 256, host % 256), format!("fd00:200::{host:x}"))
}

fn write(path: impl AsRef<Path>, text: &str) -> Result<()> {
    fs::write(&path, text).with_context(|| format!("write {}", path.as_ref().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_declares_every_switch() {
        assert_eq!(
            declaration(1, 1000),
            "name = \"bench\"\n\n[switch.lan]\nsubnet = [\"10.200.0.0/16\", \"fd00:200::/64\"]\npods = 1000\n"
        );
        let four = declaration(4, 250);
        assert!(
            four.contains("[switch.lan4]\nsubnet = [\"10.203.0.0/16\", \"fd00:203::/64\"]\npods = 250\n")
        );
    }

    #[test]
    fn addresses_differ() {
        assert_eq!(addresses(1), ("10.200.0.2".to_owned(), "fd00:200::2".to_owned()));
        assert_eq!(addresses(1000), ("10.200.3.233".to_owned(), "fd00:200::3e9".to_owned()));
    }
}
