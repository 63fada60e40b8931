//! Embeds the other builds of the eBPF object that `cargo xtask` names, to upgrade to and back from. Virtual machines
//! have nothing but the tests. Without them empty files are embedded, so that `cargo check` needs no BPF toolchain.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    for (variable, name) in [("VETH_EBPF_OTHER", "other"), ("VETH_EBPF_NEXT", "next")] {
        println!("cargo::rerun-if-env-changed={variable}");
        let target = folder.join(name);
        match env::var_os(variable).map(PathBuf::from) {
            Some(object) => {
                println!("cargo::rerun-if-changed={}", object.display());
                fs::copy(&object, &target).map_err(|error| format!("copy {}: {error}", object.display()))?;
            }
            None => fs::write(&target, [])?,
        }
    }
    Ok(())
}
