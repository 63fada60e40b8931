//! Commands are killed at random moments while traffic flows.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    host::{Host, NAME, Sending},
    report::Report,
};
use crate::{Random, variant::Build};

/// Pods that traffic is between, and which stay.
const PODS: usize = 8;

/// How long a command may run before it is killed, at most.
const LIFE: Duration = Duration::from_millis(120);

/// How often a build tries to finish what was interrupted.
const TRIES: usize = 20;

/// How much of an error is told.
const REASON: usize = 110;

/// How many commands to kill, and how much to send meanwhile.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Kill {
    /// How many commands are killed before they end
    #[arg(long, default_value_t = 1_000)]
    pub count: u64,
    /// What is sent meanwhile.
    #[command(flatten)]
    pub sending: Sending,
    /// Where random numbers begin
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Kills them, and accounts for all that was sent.
#[must_use]
pub fn kill(options: &Kill, progress: &dyn Fn(u64, u64)) -> Report {
    let Sending { datagrams, rate, hook } = options.sending;
    let host = Host::new(hook);
    let empty = host.lab.fingerprint();
    let (few, many) = (host.switch(PODS), host.switch(PODS + 3));
    let (few, many) = (few.args("up"), many.args("up"));
    host.ok(Build::Own, &few);
    let traffic = host.traffic(1, rate, 3);
    let start = Instant::now();
    let mut random = Random::new(options.seed);
    let (mut ended, mut bugs) = (0, 0);
    let (mut killed, mut refused) = (BTreeMap::<&str, u64>::new(), BTreeMap::<String, u64>::new());
    let commands: [&[&str]; 13] = [
        &few,
        &many,
        &many,
        &["up", "--name", "other", "--pods", "3"],
        &["down", "other"],
        &["upgrade", NAME],
        &["upgrade", "--all"],
        &["stats", "--watch", "20ms"],
        &["metrics", "--listen", "127.0.0.1:0"],
        &["agent"],
        &["trace", "--of", NAME, "--json"],
        &["capture", "p1", "-w", "/dev/null"],
        &["ls", "--json"],
    ];
    while killed.values().sum::<u64>() < options.count {
        let build = [Build::Own, Build::Own, Build::Other, Build::Next][random.below(4)];
        let command = commands[random.below(commands.len())];
        let running = host.start(build, command);
        let life = u64::try_from(random.below(usize::try_from(LIFE.as_micros()).unwrap())).unwrap();
        thread::sleep(Duration::from_micros(life));
        running.signal(Signal::SIGKILL);
        let finished = running.finish();
        match finished.status.code() {
            None => *killed.entry(command[0]).or_default() += 1,
            Some(0) => ended += 1,
            Some(1) => *refused.entry(reason(&finished.err)).or_default() += 1,
            Some(_) => {
                bugs += 1;
                eprintln!("{finished:?}");
            }
        }
        progress(killed.values().sum(), options.count);
    }
    traffic.wait_for(datagrams);
    let elapsed = u64::try_from(start.elapsed().as_millis()).unwrap();
    // What was interrupted may be for the build to finish that began it.
    let mut builds = [Build::Own, Build::Next, Build::Other].into_iter().cycle().take(TRIES);
    let finisher = builds.find(|build| host.run(*build, &few).status.success());
    host.ok(Build::Own, &few);
    let mut report = Report::default();
    report.at_least("commands killed", killed.values().sum(), options.count);
    for (command, count) in killed {
        report.tell(format!("of them `veth {command}`"), count);
    }
    report.tell("commands that ended before", ended);
    for (reason, count) in refused {
        report.tell(format!("refused: {reason}"), count);
    }
    report.none("commands that ended otherwise", bugs);
    report.must("the next `up` finishes what was killed", finisher.is_some(), "true", finisher.is_some());
    report.at_least("datagrams a second", traffic.sent() * 1_000 / elapsed, rate * 9 / 10);
    let accounts = traffic.finish(&host, datagrams, &mut report);
    host.check(Build::Own, &accounts, &mut report);
    host.leave(&[Build::Own, Build::Next], &empty, &mut report);
    report
}

/// The first words of an error's last line: enough to know it by.
fn reason(err: &str) -> String {
    let line = err.lines().last().unwrap_or_default();
    line.chars().take(REASON).collect()
}
