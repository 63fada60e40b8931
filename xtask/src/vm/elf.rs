//! What we ask of ELF files: whether a program is static, what a kernel module says of itself.

use anyhow::{Context as _, Result};
use object::{
    Object as _, ObjectSection as _,
    elf::PT_INTERP,
    read::elf::{ElfFile64, ProgramHeader as _},
};

/// Whether a program needs no libraries and no loader.
pub(super) fn is_static(program: &[u8]) -> bool {
    let Ok(file) = ElfFile64::<object::Endianness>::parse(program) else {
        return false;
    };
    file.elf_program_headers().iter().all(|header| header.p_type(file.endian()) != PT_INTERP)
}

/// The names of the modules that a module depends on.
pub(super) fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("read a module as ELF")?;
    let section = file.section_by_name(".modinfo").context("a module has no .modinfo")?;
    Ok(depends(section.data().context("read .modinfo")?))
}

/// The value of `depends` in `name=value` strings with a zero behind each.
fn depends(information: &[u8]) -> Vec<String> {
    information
        .split(|&byte| byte == 0)
        .filter_map(|field| str::from_utf8(field).ok()?.strip_prefix("depends="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_information_of_a_module() {
        assert_eq!(depends(b"license=GPL\0\0depends=stp,llc\0retpoline=Y\0"), ["stp", "llc"]);
        assert!(depends(b"depends=\0name=veth\0").is_empty());
    }

    #[test]
    fn a_text_is_no_static_program() {
        assert!(!is_static(b"#!/bin/sh\n"));
    }
}
