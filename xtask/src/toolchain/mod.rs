//! The BPF toolchain: a Rust compiler with a `core` for BPF, and a bpf-linker with the same LLVM.
//!
//! Looked for in this order; what cannot be had is said and skipped, so that the next one gets its turn:
//!
//! 1. rustup's nightly, if it has the sources of `core` (component `rust-src`), which cargo then builds;
//! 2. a compiler with a prebuilt `core`: the one that step 4 unpacked, or one in `PATH`;
//! 3. rustup's nightly, after rustup has fetched what is missing of it;
//! 4. Debian's compiler with its prebuilt `core`, unpacked in the target folder, the system left as it is.
//!
//! `VETH_BPF_TOOLCHAIN` narrows it down: `nightly` leaves 1 and 3, `prebuilt` leaves 2 and 4.

mod compiler;
mod debian;
mod linker;
mod nightly;
mod prebuilt;
mod version;

use std::{
    env::{self, consts::ARCH},
    iter,
    path::PathBuf,
    process::Command,
};

use anyhow::{Result, bail, ensure};

use self::compiler::{Compiler, Core};
pub(crate) use self::version::Version;
use crate::{command, workspace::Workspace};

/// BPF with the byte order of the machine that we build for, which is the one that we build on.
pub(crate) const TARGET: &str =
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// A place where a compiler may come from: `None` if it has none and nothing went wrong.
type Source = fn(&Workspace) -> Result<Option<Compiler>>;

/// All of them, in the order in which they are asked, each with what it is called in [`CHOICE`].
const SOURCES: [(&str, &str, Source); 4] = [
    (NIGHTLY, "nightly", nightly::find),
    (PREBUILT, "a prebuilt core", prebuilt::find),
    (NIGHTLY, "nightly from rustup", nightly::get),
    (PREBUILT, "a prebuilt core from Debian", debian::get),
];

/// The variable that chooses a kind of toolchain.
const CHOICE: &str = "VETH_BPF_TOOLCHAIN";
const NIGHTLY: &str = "nightly";
const PREBUILT: &str = "prebuilt";

/// What builds the eBPF crate.
pub(crate) struct Toolchain {
    compiler: Compiler,
    /// The folder of bpf-linker.
    linker: PathBuf,
}

impl Toolchain {
    /// Finds a toolchain or gets one, and says which.
    pub(crate) fn find_or_get(workspace: &Workspace) -> Result<Self> {
        let choice = env::var(CHOICE).ok();
        if let Some(choice) = &choice {
            ensure!(
                [NIGHTLY, PREBUILT].contains(&choice.as_str()),
                "{CHOICE} is `{choice}`, not {NIGHTLY} or {PREBUILT}"
            );
        }
        let wanted = |kind| choice.as_ref().is_none_or(|choice| choice == kind);
        for (_, name, source) in SOURCES.into_iter().filter(|(kind, ..)| wanted(*kind)) {
            match Self::from_source(workspace, source) {
                Ok(Some(toolchain)) => {
                    let Self { compiler, linker } = &toolchain;
                    eprintln!("BPF toolchain: {compiler}; bpf-linker in {}", linker.display());
                    return Ok(toolchain);
                }
                Ok(None) => {}
                Err(error) => eprintln!("BPF toolchain: not {name}: {error:#}"),
            }
        }
        bail!(
            "there is no BPF toolchain. Install one by hand, either\n\
             - `rustup toolchain install nightly --component rust-src` and, in PATH, a bpf-linker \
             (https://github.com/aya-rs/bpf-linker#installation), or\n\
             - a rustc with a prebuilt core for {TARGET} in PATH (Debian: rustc-web, libstd-rust-web-dev-bpf)\n\
             and run `cargo xtask setup` again"
        )
    }

    fn from_source(workspace: &Workspace, source: Source) -> Result<Option<Self>> {
        let Some(compiler) = source(workspace)? else {
            return Ok(None);
        };
        let linker = linker::find_or_install(workspace, &compiler)?;
        Ok(Some(Self { compiler, linker }))
    }

    /// A `cargo build` for BPF: everything but what to build.
    pub(crate) fn cargo_build(&self, workspace: &Workspace) -> Result<Command> {
        let Self { compiler, linker } = self;
        let mut cargo;
        match compiler.core {
            Core::Source => {
                cargo = nightly::run(workspace);
                cargo.args(["cargo", "build", "-Z", "build-std=core"]).env_remove("RUSTC");
            }
            Core::Prebuilt => {
                cargo = workspace.command("cargo");
                cargo.arg("build").env("RUSTC", compiler.rustc());
                // aya-ebpf needs one unstable feature, `asm_experimental_arch`. Named, so that no other crate
                // takes this stable compiler for a nightly one.
                cargo.env("RUSTC_BOOTSTRAP", "aya_ebpf");
            }
        }
        cargo.args(["--target", TARGET]);
        let flags = [
            // The layout of `pt_regs` and friends in aya-ebpf: the kernel's architecture, not "bpf".
            &format!("--cfg=bpf_target_arch=\"{ARCH}\""),
            "-Cdebuginfo=2",
            "-Clink-arg=--btf",
        ];
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        // Meant for the host's compiler, like the libraries of the toolchain that started us.
        for variable in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "LD_LIBRARY_PATH"] {
            cargo.env_remove(variable);
        }
        if let Some(libraries) = compiler.libraries() {
            cargo.env("LD_LIBRARY_PATH", libraries);
        }
        let path = env::var_os("PATH").unwrap_or_default();
        cargo.env("PATH", env::join_paths(iter::once(linker.clone()).chain(env::split_paths(&path)))?);
        Ok(cargo)
    }
}

/// Whether a program that a source stands on is there at all.
fn is_installed(program: &str) -> bool {
    command::in_path(program).next().is_some()
}
