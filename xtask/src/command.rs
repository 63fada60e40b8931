//! How this program runs others: shown first, and a failure is an error that names the command.

use std::{
    convert::Infallible,
    env,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Error, Result, bail, ensure};

/// Shows a command, runs it, and fails unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    show(command);
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{}: {status}", line(command));
    Ok(())
}

/// Like [`run`], but ends the command after a while.
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    show(command);
    let end = Instant::now() + limit;
    let mut child = command.spawn().with_context(|| format!("run {command:?}"))?;
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("wait for {command:?}"))? {
            ensure!(status.success(), "{}: {status}", line(command));
            return Ok(());
        }
        if Instant::now() >= end {
            child.kill().and_then(|()| child.wait()).with_context(|| format!("stop {command:?}"))?;
            bail!("{}: not done after {} s", line(command), limit.as_secs());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// What a quick question prints. Not shown: it changes nothing.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{}: {}: {}",
        line(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).with_context(|| format!("read what {command:?} prints"))
}

/// Shows a command, runs it, and returns what it prints. What it complains of is shown as it comes.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    show(command);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{}: {}", line(command), output.status);
    String::from_utf8(output.stdout).with_context(|| format!("read what {command:?} prints"))
}

/// Shows a command and becomes it, so that its signals and its exit code are its own. Returns only if it cannot
/// be started.
pub(crate) fn exec(command: &mut Command) -> Result<Infallible> {
    show(command);
    Err(Error::new(command.exec()).context(format!("run {command:?}")))
}

/// The programs of this name in `PATH`, in its order, each folder once.
pub(crate) fn in_path(name: &str) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut programs: Vec<PathBuf> = Vec::new();
    for program in env::split_paths(&path).map(|folder| folder.join(name)) {
        if program.is_file() && !programs.contains(&program) {
            programs.push(program);
        }
    }
    programs.into_iter()
}

fn show(command: &Command) {
    eprintln!("+ {}", line(command));
}

/// A command as one would type it, without its environment.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words
        .map(|word| {
            let word = word.to_string_lossy();
            if word.is_empty() || word.contains(|c: char| c.is_whitespace() || "'\"$*;&|()<>".contains(c)) {
                format!("'{}'", word.replace('\'', r"'\''"))
            } else {
                word.into_owned()
            }
        })
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_reads_as_typed() {
        assert_eq!(line(Command::new("a").args(["b c", "", "d='e'"])), r"a 'b c' '' 'd='\''e'\'''");
        assert_eq!(line(Command::new("cargo").args(["test", "--test=net"])), "cargo test --test=net");
    }

    #[test]
    fn a_failure_names_its_command() {
        let error = run(&mut Command::new("false")).expect_err("it fails");
        assert_eq!(error.to_string(), "false: exit status: 1");
    }

    #[test]
    fn a_command_ends_in_time() {
        let error =
            run_within(Command::new("sleep").arg("60"), Duration::ZERO).expect_err("it takes too long");
        assert_eq!(error.to_string(), "sleep 60: not done after 0 s");
    }
}
