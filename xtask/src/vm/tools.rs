//! QEMU and a static busybox: those of the system, or those of the distribution's packages, unpacked in the
//! target folder.

use std::{
    collections::HashSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::elf;
use crate::{apt, command, workspace::Workspace};

/// What they are in.
const PACKAGES: [&str; 2] = ["qemu-system-x86", "busybox-static"];
const QEMU: &str = "qemu-system-x86_64";

/// The two programs.
pub(super) struct Tools {
    qemu: PathBuf,
    /// The folder that QEMU was unpacked in, unless it is the system's.
    root: Option<PathBuf>,
    /// busybox, as a file.
    pub(super) busybox: Vec<u8>,
}

impl Tools {
    /// Finds them or gets them.
    pub(super) fn find_or_get(workspace: &Workspace, folder: &Path) -> Result<Self> {
        let busybox = command::in_path("busybox")
            .filter_map(|path| fs::read(path).ok())
            .find(|program| elf::is_static(program));
        if let (Some(qemu), Some(busybox)) = (command::in_path(QEMU).next(), busybox) {
            return Ok(Self { qemu, root: None, busybox });
        }
        let by_hand = format!("`apt-get install --no-install-recommends {}`", PACKAGES.join(" "));
        let root = folder.join("tools");
        if !root.exists() {
            if !apt::is_here() {
                bail!(
                    "there is no {QEMU} or no static busybox in PATH, and no apt to get them by: install both (on Debian {by_hand})"
                );
            }
            apt::get(workspace, &PACKAGES, is_wanted, &root)
                .with_context(|| format!("get QEMU and busybox; or install them: {by_hand}"))?;
        }
        let busybox = ["usr/bin/busybox", "bin/busybox"]
            .iter()
            .find_map(|path| fs::read(root.join(path)).ok())
            .with_context(|| format!("{} has no busybox; remove it and try again", root.display()))?;
        let tools = Self { qemu: root.join("usr/bin").join(QEMU), root: Some(root), busybox };
        command::output(tools.qemu().arg("--version")).with_context(|| {
            format!("start the QEMU that was unpacked; remove it and try again, or install one: {by_hand}")
        })?;
        Ok(tools)
    }

    /// The command that starts QEMU, without arguments about the machine.
    pub(super) fn qemu(&self) -> Command {
        let Self { qemu, root, busybox: _ } = self;
        let mut command = Command::new(qemu);
        if let Some(root) = root {
            let library = |folder: &str| root.join(folder).join("x86_64-linux-gnu");
            command.env("QEMU_MODULE_DIR", library("usr/lib").join("qemu"));
            let libraries = [library("usr/lib"), library("lib")];
            command.env("LD_LIBRARY_PATH", env::join_paths(libraries).unwrap_or_default());
            for data in ["qemu", "seabios"] {
                command.arg("-L").arg(root.join("usr/share").join(data));
            }
        }
        command
    }
}

/// Libraries that the system lacks, and QEMU's firmware also if the system has it, so that it is in one place.
fn is_wanted(name: &str, installed: &HashSet<&str>) -> bool {
    name.starts_with("qemu-system-")
        || name == "seabios"
        || (name.starts_with("lib") && !installed.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_qemu_needs() {
        let installed = ["libc6", "seabios"].into();
        for (name, wanted) in [
            ("qemu-system-data", true),
            ("seabios", true),
            ("libslirp0", true),
            ("libc6", false),
            ("ipxe-qemu", false),
            ("passwd", false),
        ] {
            assert_eq!(is_wanted(name, &installed), wanted, "{name}");
        }
    }
}
