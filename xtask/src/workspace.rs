//! Where things are: the repository, its target folder, its files.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::command;

/// The repository and the folder that everything is built in.
pub(crate) struct Workspace {
    /// The root of the repository. Every command runs here.
    pub(crate) root: PathBuf,
    /// Cargo's target folder, wherever the user put it.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Asks cargo where the workspace that this program was built from is, and where it builds.
    pub(crate) fn find() -> Result<Self> {
        let mut metadata = MetadataCommand::new();
        metadata.manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")).no_deps();
        let Metadata { workspace_root, target_directory, .. } = metadata.exec().context(
            "ask cargo for the workspace (was the repository moved? then run `cargo clean -p xtask`)",
        )?;
        Ok(Self { root: workspace_root.into(), target: target_directory.into() })
    }

    /// A command that starts in the root of the repository.
    ///
    /// `CARGO_TARGET_DIR` may have been relative to another folder, so it is handed on as we resolved it.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// The folder of the BPF toolchain that `setup` gets when the machine has none.
    pub(crate) fn toolchain(&self) -> PathBuf {
        self.target.join("toolchain")
    }

    /// The files of the repository with a name like `pattern`, from the root on: those that git tracks, and
    /// new ones that it does not ignore.
    pub(crate) fn files(&self, pattern: &str) -> Result<Vec<PathBuf>> {
        let list = command::output(self.command("git").args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            "--",
            pattern,
        ]))?;
        let mut files: Vec<PathBuf> = list
            .split_terminator('\0')
            .map(PathBuf::from)
            .filter(|file| self.root.join(file).exists())
            .collect();
        files.sort();
        Ok(files)
    }

    /// The text of a file of the repository.
    pub(crate) fn read(&self, file: &Path) -> Result<String> {
        std::fs::read_to_string(self.root.join(file)).with_context(|| format!("read {}", file.display()))
    }
}
