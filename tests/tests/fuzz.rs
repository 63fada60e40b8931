//! Every input that a fuzzer has kept, and every one that it has found something with: see `cargo xtask fuzz`.

#![expect(clippy::unwrap_used, reason = "everything in a test panics when it fails")]

use std::{fs, path::Path};

use veth_tests::fuzz;

fn all(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut count = 0;
    for file in fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let done = std::panic::catch_unwind(|| target(&bytes));
        assert!(done.is_ok(), "see above: {}", path.display());
        count += 1;
    }
    assert!(count > 0, "nothing is in {}", folder.display());
}

#[test]
fn topology_files_that_were_kept_are_still_harmless() {
    all("topology", fuzz::topology);
}

#[test]
fn frames_that_were_kept_are_still_harmless() {
    all("frame", fuzz::frame);
}
