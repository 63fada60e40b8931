//! A throw-away host: a network namespace and a mount namespace of its own, with an empty `/run` and an empty
//! bpffs. Everything in it, namespaces, links, pins, state, ends with the thread that holds it, also when a
//! test panics or is killed, so that tests run side by side under the names that users see.

use std::{
    collections::BTreeSet,
    io::Read as _,
    net::IpAddr,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        RwLock, RwLockReadGuard, RwLockWriteGuard,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::LinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use serde_json::Value;
use veth_common::{FdbKey, LAYOUT_VERSION, Mac, Port};
use veth_user::{
    datapath::{Datapath, Hook, pins::Pins},
    net::{
        Netlink, Netns,
        link::{Link, LinkStats},
        netns,
        tc::Direction,
    },
    probe::{Peer, Scratch},
    state::{DEFAULT_PIN_DIR, DEFAULT_STATE_DIR, Roots},
};

use crate::{fingerprint, hook};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// BPF objects are counted for the whole machine, and a processor's backlog holds the frames of all its namespaces: a test
/// that counts the ones or fills the other must be alone.
static MACHINE: RwLock<()> = RwLock::new(());

type Job = Box<dyn FnOnce() + Send>;

#[expect(dead_code, reason = "held, never read")]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

/// A throw-away host.
pub struct Lab {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    turn: Turn,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// What it printed.
    pub out: String,
    /// What it complained of.
    pub err: String,
}

/// A command that may still run. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Lab {
    /// A host beside those of other tests.
    #[must_use]
    pub fn new() -> Self {
        // A test that panicked has poisoned nothing that we look at.
        Self::with(Turn::Shared(MACHINE.read().unwrap_or_else(std::sync::PoisonError::into_inner)), true)
    }

    /// The only host at this moment.
    #[must_use]
    pub fn alone() -> Self {
        Self::with(Turn::Alone(MACHINE.write().unwrap_or_else(std::sync::PoisonError::into_inner)), true)
    }

    /// A host on which nobody has mounted a bpffs.
    #[must_use]
    pub fn without_bpffs() -> Self {
        Self::with(Turn::Shared(MACHINE.read().unwrap_or_else(std::sync::PoisonError::into_inner)), false)
    }

    fn with(turn: Turn, bpffs: bool) -> Self {
        let (jobs, todo) = channel::<Job>();
        let thread = thread::spawn(move || {
            for job in todo {
                job();
            }
        });
        let lab = Self { jobs: Some(jobs), thread: Some(thread), turn };
        lab.run(move || {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("tests need root");
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            if bpffs {
                mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).unwrap();
            } else {
                // Whatever the machine has there is covered.
                mount(Some("tmpfs"), "/sys/fs/bpf", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            }
            with_netlink(async |netlink| {
                let index = netlink.link("lo").await.unwrap().index;
                netlink.set_up(index).await.unwrap();
            });
        });
        lab
    }

    /// Does something on the host.
    ///
    /// # Panics
    ///
    /// When the closure does.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let job = move || {
            let _unused: Result<(), _> =
                done.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
        };
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
        result.recv().unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts `veth` on the host.
    #[must_use]
    pub fn start(&self, args: &[&str], env: &[(&str, &str)]) -> Running {
        let mut command = Command::new(veth());
        command.args(args).envs(env.iter().copied()).env_remove("RUST_BACKTRACE");
        self.spawn(command)
    }

    /// Starts any command on the host.
    #[must_use]
    pub fn spawn(&self, mut command: Command) -> Running {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running { child: self.run(move || command.spawn()).unwrap() }
    }

    /// Runs `veth` on the host to its end.
    #[must_use]
    pub fn veth(&self, args: &[&str]) -> Finished {
        self.start(args, &[]).finish()
    }

    /// Runs `veth`, which must succeed, and returns what it printed.
    #[expect(clippy::must_use_candidate, reason = "often run for what it does")]
    pub fn ok(&self, args: &[&str]) -> String {
        let finished = self.veth(args);
        assert!(finished.status.success(), "veth {args:?}: {finished:?}");
        finished.out
    }

    /// Brings a topology up by a hook: `veth up --hook HOOK ARGS…`.
    pub fn up(&self, hook: Hook, args: &[&str]) {
        let _unused: String = self.ok(&[&["up"][..], &hook::arguments(hook), args].concat());
    }

    /// Runs `veth`, which must fail with exit code 1 and leave things as they were, and returns its message.
    #[expect(clippy::must_use_candidate, reason = "often run to see that it changes nothing")]
    pub fn refused(&self, args: &[&str]) -> String {
        let before = self.fingerprint();
        let finished = self.veth(args);
        assert_eq!(finished.status.code(), Some(1), "veth {args:?}: {finished:?}");
        fingerprint::assert_same(&before, &self.fingerprint(), &format!("veth {args:?}"));
        finished.err
    }

    /// The counters of one topology.
    #[must_use]
    pub fn stats(&self, topology: &str) -> Value {
        let text = self.ok(&["stats", topology, "--json"]);
        let value: Value = serde_json::from_str(&text).unwrap();
        value[0].clone()
    }

    /// The counters, once two readings some time apart agree: nothing is under way any more.
    #[must_use]
    pub fn quiet_stats(&self, topology: &str) -> Value {
        let mut before = self.stats(topology);
        let start = Instant::now();
        loop {
            thread::sleep(Duration::from_millis(200));
            let after = self.stats(topology);
            if after["ports"] == before["ports"] {
                return after;
            }
            assert!(start.elapsed() < PATIENCE, "{topology} does not come to rest");
            before = after;
        }
    }

    /// Does something with the programs and maps of a topology that is up.
    pub fn datapath<T: Send + 'static>(
        &self,
        hook: Hook,
        topology: &'static str,
        work: impl FnOnce(&mut Datapath) -> T + Send + 'static,
    ) -> T {
        self.run(move || {
            let pins = Pins::new(
                &Roots { state: DEFAULT_STATE_DIR.into(), pins: DEFAULT_PIN_DIR.into() },
                LAYOUT_VERSION,
                topology,
            );
            work(&mut Datapath::open(pins, hook).unwrap())
        })
    }

    /// Lets the programs check what comes from a port.
    pub fn spoof_check(
        &self,
        hook: Hook,
        topology: &'static str,
        link: &str,
        mac: Mac,
        addresses: Vec<IpAddr>,
    ) {
        let ifindex = self.link(link).index;
        self.datapath(hook, topology, move |datapath| {
            let port = datapath.port(ifindex).unwrap();
            for address in addresses {
                datapath.set_source(port.slot, address).unwrap();
            }
            datapath.set_port(&Port { flags: Port::SPOOF_CHECK, mac, ..port }).unwrap();
        });
    }

    /// What `bpf_redirect_peer` does here, by the same experiment that `veth up` makes.
    #[must_use]
    pub fn redirect_peer(&self) -> Peer {
        self.run(|| with_netlink(async |_| Scratch::new().await.unwrap().redirect_peer().await.unwrap()))
    }

    /// A namespace by its name.
    #[must_use]
    pub fn pod(&self, namespace: &str) -> Netns {
        let namespace = namespace.to_owned();
        self.run(move || Netns::open(&namespace)).unwrap()
    }

    /// The links of the host.
    #[must_use]
    pub fn links(&self) -> Vec<Link> {
        self.run(|| with_netlink(async |netlink| netlink.links().await.unwrap()))
    }

    /// A link of the host.
    #[must_use]
    pub fn link(&self, name: &str) -> Link {
        self.links().into_iter().find(|link| link.name == name).unwrap_or_else(|| panic!("no link {name}"))
    }

    /// Removes every filter on a link's ingress, as an agent that thinks it owns the link would.
    pub fn remove_filters(&self, link: &str) {
        let link = self.link(link);
        self.run(move || {
            with_netlink(async |netlink| {
                for filter in netlink.filters(link.index, Direction::Ingress).await.unwrap() {
                    netlink.delete_filter(link.index, filter.position).await.unwrap();
                }
            });
        });
    }

    /// Everything on the host that a command could change or leave behind.
    #[must_use]
    pub fn fingerprint(&self) -> Vec<String> {
        self.run(fingerprint::host)
    }

    /// What there is of the whole machine: programs, maps and attachments that are loaded, and how it treats grace periods.
    ///
    /// # Panics
    ///
    /// Where others change it meanwhile: only for [`Lab::alone`].
    #[must_use]
    pub fn machine(&self) -> BTreeSet<String> {
        assert!(matches!(self.turn, Turn::Alone(_)), "others load programs meanwhile");
        fingerprint::machine()
    }

    /// Waits until nothing is left of what was loaded since: the kernel frees it a little later. Of other processes that
    /// are at work on the machine, what is there at this moment may take as long as it takes them.
    pub fn wait_for_machine(&self, before: &BTreeSet<String>) {
        let new: BTreeSet<String> = self.machine().difference(before).cloned().collect();
        eventually("programs, maps and attachments are freed", || self.machine().is_disjoint(&new));
    }

    /// A fingerprint without the numbers that are others for what was made again.
    #[must_use]
    pub fn shape(&self) -> Vec<String> {
        fingerprint::shape(&self.fingerprint())
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _unused: thread::Result<()> = thread.join();
        }
    }
}

impl Running {
    /// Waits for the end.
    ///
    /// # Panics
    ///
    /// When it takes too long.
    #[must_use]
    pub fn finish(self) -> Finished {
        self.finish_within(PATIENCE)
    }

    /// Waits for the end of something that takes longer than others.
    #[must_use]
    pub fn finish_within(mut self, patience: Duration) -> Finished {
        let (out, err) = (self.child.stdout.take(), self.child.stderr.take());
        thread::scope(|scope| {
            let out = scope.spawn(move || read_all(out));
            let err = scope.spawn(move || read_all(err));
            let start = Instant::now();
            let status = loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    break status;
                }
                if start.elapsed() > patience {
                    self.signal(Signal::SIGKILL);
                    panic!("a command took longer than {patience:?}: {:?}", self.child);
                }
                // Not more often: in an emulated machine each look costs a tenth of a millisecond.
                thread::sleep(Duration::from_millis(5));
            };
            Finished { status, out: out.join().unwrap(), err: err.join().unwrap() }
        })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Whether it does something itself when it gets a signal.
    #[must_use]
    pub fn catches(&self, signal: Signal) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() & 1 << (signal as u32 - 1) != 0
    }

    /// Waits until it has printed some text, and returns everything until then.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.try_wait_for(text).unwrap_or_else(|seen| panic!("ended without printing {text:?}: {seen}"))
    }

    /// The same of something that may end without, and what it printed instead.
    ///
    /// # Errors
    ///
    /// When it ends first.
    pub fn try_wait_for(&mut self, text: &str) -> Result<String, String> {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        let (done, waits) = channel::<()>();
        // One that prints nothing more ends, and so does our reading.
        thread::spawn(move || {
            if waits.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                let _unused: nix::Result<()> = kill(pid, Signal::SIGKILL);
            }
        });
        let out = self.child.stdout.as_mut().unwrap();
        let mut seen = Vec::new();
        let mut byte = [0];
        let start = Instant::now();
        while !String::from_utf8_lossy(&seen).contains(text) {
            assert!(start.elapsed() < PATIENCE, "{text:?} was not printed, but something else all the time");
            if out.read(&mut byte).unwrap() == 0 {
                return Err(String::from_utf8(seen).unwrap());
            }
            seen.push(byte[0]);
        }
        drop(done);
        Ok(String::from_utf8(seen).unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _unused: std::io::Result<()> = self.child.kill();
            let _unused: std::io::Result<ExitStatus> = self.child.wait();
        }
    }
}

impl Finished {
    /// Whether it was ended by SIGKILL.
    #[must_use]
    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(Signal::SIGKILL as i32)
    }
}

fn read_all(pipe: Option<impl std::io::Read>) -> String {
    let mut text = String::new();
    if let Some(mut pipe) = pipe {
        let _unused: std::io::Result<usize> = pipe.read_to_string(&mut text);
    }
    text
}

/// A `struct xdp_md` for a frame that came in on a link.
#[must_use]
pub fn xdp_md(frame: &[u8], ifindex: u32) -> Vec<u8> {
    // data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    let words = [0, u32::try_from(frame.len()).unwrap(), 0, ifindex, 0, 0];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Where the pins of a topology are.
#[must_use]
pub fn pins(topology: &str) -> PathBuf {
    format!("/sys/fs/bpf/veth/v{LAYOUT_VERSION}/{topology}").into()
}

/// The binary under test, built with the feature `test-hooks`.
fn veth() -> PathBuf {
    std::env::var_os("VETH_BIN").expect("VETH_BIN is not set: run tests by `cargo xtask test`").into()
}

/// Asks netlink in the namespace of the calling thread.
pub fn with_netlink<T>(work: impl AsyncFnOnce(&Netlink) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { work(&Netlink::open().unwrap()).await })
}

/// The kernel's counters of a pod's end.
#[must_use]
pub fn pod_link_stats(pod: &Netns, link: &str) -> LinkStats {
    let find = || with_netlink(async |netlink| netlink.link(link).await.unwrap().stats);
    pod.run(find).unwrap()
}

/// Changes a link of the calling thread's namespace, as `ip link set` does.
pub fn set_link(
    name: &str,
    change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
) {
    with_netlink(async |netlink| {
        let index = netlink.link(name).await.unwrap().index;
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        handle.link().set(change(LinkUnspec::new_with_index(index)).build()).execute().await.unwrap();
    });
}

/// Makes a link with `ip link add`'s defaults, as somebody else would.
pub fn add_link(message: LinkMessage) {
    with_netlink(async |_| {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        handle.link().add(message).execute().await.unwrap();
    });
}

/// Makes a network namespace with a name, as `ip netns add` does.
pub fn add_namespace(name: &str) {
    netns::share_names().unwrap();
    Netns::anonymous(|| Ok(())).unwrap().0.publish(name).unwrap();
}

/// Gives a link of the calling thread's namespace a root qdisc, as `tc qdisc add` does.
pub fn add_qdisc(link: &str, kind: &str) {
    with_netlink(async |netlink| {
        let index = netlink.link(link).await.unwrap().index;
        let (connection, mut handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let mut message = TcMessage::default();
        message.header.index = index.cast_signed();
        message.header.parent = TcHandle::ROOT;
        message.attributes = vec![TcAttribute::Kind(kind.to_owned())];
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
        let mut answers = handle.request(request).unwrap();
        while let Some(answer) = answers.next().await {
            assert!(
                !matches!(&answer.payload, NetlinkPayload::Error(error) if error.code.is_some()),
                "{answer:?}"
            );
        }
    });
}

/// Deletes a link of the calling thread's namespace.
pub fn delete_link(name: &str) {
    with_netlink(async |netlink| {
        let index = netlink.link(name).await.unwrap().index;
        netlink.delete_link(index).await.unwrap();
    });
}

/// Stops everything that a pod says by itself: IPv6 is taken away, and neighbours are not asked again whether they are still
/// there.
pub fn silence(pod: &Netns) {
    for (path, value) in
        [("ipv6/conf/eth0/disable_ipv6", "1"), ("ipv4/neigh/eth0/delay_first_probe_time", "3600")]
    {
        pod.run(|| std::fs::write(format!("/proc/sys/net/{path}"), value)).unwrap().unwrap();
    }
}

/// Stops a pod's router solicitations, which would otherwise be counted in the middle of a test.
pub fn hush(pod: &Netns) {
    let path = "/proc/sys/net/ipv6/conf/eth0/router_solicitations";
    pod.run(|| std::fs::write(path, "0")).unwrap().unwrap();
}

/// Pods that no switch has, more than any FDB of a few ports has room for.
pub fn strangers() -> impl Iterator<Item = FdbKey> {
    (0..40_000_u32).map(|number| {
        let [_, a, b, c] = number.to_be_bytes();
        FdbKey { domain: 77, mac: Mac::new([2, 77, 0, a, b, c]) }
    })
}

/// Waits until something holds.
///
/// # Panics
///
/// When it does not in good time.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
