//! How far long work has come: a bar on a terminal, nothing in a file.

use std::{
    fmt::Display,
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::topology::Progress;

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
