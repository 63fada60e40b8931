//! Debian's compiler, which comes with a prebuilt `core` for BPF. Its packages are unpacked in the target
//! folder: that needs no root, and rustup's compilers stay what `rustc` means.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Compiler, is_installed, prebuilt};
use crate::{command, workspace::Workspace};

/// The compiler, its libraries for the host (build scripts want them) and its libraries for BPF. What these
/// depend on, and so which version of LLVM, is Debian's to say.
const PACKAGES: [&str; 3] = ["rustc-web", "libstd-rust-web-dev", "libstd-rust-web-dev-bpf"];

/// Debian's compiler, unless it is there already or this is not a Debian.
pub(super) fn get(workspace: &Workspace) -> Result<Option<Compiler>> {
    let root = prebuilt::root(workspace);
    if root.exists() || !is_installed("apt-get") || !is_installed("dpkg-deb") {
        return Ok(None);
    }
    let folder = workspace.toolchain();
    let debs = folder.join("debs");
    let lists = folder.join("apt");
    // The system's package lists may be missing, or so old that a package has gone from the server.
    Apt::system()
        .download(workspace, &debs)
        .or_else(|error| {
            eprintln!("{error:#}; again with fresh package lists");
            Apt::private(workspace, &lists)?.download(workspace, &debs)
        })
        .context("download packages (Debian has them, other systems may not)")?;
    unpack(workspace, &debs, &root)?;
    remove(&debs)?;
    remove(&lists)?;
    prebuilt::find(workspace)
}

/// Unpacks packages beside the place where they belong, and moves them there when all are complete.
fn unpack(workspace: &Workspace, debs: &Path, root: &Path) -> Result<()> {
    let partial = root.with_extension("partial");
    remove(&partial)?;
    let entries = fs::read_dir(debs).with_context(|| format!("list {}", debs.display()))?;
    for entry in entries {
        let package = entry.with_context(|| format!("list {}", debs.display()))?.path();
        command::run(workspace.command("dpkg-deb").arg("--extract").arg(package).arg(&partial))?;
    }
    fs::rename(&partial, root).with_context(|| format!("rename {} to {}", partial.display(), root.display()))
}

/// Removes a folder, which may not be there.
fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// apt, with the package lists of the system or with lists of our own.
struct Apt {
    /// The folder of our own lists.
    lists: Option<PathBuf>,
}

impl Apt {
    const fn system() -> Self {
        Self { lists: None }
    }

    /// Fetches lists into a folder of our own, from the system's servers.
    fn private(workspace: &Workspace, lists: &Path) -> Result<Self> {
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = lists.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let apt = Self { lists: Some(lists.to_owned()) };
        command::run(apt.command(workspace, "apt-get").args(["--quiet", "update"]))?;
        Ok(apt)
    }

    fn command(&self, workspace: &Workspace, program: &str) -> Command {
        let Self { lists } = self;
        let mut command = workspace.command(program);
        // Names and numbers in English, and no change of user, who may not write into our folder.
        command.env("LC_ALL", "C.UTF-8").args(["--option", "APT::Sandbox::User=root"]);
        if let Some(lists) = lists {
            for (option, folder) in [("Dir::State::lists", "lists"), ("Dir::Cache", "cache")] {
                command.arg("--option").arg(format!("{option}={}", lists.join(folder).display()));
            }
        }
        command
    }

    /// Downloads the packages into an empty folder.
    fn download(&self, workspace: &Workspace, debs: &Path) -> Result<()> {
        let packages = self.packages(workspace)?;
        remove(debs)?;
        fs::create_dir_all(debs).with_context(|| format!("create {}", debs.display()))?;
        let mut apt = self.command(workspace, "apt-get");
        command::run(apt.args(["--quiet", "download"]).args(packages).current_dir(debs))
    }

    /// The packages that the compiler needs and the system lacks.
    fn packages(&self, workspace: &Workspace) -> Result<BTreeSet<String>> {
        let installed = command::output(workspace.command("dpkg-query").args([
            "--show",
            "--showformat",
            "${db:Status-Status} ${Package}\n",
        ]))?;
        let installed = installed.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
        let mut packages = BTreeSet::new();
        let mut open: Vec<String> = PACKAGES.map(str::to_owned).into();
        while let Some(package) = open.pop() {
            let answer = command::output(self.command(workspace, "apt-cache").args(["depends", &package]))?;
            packages.insert(package);
            open.extend(
                dependencies(&answer)
                    .filter(|name| is_wanted(name, &installed) && !packages.contains(*name))
                    .map(str::to_owned),
            );
        }
        Ok(packages)
    }
}

/// The real packages that a package depends on, from `apt-cache depends`. Virtual ones are in angle brackets.
fn dependencies(answer: &str) -> impl Iterator<Item = &str> {
    answer
        .lines()
        .filter_map(|line| line.trim_start().trim_start_matches('|').strip_prefix("Depends: "))
        .filter(|name| !name.starts_with('<'))
}

/// Libraries. Rust's and LLVM's also if the system has them, so that they are all in one folder; not the
/// system's C compiler, which cargo needs anyway.
fn is_wanted(name: &str, installed: &HashSet<&str>) -> bool {
    name.starts_with("libstd-rust") || name.starts_with("libllvm") || {
        name.starts_with("lib") && !name.ends_with("-dev") && !installed.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_apt_cache_prints() {
        let answer = "rustc-web\n  Depends: libc6\n |Depends: gcc\n  Depends: <libc-dev>\n    libc6-dev\n  \
                      Depends: libstd-rust-web-dev\n  Conflicts: rustc\n  Recommends: cargo-web\n";
        assert_eq!(dependencies(answer).collect::<Vec<_>>(), ["libc6", "gcc", "libstd-rust-web-dev"]);
    }

    #[test]
    fn takes_libraries_that_are_missing() {
        let installed = ["libc6", "libllvm22", "libstdc++6"].into();
        for (name, wanted) in [
            ("libstd-rust-web-1.96", true),
            ("libstd-rust-web-dev", true),
            ("libllvm22", true),
            ("libz3-4", true),
            ("libc6", false),
            ("libstdc++6", false),
            ("libc6-dev", false),
            ("gcc", false),
        ] {
            assert_eq!(is_wanted(name, &installed), wanted, "{name}");
        }
    }
}
