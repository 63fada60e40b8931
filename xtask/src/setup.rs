//! `cargo xtask setup`: a BPF toolchain, found or fetched.

use anyhow::Result;

use crate::{toolchain::Toolchain, workspace::Workspace};

/// Makes sure that there is a BPF toolchain.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    Toolchain::find_or_get(workspace).map(drop)
}
