//! The file system that a guest starts from: busybox, the kernel's modules, the tests, and a script that runs
//! them.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use lzma_rust2::XzReader;

use super::{binaries::Binaries, elf};
use crate::command;

/// The modules that veth and its tests use. A kernel that lacks one has it built in, or does without.
const MODULES: [&str; 18] = [
    "veth",
    "bridge",
    "br_netfilter",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "act_mirred",
    "dummy",
    "macvlan",
    "macvtap",
    "tun",
    "nf_tables",
    "nft_counter",
    "nft_chain_nat",
    "nft_ct",
    "nft_masq",
    "nft_meta_bridge",
    "nft_reject",
];

/// Programs of the host: what tests start with options that busybox's lack, and a shell, for that of busybox would
/// start what busybox has.
const PROGRAMS: [&str; 2] = ["setpriv", "sh"];

/// What a guest does. The kernel writes to the first serial line and the tests to the second, so that neither
/// disturbs the other.
const INIT: &str = include_str!("init.sh");

/// All that is in a guest but its kernel's modules.
pub(super) struct Contents<'a> {
    pub(super) busybox: &'a [u8],
    pub(super) binaries: &'a Binaries,
    /// Arguments of the test binaries.
    pub(super) harness: &'a [std::ffi::OsString],
}

impl Contents<'_> {
    /// Builds the archive for a kernel with modules in a folder.
    pub(super) fn archive(&self, modules: &Path) -> Result<Vec<u8>> {
        let Self { busybox, binaries: Binaries { veth, tests }, harness } = self;
        let mut archive = Archive::default();
        for folder in
            ["bin", "dev", "etc", "modules", "proc", "root", "run", "run/netns", "sys", "tests", "tmp"]
        {
            archive.folder(folder);
        }
        archive.file(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
        );
        archive.file("bin/busybox", 0o755, busybox);
        archive.file("init", 0o755, INIT.as_bytes());
        archive.file("etc/harness", 0o644, &quoted(harness));
        let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
        archive.file("bin/veth", 0o755, &read(veth)?);
        for (name, path) in tests {
            archive.file(&format!("tests/{name}"), 0o755, &read(path)?);
        }
        for path in programs()? {
            let name = path.to_string_lossy();
            archive.file_with_folders(name.trim_start_matches('/'), 0o755, &read(&path)?);
        }
        for (number, module) in load(modules)?.iter().enumerate() {
            archive.file(&format!("modules/{number:02}.ko"), 0o644, module);
        }
        Ok(archive.finish())
    }
}

/// Arguments as a shell reads them.
fn quoted(arguments: &[std::ffi::OsString]) -> Vec<u8> {
    let mut text = Vec::new();
    for argument in arguments {
        text.extend(b" '");
        for &byte in argument.as_bytes() {
            if byte == b'\'' {
                text.extend(br"'\''");
            } else {
                text.push(byte);
            }
        }
        text.push(b'\'');
    }
    text
}

/// [`PROGRAMS`] and their libraries.
fn programs() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for name in PROGRAMS {
        let program = command::in_path(name).next().with_context(|| format!("there is no {name} in PATH"))?;
        let list = command::output(std::process::Command::new("ldd").arg(&program))?;
        files.extend(libraries(&list).map(PathBuf::from));
        // In the folder that a guest looks in first, and in front of busybox's.
        files.push(program);
    }
    files.sort();
    files.dedup();
    Ok(files)
}

/// The files that `ldd` names.
fn libraries(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

/// The modules that are there, each behind those that it depends on, as the kernel takes them.
fn load(folder: &Path) -> Result<Vec<Vec<u8>>> {
    let mut files = BTreeMap::new();
    find(folder, &mut files)?;
    let mut modules = BTreeMap::new();
    let mut open: Vec<String> = MODULES.map(str::to_owned).into();
    while let Some(name) = open.pop() {
        let Some(path) = files.get(&name).filter(|_| !modules.contains_key(&name)) else {
            continue;
        };
        let module = decompress(path)?;
        let dependencies =
            elf::dependencies(&module).with_context(|| format!("read what {} depends on", path.display()))?;
        open.extend(dependencies.iter().cloned());
        modules.insert(name, (dependencies, module));
    }
    let graph =
        modules.iter().map(|(name, (dependencies, _))| (name.as_str(), dependencies.as_slice())).collect();
    let order: Vec<String> = order(&MODULES, &graph).into_iter().map(str::to_owned).collect();
    Ok(order.iter().filter_map(|name| modules.remove(name)).map(|(_, module)| module).collect())
}

/// Modules in an order that they can be loaded in.
fn order<'a>(wanted: &[&'a str], graph: &BTreeMap<&'a str, &'a [String]>) -> Vec<&'a str> {
    fn visit<'a>(
        name: &'a str,
        graph: &BTreeMap<&'a str, &'a [String]>,
        seen: &mut HashSet<&'a str>,
        order: &mut Vec<&'a str>,
    ) {
        if !seen.insert(name) {
            return;
        }
        if let Some(dependencies) = graph.get(name) {
            for dependency in *dependencies {
                visit(dependency, graph, seen, order);
            }
            order.push(name);
        }
    }
    let (mut seen, mut order) = (HashSet::new(), Vec::new());
    for name in wanted {
        visit(name, graph, &mut seen, &mut order);
    }
    order
}

/// All modules below a folder, by their names.
fn find(folder: &Path, modules: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", folder.display()))?;
        let path = entry.path();
        if entry.file_type().with_context(|| format!("ask what {} is", path.display()))?.is_dir() {
            find(&path, modules)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(module_name) {
            modules.insert(name, path);
        }
    }
    Ok(())
}

/// `nf_tables` of `nf_tables.ko.xz`; `crc32c_intel` of `crc32c-intel.ko`.
fn module_name(file: &str) -> Option<String> {
    let (name, rest) = file.split_once('.')?;
    (rest == "ko" || rest.starts_with("ko.")).then(|| name.replace('-', "_"))
}

fn decompress(path: &Path) -> Result<Vec<u8>> {
    let file = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    match path.extension().and_then(OsStr::to_str) {
        Some("ko") => Ok(file),
        Some("xz") => {
            let mut module = Vec::new();
            std::io::copy(&mut XzReader::new(file.as_slice(), true), &mut module)
                .with_context(|| format!("decompress {}", path.display()))?;
            Ok(module)
        }
        _ => bail!("{} is compressed in a way that we do not know", path.display()),
    }
}

/// A cpio archive in the format `newc`, the kernel's for an initramfs.
/// <https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    count: u32,
    folders: HashSet<String>,
}

impl Archive {
    const FOLDER: u32 = 0o040_000;
    const FILE: u32 = 0o100_000;

    fn folder(&mut self, path: &str) {
        if self.folders.insert(path.to_owned()) {
            self.entry(path, Self::FOLDER | 0o755, &[]);
        }
    }

    fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, Self::FILE | permissions, content);
    }

    /// A file with the folders that lead to it.
    fn file_with_folders(&mut self, path: &str, permissions: u32, content: &[u8]) {
        for (end, _) in path.match_indices('/') {
            self.folder(&path[..end]);
        }
        self.file(path, permissions, content);
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.count += 1;
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        // Inode, mode, owner, group, links, time, size, four device numbers, length of the name, checksum.
        let fields =
            [self.count, mode, 0, 0, 1, 0, length(content.len()), 0, 0, 0, 0, length(path.len() + 1), 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_behind_what_they_need() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let (bridge, stp, netfilter) = (names(&["stp", "llc"]), names(&["llc"]), names(&["bridge"]));
        let graph = [
            ("br_netfilter", netfilter.as_slice()),
            ("bridge", bridge.as_slice()),
            ("llc", &[]),
            ("stp", stp.as_slice()),
            ("veth", &[]),
        ]
        .into();
        assert_eq!(
            order(&["br_netfilter", "bridge", "absent", "veth"], &graph),
            ["llc", "stp", "bridge", "br_netfilter", "veth"]
        );
    }

    #[test]
    fn modules_are_known_by_their_files() {
        assert_eq!(module_name("crc32c-intel.ko").as_deref(), Some("crc32c_intel"));
        assert_eq!(module_name("nf_tables.ko.xz").as_deref(), Some("nf_tables"));
        assert_eq!(module_name("modules.order"), None);
    }

    #[test]
    fn libraries_are_read_from_ldd() {
        let list = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x0)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x0)\n";
        assert_eq!(
            libraries(list).collect::<Vec<_>>(),
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
    }

    #[test]
    fn arguments_survive_a_shell() {
        assert_eq!(quoted(&["a b".into(), "c'd".into()]), br" 'a b' 'c'\''d'");
    }

    #[test]
    fn an_archive_is_aligned() {
        let mut archive = Archive::default();
        archive.file_with_folders("a/b/c", 0o644, b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"070701"));
        let text = String::from_utf8_lossy(&bytes);
        // The size and the permissions of the file, and one entry for each folder.
        assert!(text.contains("000081a4") && text.contains("00000005"), "{text}");
        assert_eq!(text.matches("070701").count(), 4);
    }
}
