//! Other builds of the programs: what another version of veth would run.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

static OTHER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/other"));
static NEXT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/next"));

/// A build of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// The one that veth embeds.
    Own,
    /// Other instructions on the same map layout.
    Other,
    /// Other instructions on the next map layout.
    Next,
}

/// The builds as files, for [`Lab::start`](crate::Lab::start).
#[derive(Debug)]
pub struct Builds {
    folder: TempDir,
}

impl Builds {
    /// Writes them down.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in [("other", OTHER), ("next", NEXT)] {
            assert!(!bytes.is_empty(), "built without the other objects: run tests by `cargo xtask test`");
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        Self { folder }
    }

    /// What makes a veth one of another build: an environment variable.
    #[must_use]
    pub fn env(&self, build: Build) -> Vec<(&'static str, String)> {
        let path: Option<PathBuf> = match build {
            Build::Own => None,
            Build::Other => Some(self.folder.path().join("other")),
            Build::Next => Some(self.folder.path().join("next")),
        };
        path.into_iter().map(|path| ("VETH_OTHER_OBJECT", path.to_str().unwrap().to_owned())).collect()
    }
}

impl Default for Builds {
    fn default() -> Self {
        Self::new()
    }
}
