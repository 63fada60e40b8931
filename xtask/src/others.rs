//! Programs of others that veth is tested and measured beside, or uses: xdp-filter, tc, Open vSwitch, tmux, tshark,
//! Prometheus and the CNI plugins, the real ones.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{apt, command, workspace::Workspace};

/// What they are in.
const PACKAGES: [&str; 7] =
    ["xdp-tools", "iproute2", "openvswitch-switch", "openvswitch-common", "tmux", "tshark", "prometheus"];
const PROGRAMS: [&str; 8] =
    ["xdp-filter", "tc", "ovsdb-server", "ovs-vsctl", "tmux", "tshark", "prometheus", "promtool"];

/// A file of the last of the packages: a folder without it was unpacked before there were as many.
const NEWEST: &str = "usr/bin/promtool";

/// The variable by which tests learn where they are.
pub(crate) const FOLDER: &str = "VETH_OTHERS";

/// The variable by which `veth` learns where Open vSwitch is.
pub(crate) const OVS: &str = "VETH_OVS_ROOT";

/// The root of the file system that has them: the system's, or a folder that Debian's packages are unpacked in.
pub(crate) fn find_or_get(workspace: &Workspace) -> Result<PathBuf> {
    if PROGRAMS.iter().all(|program| command::in_path(program).next().is_some()) {
        return Ok("/".into());
    }
    let root = workspace.target.join("others");
    if !root.join(NEWEST).exists() {
        let by_hand = format!("`apt-get install --no-install-recommends {}`", PACKAGES.join(" "));
        ensure!(
            apt::is_here(),
            "there is no {}, and no apt to get them by: install them",
            PROGRAMS.join(" or no ")
        );
        apt::remove(&root)?;
        apt::get(workspace, &PACKAGES, is_wanted, &root)
            .with_context(|| format!("get {}; or install them: {by_hand}", PROGRAMS.join(" and ")))?;
    }
    Ok(root)
}

/// What the reference CNI plugins are in, and where Debian keeps them.
const CNI_PACKAGE: &str = "containernetworking-plugins";
const CNI_FOLDER: &str = "usr/lib/cni";

/// The folder of the reference CNI plugins `bridge` and `host-local`: the system's, or one that Debian's package is
/// unpacked in.
pub(crate) fn find_or_get_cni(workspace: &Workspace) -> Result<PathBuf> {
    let has_plugins =
        |folder: &PathBuf| ["bridge", "host-local"].iter().all(|plugin| folder.join(plugin).is_file());
    let root = workspace.target.join("cni");
    let mut folders =
        [Path::new("/").join(CNI_FOLDER), "/opt/cni/bin".into(), root.join(CNI_FOLDER)].into_iter();
    if let Some(folder) = folders.find(has_plugins) {
        return Ok(folder);
    }
    ensure!(apt::is_here(), "there are no CNI plugins, and no apt to get {CNI_PACKAGE} by: install it");
    apt::remove(&root)?;
    // Without iptables, which they call for masquerading only.
    apt::get(workspace, &[CNI_PACKAGE], |_, _| false, &root)
        .with_context(|| format!("get {CNI_PACKAGE}; or install it"))?;
    Ok(root.join(CNI_FOLDER))
}

fn is_wanted(name: &str, installed: &HashSet<&str>) -> bool {
    name.starts_with("lib") && !installed.contains(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_libraries_that_are_missing() {
        let installed = ["libc6"].into();
        assert!(is_wanted("libxdp1", &installed));
        assert!(!is_wanted("libc6", &installed) && !is_wanted("debconf", &installed));
    }
}
