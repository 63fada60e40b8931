//! Names of kernel functions by their addresses.

use std::{fs, io};

/// The kernel's functions, in the order of their addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Symbols(Vec<(u64, String)>);

impl Symbols {
    /// Those of the running kernel. Empty for whoever may not know addresses.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub(super) fn running() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/kallsyms")?))
    }

    fn parse(text: &str) -> Self {
        let symbol = |line: &str| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok().filter(|address| *address != 0)?;
            let kind = words.next()?;
            kind.eq_ignore_ascii_case("t").then_some((address, words.next()?.to_owned()))
        };
        let mut symbols: Vec<(u64, String)> = text.lines().filter_map(symbol).collect();
        symbols.sort();
        Self(symbols)
    }

    /// The function that an address is in. The compiler's endings (`.isra.0`) are left out.
    #[must_use]
    pub(super) fn name(&self, address: u64) -> Option<&str> {
        let index = self.0.partition_point(|(start, _)| *start <= address).checked_sub(1)?;
        let (_, name) = self.0.get(index)?;
        Some(name.split_once('.').map_or(name, |(name, _)| name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_belongs_to_the_function_before_it() {
        let text = "0000000000000010 T one\n0000000000000030 t three.isra.0\n0000000000000020 D data\n0000000000000000 T hidden\n";
        let symbols = Symbols::parse(text);
        assert_eq!(symbols.name(0x10), Some("one"));
        assert_eq!(symbols.name(0x2f), Some("one"));
        assert_eq!(symbols.name(0x31), Some("three"));
        assert_eq!(symbols.name(0x5), None);
    }
}
