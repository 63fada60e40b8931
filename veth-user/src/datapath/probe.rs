//! What the running kernel can do.

use aya::util::KernelVersion;

use super::Error;

/// Checks that the kernel has what the datapath needs.
///
/// # Errors
///
/// Names the first thing that is missing and the kernel that has it.
pub fn require() -> Result<(), Error> {
    let kernel = KernelVersion::current()
        .map_err(|source| Error::BadObject(format!("the kernel does not say its version: {source}")))?;
    require_of(kernel)
}

fn require_of(kernel: KernelVersion) -> Result<(), Error> {
    if kernel >= KernelVersion::new(6, 6, 0) {
        return Ok(());
    }
    let code = kernel.code();
    Err(Error::Unsupported {
        feature: "TCX, the hook that veth attaches to",
        needs: "6.6",
        has: format!("{}.{}.{}", code >> 16, code >> 8 & 0xff, code & 0xff),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_told_what_it_lacks() {
        let error = require_of(KernelVersion::new(5, 15, 7)).unwrap_err().to_string();
        assert_eq!(error, "kernel 5.15.7 has no TCX, the hook that veth attaches to (needs 6.6 or newer)");
        require_of(KernelVersion::new(6, 6, 0)).unwrap();
    }
}
