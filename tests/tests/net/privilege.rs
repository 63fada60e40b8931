//! Who may do what: commands with exactly the capabilities that they are documented to need, files that others can neither
//! change nor read, folders of others, and names that lead elsewhere.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use rtnetlink::LinkMessageBuilder;
use veth_tests::{
    Finished, Lab,
    lab::{Running, set_link},
    need,
    topology::Declared,
};
use veth_user::{
    cli::privilege::{COMMANDS, needs},
    net::capability::Capability,
    probe::Kernel,
};

const LAN: &str = "name = \"lab\"\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\n";

/// A user who is nobody.
const NOBODY: u32 = 65_534;

fn up(lab: &Lab) {
    lab.ok(&Declared::new(LAN).args("up"));
}

/// `setpriv` in front of `veth`. The binary may stand in a folder that only root can enter, so a shell opens it before.
fn under(lab: &Lab, setpriv: &[String], args: &[&str]) -> Running {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 3<\"$VETH_BIN\"; exec setpriv \"$@\"", "sh"]).args(setpriv);
    // Another shell, for whoever has just become another user may not look into its own `/proc`.
    shell.args(["sh", "-c", "exec /proc/self/fd/3 \"$@\"", "veth"]).args(args);
    lab.spawn(shell)
}

/// Names of capabilities, as `setpriv` has them: all off but these.
fn only(capabilities: &[Capability]) -> String {
    let names = capabilities.iter().map(|one| one.name().strip_prefix("CAP_").unwrap().to_lowercase());
    names.fold("-all".to_owned(), |all, name| format!("{all},+{name}"))
}

/// As root, of whose capabilities only these are left.
fn with(lab: &Lab, capabilities: &[Capability], args: &[&str]) -> Running {
    under(lab, &[format!("--bounding-set={}", only(capabilities))], args)
}

/// As nobody, with these capabilities, or none.
fn as_nobody(lab: &Lab, capabilities: &[Capability], args: &[&str]) -> Finished {
    let mut setpriv =
        vec![format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".to_owned()];
    if !capabilities.is_empty() {
        let only = only(capabilities);
        setpriv.extend([format!("--inh-caps={only}"), format!("--ambient-caps={only}")]);
        setpriv.push(format!("--bounding-set={only}"));
    }
    under(lab, &setpriv, args).finish()
}

/// What `veth metrics` answers to one who asks.
fn scrape(lab: &Lab, mut running: Running) -> String {
    let said = running.wait_for("/metrics\n");
    let address = said.trim().strip_prefix("serving http://").unwrap().strip_suffix("/metrics").unwrap();
    let address = address.to_owned();
    lab.run(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: veth\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
}

fn documented(command: &str) -> Vec<Capability> {
    needs(command, Kernel::current().unwrap()).map(|need| need.capability).collect()
}

/// Commands that do not end by themselves, need a terminal, or are made of `up` and `down`.
const ENDLESS: [&str; 6] = ["agent", "metrics", "top", "bench", "bench prog", "bench observe"];

/// How a command is run on the laboratory's topology.
fn arguments<'a>(command: &'a str, file: &'a str) -> Vec<&'a str> {
    let args = match command {
        "stats" => "stats lab --json",
        "why" => "why a b --probe",
        "drops" => "drops lab --for 100ms",
        "trace" => "trace --of lab --for 100ms",
        "capture" => "capture lab/a --for 100ms -w /run/a.pcapng",
        "check --live" => "check --live lab --transfer 20ms",
        "exec" => "exec lab/a -- true",
        "plan" => "plan -f FILE",
        "up" => "up -f FILE",
        "upgrade" => "upgrade lab",
        "down" => "down lab",
        "run" => "run --for 200ms",
        endless if ENDLESS.contains(&endless) => endless,
        other => panic!("{other} is not tried"),
    };
    args.split(' ').map(|arg| if arg == "FILE" { file } else { arg }).collect()
}

#[test]
fn commands_need_what_is_documented_and_no_less() {
    let lab = Lab::new();
    let file = Declared::new(LAN);
    for (command, _) in COMMANDS {
        let args = arguments(command, file.path().to_str().unwrap());
        if ["trace", "capture", "why"].contains(&command) && !need::is_at_least(6, 6) {
            continue;
        }
        if !matches!(command, "up" | "run") {
            up(&lab);
        }
        let needs = documented(command);
        for missing in 0..needs.len() {
            let mut fewer = needs.clone();
            let missing = fewer.remove(missing);
            let finished = with(&lab, &fewer, &args).finish();
            assert_eq!(finished.status.code(), Some(1), "{command} without {}: {finished:?}", missing.name());
            for part in [missing.name(), "docs/privileges.md", command] {
                assert!(finished.err.contains(part), "{command} without {}: {finished:?}", missing.name());
            }
        }
        if !ENDLESS.contains(&command) {
            let finished = with(&lab, &needs, &args).finish();
            assert!(finished.status.success(), "{command}: {finished:?}");
        }
        lab.ok(&["down", "--all"]);
    }
}

#[test]
fn what_reads_counters_runs_without_any_of_roots_powers() {
    let lab = Lab::new();
    up(&lab);
    let running = with(&lab, &documented("metrics"), &["metrics", "--listen", "127.0.0.1:0"]);
    let answer = scrape(&lab, running);
    for part in [
        "HTTP/1.1 200",
        "veth_port_receive_packets_total{topology=\"lab\",pod=\"a\"",
        "veth_topology_readable{topology=\"lab\"} 1",
    ] {
        assert!(answer.contains(part), "{part} in {answer}");
    }
    let mut agent = with(&lab, &documented("agent"), &["agent"]);
    agent.wait_for("following");
    lab.run(|| set_link("lab-a", LinkMessageBuilder::down));
    agent.wait_for("lab: a/eth0: left to the slow path");
    drop(agent);
    // It gets as far as the terminal that there is none of.
    let top = with(&lab, &documented("top"), &["top"]).finish();
    assert!(top.err.contains("terminal") && !top.err.contains("CAP_"), "{top:?}");
    // Root's files, and nothing else of root.
    let needs = [&documented("stats")[..], &[Capability::DacOverride]].concat();
    let stats = as_nobody(&lab, &needs, &["stats", "lab", "--json"]);
    assert!(stats.status.success() && stats.out.contains("\"pod\":\"a\""), "{stats:?}");
    let refused = as_nobody(&lab, &[], &["stats", "lab"]);
    assert!(refused.status.code() == Some(1) && refused.err.contains("CAP_DAC_OVERRIDE"), "{refused:?}");
}

#[test]
fn ls_needs_nothing_and_sees_all_with_two() {
    let lab = Lab::new();
    up(&lab);
    let nobody = as_nobody(&lab, &[], &["ls"]);
    assert!(nobody.status.success() && nobody.out.contains("lab"), "{nobody:?}");
    let whole = with(&lab, &[Capability::SysAdmin, Capability::NetAdmin], &["ls"]).finish();
    assert!(whole.status.success() && whole.out.contains(" up"), "{whole:?}");
}

/// What is below a folder, and itself, with modes and owners.
fn walk(folder: &Path) -> Vec<(PathBuf, fs::Metadata)> {
    let metadata = fs::symlink_metadata(folder).unwrap();
    let is_folder = metadata.is_dir();
    let mut all = vec![(folder.to_owned(), metadata)];
    if is_folder {
        all.extend(fs::read_dir(folder).unwrap().flat_map(|entry| walk(&entry.unwrap().path())));
    }
    all
}

/// As a careless shell would start it: whoever likes may write what is made.
fn with_open_umask(lab: &Lab, args: &[&str]) {
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 0; exec \"$VETH_BIN\" \"$@\"", "sh"]).args(args);
    let finished = lab.spawn(shell).finish();
    assert!(finished.status.success(), "{args:?}: {finished:?}");
}

#[test]
fn nobody_else_can_change_what_is_made() {
    let lab = Lab::new();
    let file = Declared::new(LAN);
    with_open_umask(&lab, &file.args("up"));
    with_open_umask(&lab, &["show", "lab", "--svg", "/run/lab.svg"]);
    with_open_umask(&lab, &["init", "switch", "--output", "/run/switch.toml"]);
    if need::is_at_least(6, 6) {
        with_open_umask(&lab, &["capture", "lab/a", "--for", "50ms", "-w", "/run/a.pcapng"]);
        let mode = lab.run(|| fs::metadata("/run/a.pcapng").unwrap().mode());
        assert_eq!(mode & 0o777, 0o600, "what pods say is nobody else's business");
    }
    let found = lab.run(|| {
        ["/run/veth", "/sys/fs/bpf/veth", "/run/lab.svg", "/run/switch.toml"]
            .map(|path| walk(Path::new(path)))
    });
    assert!(found[1].len() > 12, "pins are looked at: {found:?}");
    for (path, metadata) in found.iter().flatten() {
        assert_eq!((metadata.uid(), metadata.mode() & 0o022), (0, 0), "{}", path.display());
        // Nothing for the group and for others.
        let is_closed = metadata.mode().trailing_zeros() >= 6;
        let is_expected = path.starts_with("/sys/fs/bpf") && metadata.is_dir() || path.ends_with("lab.lock");
        assert!(is_closed || !is_expected, "{} is open to others", path.display());
    }
}

#[test]
fn folders_of_others_are_refused() {
    let lab = Lab::new();
    let file = Declared::new(LAN);
    lab.run(|| {
        for folder in ["/run/open", "/run/theirs", "/run/root"] {
            fs::create_dir(folder).unwrap();
        }
        fs::set_permissions("/run/open", fs::Permissions::from_mode(0o1777)).unwrap();
        chown("/run/theirs", Some(NOBODY), None).unwrap();
        symlink("/run/root", "/run/link").unwrap();
        lchown("/run/link", Some(NOBODY), None).unwrap();
    });
    let why = [
        ("open", "can be written by others"),
        ("theirs", "another user"),
        ("link", "another user"),
        ("link/below", "another user"),
        ("theirs/below", "another user"),
    ];
    for (folder, why) in why {
        let folder = format!("/run/{folder}");
        for args in [&file.args("up")[..], &["ls"], &["down", "lab"], &["stats"], &["show", "lab"]] {
            let error = lab.refused(&[&["--state-dir", &folder][..], args].concat());
            assert!(error.contains(why) && error.contains("only root"), "{folder} {args:?}: {error}");
        }
    }
    // Whoever is first in a bpffs has a folder there.
    lab.run(|| {
        fs::create_dir_all("/sys/fs/bpf/veth/theirs").unwrap();
        chown("/sys/fs/bpf/veth", Some(NOBODY), None).unwrap();
    });
    let finished = lab.veth(&file.args("up"));
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.err.contains("/sys/fs/bpf/veth belongs to another user"), "{finished:?}");
}

/// Names that would be a path, a line, a command or markup somewhere.
fn hostile() -> Vec<String> {
    let long = "x".repeat(5_000);
    let names = [
        "..",
        "../x",
        "../../etc/x",
        "/etc/x",
        "a/b",
        "a\nb",
        "$(touch /run/pwned)",
        "`touch /run/pwned`",
        ";touch /run/pwned",
        "a\0b",
        "a b",
        "-rf",
        "--help",
        "%n%s",
        "{ accept }",
        "\"; drop",
        "<script>",
        "päd",
        "\u{202e}dab",
        "\u{7f}",
        "",
        &long,
    ];
    names.map(str::to_owned).into()
}

#[test]
fn hostile_names_lead_nowhere() {
    let lab = Lab::new();
    up(&lab);
    // A record that a name with a path in it would find.
    lab.run(|| fs::copy("/run/veth/lab.json", "/run/x.json").unwrap());
    let before = lab.fingerprint();
    for name in hostile() {
        // What JSON has for a string, TOML has too.
        let quoted = serde_json::to_string(&name).unwrap();
        let texts = [
            format!("name = {quoted}\n[switch.lan]\npods = 2\n"),
            format!("name = \"x\"\n[switch.{quoted}]\npods = 2\n"),
            format!("name = \"x\"\n[switch.lan]\npods = [\"a\", {quoted}]\n"),
            format!("name = \"x\"\n[switch.lan]\npods = [\"a\", \"b\"]\n[pod.a]\nnamespace = {quoted}\n"),
            format!("name = \"x\"\n[switch.lan]\npods = [\"a\", \"b\"]\n[pod.a.port.lan]\nname = {quoted}\n"),
            format!("name = \"x\"\n[switch.lan]\npods = [\"a\", \"b\"]\n[pod.a.sysctl]\n{quoted} = \"1\"\n"),
            format!(
                "name = \"x\"\n[switch.lan]\npods = [\"a\", \"b\"]\n[link.{quoted}]\nbetween = [\"lan\", \"host\"]\n"
            ),
        ];
        for (number, text) in texts.iter().enumerate() {
            // A file's name may begin with a minus or have a percent sign, and an interface's.
            let is_file_name = !name.is_empty()
                && name.len() < 255
                && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
                && name != "..";
            if is_file_name && [3, 4].contains(&number) {
                continue;
            }
            let file = Declared::new(text);
            let path = file.path().to_str().unwrap();
            for args in [&["check", path][..], &file.args("up"), &file.args("plan")] {
                let finished = lab.veth(args);
                assert_eq!(finished.status.code(), Some(1), "{args:?} {text}: {finished:?}");
                assert!(finished.err.contains("error: "), "{text}: {finished:?}");
            }
        }
        if name.contains('\0') {
            // No argument of a command has one.
            continue;
        }
        for args in [
            &["up", "--name", &name][..],
            &["down", "--", &name],
            &["ls", "--", &name],
            &["stats", "--", &name],
            &["show", "--", &name],
            &["check", "--live", &name],
            &["why", "--", "a", &name],
            &["trace", "--for", "1ms", "--of", &name],
            &["drops", "--for", "1ms", "--", &name],
            &["exec", &format!("{name}/a"), "--", "true"],
            &["exec", &format!("lab/{name}"), "--", "true"],
        ] {
            let finished = lab.veth(args);
            assert!(matches!(finished.status.code(), Some(1 | 2)), "{args:?}: {finished:?}");
        }
        assert_eq!(lab.fingerprint(), before, "{name:?}");
    }
}

/// Names that the kernel allows and that mean something to whoever reads them: in a shell, a table, a picture, a series.
#[test]
fn strange_names_are_only_names() {
    let (interface, namespace) = ("e\"\\,<&'$(id)", "n;\"\\<&'$(touch${IFS}pwned)");
    let lab = Lab::new();
    let quoted = |name: &str| serde_json::to_string(name).unwrap();
    let file = Declared::new(&format!(
        "{LAN}[pod.a]\nnamespace = {}\n[pod.a.port.lan]\nname = {}\n",
        quoted(namespace),
        quoted(interface)
    ));
    let before = lab.fingerprint();
    lab.ok(&file.args("up"));
    let inside = lab.ok(&["exec", "lab/a", "--", "cat", "/proc/net/dev"]);
    assert!(inside.contains(interface), "{inside}");
    lab.ok(&["check", "--live", "lab", "--transfer", "20ms"]);
    let csv = lab.ok(&["stats", "lab", "--csv"]);
    assert!(csv.contains("\"e\"\"\\,<&'$(id)\""), "{csv}");
    let dot = lab.ok(&["show", "lab", "--dot"]);
    assert!(dot.contains("e\\\"\\\\,<&'$(id)"), "{dot}");
    let svg = lab.ok(&["show", "lab", "--svg", "-"]);
    assert!(svg.contains(",&lt;&amp;") && !svg.contains(",<&"), "{svg}");
    let running = with(&lab, &[], &["metrics", "--listen", "127.0.0.1:0"]);
    let text = scrape(&lab, running);
    assert!(text.contains("port=\"e\\\"\\\\,<&'$(id)\""), "{text}");
    lab.ok(&["ls", "lab"]);
    lab.ok(&["down", "lab"]);
    assert_eq!(lab.fingerprint(), before);
}
