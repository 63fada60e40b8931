//! Where a limit of the machine is reached: a clear error, exit code 1, and everything as it was before.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, TcpStream},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sys::{signal::Signal, statvfs::statvfs},
};
use veth_common::{Port, Target};
use veth_tests::{
    Finished, Lab, Running,
    fingerprint::assert_same,
    lab::{eventually, pod_link_stats, silence, strangers, with_netlink},
    need,
    topology::Declared,
    traffic::{bind, udp},
    variant::{Build, Builds},
};
use veth_user::datapath::{Datapath, Error, Hook, attach};

/// A switch whose pods are checked, so that every kind of map is used.
const LAN: &str =
    "name = \"lab\"\n\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\nspoof_check = true\n";

/// The same with one pod more.
fn larger() -> String {
    LAN.replace("\"b\"]", "\"b\", \"c\"]")
}

/// Starts `veth` from a shell that did something before, to itself.
fn start(lab: &Lab, before: &str, args: &[&str]) -> Running {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{before}; exec \"$VETH_BIN\" \"$@\""), "sh"]).args(args);
    lab.spawn(command)
}

/// Whether a command has done what it should. Otherwise it has said why not, and ended as commands do then: with 3 where
/// it could measure nothing.
fn is_done(what: &str, finished: &Finished) -> bool {
    let code = finished.status.code();
    let is_told = match code {
        Some(0) => true,
        Some(1) => finished.err.contains("(os error "),
        Some(3) => finished.out.contains("(os error "),
        _ => false,
    };
    assert!(is_told, "{what}: {finished:?}");
    code == Some(0)
}

/// Whether `a` still reaches `b`.
fn assert_traffic(lab: &Lab) {
    assert_eq!(udp(&lab.pod("lab-a"), &lab.pod("lab-b"), "10.1.0.2".parse().unwrap(), 100, 3), 0);
    assert!(lab.ok(&["ls", "lab"]).contains(" up\n"));
}

#[test]
fn a_full_map_is_told_and_the_change_undone() {
    let lab = Lab::new();
    let (small, large) = (Declared::new(LAN), Declared::new(&larger()));
    lab.ok(&small.args("up"));
    let is_full = |error: &Error| matches!(error, Error::MapFull { .. });
    let address = |number: u32| IpAddr::from((0x0a4d_0000 + number).to_be_bytes());
    let port = |number: u32| Port { ifindex: 1_000_000 + number, slot: 200, ..Port::default() };
    // More than there can be of each, so that also those places are taken that ours might find.
    let fill = move |datapath: &mut Datapath, kind: &str| -> usize {
        let results: Vec<Result<(), Error>> = match kind {
            "send from" => (0..3_000).map(|number| datapath.set_source(200, address(number))).collect(),
            "learn" => strangers().map(|key| datapath.set_fdb(key, &Target::default())).collect(),
            _ => (0..1_000).map(|number| datapath.set_port(&port(number))).collect(),
        };
        assert!(results.iter().all(|result| result.as_ref().err().is_none_or(is_full)), "{kind}");
        results.iter().filter(|result| result.is_err()).count()
    };
    let empty = move |datapath: &mut Datapath| {
        (0..3_000).for_each(|number| datapath.remove_source(200, address(number)).unwrap());
        strangers().for_each(|key| datapath.remove_fdb(key).unwrap());
        (0..1_000).for_each(|number| datapath.remove_port(port(number).ifindex).unwrap());
    };
    for kind in ["send from", "learn", "register interface"] {
        let refused = lab.datapath(Hook::Tcx, "lab", move |datapath| fill(datapath, kind));
        assert!(refused > 0, "{kind}: the map is not full");
        let error = lab.refused(&large.args("up"));
        for part in [kind, "the map is full", "veth down", "everything is as it was before"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert_traffic(&lab);
        lab.datapath(Hook::Tcx, "lab", empty);
        lab.ok(&large.args("up"));
        lab.ok(&small.args("up"));
    }
}

/// Sends so many datagrams from `a` to `b`, and returns how many frames came in at the host end of `a`, and left for `b`.
fn flood(lab: &Lab, count: u64, size: usize) -> [u64; 2] {
    let (a, b) = (lab.pod("lab-a"), lab.pod("lab-b"));
    let count_frames = || {
        let stats = lab.quiet_stats("lab");
        let port = stats["ports"].as_array().unwrap().iter().find(|port| port["pod"] == "a").unwrap();
        [port["redirected"]["packets"].as_u64().unwrap(), pod_link_stats(&b, "eth0").rx_packets]
    };
    let before = count_frames();
    let (client, server) = (bind(&a, "10.1.0.1".parse().unwrap()), bind(&b, "10.1.0.2".parse().unwrap()));
    client.connect(server.local_addr().unwrap()).unwrap();
    let data = vec![0x5a; size];
    for _ in 0..count {
        client.send(&data).unwrap();
    }
    let after = count_frames();
    [after[0] - before[0], after[1] - before[1]]
}

/// The topology with two silent pods that know each other.
fn quiet_lab() -> (Lab, Declared) {
    quiet(Lab::new())
}

fn quiet(lab: Lab) -> (Lab, Declared) {
    let file = Declared::new(LAN);
    lab.ok(&file.args("up"));
    for pod in ["lab-a", "lab-b"] {
        silence(&lab.pod(pod));
    }
    assert_traffic(&lab);
    (lab, file)
}

/// Waits until programs that watch are on a link.
fn wait_for_watchers(lab: &Lab, link: &'static str) {
    eventually("it watches", || {
        lab.run(move || {
            with_netlink(async |netlink| {
                let link = netlink.link(link).await.unwrap();
                let attached = attach::attached(netlink, &link).await.unwrap();
                attached.iter().any(|attached| attached.name.starts_with("veth_watch"))
            })
        })
    });
}

/// The number before a word.
fn number_before(text: &str, word: &str) -> u64 {
    let (before, _) = text.split_once(word).unwrap_or_else(|| panic!("{word:?} in {text}"));
    before.split_whitespace().next_back().unwrap().parse().unwrap()
}

#[test]
fn what_a_full_ring_has_no_room_for_is_counted_and_goes_on() {
    if !need::kernel(6, 6, "TCX, by which watching ends with its process") {
        return;
    }
    let (lab, _file) = quiet_lab();
    // Nobody reads the pipe: it fills, and then the buffer behind it.
    let trace = lab.start(&["trace", "--json", "--of", "lab", "udp"], &[]);
    wait_for_watchers(&lab, "br-lab-lan");
    // So many that it blocks, before there are more than it can take.
    let [first, _] = flood(&lab, 2_000, 100);
    let [came, went] = flood(&lab, 60_000, 100);
    assert_eq!(came, went, "a trace that nobody reads holds frames up");
    // What is in the buffer is told of before the end.
    trace.signal(Signal::SIGINT);
    let finished = trace.finish();
    let told = finished.out.lines().count();
    let lost = number_before(&finished.err, "frames were not told of");
    assert!(lost > 0 && told > 0, "{told} {}", finished.err);
    assert_eq!(u64::try_from(told).unwrap() + lost, first + came, "each frame is told of or counted");
    assert!(finished.status.success(), "{:?}", finished.status);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pcapng").display().to_string();
    let capture = lab.start(&["capture", "lab/a", "-w", &file, "udp"], &[]);
    // It begins to write when it is ready for signals too.
    eventually("it captures", || fs::metadata(&file).is_ok_and(|file| file.len() > 0));
    capture.signal(Signal::SIGSTOP);
    let [came, went] = flood(&lab, 60_000, 1_400);
    assert_eq!(came, went, "a capture that is stopped holds frames up");
    capture.signal(Signal::SIGCONT);
    capture.signal(Signal::SIGINT);
    let finished = capture.finish();
    let (taken, lost) =
        (number_before(&finished.err, "frames of"), number_before(&finished.err, "lost for want"));
    assert!(finished.status.success() && taken > 0 && lost > 0, "{finished:?}");
    assert_traffic(&lab);
}

/// Runs a command with room for more and more open files, until it does what it should. `before` makes ready for it, and
/// returns how the host is to be where the command fails.
fn with_few_files(lab: &Lab, args: &[&str], before: impl FnMut() -> Vec<String>) {
    with_few_files_and(lab, ":", args, before);
}

/// The same, by a shell that did something else before, too.
fn with_few_files_and(lab: &Lab, more: &str, args: &[&str], mut before: impl FnMut() -> Vec<String>) {
    for limit in 3..128 {
        let as_before = before();
        let finished = start(lab, &format!("{more}; ulimit -n {limit}"), args).finish();
        let what = format!("{args:?} with {limit} files");
        // The loader of programs has not enough either.
        if finished.status.code() == Some(127) {
            continue;
        }
        if is_done(&what, &finished) {
            assert!(limit > 5, "{what}: it needs some");
            return;
        }
        let is_advised = finished.err.contains("ulimit -n") || finished.status.code() == Some(3);
        assert!(is_advised, "and what to do: {what}: {finished:?}");
        if args != ["down"] {
            assert_same(&as_before, &whole(lab), &format!("{what}: {finished:?}"));
        }
    }
    panic!("{args:?} wants 128 files");
}

#[test]
fn out_of_descriptors() {
    let (lab, small) = quiet_lab();
    let up = whole(&lab);
    for args in [&["ls"][..], &["stats"], &["check", "--live", "lab", "--transfer", "10ms"]] {
        with_few_files(&lab, args, || up.clone());
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pcapng").display().to_string();
    if need::is_at_least(6, 6) {
        with_few_files(&lab, &["capture", "lab/a", "-w", &file, "--for", "10ms"], || up.clone());
        with_few_files(&lab, &["trace", "--for", "10ms"], || up.clone());
    }
    let large = Declared::new(&larger());
    with_few_files(&lab, &large.args("up"), || up.clone());
    assert_traffic(&lab);
    lab.ok(&small.args("up"));
    // What it could not remove it removes when it can: each try finds what the last one left.
    with_few_files(&lab, &["down"], Vec::new);
    let empty = whole(&lab);
    with_few_files(&lab, &small.args("up"), || empty.clone());
    assert_traffic(&lab);
    lab.ok(&["down"]);
    assert_eq!(whole(&lab), empty);
}

#[test]
fn a_server_without_descriptors_says_so_and_goes_on() {
    let (lab, _file) = quiet_lab();
    let up = lab.fingerprint();
    let mut answers = BTreeMap::new();
    for limit in 6..64 {
        let mut server = start(&lab, &format!("ulimit -n {limit}"), &["metrics", "--listen", "127.0.0.1:0"]);
        let Ok(said) = server.try_wait_for("/metrics\n") else {
            let finished = server.finish();
            assert!(
                finished.err.contains("ulimit -n") || finished.status.code() == Some(127),
                "{finished:?}"
            );
            continue;
        };
        let address = said.trim().strip_prefix("serving http://").unwrap().strip_suffix("/metrics").unwrap();
        let address = address.to_owned();
        let answer = lab.run(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: veth\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            let _unused: std::io::Result<usize> = stream.read_to_string(&mut answer);
            answer.lines().next().unwrap_or_default().to_owned()
        });
        server.signal(Signal::SIGTERM);
        let finished = server.finish();
        assert!(finished.status.success(), "with {limit} files: {finished:?}");
        let is_fine = answer.starts_with("HTTP/1.1 200");
        assert!(is_fine || finished.err.contains("Too many open files"), "with {limit} files: {finished:?}");
        answers.insert(answer, limit);
        if is_fine {
            break;
        }
    }
    assert!(answers.keys().any(|answer| answer.starts_with("HTTP/1.1 200")), "{answers:?}");
    assert!(answers.len() > 1, "it was never short: {answers:?}");
    assert_eq!(lab.fingerprint(), up);
    assert_traffic(&lab);
}

/// A cgroup with little memory. Goes when dropped.
struct Cgroup {
    folder: PathBuf,
    limit: &'static str,
}

impl Cgroup {
    /// Nothing where the machine lets us make none.
    fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);

        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("veth-test-{}-{number}", std::process::id());
        // What the second version needs, and does not have in the folder of the first.
        let _unused: std::io::Result<()> = fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
        [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")]
            .into_iter()
            .filter(|(parent, _)| PathBuf::from(parent).join("cgroup.procs").exists())
            .find_map(|(parent, limit)| {
                let folder = PathBuf::from(parent).join(&name);
                fs::create_dir(&folder).ok()?;
                let cgroup = Self { folder, limit };
                cgroup.folder.join(limit).exists().then_some(cgroup)
            })
    }

    fn set(&self, bytes: u64) {
        fs::write(self.folder.join(self.limit), bytes.to_string()).unwrap();
    }
}

/// What a shell does to have so much memory and no more.
fn with_little_memory(cgroup: Option<&Cgroup>, megabytes: u64) -> String {
    match cgroup {
        Some(cgroup) => {
            cgroup.set(megabytes << 20);
            format!("echo $$ > {}", cgroup.folder.join("cgroup.procs").display())
        }
        None => format!("ulimit -v {}", megabytes << 10),
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        fs::remove_dir(&self.folder).unwrap();
    }
}

#[test]
fn out_of_memory() {
    let lab = Lab::new();
    let before = lab.fingerprint();
    let cgroup = Cgroup::new();
    let mut ends = Vec::new();
    for megabytes in (2..10).map(|power| 1_u64 << power) {
        let limit = with_little_memory(cgroup.as_ref(), megabytes);
        let finished = start(&lab, &limit, &["up", "--pods", "60"]).finish();
        ends.push(format!("{megabytes} MB: {}", finished.status));
        match finished.status.code() {
            Some(0) => {
                lab.ok(&["down"]);
                assert_same(&before, &lab.fingerprint(), &format!("{ends:?}"));
                assert!(ends.len() > 1, "it was never short of memory");
                return;
            }
            // By the loader of programs.
            Some(127) => {}
            Some(1) => assert!(finished.err.contains("memory"), "{finished:?}"),
            // By the kernel, or by an allocation that failed.
            _ => drop(lab.ok(&["down", "--all"])),
        }
        assert_same(&before, &lab.fingerprint(), &format!("{ends:?}: {finished:?}"));
    }
    panic!("{ends:?}");
}

/// Lets the host's `/run` have so much more than it has.
fn leave_room(lab: &Lab, room: Room) {
    lab.run(move || {
        let run = statvfs("/run").unwrap();
        let (files, blocks) = (run.files() - run.files_free(), run.blocks() - run.blocks_free());
        let option = match room {
            Room::Inodes(spare) => format!("size=64m,nr_inodes={}", files + spare),
            Room::Pages(spare) => format!("nr_inodes=100000,size={}", (blocks + spare) * run.block_size()),
            Room::Plenty => "size=64m,nr_inodes=100000".to_owned(),
        };
        mount(None::<&str>, "/run", None::<&str>, MsFlags::MS_REMOUNT, Some(option.as_str())).unwrap();
    });
}

#[derive(Clone, Copy, Debug)]
enum Room {
    Inodes(u64),
    Pages(u64),
    Plenty,
}

/// A fingerprint without how large `/run` may be.
fn whole(lab: &Lab) -> Vec<String> {
    lab.fingerprint().into_iter().filter(|line| !line.starts_with("mount /run ")).collect()
}

#[test]
fn no_space_in_run() {
    let lab = Lab::new();
    let (small, large) = (Declared::new(LAN), Declared::new(&larger()));
    // No room at all is said as 0, which means any.
    lab.run(|| fs::write("/run/others", [0; 4096]).unwrap());
    // With and without a folder of state: a second topology keeps it.
    for other in [false, true] {
        if other {
            lab.ok(&["up"]);
        }
        for room in [Room::Inodes, Room::Pages] {
            let empty = whole(&lab);
            // From nothing.
            let spare = with_more_and_more(&lab, &small, &room, &empty);
            assert!(spare > 0, "it needs no room");
            let up = whole(&lab);
            // A change.
            let spare = with_more_and_more(&lab, &large, &room, &up);
            assert!(spare > 0, "it needs no room");
            assert_eq!(udp(&lab.pod("lab-a"), &lab.pod("lab-c"), "10.1.0.3".parse().unwrap(), 100, 3), 0);
            // To remove takes none.
            leave_room(&lab, room(0));
            lab.ok(&["down", "lab"]);
            assert_same(&empty, &whole(&lab), &format!("down with {:?}", room(0)));
            leave_room(&lab, Room::Plenty);
            // Nor does hurrying, which is noted.
            lab.ok(&["up", "--pods", "9"]);
            leave_room(&lab, room(0));
            lab.ok(&["down", "switch"]);
            leave_room(&lab, Room::Plenty);
            assert_same(&empty, &whole(&lab), "down of many ports");
        }
    }
}

/// Brings a topology up with more and more room in `/run` until there is enough, and returns how much that is.
fn with_more_and_more(lab: &Lab, file: &Declared, room: &impl Fn(u64) -> Room, before: &[String]) -> u64 {
    let is_up = before.iter().any(|line| line.contains("/run/veth/lab.json"));
    for spare in 0..40 {
        leave_room(lab, room(spare));
        let finished = lab.veth(&file.args("up"));
        let what = format!("{:?}: {finished:?}", room(spare));
        if is_done(&what, &finished) {
            return spare;
        }
        assert!(
            finished.err.contains("No space left on device") && finished.err.contains("make room"),
            "{what}"
        );
        assert_same(before, &whole(lab), &what);
        if is_up {
            assert_traffic(lab);
        }
    }
    panic!("it needs more than 40 of {:?}", room(1));
}

/// Mounts something of the host again so that it can be written, or not.
fn remount(lab: &Lab, path: &'static str, flags: MsFlags) {
    lab.run(move || {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags;
        mount(None::<&str>, path, None::<&str>, flags, None::<&str>).unwrap();
    });
}

#[test]
fn what_cannot_be_written_stays_as_it_is() {
    let lab = Lab::new();
    let (small, large) = (Declared::new(LAN), Declared::new(&larger()));
    for path in ["/run", "/sys/fs/bpf"] {
        let empty = lab.fingerprint();
        let read_only = || remount(&lab, path, MsFlags::MS_RDONLY);
        let writable = || remount(&lab, path, MsFlags::empty());
        read_only();
        let error = lab.refused(&small.args("up"));
        assert!(error.contains("Read-only file system") && error.contains("remount,rw"), "{error}");
        writable();
        assert_eq!(lab.fingerprint(), empty);
        lab.ok(&small.args("up"));
        silence(&lab.pod("lab-a"));
        silence(&lab.pod("lab-b"));
        read_only();
        let error = lab.refused(&large.args("up"));
        assert!(error.contains("Read-only file system") && error.contains("remount,rw"), "{path}: {error}");
        assert!(path == "/run" || error.contains("everything is as it was before"), "{error}");
        assert_traffic(&lab);
        lab.ok(&["stats"]);
        let finished = lab.veth(&["down"]);
        assert_eq!(finished.status.code(), Some(1), "{path}: {finished:?}");
        assert!(finished.err.contains("Read-only file system"), "{finished:?}");
        writable();
        lab.ok(&["down"]);
        assert_same(&empty, &lab.fingerprint(), path);
    }
}

/// An upgrade to another map layout changes nothing, or goes on when there is enough.
#[test]
fn an_upgrade_at_a_limit_leaves_what_runs() {
    let ((lab, _file), builds) = (quiet_lab(), Builds::new());
    let [(name, object)] = builds.env(Build::Next).try_into().unwrap();
    let next = format!("export {name}={object}");
    let upgrade = ["upgrade", "lab"];
    let up = lab.fingerprint();
    for path in ["/run", "/sys/fs/bpf"] {
        remount(&lab, path, MsFlags::MS_RDONLY);
        let finished = start(&lab, &next, &upgrade).finish();
        assert!(!is_done(path, &finished) && finished.err.contains("Read-only file system"), "{finished:?}");
        remount(&lab, path, MsFlags::empty());
        assert_same(&up, &lab.fingerprint(), path);
        assert_traffic(&lab);
    }
    for room in [Room::Inodes, Room::Pages] {
        let up = whole(&lab);
        let is_enough = |spare: &u64| {
            leave_room(&lab, room(*spare));
            let finished = start(&lab, &next, &upgrade).finish();
            let is_done = is_done("no room", &finished);
            if !is_done {
                assert!(finished.err.contains("make room"), "{finished:?}");
                assert_same(&up, &whole(&lab), &format!("{:?}", room(*spare)));
                assert_traffic(&lab);
            }
            is_done
        };
        let spare = (0..40).find(is_enough).unwrap();
        assert!(spare > 0, "it needs no room");
        leave_room(&lab, Room::Plenty);
        lab.ok(&upgrade);
    }
    let cgroup = Cgroup::new();
    let is_enough = |power: &u32| {
        let limit = with_little_memory(cgroup.as_ref(), 1 << power);
        let finished = start(&lab, &format!("{next}; {limit}"), &upgrade).finish();
        let (a, b) = (lab.pod("lab-a"), lab.pod("lab-b"));
        assert_eq!(udp(&a, &b, "10.1.0.2".parse().unwrap(), 100, 3), 0, "{finished:?}");
        lab.ok(&upgrade);
        assert_traffic(&lab);
        finished.status.success()
    };
    assert!((1..10).find(is_enough).unwrap() > 1, "it was never short of memory");
    let up = whole(&lab);
    with_few_files_and(&lab, &next, &upgrade, || up.clone());
    lab.ok(&upgrade);
    assert_traffic(&lab);
}

#[test]
fn a_bpffs_that_is_none() {
    let lab = Lab::without_bpffs();
    let error = lab.refused(&["up", "--pin-dir", "/run/pins"]);
    assert!(error.contains("/run/pins is not on a bpffs") && error.contains("mount -t bpf"), "{error}");
}

#[test]
fn a_thousand_commands_at_once() {
    const COMMANDS: usize = 1_000;
    // So many at once leave nothing of the machine to others.
    let (lab, file) = quiet(Lab::alone());
    lab.ok(&["down"]);
    let before = lab.fingerprint();
    lab.ok(&file.args("up"));
    let results = tempfile::tempdir().unwrap();
    let script = "
        cd \"$RESULTS\"
        for number in $(seq $COMMANDS); do
            other=other$((number / 10 % 5))
            case $((number % 10)) in
                0) set -- up -f \"$FILE\" ;;
                1) set -- up --name $other --pods 2 ;;
                2) set -- down $other ;;
                3) set -- stats lab ;;
                4) set -- stats --json ;;
                5) set -- ls --json ;;
                6) set -- plan -f \"$FILE\" ;;
                *) set -- ls ;;
            esac
            { \"$VETH_BIN\" \"$@\" >/dev/null 2>$number.err; echo \"$? $*\" >$number.code; } &
        done
        wait";
    let mut command = Command::new("sh");
    command.args(["-c", script]).env("COMMANDS", COMMANDS.to_string());
    command.env("RESULTS", results.path()).env("FILE", file.path());
    let finished = lab.spawn(command).finish_within(Duration::from_mins(5));
    assert!(finished.status.success(), "{finished:?}");
    let mut done = 0;
    for number in 1..=COMMANDS {
        let read = |kind: &str| fs::read_to_string(results.path().join(format!("{number}.{kind}"))).unwrap();
        let (ended, error) = (read("code"), read("err"));
        // Whoever looks at what somebody else removes at this moment may find it gone.
        let is_fine = ended.starts_with("0 ") || ended.starts_with("1 ") && error.starts_with("veth: ");
        assert!(is_fine, "{ended}{error}");
        done += usize::from(ended.starts_with("0 "));
        let changes = ["up", "down", "plan"].iter().any(|verb| ended.contains(verb));
        assert!(!changes || ended.starts_with("0 "), "{ended}{error}");
    }
    assert!(done > COMMANDS * 9 / 10, "only {done} did what they should");
    assert_traffic(&lab);
    lab.ok(&["down", "--all"]);
    assert_eq!(lab.fingerprint(), before);
}
