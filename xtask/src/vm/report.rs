//! The tables: each test on each kernel, and what a test has found out of each.

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use super::log::{Log, Outcome, Test};

/// A kernel, and what became of its guest.
pub(super) struct Column {
    /// The kernel's version.
    pub(super) version: String,
    /// What the guest said.
    pub(super) log: Log,
    /// How long it took.
    pub(super) time: Duration,
    /// What it said last, if it died amid the tests and no other guest went on.
    pub(super) died: Option<String>,
    /// Where guests died whose tests another guest went on with, and what they said.
    pub(super) deaths: Vec<String>,
}

/// Rows of cells, the first row a heading, then notes.
#[derive(Default)]
struct Table {
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    /// The number of a note, which is the same for the same text.
    fn note(&mut self, text: &str) -> usize {
        let place = self.notes.iter().position(|note| note == text);
        place.unwrap_or_else(|| {
            self.notes.push(text.to_owned());
            self.notes.len() - 1
        }) + 1
    }

    fn render(&self) -> String {
        let Self { rows, notes } = self;
        let width = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let mut text = String::new();
        for row in rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = width(column);
                let _unused: std::fmt::Result = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        for (number, note) in notes.iter().enumerate() {
            let _unused: std::fmt::Result = writeln!(text, "[{}] {note}", number + 1);
        }
        text
    }
}

/// The tables as text.
pub(super) fn render(tests: &[Test], columns: &[Column], total: Duration) -> String {
    let mut text = outcomes(tests, columns, total).render();
    if let Some(facts) = facts(columns) {
        text.push('\n');
        text.push_str(&facts.render());
    }
    text
}

fn outcomes(tests: &[Test], columns: &[Column], total: Duration) -> Table {
    let mut table = Table::default();
    table.rows.push(heading("test", columns));
    for test in tests {
        let mut row = vec![format!("{} {}", test.binary, test.name)];
        for column in columns {
            row.push(match column.log.outcome(test) {
                Outcome::Passed => "ok".to_owned(),
                Outcome::Failed(_) => "FAILED".to_owned(),
                Outcome::PassedAlone(why) => {
                    let why = first_words(&why);
                    let note =
                        format!("only in a second guest, with nothing else to do; in the first: {why}");
                    format!("ok [{}]", table.note(&note))
                }
                Outcome::Missing => "MISSING".to_owned(),
                Outcome::Skipped(why) => format!("skip [{}]", table.note(&why)),
            });
        }
        table.rows.push(row);
    }
    let mut row = vec![format!("ok of {}", tests.len())];
    row.extend(columns.iter().map(|column| {
        let passed =
            |test: &&Test| matches!(column.log.outcome(test), Outcome::Passed | Outcome::PassedAlone(_));
        tests.iter().filter(passed).count().to_string()
    }));
    table.rows.push(row);
    let mut row = vec![format!("time, {} s in total", total.as_secs())];
    for Column { time, deaths, .. } in columns {
        let mut cell = format!("{} s", time.as_secs());
        for death in deaths {
            let note = format!("a guest died, and another went on with the tests it left; it was {death}");
            let _unused: std::fmt::Result = write!(cell, " [{}]", table.note(&note));
        }
        row.push(cell);
    }
    table.rows.push(row);
    table
}

/// What the verifier went through, where it tells.
fn facts(columns: &[Column]) -> Option<Table> {
    let names: BTreeSet<&String> = columns.iter().flat_map(|column| column.log.facts.keys()).collect();
    let mut table = Table::default();
    table.rows.push(heading("instructions verified", columns));
    for name in &names {
        let mut row = vec![(*name).clone()];
        for column in columns {
            row.push(match column.log.facts.get(*name) {
                Some(number) => number.to_string(),
                None if parsed(&column.version) < (5, 16) => {
                    format!("- [{}]", table.note("not told before 5.16"))
                }
                None => "-".to_owned(),
            });
        }
        table.rows.push(row);
    }
    (!names.is_empty()).then_some(table)
}

fn heading(first: &str, columns: &[Column]) -> Vec<String> {
    std::iter::once(first.to_owned()).chain(columns.iter().map(|column| column.version.clone())).collect()
}

/// All that is wrong, a paragraph each: failures, tests without a result, and skips that the kernel's version
/// does not excuse.
pub(super) fn problems(tests: &[Test], columns: &[Column]) -> Vec<String> {
    let mut problems = Vec::new();
    for Column { version, log, died, time: _, deaths: _ } in columns {
        let mut missing = Vec::new();
        for test in tests {
            let name = format!("{version}: {} {}", test.binary, test.name);
            match log.outcome(test) {
                Outcome::Passed | Outcome::PassedAlone(_) => {}
                Outcome::Failed(why) => problems.push(format!("{name}: {}", first_words(&why))),
                Outcome::Missing => missing.push(format!("{} {}", test.binary, test.name)),
                Outcome::Skipped(why) => match minimum(&why) {
                    None => problems.push(format!("{name}: skipped without a version: {why}")),
                    Some(minimum) if parsed(version) >= minimum => {
                        problems.push(format!("{name}: skipped on a kernel that is new enough: {why}"));
                    }
                    Some(_) => {}
                },
            }
        }
        if !missing.is_empty() {
            problems.push(format!("{version}: {} without a result: {}", missing.len(), missing.join(", ")));
        }
        if !log.is_complete {
            let words = died.as_ref().map_or_else(String::new, |words| format!("; it said: {words}"));
            problems
                .push(format!("{version}: the guest did not come to its end, it was {}{words}", log.place()));
        }
    }
    problems
}

/// What a panic says, without where it was.
fn first_words(why: &str) -> String {
    const LENGTH: usize = 400;
    let words = why
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("note: "))
        .skip_while(|line| !line.contains("panicked at"))
        .skip(1)
        .collect::<Vec<_>>()
        .join(" ");
    let words = if words.is_empty() { why.replace('\n', " ") } else { words };
    words.char_indices().nth(LENGTH).map_or_else(|| words.clone(), |(end, _)| format!("{}…", &words[..end]))
}

/// The version that a skip says it needs: `TCX (needs 6.6)`.
fn minimum(why: &str) -> Option<(u64, u64)> {
    let version = why.rsplit_once("(needs ")?.1.strip_suffix(')')?;
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The first two numbers of a version.
fn parsed(version: &str) -> (u64, u64) {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> [Column; 2] {
        let column = |version: &str, text: &str, seconds| Column {
            version: version.to_owned(),
            log: Log::parse(text),
            time: Duration::from_secs(seconds),
            died: None,
            deaths: Vec::new(),
        };
        [
            column(
                "5.10.223",
                "@begin net\ntest a ... ok\ntest b ... ok\ntest c ... FAILED\n---- c stdout ----\n\
                 thread 'c' panicked at x.rs:1:2:\nno such thing\nnote: run with\nfailures:\n@skips\n\
                 b\tTCX (needs 6.6)\n@facts\n@done\n",
                40,
            ),
            column(
                "6.12.95",
                "@begin net\ntest a ... ok\ntest b ... ok\n@skips\nb\tTCX (needs 6.6)\n@facts\nveth\t99\n",
                50,
            ),
        ]
    }

    fn tests() -> Vec<Test> {
        ["a", "b", "c"].map(|name| Test { binary: "net".to_owned(), name: name.to_owned() }).into()
    }

    #[test]
    fn tables_are_aligned_and_skips_have_notes() {
        let text = render(&tests(), &columns(), Duration::from_secs(61));
        let expected = "\
test                 5.10.223  6.12.95
net a                ok        ok
net b                skip [1]  skip [1]
net c                FAILED    MISSING
ok of 3              1         1
time, 61 s in total  40 s      50 s
[1] TCX (needs 6.6)

instructions verified  5.10.223  6.12.95
veth                   - [1]     99
[1] not told before 5.16
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_death_that_was_survived_has_a_note() {
        let [column, _] = columns();
        let column = Column { deaths: vec!["in net b; it said: panic".to_owned()], ..column };
        let text = render(&tests(), &[column], Duration::from_secs(61));
        let note =
            "a guest died, and another went on with the tests it left; it was in net b; it said: panic";
        assert!(text.contains("40 s [2]") && text.contains(note), "{text}");
    }

    #[test]
    fn everything_else_is_a_problem() {
        assert_eq!(
            problems(&tests(), &columns()),
            [
                "5.10.223: net c: no such thing",
                "6.12.95: net b: skipped on a kernel that is new enough: TCX (needs 6.6)",
                "6.12.95: 1 without a result: net c",
                "6.12.95: the guest did not come to its end, it was between two tests",
            ]
        );
    }

    #[test]
    fn minimums_are_read() {
        assert_eq!(minimum("TCX (needs 6.6)"), Some((6, 6)));
        assert_eq!(minimum("TCX"), None);
        assert!(parsed("6.12.95") > (6, 6) && parsed("5.10.223") < (5, 16));
    }
}
