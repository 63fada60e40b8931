//! `cargo xtask build-ebpf` and `cargo xtask build`: the eBPF object, and veth with the object inside.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    command,
    toolchain::{TARGET, Toolchain},
    workspace::Workspace,
};

/// The variable by which `veth-user/build.rs` learns which object to embed.
pub(crate) const OBJECT: &str = "VETH_EBPF_OBJECT";

/// Other builds of the object: the feature that makes it, and the variable by which `tests/build.rs` learns of it.
const VARIANTS: [(&str, &str); 2] = [("other", "VETH_EBPF_OTHER"), ("next", "VETH_EBPF_NEXT")];

/// The object, and the other builds of it that tests upgrade to.
pub(crate) struct Objects {
    object: PathBuf,
    variants: Vec<(&'static str, PathBuf)>,
}

impl Objects {
    /// Builds them.
    pub(crate) fn build(workspace: &Workspace) -> Result<Self> {
        let object = ebpf(workspace)?;
        let toolchain = Toolchain::find_or_get(workspace)?;
        // In a folder of their own, where none is taken for the object, and what they have in common is built once.
        let folder = workspace.target.join("bpf-variants");
        let mut variants = Vec::new();
        for (feature, variable) in VARIANTS {
            let built = compile(&toolchain, workspace, &folder, &["--features", feature])?;
            let variant = folder.join(feature);
            // The next one goes to the same place. What is as it was is not touched: cargo would embed it anew.
            let content = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
            if fs::read(&variant).ok().as_ref() != Some(&content) {
                fs::write(&variant, content).with_context(|| format!("write {}", variant.display()))?;
            }
            variants.push((variable, variant));
        }
        Ok(Self { object, variants })
    }

    /// Tells the build scripts of them.
    pub(crate) fn tell(&self, cargo: &mut Command) {
        cargo.env(OBJECT, &self.object).envs(self.variants.iter().map(|(name, path)| (name, path)));
    }
}

/// How to build veth.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Optimise.
    #[arg(long)]
    pub(crate) release: bool,
}

/// Where cargo puts an object in the folder of its target.
const OBJECT_PATH: &str = "release/veth-ebpf";

/// Where the eBPF object is once it is built.
pub(crate) fn object(workspace: &Workspace) -> PathBuf {
    workspace.target.join("bpf").join(TARGET).join(OBJECT_PATH)
}

/// Builds the eBPF programs and returns their object.
pub(crate) fn ebpf(workspace: &Workspace) -> Result<PathBuf> {
    compile(&Toolchain::find_or_get(workspace)?, workspace, &workspace.target.join("bpf"), &[])
}

fn compile(
    toolchain: &Toolchain,
    workspace: &Workspace,
    folder: &Path,
    arguments: &[&str],
) -> Result<PathBuf> {
    let mut cargo = toolchain.cargo_build(workspace)?;
    cargo.args(["--release", "--package", "veth-ebpf"]).args(arguments);
    command::run(cargo.arg("--target-dir").arg(folder))?;
    let object = folder.join(TARGET).join(OBJECT_PATH);
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
