//! `cargo xtask build-ebpf` and `cargo xtask build`: the eBPF object, and veth with the object inside.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::{
    command,
    toolchain::{TARGET, Toolchain},
    workspace::Workspace,
};

/// The variable by which `veth-user/build.rs` learns which object to embed.
pub(crate) const OBJECT: &str = "VETH_EBPF_OBJECT";

/// How to build veth.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Optimise.
    #[arg(long)]
    pub(crate) release: bool,
}

/// Where the eBPF object is once it is built.
pub(crate) fn object(workspace: &Workspace) -> PathBuf {
    workspace.target.join("bpf").join(TARGET).join("release/veth-ebpf")
}

/// Builds the eBPF programs and returns their object.
pub(crate) fn ebpf(workspace: &Workspace) -> Result<PathBuf> {
    let toolchain = Toolchain::find_or_get(workspace)?;
    command::run(
        toolchain
            .cargo_build(workspace)?
            .args(["--release", "--package", "veth-ebpf", "--target-dir"])
            .arg(workspace.target.join("bpf")),
    )?;
    let object = object(workspace);
    ensure!(object.exists(), "{} is missing after the build", object.display());
    Ok(object)
}

/// Builds veth for the machine that it runs on.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let Arguments { release } = arguments;
    let mut cargo = workspace.command("cargo");
    cargo.env(OBJECT, ebpf(workspace)?).args(["build", "--package", "veth-user"]);
    if *release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)
}
