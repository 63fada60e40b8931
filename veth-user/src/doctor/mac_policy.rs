//! systemd-udevd's MAC address policy. It gives a new link another address some time after it was made, unless the
//! address was given with it (`NET_ADDR_SET`), as ours always are.

use std::{collections::BTreeMap, fs, path::Path};

use super::Finding;
use crate::{net::link::Link, state::Roots};

/// Folders of `*.link` files. A name in an earlier one hides it in the later ones.
const FOLDERS: [&str; 5] = [
    "/etc/systemd/network",
    "/run/systemd/network",
    "/usr/local/lib/systemd/network",
    "/usr/lib/systemd/network",
    "/lib/systemd/network",
];

/// Where udevd listens as long as it runs.
const UDEV: &str = "/run/udev/control";

/// What is known.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) udev: bool,
    /// The effective files in their order, with what is in them.
    pub(super) files: Vec<(String, String)>,
    /// Veths of this namespace that are not ours.
    pub(super) others: Vec<String>,
}

impl Facts {
    pub(super) fn gather(roots: &Roots, links: &[Link]) -> Self {
        let mark = format!("{}:", roots.mark());
        let is_ours = |link: &&Link| link.alias.as_deref().is_some_and(|alias| alias.starts_with(&mark));
        let veths = links.iter().filter(|link| link.kind.as_deref() == Some("veth"));
        Self {
            udev: Path::new(UDEV).exists(),
            files: files(),
            others: veths.filter(|link| !is_ours(link)).map(|link| link.name.clone()).collect(),
        }
    }
}

fn files() -> Vec<(String, String)> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for folder in FOLDERS {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let is_link = entry.path().extension().is_some_and(|extension| extension == "link");
            if is_link && !files.contains_key(&name) {
                // One that is linked to /dev/null is empty, and hides others all the same.
                files.insert(name, fs::read_to_string(entry.path()).unwrap_or_default());
            }
        }
    }
    files.into_iter().collect()
}

/// The first file that is for veths of such a name decides; what it says of addresses.
fn policy<'a>(files: &'a [(String, String)], link: &str) -> Option<(&'a str, Option<String>)> {
    let (name, text) = files.iter().find(|(_, text)| is_for(text, link))?;
    let policy = settings(text, "[Link]").find(|(key, _)| *key == "MACAddressPolicy");
    Some((name, policy.map(|(_, value)| value.to_owned())))
}

/// Whether a file's conditions hold for a veth. Those that need more than its name and kind do not.
fn is_for(text: &str, link: &str) -> bool {
    let mut conditions = settings(text, "[Match]").peekable();
    // A file without conditions is for nobody.
    conditions.peek().is_some()
        && conditions.all(|(key, value)| {
            value.split_whitespace().any(|word| match key {
                "OriginalName" => matches(word, link),
                "Kind" | "Driver" => matches(word, "veth"),
                "Type" => matches(word, "ether"),
                _ => false,
            })
        })
}

/// A shell pattern with nothing but a star at its end.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

fn settings<'a>(text: &'a str, section: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let mut current = "";
    text.lines().map(str::trim).filter_map(move |line| {
        if line.starts_with('[') {
            current = line;
        }
        let (key, value) = line.split_once('=')?;
        (current == section && !line.starts_with(['#', ';'])).then_some((key.trim(), value.trim()))
    })
}

pub(super) fn judge(facts: &Facts) -> Finding {
    let id = "mac-policy";
    let Facts { udev, files, others } = facts;
    if !udev {
        return Finding::ok(id, "udevd does not run here");
    }
    let persistent = |link: &str| {
        let (file, policy) = policy(files, link)?;
        (policy.as_deref() == Some("persistent")).then_some(file)
    };
    let Some(file) = persistent("veth0") else {
        return Finding::ok(id, "udevd leaves addresses of veths as they are");
    };
    let hit: Vec<&str> =
        others.iter().map(String::as_str).filter(|link| persistent(link).is_some()).collect();
    let seen = format!("{file} says MACAddressPolicy=persistent");
    if hit.is_empty() {
        return Finding::ok(
            id,
            format!("{seen}; our links get their addresses when they are made, and keep them"),
        );
    }
    Finding::warn(
        id,
        format!("{seen}, and there are veths of others: {}", hit.join(", ")),
        "udevd may change the address of a link that was made without one a moment after, and frames for the old one \
         are dropped. Ours get theirs when they are made, which udevd leaves alone",
        "give the address in the request that makes the link (`ip link add … address …`), or add \
         /etc/systemd/network/10-veth.link with `[Match] Kind=veth` and `[Link] MACAddressPolicy=none`",
    )
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    const DEFAULT: &str =
        "[Match]\nOriginalName=*\n\n[Link]\n# comment=1\nNamePolicy=keep\nMACAddressPolicy=persistent\n";
    const NONE: &str = "[Match]\nKind=veth\n[Link]\nMACAddressPolicy=none\n";
    const USB: &str = "[Match]\nProperty=ID_BUS=usb\n[Link]\nMACAddressPolicy=persistent\n";

    fn level(files: &[(&str, &str)], others: &[&str]) -> Level {
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let others = others.iter().map(|name| (*name).to_owned()).collect();
        judge(&Facts { udev: true, files, others }).level
    }

    #[test]
    fn only_links_of_others_are_in_danger() {
        assert_eq!(level(&[("99-default.link", DEFAULT)], &[]), Level::Ok);
        assert_eq!(level(&[("99-default.link", DEFAULT)], &["theirs0"]), Level::Warn);
        assert_eq!(level(&[("10-veth.link", NONE), ("99-default.link", DEFAULT)], &["theirs0"]), Level::Ok);
        assert_eq!(level(&[("73-usb.link", USB)], &["theirs0"]), Level::Ok);
        assert_eq!(level(&[("99-default.link", "")], &["theirs0"]), Level::Ok, "hidden by /dev/null");
        assert_eq!(judge(&Facts { udev: false, ..Facts::default() }).level, Level::Ok);
    }
}
