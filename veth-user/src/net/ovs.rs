//! An Open vSwitch of our own: its database, its switch in user space, its sockets and logs in one folder. The
//! system's own, if there is one, is neither needed nor touched.
//!
//! Everything here waits for other programs. The switch works in the network namespace of the thread that starts it.

use std::{
    env, fs, io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use veth_common::Mac;

use super::{Error, Result};

/// The variable that names a folder in which packages of Open vSwitch are unpacked, not installed.
pub const ROOT: &str = "VETH_OVS_ROOT";

/// The longest path of a socket, `sun_path` less the closing zero.
const SOCKET_MAX: usize = 107;

/// How long a daemon may take to end, and to die.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long `ovs-vsctl` waits for the switch, in seconds.
const TIMEOUT: &str = "--timeout=10";

/// The daemons, as their processes are called.
const SERVER: &str = "ovsdb-server";
const SWITCH: &str = "ovs-vswitchd";

/// The link that every instance makes beside those of its bridges, under this name: two in one namespace get into each
/// other's way.
pub const COMMON_LINK: &str = "ovs-netdev";

/// What is in the folder.
const DATABASE: &str = "conf.db";
const SOCKET: &str = "db.sock";

/// Where the programs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    tool: PathBuf,
    server: PathBuf,
    switch: PathBuf,
    control: PathBuf,
    schema: PathBuf,
    libraries: Vec<PathBuf>,
}

/// Finds the programs of Open vSwitch: in the folder that [`ROOT`] names, if it is set; otherwise in `PATH` and where
/// packages put them.
///
/// # Errors
///
/// With [`io::ErrorKind::NotFound`] when one is missing. The message says how to install them.
pub fn find_programs() -> Result<Programs> {
    if let Some(root) = env::var_os(ROOT).filter(|root| !root.is_empty()) {
        return find_below(Path::new(&root));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).filter(|folder| folder.is_absolute());
    let folders: Vec<PathBuf> = folders.chain(folders_of(Path::new("/"))).collect();
    find_in(&folders, Path::new("/"), Vec::new())
}

fn find_below(root: &Path) -> Result<Programs> {
    let mut libraries: Vec<PathBuf> =
        ["usr/lib64", "usr/lib", "lib64", "lib"].map(|folder| root.join(folder)).into();
    // Debian's, by architecture.
    for folder in ["usr/lib", "lib"] {
        let entries = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        libraries.extend(entries.map(|entry| entry.path()).filter(|path| {
            path.file_name().is_some_and(|name| name.as_bytes().ends_with(b"-linux-gnu")) && path.is_dir()
        }));
    }
    find_in(&folders_of(root).collect::<Vec<_>>(), root, libraries)
}

fn folders_of(root: &Path) -> impl Iterator<Item = PathBuf> {
    // Debian has the switch in a folder of its own, and a link to it where it is installed.
    ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin", "usr/lib/openvswitch-switch"]
        .map(|folder| root.join(folder))
        .into_iter()
}

fn find_in(folders: &[PathBuf], root: &Path, libraries: Vec<PathBuf>) -> Result<Programs> {
    let missing = |what: &str| {
        let help = "Open vSwitch is not installed: `apt-get install openvswitch-switch` or `dnf install openvswitch`; \
                    its service need not run";
        Error::new(format!("find {what}"), io::Error::new(io::ErrorKind::NotFound, help))
    };
    let find = |program: &str| {
        let found = folders.iter().map(|folder| folder.join(program)).find(|path| path.is_file());
        found.ok_or_else(|| missing(program))
    };
    let schemas = ["usr/share/openvswitch", "usr/local/share/openvswitch"];
    Ok(Programs {
        tool: find("ovsdb-tool")?,
        server: find(SERVER)?,
        switch: find(SWITCH)?,
        control: find("ovs-vsctl")?,
        schema: schemas
            .map(|folder| root.join(folder).join("vswitch.ovsschema"))
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| missing("vswitch.ovsschema"))?,
        libraries,
    })
}

/// An instance of our own, by its folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ovs {
    folder: PathBuf,
}

impl Ovs {
    /// That of a folder, which need not be there yet, and in which nothing else is. An absolute path.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts the database and the switch, unless they run already, in the calling thread's network namespace. What
    /// an instance knew before is still known, unless it was stopped.
    ///
    /// # Errors
    ///
    /// When the programs are missing ([`find_programs`]), the folder's path is too long for a socket, or a daemon does
    /// not start. What of it was new is then gone.
    pub fn start(&self) -> Result<()> {
        let Self { folder } = self;
        let action = || format!("start Open vSwitch in {}", folder.display());
        let programs = find_programs()?;
        let longest = self.file(&format!("{SWITCH}.ctl"));
        if !folder.is_absolute() || longest.as_os_str().len() > SOCKET_MAX {
            let reason = format!("sockets need an absolute path of at most {SOCKET_MAX} bytes");
            return Err(Error::new(action(), io::Error::new(io::ErrorKind::InvalidInput, reason)));
        }
        let is_new = !folder.exists();
        self.start_with(&programs).inspect_err(|_| {
            if is_new {
                let _unused: Result<()> = self.stop();
            }
        })
    }

    fn start_with(&self, programs: &Programs) -> Result<()> {
        let Self { folder } = self;
        // Whoever reaches its sockets commands the switch.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|source| Error::new(format!("make the folder {}", folder.display()), source))?;
        let database = self.file(DATABASE);
        if !database.exists() {
            // Whole or not at all, if we are killed.
            let new = self.file("new.db");
            remove_file(&new)?;
            let mut tool = self.command(&programs.tool, programs);
            run(tool.arg("create").arg(&new).arg(&programs.schema))?;
            fs::rename(&new, &database)
                .map_err(|source| Error::new(format!("make the database {}", database.display()), source))?;
        }
        let running = self.processes()?;
        let runs = |program| running.iter().any(|process| process.program == program);
        if !runs(SERVER) {
            let mut server = self.daemon(&programs.server, SERVER, programs);
            run(server.arg(format!("--remote=punix:{}", self.file(SOCKET).display())).arg(&database))?;
            // Also when the switch was running already: it takes no changes before.
            run(self.control(programs).args(["--no-wait", "init"]))?;
        }
        if !runs(SWITCH) {
            run(self.daemon(&programs.switch, SWITCH, programs).arg(self.remote()))?;
        }
        Ok(())
    }

    /// Ends the daemons. Succeeds if there is none.
    ///
    /// A daemon is recognized by its command line, which names the folder, whatever became of its pid file. The links
    /// of its bridges and [`COMMON_LINK`] outlive it, also where it is asked to clean up; whoever made it deletes them.
    ///
    /// # Errors
    ///
    /// When a daemon does not die.
    pub fn end(&self) -> Result<()> {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let processes = self.processes()?;
            for process in &processes {
                process.signal(signal)?;
            }
            let start = Instant::now();
            while !processes.iter().all(Process::has_ended) && start.elapsed() < PATIENCE {
                thread::sleep(Duration::from_millis(10));
            }
        }
        if let Some(process) = self.processes()?.first() {
            let action = format!("end {} ({})", process.program, process.pid);
            return Err(Error::new(action, io::Error::from(io::ErrorKind::TimedOut)));
        }
        Ok(())
    }

    /// Ends the daemons ([`Self::end`]) and removes the folder. Succeeds if there is nothing, and after a start that did
    /// not end.
    ///
    /// # Errors
    ///
    /// When a daemon does not die, or a file cannot be removed.
    pub fn stop(&self) -> Result<()> {
        let Self { folder } = self;
        self.end()?;
        match fs::remove_dir_all(folder) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::new(format!("remove the folder {}", folder.display()), source))
            }
            _ => Ok(()),
        }
    }

    /// Whether both daemons run.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read.
    pub fn is_running(&self) -> Result<bool> {
        let processes = self.processes()?;
        let runs = |program| processes.iter().any(|process| process.program == program);
        Ok(runs(SERVER) && runs(SWITCH))
    }

    /// Makes a bridge in user space. A link of its name and address appears in the namespace, which is down. Succeeds
    /// if it is there.
    ///
    /// # Errors
    ///
    /// When the instance does not run, or the kernel has no TUN devices.
    pub fn add_bridge(&self, name: &str, mac: Mac) -> Result<()> {
        let address = format!("other-config:hwaddr=\"{mac}\"");
        let make = ["--may-exist", "add-br", name];
        let kind = ["--", "set", "bridge", name, "datapath_type=netdev", "fail-mode=standalone", &address];
        self.vsctl(&[&make[..], &kind].concat()).map(drop)
    }

    /// Makes a link of the instance's namespace a port of a bridge. Succeeds if it is one.
    ///
    /// # Errors
    ///
    /// When there is no such bridge, the switch cannot use the link, or it is a port of another bridge.
    pub fn add_port(&self, bridge: &str, link: &str) -> Result<()> {
        self.vsctl(&["--may-exist", "add-port", bridge, link])?;
        // A port whose link cannot be used is noted in the database, and is no error of the command.
        let error = self.vsctl(&["--if-exists", "get", "interface", link, "error"])?;
        let error = error.trim().trim_matches('"');
        if error.is_empty() || error == "[]" {
            return Ok(());
        }
        let action = format!("make {link} a port of the Open vSwitch bridge {bridge}");
        Err(Error::new(action, io::Error::other(error.to_owned())))
    }

    /// Takes a link out of a bridge. Succeeds if it is not in it.
    ///
    /// # Errors
    ///
    /// When there is no such bridge, or the instance does not run.
    pub fn remove_port(&self, bridge: &str, link: &str) -> Result<()> {
        self.vsctl(&["--if-exists", "del-port", bridge, link]).map(drop)
    }

    /// Forgets a port, whatever bridge it is in. Succeeds if there is none of that name.
    ///
    /// # Errors
    ///
    /// When the instance does not run.
    pub fn forget_port(&self, link: &str) -> Result<()> {
        self.vsctl(&["--if-exists", "del-port", link]).map(drop)
    }

    /// Removes a bridge, with the link that is its local port. Succeeds if there is none.
    ///
    /// # Errors
    ///
    /// When the instance does not run.
    pub fn remove_bridge(&self, bridge: &str) -> Result<()> {
        self.vsctl(&["--if-exists", "del-br", bridge]).map(drop)
    }

    /// The ports of a bridge, without its own.
    ///
    /// # Errors
    ///
    /// When there is no such bridge, or the instance does not run.
    pub fn ports(&self, bridge: &str) -> Result<Vec<String>> {
        let output = self.vsctl(&["list-ports", bridge])?;
        Ok(output.lines().map(str::to_owned).collect())
    }

    fn vsctl(&self, args: &[&str]) -> Result<String> {
        run(self.control(&find_programs()?).args(args))
    }

    fn control(&self, programs: &Programs) -> Command {
        let mut control = self.command(&programs.control, programs);
        control.arg(format!("--db={}", self.remote())).arg(TIMEOUT);
        control
    }

    fn daemon(&self, path: &Path, program: &str, programs: &Programs) -> Command {
        let mut daemon = self.command(path, programs);
        daemon.arg("--detach");
        for (option, ending) in [("--pidfile", "pid"), ("--log-file", "log"), ("--unixctl", "ctl")] {
            daemon.arg(format!("{option}={}", self.file(&format!("{program}.{ending}")).display()));
        }
        // Not to the system's log, which is not ours.
        daemon.arg("-vsyslog:off");
        daemon
    }

    /// One of the programs, which looks for everything in our folder.
    fn command(&self, path: &Path, programs: &Programs) -> Command {
        let mut command = Command::new(path);
        command.stdin(Stdio::null());
        for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(variable, &self.folder);
        }
        if let Ok(libraries) = env::join_paths(&programs.libraries)
            && !libraries.is_empty()
        {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }

    fn remote(&self) -> String {
        format!("unix:{}", self.file(SOCKET).display())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Our daemons that run.
    fn processes(&self) -> Result<Vec<Process>> {
        let failed = |source| Error::new("list processes", source);
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc").map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            // One that has just ended has none, and neither has one that only waits to be buried.
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if let Some(program) = daemon_of(&line, &self.folder)
                && self.is_same_folder(pid)
            {
                processes.push(Process { pid, program });
            }
        }
        Ok(processes)
    }

    /// Whether a process means our folder by its path, and not one of another mount namespace.
    fn is_same_folder(&self, pid: i32) -> bool {
        let identity = |path: &Path| fs::metadata(path).ok().map(|folder| (folder.dev(), folder.ino()));
        let below = self.folder.strip_prefix("/").unwrap_or(&self.folder);
        match (identity(&self.folder), identity(&Path::new(&format!("/proc/{pid}/root")).join(below))) {
            (Some(ours), Some(theirs)) => ours == theirs,
            // Somebody removed it.
            (None, None) => {
                let mounts = |path: &str| fs::read_link(path).ok();
                mounts(&format!("/proc/{pid}/ns/mnt")) == mounts("/proc/thread-self/ns/mnt")
            }
            _ => false,
        }
    }
}

/// A daemon of ours.
#[derive(Debug)]
struct Process {
    pid: i32,
    program: &'static str,
}

impl Process {
    /// Whether it has let go of everything. It loses its command line earlier, when its links are still there.
    fn has_ended(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(Error::new(format!("end {} ({})", self.program, self.pid), errno)),
        }
    }
}

/// Which daemon a command line is of, if it is one that works in a folder.
fn daemon_of(line: &[u8], folder: &Path) -> Option<&'static str> {
    let mut words = line.split(|byte| *byte == 0);
    let name = words.next()?.rsplit(|byte| *byte == b'/').next()?;
    let program = [SERVER, SWITCH].into_iter().find(|program| program.as_bytes() == name)?;
    let pid_file = [b"--pidfile=", folder.as_os_str().as_bytes(), b"/"].concat();
    words.any(|word| word.starts_with(&pid_file)).then_some(program)
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::new(format!("remove {}", path.display()), source))
        }
        _ => Ok(()),
    }
}

/// Runs a command to its end and returns what it printed.
fn run(command: &mut Command) -> Result<String> {
    let action = format!("run {command:?}");
    let output = command.output().map_err(|source| Error::new(&action, source))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint =
        if complaint.trim().is_empty() { output.status.to_string() } else { complaint.trim().into() };
    Err(Error::new(action, io::Error::other(complaint)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> Vec<u8> {
        words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect()
    }

    #[test]
    fn daemons_are_recognized() {
        let folder = Path::new("/run/veth/lab.ovs");
        let found = |words: &[&str]| daemon_of(&line(words), folder);
        let ours = "--pidfile=/run/veth/lab.ovs/ovs-vswitchd.pid";
        assert_eq!(found(&["/usr/sbin/ovs-vswitchd", "--detach", ours]), Some(SWITCH));
        assert_eq!(found(&["ovsdb-server", "--pidfile=/run/veth/lab.ovs/x.pid"]), Some(SERVER));
        for words in [
            &[][..],
            &["ovs-vswitchd"],
            &["ovs-vswitchd", "--pidfile"],
            &["ovs-vswitchd", "--pidfile=/run/veth/lab.ovs2/ovs-vswitchd.pid"],
            &["ovs-vswitchd", "--pidfile=/var/run/openvswitch/ovs-vswitchd.pid"],
            &["grep", "-r", ours],
            &["tail", "-f", "/run/veth/lab.ovs/ovs-vswitchd.log"],
        ] {
            assert_eq!(found(words), None, "{words:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let empty = tempfile::tempdir().unwrap();
        let error = find_below(empty.path()).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound);
        assert!(error.action.contains("ovsdb-tool"), "{error}");
        assert!(error.source.to_string().contains("apt-get install openvswitch-switch"));
    }

    #[test]
    fn unpacked_packages_are_found() {
        let root = tempfile::tempdir().unwrap();
        for file in [
            "usr/bin/ovsdb-tool",
            "usr/bin/ovs-vsctl",
            "usr/bin/ovs-appctl",
            "usr/sbin/ovsdb-server",
            "usr/lib/openvswitch-switch/ovs-vswitchd",
            "usr/share/openvswitch/vswitch.ovsschema",
            "usr/lib/x86_64-linux-gnu/libunbound.so.8",
        ] {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        let programs = find_below(root.path()).unwrap();
        assert_eq!(programs.switch, root.path().join("usr/lib/openvswitch-switch/ovs-vswitchd"));
        assert!(programs.libraries.contains(&root.path().join("usr/lib/x86_64-linux-gnu")));
    }
}
