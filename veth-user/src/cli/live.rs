//! A table that is drawn over itself on a terminal, and one after the other anywhere else.

use std::io::{self, IsTerminal as _};

use anyhow::Result;
use crossterm::{
    Command as _,
    cursor::MoveToPreviousLine,
    terminal::{Clear, ClearType},
};

/// Where tables are drawn.
#[derive(Debug)]
pub(super) struct Live {
    terminal: bool,
    drawn: u16,
}

impl Live {
    pub(super) fn new() -> Self {
        Self { terminal: io::stdout().is_terminal(), drawn: 0 }
    }

    /// Rows of ports that fit, with headings and a line below.
    pub(super) fn rows(&self) -> usize {
        if !self.terminal {
            return usize::MAX;
        }
        let height = crossterm::terminal::size().map_or(24, |(_, height)| height);
        usize::from(height.saturating_sub(5).max(1))
    }

    /// Draws text over what was drawn before.
    pub(super) fn draw(&mut self, text: &str) -> Result<()> {
        let mut out = String::new();
        if self.terminal && self.drawn > 0 {
            MoveToPreviousLine(self.drawn).write_ansi(&mut out)?;
            Clear(ClearType::FromCursorDown).write_ansi(&mut out)?;
        }
        // A line wider than the terminal takes several rows.
        let width = crossterm::terminal::size().map_or(80, |(width, _)| usize::from(width.max(1)));
        let rows: usize = text.lines().map(|line| line.chars().count().div_ceil(width).max(1)).sum();
        self.drawn = u16::try_from(rows).unwrap_or(u16::MAX);
        out.push_str(text);
        super::print(&out)
    }
}
