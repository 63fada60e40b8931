//! What the running kernel says of itself in its BTF: where its structures keep what, and the names of its drop reasons.

use std::{collections::BTreeMap, fs, path::Path};

use btfparse::{Integer32Value, Offset, Readable, TypeInformation, TypeVariant};
use veth_common::drops::KernelOffsets;

use super::Error;

/// The kernel's BTF.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The first argument of a tracepoint is not for programs.
const HIDDEN_ARGUMENTS: usize = 1;

/// What is known of the running kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Where it keeps things.
    pub offsets: KernelOffsets,
    /// The names of its drop reasons by their numbers, in lower case and without the prefix that all have. Empty before 5.17.
    pub reasons: BTreeMap<u32, String>,
}

/// The file, read at once.
struct Bytes(Vec<u8>);

impl Readable for Bytes {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> btfparse::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = start.checked_add(buffer.len()).and_then(|end| self.0.get(start..end));
        let part = part
            .ok_or_else(|| btfparse::Error::new(btfparse::ErrorKind::IOError, "the file ends too early"))?;
        buffer.copy_from_slice(part);
        Ok(())
    }
}

impl Kernel {
    /// Asks the running kernel.
    ///
    /// # Errors
    ///
    /// When it has no BTF, or keeps things in no way that is known.
    pub fn running() -> Result<Self, Error> {
        let bytes = fs::read(Path::new(VMLINUX)).map_err(|source| Error::NoBtf { path: VMLINUX, source })?;
        let btf = TypeInformation::new(&Bytes(bytes)).map_err(|error| Error::BadBtf(format!("{error:?}")))?;
        let offset = |name: &str, member: &str| {
            let unknown = || Error::BadBtf(format!("{name} has no {member}"));
            let id = btf.id_of(name).ok_or_else(unknown)?;
            match btf.offset_of(id, member) {
                Ok((_, Offset::ByteOffset(offset))) => Ok(offset),
                _ => Err(unknown()),
            }
        };
        Ok(Self {
            offsets: KernelOffsets {
                skb_dev: offset("sk_buff", "dev")?,
                skb_sk: offset("sk_buff", "sk")?,
                skb_protocol: offset("sk_buff", "protocol")?,
                skb_head: offset("sk_buff", "head")?,
                skb_network_header: offset("sk_buff", "network_header")?,
                device_ifindex: offset("net_device", "ifindex")?,
                device_net: offset("net_device", "nd_net.net")?,
                sock_net: offset("sock", "__sk_common.skc_net.net")?,
                net_inum: offset("net", "ns.inum")?,
                arguments: arguments(&btf)
                    .ok_or_else(|| Error::BadBtf("there is no kfree_skb".to_owned()))?,
            },
            reasons: reasons(&btf),
        })
    }
}

/// How many arguments the tracepoint gives to programs.
fn arguments(btf: &TypeInformation) -> Option<u32> {
    let TypeVariant::Typedef(typedef) = btf.from_id(btf.id_of("btf_trace_kfree_skb")?)? else { return None };
    let TypeVariant::FuncProto(function) = btf.from_id(btf.pointee_tid(*typedef.tid()).ok()?)? else {
        return None;
    };
    u32::try_from(function.parameter_list().len().checked_sub(HIDDEN_ARGUMENTS)?).ok()
}

fn reasons(btf: &TypeInformation) -> BTreeMap<u32, String> {
    let Some(TypeVariant::Enum(reasons)) = btf.id_of("skb_drop_reason").and_then(|id| btf.from_id(id)) else {
        return BTreeMap::new();
    };
    let name = |full: &str| {
        let short =
            full.strip_prefix("SKB_DROP_REASON_").or_else(|| full.strip_prefix("SKB_")).unwrap_or(full);
        short.to_lowercase()
    };
    let number = |value| match value {
        Integer32Value::Signed(value) => value.cast_unsigned(),
        Integer32Value::Unsigned(value) => value,
    };
    reasons.named_value_list().iter().map(|entry| (number(entry.value), name(&entry.name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_is_understood() {
        // A machine without BTF cannot say anything.
        if !Path::new(VMLINUX).exists() {
            eprintln!("skipped: there is no {VMLINUX}");
            return;
        }
        let Kernel { offsets, reasons } = Kernel::running().unwrap();
        assert!(offsets.skb_dev > 0 && offsets.net_inum > 0 && offsets.device_ifindex > 0, "{offsets:?}");
        assert!(offsets.arguments >= 2, "{offsets:?}");
        if offsets.arguments > 2 {
            assert!(reasons.values().any(|name| name == "no_socket"), "{reasons:?}");
        }
    }
}
