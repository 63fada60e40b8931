//! Topology files of tests.

use std::{fs, path::Path};

use clap::ValueEnum as _;
use tempfile::NamedTempFile;
use veth_user::topology::file::init::{self, Example};

use crate::Lab;

/// A topology file that a test writes.
#[derive(Debug)]
pub struct Declared {
    file: NamedTempFile,
}

impl Declared {
    /// A file with a text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        let declared = Self { file };
        declared.write(text);
        declared
    }

    /// Changes the text.
    pub fn write(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// A command that is told of it.
    #[must_use]
    pub fn args<'a>(&'a self, command: &'a str) -> [&'a str; 3] {
        [command, "-f", self.path().to_str().unwrap()]
    }
}

/// Every example, by name. Their texts are in veth itself, for virtual machines have no source.
pub fn examples() -> impl Iterator<Item = (String, Declared)> {
    let name = |kind: &Example| kind.to_possible_value().unwrap().get_name().to_owned();
    Example::value_variants().iter().map(move |kind| (name(kind), Declared::new(init::example(*kind))))
}

/// Up, nothing left to plan, a live check, and down without a trace.
pub fn live(lab: &Lab, what: &str, file: &Declared) {
    let before = lab.fingerprint();
    let name = lab.ok(&file.args("up"));
    let name = name.split_whitespace().next().unwrap_or_default().to_owned();
    let plan = lab.ok(&file.args("plan"));
    assert!(plan.contains("nothing to do"), "{what}: {plan}");
    lab.ok(&["check", "--live", &name, "--transfer", "50ms"]);
    lab.ok(&["down", &name]);
    assert_eq!(lab.fingerprint(), before, "{what} leaves something");
}
