//! How far long work has come: a bar on a terminal, nothing in a file.

use std::{
    fmt::Display,
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{bench::Watch, topology::Progress};

/// Work shorter than this shows no bar.
const PATIENCE: Duration = Duration::from_millis(300);

/// Work of more steps than this shows one at once: a single step of it may take seconds.
const MANY: usize = 100;

/// Reports to standard error.
#[derive(Debug)]
pub(super) struct Bar {
    bar: ProgressBar,
    started: std::time::Instant,
}

impl Bar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}") {
            bar.set_style(style);
        }
        Self { bar, started: std::time::Instant::now() }
    }
}

impl Bar {
    fn show(&self) {
        if self.bar.is_hidden() && io::stderr().is_terminal() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.bar.enable_steady_tick(PATIENCE);
        }
    }
}

impl Progress for Bar {
    fn start(&self, total: usize) {
        self.bar.set_position(0);
        self.bar.set_length(total.try_into().unwrap_or(u64::MAX));
        if total > MANY {
            self.show();
        }
    }

    fn step(&self, what: &dyn Display) {
        log::info!("{what}");
        if self.started.elapsed() > PATIENCE {
            self.show();
        }
        self.bar.inc(1);
        if !self.bar.is_hidden() {
            self.bar.set_message(what.to_string());
        }
    }

    fn note(&self, what: &dyn Display) {
        log::warn!("{what}");
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A bar with the time that is left, for work whose length is known. On a terminal only.
pub(super) struct TimeBar(ProgressBar);

impl TimeBar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3} %  {eta} left  {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(PATIENCE);
        Self(bar)
    }
}

impl Watch for TimeBar {
    fn begin(&self, total: Duration) {
        self.0.set_length(u64::try_from(total.as_millis()).unwrap_or(u64::MAX));
    }

    fn sample(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    fn took(&self, time: Duration) {
        self.0.inc(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    }

    fn end(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for TimeBar {
    fn drop(&mut self) {
        self.end();
    }
}
