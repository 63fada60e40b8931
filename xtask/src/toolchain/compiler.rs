//! A Rust compiler that can build for BPF.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::Version;
use crate::command;

/// Where a compiler has its `core` for BPF from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Core {
    /// Cargo builds it from source, which only nightly can.
    Source,
    /// It came with the compiler.
    Prebuilt,
}

/// A compiler with a `core` for BPF.
pub(super) struct Compiler {
    /// Its `core`.
    pub(super) core: Core,
    /// Its folder.
    pub(super) sysroot: PathBuf,
    /// Its version.
    pub(super) version: Version,
    /// Its LLVM, unless it is linked into it.
    pub(super) llvm: Option<PathBuf>,
}

impl Compiler {
    /// Describes the compiler in a folder.
    pub(super) fn new(core: Core, sysroot: PathBuf) -> Result<Self> {
        let mut rustc = Command::new(rustc(&sysroot));
        for libraries in library_folders(&sysroot) {
            if contains(&libraries, "librustc_driver-") {
                rustc.env("LD_LIBRARY_PATH", libraries);
            }
        }
        let version = Version::of(&mut rustc)?;
        let llvm = library_folders(&sysroot)
            .chain([PathBuf::from(format!("/usr/lib/llvm-{}/lib", version.llvm))])
            .find_map(|folder| llvm(&folder, version.llvm));
        Ok(Self { core, sysroot, version, llvm })
    }

    /// The program itself.
    pub(super) fn rustc(&self) -> PathBuf {
        rustc(&self.sysroot)
    }

    /// The folder of the libraries that it, and a linker with its LLVM, are started with.
    pub(super) fn libraries(&self) -> Option<&Path> {
        self.llvm.as_deref().and_then(Path::parent)
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { core, sysroot, version: Version { release, host: _, llvm }, llvm: _ } = self;
        let core = match core {
            Core::Source => "core from source",
            Core::Prebuilt => "a prebuilt core",
        };
        write!(f, "rustc {release} with LLVM {llvm} and {core} in {}", sysroot.display())
    }
}

/// The folder of a compiler, as the compiler says.
pub(super) fn sysroot(rustc: &mut Command) -> Result<PathBuf> {
    Ok(command::output(rustc.args(["--print", "sysroot"]))?.trim_end().into())
}

/// Whether a folder has a file whose name starts like this.
pub(super) fn contains(folder: &Path, prefix: &str) -> bool {
    files(folder).any(|file| name(&file).starts_with(prefix))
}

fn rustc(sysroot: &Path) -> PathBuf {
    sysroot.join("bin/rustc")
}

/// `lib` and its subfolders: Debian has libraries in one that is named by the architecture.
fn library_folders(sysroot: &Path) -> impl Iterator<Item = PathBuf> {
    let library = sysroot.join("lib");
    let mut folders: Vec<PathBuf> = files(&library).filter(|path| path.is_dir()).collect();
    folders.push(library);
    folders.into_iter()
}

/// The shared LLVM of this major version in a folder. rustup's has a suffix: `libLLVM.so.22.1-rust-1.97.0-nightly`.
fn llvm(folder: &Path, major: u32) -> Option<PathBuf> {
    files(folder).find(|file| is_llvm(&name(file), major))
}

fn is_llvm(name: &str, major: u32) -> bool {
    name.strip_prefix("libLLVM.so.")
        .and_then(|rest| rest.strip_prefix(&major.to_string()))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || rest.starts_with('-'))
}

fn name(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The entries of a folder; none if there is no such folder.
fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_names_of_llvm() {
        assert!(is_llvm("libLLVM.so.22.1", 22));
        assert!(is_llvm("libLLVM.so.22.1-rust-1.97.0-nightly", 22));
        assert!(!is_llvm("libLLVM.so.2", 22));
        assert!(!is_llvm("libLLVM.so.22.1", 2));
        assert!(!is_llvm("libLLVM.so", 22));
        assert!(!is_llvm("librustc_driver-ea0e99b300280386.so", 22));
    }
}
