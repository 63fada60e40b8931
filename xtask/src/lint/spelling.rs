//! Spelling of documents and of Rust sources: known misspellings only, so that names pass.

use anyhow::Result;
use typos::{
    Dictionary, Status,
    tokens::{Identifier, Tokenizer, Word},
};
use unicase::UniCase;

use super::{Finding, report};
use crate::workspace::Workspace;

/// What the dictionary takes for a mistake and is none, each with its reason.
const ALLOWED: [&str; 6] = [
    // `msg_controllen` of `struct msghdr`.
    "controllen",
    // `--inh-caps` of setpriv: inheritable.
    "inh",
    // `nd_net` of `struct net_device`.
    "nd",
    // `RTA_OIF`, the interface that a route leads out of.
    "oif",
    // The library that draws on terminals.
    "ratatui",
    // `O_WRONLY`.
    "wronly",
];

/// Checks the spelling of every document and source.
pub(super) fn check(workspace: &Workspace) -> Result<()> {
    let mut findings = Vec::new();
    for pattern in ["*.md", "*.rs"] {
        for file in workspace.files(pattern)? {
            let text = workspace.read(&file)?;
            findings.extend(
                misspellings(&text).map(|(offset, message)| Finding::new(&file, &text, offset, message)),
            );
        }
    }
    report(&findings)
}

/// The mistakes in a text: where, and what was meant.
fn misspellings(text: &str) -> impl Iterator<Item = (usize, String)> {
    let tokenizer = Tokenizer::new();
    let typos: Vec<_> = typos::check_str(text, &tokenizer, &English)
        .map(|typo| {
            let meant = match &typo.corrections {
                Status::Corrections(words) => words.join(" or "),
                Status::Valid | Status::Invalid => "?".to_owned(),
            };
            (typo.byte_offset, format!("{} -> {meant}", typo.typo))
        })
        .collect();
    typos.into_iter()
}

/// The dictionary of the typos project, without [`ALLOWED`].
struct English;

impl Dictionary for English {
    fn correct_ident<'s>(&'s self, _identifier: Identifier<'_>) -> Option<Status<'s>> {
        None
    }

    fn correct_word<'s>(&'s self, word: Word<'_>) -> Option<Status<'s>> {
        let word = word.token();
        if ALLOWED.iter().any(|allowed| allowed.eq_ignore_ascii_case(word)) {
            return None;
        }
        let corrections = typos_dict::WORD.find(&UniCase::new(word))?;
        Some(Status::Corrections(corrections.iter().map(|&word| word.into()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Split, so that this source passes its own check.
    const WRONG: &str = concat!("rec", "ieve");

    #[test]
    fn finds_mistakes_in_names_and_prose() {
        let text = format!("let {WRONG}_port = 1; // colour, color");
        let found: Vec<_> = misspellings(&text).collect();
        assert_eq!(found, [(4, format!("{WRONG} -> receive"))]);
    }
}
