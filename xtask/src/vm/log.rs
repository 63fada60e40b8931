//! What a guest has said.

use std::collections::BTreeMap;

/// A test of a test binary.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Test {
    /// The binary.
    pub(super) binary: String,
    /// The name, with its modules.
    pub(super) name: String,
}

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Well.
    Passed,
    /// With what it said.
    Failed(String),
    /// Well, in a second guest that had nothing else to do; and what it said in the first.
    PassedAlone(String),
    /// Early, because the kernel is too old: why, and the version that would do.
    Skipped(String),
    /// Not at all, or in another way than these.
    Missing,
}

/// A guest's log.
#[derive(Debug, Default)]
pub(super) struct Log {
    outcomes: BTreeMap<Test, Outcome>,
    /// Numbers that a test has found out.
    pub(super) facts: BTreeMap<String, u64>,
    /// The test that had begun and has not ended.
    pub(super) last: Option<Test>,
    /// Whether the guest came to its first test.
    pub(super) has_begun: bool,
    /// Whether the guest came to its end.
    pub(super) is_complete: bool,
}

/// The part of a log that a line is in.
enum Part {
    Start,
    Binary(String),
    Skips(String),
    Facts,
}

impl Log {
    /// Reads what came over the serial line.
    pub(super) fn parse(output: &str) -> Self {
        let mut log = Self::default();
        let mut part = Part::Start;
        let mut reasons: BTreeMap<Test, String> = BTreeMap::new();
        let mut reason_of: Option<Test> = None;
        for line in output.lines().map(|line| line.trim_end_matches('\r')) {
            let test = |binary: &String, name: &str| Test { binary: binary.clone(), name: name.to_owned() };
            match (line.split_once(' ').unwrap_or((line, "")), &part) {
                (("@begin", binary), _) => {
                    part = Part::Binary(binary.to_owned());
                    log.has_begun = true;
                }
                (("@skips", ""), Part::Binary(binary)) => {
                    part = Part::Skips(binary.clone());
                    reason_of = None;
                }
                (("@facts", ""), _) => part = Part::Facts,
                (("@done", ""), _) => log.is_complete = true,
                (_, Part::Start) => {}
                (_, Part::Binary(binary)) => {
                    if let Some(name) =
                        line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"))
                    {
                        reason_of = Some(test(binary, name));
                    } else if line == "failures:" {
                        reason_of = None;
                    } else if let Some(test) = &reason_of {
                        let reason = reasons.entry(test.clone()).or_default();
                        reason.push_str(line);
                        reason.push('\n');
                    } else if let Some((name, rest)) =
                        line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
                    {
                        log.result(test(binary, name), rest);
                    } else if let Some(test) = log.last.take() {
                        // A program of a test said something in between.
                        log.result(test, line);
                    }
                }
                (_, Part::Skips(binary)) => {
                    if let Some((name, why)) = line.split_once('\t') {
                        log.skip(&test(binary, name), why);
                    }
                }
                (_, Part::Facts) => {
                    if let Some((name, number)) = line.split_once('\t')
                        && let Ok(number) = number.parse()
                    {
                        log.facts.insert(name.to_owned(), number);
                    }
                }
            }
        }
        for (test, reason) in reasons {
            if let Some(Outcome::Failed(text)) = log.outcomes.get_mut(&test) {
                reason.trim().clone_into(text);
            }
        }
        log
    }

    /// The tests that failed.
    pub(super) fn failed(&self) -> Vec<Test> {
        let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_));
        self.outcomes.iter().filter(|(_, outcome)| failed(outcome)).map(|(test, _)| test.clone()).collect()
    }

    /// Takes over what became of failed tests in a second guest.
    pub(super) fn second(&mut self, second: &Self) {
        for (test, outcome) in &mut self.outcomes {
            if let Outcome::Failed(why) = outcome
                && second.outcome(test) == Outcome::Passed
            {
                *outcome = Outcome::PassedAlone(std::mem::take(why));
            }
        }
    }

    /// Goes on with the log of a guest that ran what this one left when it died.
    pub(super) fn go_on(&mut self, next: Self) {
        for (test, outcome) in next.outcomes {
            self.outcomes.entry(test).or_insert(outcome);
        }
        self.facts.extend(next.facts);
        self.last = next.last;
        self.is_complete = next.is_complete;
    }

    /// Where the guest was last.
    pub(super) fn place(&self) -> String {
        match &self.last {
            Some(Test { binary, name }) => format!("in {binary} {name}"),
            None => "between two tests".to_owned(),
        }
    }

    /// How a test ended.
    pub(super) fn outcome(&self, test: &Test) -> Outcome {
        self.outcomes.get(test).cloned().unwrap_or(Outcome::Missing)
    }

    /// Notes what follows the name of a test: its result, perhaps behind something else, perhaps before a time.
    fn result(&mut self, test: Test, line: &str) {
        let line = line.split(" <").next().unwrap_or_default().trim_end();
        let outcome = if line.ends_with("ok") {
            Outcome::Passed
        } else if line.ends_with("FAILED") {
            Outcome::Failed(String::new())
        } else {
            self.last = Some(test);
            return;
        };
        self.last = None;
        self.outcomes.insert(test, outcome);
    }

    /// Notes that a test that passed did so only because it gave up.
    fn skip(&mut self, test: &Test, why: &str) {
        if let Some(outcome) = self.outcomes.get_mut(test)
            && *outcome == Outcome::Passed
        {
            *outcome = Outcome::Skipped(why.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(binary: &str, name: &str) -> Test {
        Test { binary: binary.to_owned(), name: name.to_owned() }
    }

    const LOG: &str = "noise\r\n@begin net\r\n\r\nrunning 5 tests\r\ntest a::fine ... ok\r\ntest a::broken ... FAILED\r\n\
        test a::old ... ok <1.234s>\r\ntest a::loud ... something\r\nok\r\ntest a::off ... ignored\r\n\r\nfailures:\r\n\r\n\
        ---- a::broken stdout ----\r\n\r\nthread 'a::broken' panicked at x.rs:1:2:\r\nno such thing\r\n\r\n\r\n\
        failures:\r\n    a::broken\r\n\r\ntest result: FAILED. 3 passed\r\n@skips\r\na::old\tTCX (needs 6.6)\r\n\
        @facts\r\nveth_ingress\t1234\r\n@done\r\n";

    #[test]
    fn a_log_tells_each_test() {
        let log = Log::parse(LOG);
        assert_eq!(log.outcome(&test("net", "a::fine")), Outcome::Passed);
        assert_eq!(log.outcome(&test("net", "a::loud")), Outcome::Passed);
        assert_eq!(log.outcome(&test("net", "a::old")), Outcome::Skipped("TCX (needs 6.6)".to_owned()));
        assert_eq!(log.outcome(&test("net", "a::off")), Outcome::Missing);
        assert_eq!(log.outcome(&test("prog", "a::fine")), Outcome::Missing);
        let Outcome::Failed(why) = log.outcome(&test("net", "a::broken")) else { panic!("it failed") };
        assert_eq!(why, "thread 'a::broken' panicked at x.rs:1:2:\nno such thing");
        assert_eq!(log.facts.get("veth_ingress"), Some(&1234));
        assert!(log.is_complete);
    }

    #[test]
    fn a_guest_that_died_is_not_complete() {
        let end = LOG.find("something").unwrap_or_default();
        let log = Log::parse(&LOG[..end]);
        assert!(log.has_begun && !log.is_complete);
        assert_eq!(log.last, Some(test("net", "a::loud")));
        assert_eq!(log.outcome(&test("net", "a::loud")), Outcome::Missing);
    }

    #[test]
    fn a_guest_goes_on_where_another_died() {
        let mut log = Log::parse("@begin net\ntest a ... FAILED\ntest b ... ");
        assert_eq!(log.place(), "in net b");
        log.go_on(Log::parse(
            "@begin net\ntest a ... ok\ntest b ... ok\ntest c ... ok\n@facts\nveth\t9\n@done\n",
        ));
        assert!(log.is_complete);
        assert_eq!(log.place(), "between two tests");
        assert!(matches!(log.outcome(&test("net", "a")), Outcome::Failed(_)), "a result is not forgotten");
        assert_eq!(log.outcome(&test("net", "b")), Outcome::Passed);
        assert_eq!(log.outcome(&test("net", "c")), Outcome::Passed);
        assert_eq!(log.facts.get("veth"), Some(&9));
        let mut log = Log::parse("@begin net\ntest b ... ");
        log.go_on(Log::parse("@begin net\ntest b ... "));
        assert!(!log.is_complete && log.outcome(&test("net", "b")) == Outcome::Missing);
        assert_eq!(log.place(), "in net b");
    }

    #[test]
    fn a_guest_that_did_not_start_has_begun_nothing() {
        assert!(!Log::parse("").has_begun && !Log::parse("noise\n").has_begun);
    }

    #[test]
    fn a_failure_is_no_skip() {
        let log = Log::parse("@begin net\ntest a ... FAILED\n@skips\na\tTCX (needs 6.6)\n@done\n");
        assert_eq!(log.outcome(&test("net", "a")), Outcome::Failed(String::new()));
    }

    #[test]
    fn a_second_guest_excuses_what_passes_there() {
        let first = Log::parse("@begin net\ntest a ... FAILED\ntest b ... FAILED\n@done\n");
        let second = Log::parse("@begin net\ntest a ... ok\ntest b ... FAILED\n@done\n");
        let test = |name: &str| Test { binary: "net".into(), name: name.into() };
        assert_eq!(first.failed(), [test("a"), test("b")]);
        let mut both = first;
        both.second(&second);
        assert!(matches!(both.outcome(&test("a")), Outcome::PassedAlone(_)));
        assert!(matches!(both.outcome(&test("b")), Outcome::Failed(_)));
    }
}
