//! Licences of everything that is linked into what we build, for the machine that we build for.

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{MetadataCommand, Package};
use spdx::{Expression, Licensee, ParseMode};

use crate::{toolchain::Version, workspace::Workspace};

/// The licences that we accept. GPL-2.0-only, which the eBPF crate offers to the kernel, is not among them: that
/// crate offers MIT as well.
const ALLOWED: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Checks the licence of every package, our own included.
pub(super) fn check(workspace: &Workspace) -> Result<()> {
    let host = Version::of(&mut workspace.command("rustc")).context("ask rustc for the host")?.host;
    let metadata = MetadataCommand::new()
        .current_dir(&workspace.root)
        .other_options(["--filter-platform".to_owned(), host])
        .exec()
        .context("ask cargo for the dependencies")?;
    let resolved = metadata.resolve.context("cargo resolves no dependencies")?;
    let allowed = allowed()?;
    let mut count = 0;
    for Package { id, name, version, license, .. } in &metadata.packages {
        if !resolved.nodes.iter().any(|node| node.id == *id) {
            continue;
        }
        let problem = match license.as_deref().map(|licence| is_accepted(licence, &allowed)) {
            Some(Ok(true)) => continue,
            Some(Ok(false)) => "not accepted".to_owned(),
            Some(Err(error)) => format!("{error:#}"),
            None => "not stated".to_owned(),
        };
        eprintln!("{name} {version}: licence {}: {problem}", license.as_deref().unwrap_or("?"));
        count += 1;
    }
    match count {
        0 => Ok(()),
        1 => bail!("one package"),
        count => bail!("{count} packages"),
    }
}

fn allowed() -> Result<Vec<Licensee>> {
    ALLOWED
        .iter()
        .map(|name| Licensee::parse(name).with_context(|| format!("understand the licence {name}")))
        .collect()
}

/// Whether accepted licences satisfy an expression. Old crates write `/` for `OR`.
fn is_accepted(expression: &str, allowed: &[Licensee]) -> Result<bool> {
    let expression = Expression::parse_mode(expression, ParseMode::LAX)?;
    Ok(expression.evaluate(|required| allowed.iter().any(|licence| licence.satisfies(required))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_weighed() {
        let allowed = allowed().expect("a list of licences");
        for (expression, accepted) in [
            ("MIT", true),
            ("MIT OR GPL-2.0-only", true),
            ("MIT/Apache-2.0", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("Apache-2.0 WITH LLVM-exception OR GPL-3.0-or-later", true),
            ("MIT AND GPL-2.0-only", false),
            ("GPL-2.0-only", false),
            ("AGPL-3.0", false),
        ] {
            assert_eq!(is_accepted(expression, &allowed).ok(), Some(accepted), "{expression}");
        }
        assert!(is_accepted("see LICENSE", &allowed).is_err());
    }
}
