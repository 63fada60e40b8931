//! bpf-linker, which reads LLVM bitcode and so must have an LLVM that understands the compiler's.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    Version,
    compiler::{Compiler, Core},
};
use crate::{command, workspace::Workspace};

/// The versions that are known to work with the flags that we build with.
const REQUIREMENT: &str = "^0.13";

/// The folder of a bpf-linker for a compiler. If there is none, one is built with the compiler's own LLVM.
pub(super) fn find_or_install(workspace: &Workspace, compiler: &Compiler) -> Result<PathBuf> {
    // Released bpf-linkers go with rustup's nightly. Other compilers may have any LLVM.
    if compiler.core == Core::Source
        && let Some(linker) = command::in_path("bpf-linker").find(|linker| works(workspace, linker))
        && let Some(folder) = linker.parent()
    {
        return Ok(folder.to_owned());
    }
    let llvm = compiler.llvm.as_deref().context(
        "its LLVM is not a shared library, so no bpf-linker can be built for it: put a released one in PATH \
         (https://github.com/aya-rs/bpf-linker#installation)",
    )?;
    // Named by its LLVM: a linker does not outlive a change of compiler.
    let root = workspace.toolchain().join("linker").join(llvm.file_name().unwrap_or_default());
    let folder = root.join("bin");
    if !folder.join("bpf-linker").exists() {
        install(workspace, &compiler.version, llvm, &root).context(
            "no bpf-linker could be built (it takes g++ and an LLVM that it knows): put a released one in PATH \
             (https://github.com/aya-rs/bpf-linker#installation)",
        )?;
    }
    Ok(folder)
}

fn works(workspace: &Workspace, linker: &Path) -> bool {
    command::output(workspace.command(linker).arg("--version")).is_ok()
}

/// Cargo puts the program into its place last, so that half an installation is none.
fn install(workspace: &Workspace, version: &Version, llvm: &Path, root: &Path) -> Result<()> {
    let link = root.join("lib/libLLVM.so");
    let prepare = || {
        fs::create_dir_all(root.join("lib"))?;
        if link.is_symlink() {
            fs::remove_file(&link)?;
        }
        symlink(llvm, &link)
    };
    prepare().with_context(|| format!("link {} to {}", link.display(), llvm.display()))?;
    let mut cargo = workspace.command("cargo");
    cargo.args(["install", "bpf-linker", "--version", REQUIREMENT, "--locked", "--no-default-features"]);
    cargo.arg("--features").arg(format!("llvm-{}", version.llvm)).arg("--root").arg(root);
    cargo.env("LLVM_PREFIX", root).env_remove("CARGO_TARGET_DIR");
    if let Some(libraries) = llvm.parent() {
        cargo.env("LD_LIBRARY_PATH", libraries);
    }
    command::run(&mut cargo)
}
