//! Debian's compiler, which comes with a prebuilt `core` for BPF. Its packages are unpacked in the target
//! folder: that needs no root, and rustup's compilers stay what `rustc` means.

use std::collections::HashSet;

use anyhow::{Context as _, Result};

use super::{Compiler, prebuilt};
use crate::{apt, workspace::Workspace};

/// The compiler, its libraries for the host (build scripts want them) and its libraries for BPF. What these
/// depend on, and so which version of LLVM, is Debian's to say.
const PACKAGES: [&str; 3] = ["rustc-web", "libstd-rust-web-dev", "libstd-rust-web-dev-bpf"];

/// Debian's compiler, unless it is there already or this is not a Debian.
pub(super) fn get(workspace: &Workspace) -> Result<Option<Compiler>> {
    let root = prebuilt::root(workspace);
    if root.exists() || !apt::is_here() {
        return Ok(None);
    }
    apt::get(workspace, &PACKAGES, is_wanted, &root)
        .context("download packages (Debian has them, other systems may not)")?;
    prebuilt::find(workspace)
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
