//! Where a run took place.

use std::{fs, io};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A machine, as far as it explains figures.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// The release of its kernel.
    pub kernel: String,
    /// The model of its CPUs.
    pub cpu: String,
    /// CPUs that the run might use.
    pub cpus: usize,
    /// Whether it is a virtual machine, as the CPU says.
    pub virtualised: bool,
    /// The congestion control that sockets get by default.
    pub default_congestion_control: String,
    /// What time is read from.
    pub clock: String,
    /// What the kernel does against faults of the CPU that costs time.
    pub mitigations: Vec<String>,
}

impl Machine {
    pub(super) fn now() -> io::Result<Self> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpuinfo = read("/proc/cpuinfo");
        let field = |name: &str| {
            let line =
                cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let mut mitigations: Vec<String> = fs::read_dir("/sys/devices/system/cpu/vulnerabilities")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let text = read(&entry.path().to_string_lossy());
                let how = text.strip_prefix("Mitigation: ")?;
                Some(format!("{}: {how}", entry.file_name().to_string_lossy()))
            })
            .collect();
        mitigations.sort();
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease"),
            cpu: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: super::super::cpu::allowed()?.len(),
            virtualised: field("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            default_congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control"),
            clock: read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            mitigations,
        })
    }
}
