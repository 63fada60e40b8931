//! What `rustc -vV` says.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command;

/// The parts of a compiler's version that matter here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// The release, such as `1.95.0` or `1.97.0-nightly`.
    pub(crate) release: String,
    /// The target that it builds for by itself.
    pub(crate) host: String,
    /// The major version of its LLVM.
    pub(crate) llvm: u32,
}

impl Version {
    /// Asks a compiler.
    pub(crate) fn of(rustc: &mut Command) -> Result<Self> {
        let text = command::output(rustc.arg("-vV"))?;
        Self::parse(&text).with_context(|| format!("understand `rustc -vV`: {text}"))
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
        };
        Some(Self {
            release: field("release")?.to_owned(),
            host: field("host")?.to_owned(),
            llvm: field("LLVM version")?.split('.').next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_rustc_prints() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\n\
                    binary: rustc\n\
                    commit-hash: ac68faa20c58cbccd01ee7208bf3b6e93a7d7f96\n\
                    commit-date: 2026-05-25\n\
                    host: x86_64-unknown-linux-gnu\n\
                    release: 1.96.0\n\
                    LLVM version: 22.1.8\n";
        let version = Version { release: "1.96.0".into(), host: "x86_64-unknown-linux-gnu".into(), llvm: 22 };
        assert_eq!(Version::parse(text), Some(version));
    }

    #[test]
    fn refuses_a_compiler_without_llvm() {
        assert_eq!(Version::parse("host: a-b-c\nrelease: 1.96.0\n"), None);
        assert_eq!(Version::parse("host: a-b-c\nrelease: 1.96.0\nLLVM version: unknown\n"), None);
    }
}
