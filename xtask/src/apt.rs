//! apt, without changing the system: packages are downloaded and unpacked in the target folder, which needs no
//! root.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{command, workspace::Workspace};

/// Whether this system has apt at all.
pub(crate) fn is_here() -> bool {
    ["apt-get", "apt-cache", "dpkg-deb", "dpkg-query"]
        .iter()
        .all(|program| command::in_path(program).next().is_some())
}

/// apt, with the package lists of the system or with lists of our own.
pub(crate) struct Apt {
    /// The folder of our own lists.
    lists: Option<PathBuf>,
    /// The file with sources of our own.
    sources: Option<PathBuf>,
}

impl Apt {
    /// The system's servers and the system's lists of what they have.
    pub(crate) const fn system() -> Self {
        Self { lists: None, sources: None }
    }

    /// The system's servers, with fresh lists in a folder of our own.
    pub(crate) fn private(workspace: &Workspace, lists: &Path) -> Result<Self> {
        let apt = Self { lists: Some(lists.to_owned()), sources: None };
        apt.update(workspace)?;
        Ok(apt)
    }

    /// Other sources, with the lists that a folder of our own has of them; none before the first
    /// [`Self::update`].
    pub(crate) fn with_sources(lists: &Path, sources: &Path) -> Self {
        Self { lists: Some(lists.to_owned()), sources: Some(sources.to_owned()) }
    }

    /// Fetches the lists.
    pub(crate) fn update(&self, workspace: &Workspace) -> Result<()> {
        let Self { lists, sources } = self;
        if let Some(lists) = lists {
            for folder in ["lists/partial", "cache/archives/partial"] {
                let folder = lists.join(folder);
                fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
            }
        }
        let mut apt = self.command(workspace, "apt-get");
        apt.args(["--quiet", "update"]);
        if sources.is_some() {
            // A server that does not answer is a warning otherwise. Of the system's sources, some never do.
            apt.args(["--option", "APT::Update::Error-Mode=any"]);
        }
        command::run(&mut apt)
    }

    /// Everything that the lists tell of every package: paragraphs of `Field: value` lines.
    pub(crate) fn available(&self, workspace: &Workspace) -> Result<String> {
        // The system's own packages would be among them.
        command::output(self.command(workspace, "apt-cache").args([
            "--option",
            "Dir::State::status=/dev/null",
            "dumpavail",
        ]))
    }

    /// Downloads packages into a folder, which is emptied before.
    pub(crate) fn download(
        &self,
        workspace: &Workspace,
        packages: impl IntoIterator<Item = impl AsRef<str>>,
        debs: &Path,
    ) -> Result<()> {
        remove(debs)?;
        fs::create_dir_all(debs).with_context(|| format!("create {}", debs.display()))?;
        let mut apt = self.command(workspace, "apt-get");
        apt.args(["--quiet", "download"]).current_dir(debs);
        command::run(apt.args(packages.into_iter().map(|package| package.as_ref().to_owned())))
    }

    /// Packages, and what they depend on as far as it is wanted: asked with a name and the packages that the
    /// system has.
    pub(crate) fn with_dependencies(
        &self,
        workspace: &Workspace,
        packages: &[&str],
        is_wanted: &impl Fn(&str, &HashSet<&str>) -> bool,
    ) -> Result<BTreeSet<String>> {
        let installed = command::output(workspace.command("dpkg-query").args([
            "--show",
            "--showformat",
            "${db:Status-Status} ${Package}\n",
        ]))?;
        let installed = installed.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
        let mut all = BTreeSet::new();
        let mut open: Vec<String> = packages.iter().map(|&package| package.to_owned()).collect();
        while let Some(package) = open.pop() {
            let answer = command::output(self.command(workspace, "apt-cache").args(["depends", &package]))?;
            all.insert(package);
            open.extend(
                dependencies(&answer)
                    .filter(|name| is_wanted(name, &installed) && !all.contains(*name))
                    .map(str::to_owned),
            );
        }
        Ok(all)
    }

    fn command(&self, workspace: &Workspace, program: &str) -> Command {
        let Self { lists, sources } = self;
        let mut command = workspace.command(program);
        // Names and numbers in English, and no change of user, who may not write into our folder.
        command.env("LC_ALL", "C.UTF-8").args(["--option", "APT::Sandbox::User=root"]);
        let mut option = |name: &str, path: &Path| {
            command.arg("--option").arg(format!("{name}={}", path.display()));
        };
        if let Some(lists) = lists {
            option("Dir::State::lists", &lists.join("lists"));
            option("Dir::Cache", &lists.join("cache"));
        }
        if let Some(sources) = sources {
            option("Dir::Etc::sourcelist", sources);
            option("Dir::Etc::sourceparts", Path::new("/dev/null"));
        }
        command
    }
}

/// Gets packages, and what they depend on as far as it is wanted, unpacked in a folder that appears when it is
/// complete.
pub(crate) fn get(
    workspace: &Workspace,
    packages: &[&str],
    is_wanted: impl Fn(&str, &HashSet<&str>) -> bool,
    root: &Path,
) -> Result<()> {
    let (debs, lists) = (root.with_extension("debs"), root.with_extension("lists"));
    let download =
        |apt: &Apt| apt.download(workspace, apt.with_dependencies(workspace, packages, &is_wanted)?, &debs);
    // The system's package lists may be missing, or so old that a package has gone from the server.
    download(&Apt::system()).or_else(|error| {
        eprintln!("{error:#}; again with fresh package lists");
        download(&Apt::private(workspace, &lists)?)
    })?;
    unpack(workspace, &debs, root)?;
    remove(&debs)?;
    remove(&lists)
}

/// Unpacks packages beside the place where they belong, and moves them there when all are complete.
pub(crate) fn unpack(workspace: &Workspace, debs: &Path, root: &Path) -> Result<()> {
    let mut partial = root.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    remove(&partial)?;
    let entries = fs::read_dir(debs).with_context(|| format!("list {}", debs.display()))?;
    for entry in entries {
        let package = entry.with_context(|| format!("list {}", debs.display()))?.path();
        command::run(workspace.command("dpkg-deb").arg("--extract").arg(package).arg(&partial))?;
    }
    fs::rename(&partial, root).with_context(|| format!("rename {} to {}", partial.display(), root.display()))
}

/// Removes a folder, which may not be there.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The real packages that a package depends on, from `apt-cache depends`. Virtual ones are in angle brackets.
fn dependencies(answer: &str) -> impl Iterator<Item = &str> {
    answer
        .lines()
        .filter_map(|line| line.trim_start().trim_start_matches('|').strip_prefix("Depends: "))
        .filter(|name| !name.starts_with('<'))
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
}
