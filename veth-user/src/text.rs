//! Text for people, the same everywhere.

use comfy_table::{Table, TableStyle};

/// A table without lines.
#[must_use]
pub fn plain_table(heading: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(heading.iter().copied());
    table
}

/// An error with its causes, on one line.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Transparent errors say the same again.
        if !words.ends_with(&text) {
            words = format!("{words}: {text}");
        }
        cause = error.source();
    }
    words
}

/// A number with the SI prefix that leaves it between 1 and 1,000.
#[must_use]
pub fn si(value: f64) -> String {
    let (mut value, mut prefix) = (value, "");
    for next in ["k", "M", "G", "T"] {
        if value < 999.5 {
            break;
        }
        value /= 1_000.0;
        prefix = next;
    }
    if value >= 99.95 || prefix.is_empty() {
        format!("{value:.0}{prefix}")
    } else {
        format!("{value:.1}{prefix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn si_prefixes() {
        for (value, text) in [
            (0.0, "0"),
            (999.0, "999"),
            (999.6, "1.0k"),
            (12_345.0, "12.3k"),
            (21.5e9, "21.5G"),
            (123.4e6, "123M"),
        ] {
            assert_eq!(si(value), text);
        }
    }
}
