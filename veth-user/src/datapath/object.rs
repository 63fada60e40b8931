//! The embedded eBPF object.

use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use veth_common::LAYOUT_VERSION;

use super::Error;
use crate::{hooks, topology::model::hash};

/// The object, or nothing where it was built without one (see `build.rs`). Aligned for the ELF parser.
static OBJECT: &[u8] = {
    #[repr(C, align(32))]
    struct Aligned<T: ?Sized>(T);
    static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/veth-ebpf")));
    &ALIGNED.0
};

/// The object that is loaded.
#[must_use]
pub fn bytes() -> &'static [u8] {
    hooks::object().unwrap_or(OBJECT)
}

/// The layout of its maps.
#[must_use]
pub fn layout() -> u32 {
    hooks::object().and_then(|bytes| layout_version(bytes).ok()).unwrap_or(LAYOUT_VERSION)
}

/// What tells it from any other build of the programs.
#[must_use]
pub fn id() -> String {
    format!("{:016x}", hash(&[bytes()]))
}

/// Checks that there is an object and that it speaks our layout.
///
/// # Errors
///
/// When it does not; the error says how to build one that does.
pub fn check() -> Result<(), Error> {
    check_layout(bytes(), layout())
}

/// Checks any object's layout, read from its `VETH_LAYOUT_VERSION`.
fn check_layout(bytes: &[u8], expected: u32) -> Result<(), Error> {
    if bytes.is_empty() {
        return Err(Error::NoObject);
    }
    let found = layout_version(bytes)?;
    if found == expected { Ok(()) } else { Err(Error::ObjectLayout { found, expected }) }
}

fn layout_version(bytes: &[u8]) -> Result<u32, Error> {
    let bad = |error: &dyn std::fmt::Display| Error::BadObject(error.to_string());
    let file = object::File::parse(bytes).map_err(|error| bad(&error))?;
    let symbol =
        file.symbol_by_name("VETH_LAYOUT_VERSION").ok_or_else(|| bad(&"it has no VETH_LAYOUT_VERSION"))?;
    let index = symbol.section_index().ok_or_else(|| bad(&"VETH_LAYOUT_VERSION is in no section"))?;
    let section = file.section_by_index(index).map_err(|error| bad(&error))?;
    let value = section
        .data_range(symbol.address(), 4)
        .map_err(|error| bad(&error))?
        .and_then(|data| data.try_into().ok())
        .ok_or_else(|| bad(&"VETH_LAYOUT_VERSION is not 4 bytes"))?;
    Ok(u32::from_ne_bytes(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_object_says_how_to_build_it() {
        let error = check_layout(&[], LAYOUT_VERSION).unwrap_err().to_string();
        assert!(error.contains("cargo xtask build"), "{error}");
    }

    #[test]
    fn rubbish_is_refused() {
        assert!(matches!(check_layout(b"not an object", LAYOUT_VERSION), Err(Error::BadObject(_))));
    }

    #[test]
    fn another_layout_is_refused() {
        // Plain `cargo test` has no object; `cargo xtask test` runs this with one.
        if OBJECT.is_empty() {
            return;
        }
        check_layout(OBJECT, LAYOUT_VERSION).unwrap();
        let mut other = OBJECT.to_vec();
        let at = {
            let file = object::File::parse(OBJECT).unwrap();
            let symbol = file.symbol_by_name("VETH_LAYOUT_VERSION").unwrap();
            let section = file.section_by_index(symbol.section_index().unwrap()).unwrap();
            usize::try_from(section.file_range().unwrap().0 + symbol.address()).unwrap()
        };
        other[at..at + 4].copy_from_slice(&(LAYOUT_VERSION + 1).to_ne_bytes());
        match check_layout(&other, LAYOUT_VERSION) {
            Err(Error::ObjectLayout { found, expected }) => {
                assert_eq!((found, expected), (LAYOUT_VERSION + 1, LAYOUT_VERSION));
            }
            other => panic!("{other:?}"),
        }
    }
}
