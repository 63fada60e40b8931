//! Embeds the eBPF object that `cargo xtask` built and names in `VETH_EBPF_OBJECT`. Without it an empty file
//! is embedded, so that `cargo check` and editors need no BPF toolchain; loading it says what to do.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=VETH_EBPF_OBJECT");
    let target = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?).join("veth-ebpf");
    match env::var_os("VETH_EBPF_OBJECT") {
        Some(object) => {
            let object = PathBuf::from(object);
            println!("cargo::rerun-if-changed={}", object.display());
            fs::copy(&object, &target).map_err(|error| format!("copy {}: {error}", object.display()))?;
        }
        None => fs::write(&target, [])?,
    }
    Ok(())
}
