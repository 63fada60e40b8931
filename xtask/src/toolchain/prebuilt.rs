//! A compiler that came with a `core` for BPF.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{
    TARGET,
    compiler::{self, Compiler, Core},
};
use crate::{command, workspace::Workspace};

/// The folder of the compiler that [`debian`](super::debian) unpacks. It appears when it is complete.
pub(super) fn root(workspace: &Workspace) -> PathBuf {
    workspace.toolchain().join("root")
}

/// The compiler that we unpacked, or else the first in `PATH` with a `core` for BPF.
pub(super) fn find(workspace: &Workspace) -> Result<Option<Compiler>> {
    let own = root(workspace).join("usr");
    let others =
        command::in_path("rustc").filter_map(|rustc| compiler::sysroot(&mut workspace.command(rustc)).ok());
    std::iter::once(own)
        .chain(others)
        .find(|sysroot| has_core(sysroot))
        .map(|sysroot| Compiler::new(Core::Prebuilt, sysroot))
        .transpose()
}

fn has_core(sysroot: &Path) -> bool {
    compiler::contains(&sysroot.join("lib/rustlib").join(TARGET).join("lib"), "libcore-")
}
