//! A live view of all ports: what is shown, apart from the terminal.

mod draw;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, VecDeque},
};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::{
    net::link::LinkStats,
    stats::{PortStats, Snapshot, rate},
};

pub use draw::draw;

/// How many rates a port's trend has.
const TREND: usize = 60;

/// By what ports are sorted, in the order of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Topology and pod.
    Pod,
    /// The pod's end.
    Port,
    /// Frames from the pod a second.
    RxPackets,
    /// Frames to the pod a second.
    TxPackets,
    /// Bits from the pod a second.
    RxBits,
    /// Bits to the pod a second.
    TxBits,
    /// Frames that ended here, a second.
    Drops,
    /// Frames that ended here.
    Dropped,
}

impl Column {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Pod,
        Self::Port,
        Self::RxPackets,
        Self::TxPackets,
        Self::RxBits,
        Self::TxBits,
        Self::Drops,
        Self::Dropped,
    ];

    /// Its heading.
    #[must_use]
    pub const fn heading(self) -> &'static str {
        match self {
            Self::Pod => "POD",
            Self::Port => "PORT",
            Self::RxPackets => "RX/s",
            Self::TxPackets => "TX/s",
            Self::RxBits => "RX bit/s",
            Self::TxBits => "TX bit/s",
            Self::Drops => "DROP/s",
            Self::Dropped => "DROPPED",
        }
    }

    const fn is_text(self) -> bool {
        matches!(self, Self::Pod | Self::Port)
    }

    fn place(self) -> usize {
        Self::ALL.iter().position(|column| *column == self).unwrap_or_default()
    }
}

/// Which port: of a topology, a pod and its end.
pub type Key = (String, Option<String>, String);

/// How fast a port is, a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Frames from the pod.
    pub rx_packets: f64,
    /// Frames to it.
    pub tx_packets: f64,
    /// Bits from it.
    pub rx_bits: f64,
    /// Bits to it.
    pub tx_bits: f64,
    /// Frames that ended here.
    pub drops: f64,
}

/// A port as it is shown.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub key: Key,
    /// Its counters.
    pub stats: PortStats,
    /// How fast it is.
    pub rates: Rates,
    /// Bits a second, both ways together, the newest last.
    pub trend: VecDeque<u64>,
}

impl Row {
    /// Topology and pod, or the topology alone for the bridge behind a switch.
    #[must_use]
    pub fn pod(&self) -> String {
        let (topology, pod, _) = &self.key;
        pod.as_ref().map_or_else(|| topology.clone(), |pod| format!("{topology}/{pod}"))
    }

    fn compare(&self, other: &Self, column: Column) -> Ordering {
        let by = |read: fn(&Rates) -> f64| read(&self.rates).total_cmp(&read(&other.rates));
        match column {
            Column::Pod => self.pod().cmp(&other.pod()),
            Column::Port => self.key.2.cmp(&other.key.2),
            Column::RxPackets => by(|rates| rates.rx_packets),
            Column::TxPackets => by(|rates| rates.tx_packets),
            Column::RxBits => by(|rates| rates.rx_bits),
            Column::TxBits => by(|rates| rates.tx_bits),
            Column::Drops => by(|rates| rates.drops),
            Column::Dropped => self.stats.dropped_packets().cmp(&other.stats.dropped_packets()),
        }
    }
}

/// What a key asks for, of whoever shows this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing but to draw again.
    Nothing,
    /// The end.
    End,
}

/// What is found out of the port that details are shown of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Programs on its host end, in their order.
    pub programs: Vec<String>,
    /// Features of its host end that are on.
    pub features: Vec<String>,
    /// Where its frames can be redirected to.
    pub targets: Vec<String>,
}

/// What keys are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Keys {
    /// To move and to change what is shown.
    #[default]
    View,
    /// Letters of the filter.
    Filter,
    /// To close the help.
    Help,
}

/// The state of the view.
#[derive(Debug)]
pub struct View {
    rows: BTreeMap<Key, Row>,
    /// The keys of what is shown, in its order.
    shown: Vec<Key>,
    taken: BTreeMap<String, u64>,
    sort: Column,
    reversed: bool,
    filter: String,
    keys: Keys,
    is_paused: bool,
    has_details: bool,
    selected: Option<Key>,
    /// How many rows the table had room for.
    page: usize,
    first: usize,
    found: Found,
    message: Option<String>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            shown: Vec::new(),
            taken: BTreeMap::new(),
            sort: Column::RxBits,
            reversed: false,
            filter: String::new(),
            keys: Keys::default(),
            is_paused: false,
            has_details: false,
            selected: None,
            page: 1,
            first: 0,
            found: Found::default(),
            message: None,
        }
    }
}

impl View {
    /// Takes new counters in, unless it is paused.
    pub fn update(&mut self, snapshots: Vec<Snapshot>) {
        if self.is_paused {
            return;
        }
        let mut before = std::mem::take(&mut self.rows);
        let mut taken = BTreeMap::new();
        for Snapshot { topology, taken_ms, ports, .. } in snapshots {
            let elapsed = self.taken.get(&topology).map(|before| taken_ms.saturating_sub(*before));
            for stats in ports {
                let key = (topology.clone(), stats.pod.clone(), stats.port.clone());
                let earlier = before.remove(&key);
                let row = next(key.clone(), stats, earlier, elapsed);
                self.rows.insert(key, row);
            }
            taken.insert(topology, taken_ms);
        }
        self.taken = taken;
        self.arrange();
    }

    /// Says something at the bottom, or nothing.
    pub fn say(&mut self, message: Option<String>) {
        self.message = message;
    }

    /// The host end of the port that details are shown of.
    #[must_use]
    pub fn wants_details_of(&self) -> Option<&str> {
        let row = self.rows.get(self.selected.as_ref().filter(|_| self.has_details)?)?;
        Some(row.stats.link.as_str()).filter(|link| !link.is_empty())
    }

    /// Shows what was found out of it.
    pub fn tell(&mut self, found: Found) {
        self.found = found;
    }

    /// Does what a key says.
    pub fn key(&mut self, key: KeyEvent) -> Asked {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Asked::End;
        }
        match self.keys {
            Keys::View => self.view_key(key.code),
            Keys::Filter => {
                match key.code {
                    KeyCode::Enter => self.keys = Keys::View,
                    KeyCode::Esc => {
                        self.keys = Keys::View;
                        self.filter.clear();
                    }
                    KeyCode::Backspace => drop(self.filter.pop()),
                    KeyCode::Char(letter) => self.filter.push(letter),
                    _ => {}
                }
                self.arrange();
                Asked::Nothing
            }
            Keys::Help => {
                self.keys = Keys::View;
                if key.code == KeyCode::Char('q') { Asked::End } else { Asked::Nothing }
            }
        }
    }

    fn view_key(&mut self, code: KeyCode) -> Asked {
        match code {
            KeyCode::Esc if self.has_details => self.has_details = false,
            KeyCode::Esc if !self.filter.is_empty() => {
                self.filter.clear();
                self.arrange();
            }
            KeyCode::Char('q') | KeyCode::Esc => return Asked::End,
            KeyCode::Char('?' | 'h') => self.keys = Keys::Help,
            KeyCode::Char('/') => self.keys = Keys::Filter,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('r') => {
                self.reversed = !self.reversed;
                self.arrange();
            }
            KeyCode::Enter | KeyCode::Char('d') => {
                self.has_details = !self.has_details;
                if self.selected.is_none() {
                    self.move_by(1);
                }
                self.found = Found::default();
            }
            KeyCode::Left | KeyCode::Char('<') => self.sort_by(self.sort.place() + Column::ALL.len() - 1),
            KeyCode::Right | KeyCode::Char('>') => self.sort_by(self.sort.place() + 1),
            KeyCode::Up | KeyCode::Char('k') => self.move_by(-1),
            KeyCode::Down | KeyCode::Char('j') => self.move_by(1),
            KeyCode::PageUp => self.move_by(-self.page.cast_signed()),
            KeyCode::PageDown => self.move_by(self.page.cast_signed()),
            KeyCode::Home | KeyCode::Char('g') => self.move_by(isize::MIN / 2),
            KeyCode::End | KeyCode::Char('G') => self.move_by(isize::MAX / 2),
            _ => {}
        }
        Asked::Nothing
    }

    fn sort_by(&mut self, place: usize) {
        self.sort = Column::ALL[place % Column::ALL.len()];
        self.reversed = false;
        self.arrange();
    }

    fn move_by(&mut self, distance: isize) {
        let last = self.shown.len().saturating_sub(1);
        // The first step leads to the first.
        let to = match self.place() {
            Some(at) => at.saturating_add_signed(distance).min(last),
            None => 0_usize.saturating_add_signed(distance.saturating_sub(1)).min(last),
        };
        self.selected = self.shown.get(to).cloned();
        self.found = Found::default();
    }

    /// Where the selected port is among those that are shown.
    fn place(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.shown.iter().position(|key| key == selected)
    }

    /// Filters and sorts: names from A on, numbers from the greatest down, and the other way round if reversed.
    fn arrange(&mut self) {
        let wanted = |row: &&Row| {
            self.filter.is_empty() || format!("{} {}", row.pod(), row.key.2).contains(&self.filter)
        };
        let mut rows: Vec<&Row> = self.rows.values().filter(wanted).collect();
        let descends = self.sort.is_text() == self.reversed;
        rows.sort_by(|a, b| {
            let order = a.compare(b, self.sort);
            let order = if descends { order.reverse() } else { order };
            order.then_with(|| a.key.cmp(&b.key))
        });
        self.shown = rows.into_iter().map(|row| row.key.clone()).collect();
        if self.place().is_none() {
            self.selected = None;
        }
    }

    /// Which rows fit, so that the selected one is among them.
    fn scroll(&mut self, room: usize) -> std::ops::Range<usize> {
        self.page = room.max(1);
        if let Some(at) = self.place() {
            self.first = self.first.min(at).max((at + 1).saturating_sub(self.page));
        }
        self.first = self.first.min(self.shown.len().saturating_sub(self.page));
        self.first..(self.first + self.page).min(self.shown.len())
    }
}

/// A port as it is now, after how it was.
fn next(key: Key, stats: PortStats, earlier: Option<Row>, elapsed: Option<u64>) -> Row {
    let mut rates = Rates::default();
    let mut trend = VecDeque::new();
    if let Some(before) = earlier {
        let elapsed = elapsed.unwrap_or_default();
        let per_second = |read: fn(&PortStats) -> u64| {
            rate(read(&before.stats), read(&stats), elapsed).unwrap_or_default()
        };
        rates = Rates {
            rx_packets: per_second(|port| port.rx().packets),
            tx_packets: per_second(|port| port.tx().packets),
            rx_bits: 8.0 * per_second(|port| port.rx().bytes),
            tx_bits: 8.0 * per_second(|port| port.tx().bytes),
            drops: per_second(PortStats::dropped_packets),
        };
        trend = before.trend;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate is no less than nothing"
        )]
        trend.push_back((rates.rx_bits + rates.tx_bits) as u64);
        if trend.len() > TREND {
            trend.pop_front();
        }
    }
    Row { key, stats, rates, trend }
}

/// What the kernel counts at a port's host end.
fn kernel(stats: &PortStats) -> Option<LinkStats> {
    stats.sent.map(|sent| sent.link)
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::stats::{Sum, port_example};

    fn snapshot(taken_ms: u64, ports: Vec<PortStats>) -> Snapshot {
        Snapshot { topology: "lab".to_owned(), taken_ms, ports, unattributed: Sum::default() }
    }

    fn view() -> View {
        let mut view = View::default();
        view.update(vec![snapshot(
            0,
            vec![port_example("a", 0, 0, 0), port_example("b", 0, 0, 0), port_example("c", 5, 0, 0)],
        )]);
        view.update(vec![snapshot(
            2_000,
            vec![port_example("a", 10, 0, 2), port_example("b", 100, 0, 0), port_example("c", 5, 0, 0)],
        )]);
        view
    }

    fn press(view: &mut View, keys: &str) -> Asked {
        let mut asked = Asked::Nothing;
        for letter in keys.chars() {
            let code = match letter {
                '\n' => KeyCode::Enter,
                '\u{1b}' => KeyCode::Esc,
                letter => KeyCode::Char(letter),
            };
            asked = view.key(code.into());
        }
        asked
    }

    fn pods(view: &View) -> Vec<&str> {
        view.shown.iter().map(|(_, pod, _)| pod.as_deref().unwrap_or("-")).collect()
    }

    fn screen(view: &mut View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(view, frame)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| row(y) + "\n").collect()
    }

    #[test]
    fn rates_are_of_the_time_between() {
        let view = view();
        let row = |pod: &str| &view.rows[&("lab".to_owned(), Some(pod.to_owned()), "eth0".to_owned())];
        assert_eq!(row("b").rates, Rates { rx_packets: 50.0, rx_bits: 40_000.0, ..Rates::default() });
        assert_eq!(
            row("a").rates,
            Rates { rx_packets: 6.0, rx_bits: 4_800.0, drops: 1.0, ..Rates::default() }
        );
        assert_eq!(row("c").rates, Rates::default());
        assert_eq!(row("b").trend, [40_000]);
    }

    #[test]
    fn sorted_by_any_column_both_ways() {
        let mut view = view();
        assert_eq!(pods(&view), ["b", "a", "c"], "bits from the pod, the most first");
        press(&mut view, "r");
        assert_eq!(pods(&view), ["c", "a", "b"]);
        press(&mut view, ">>>");
        assert_eq!(view.sort, Column::Dropped);
        assert_eq!(pods(&view), ["a", "b", "c"]);
        press(&mut view, ">");
        assert_eq!(view.sort, Column::Pod, "behind the last comes the first");
        assert_eq!(pods(&view), ["a", "b", "c"]);
        press(&mut view, "r");
        assert_eq!(pods(&view), ["c", "b", "a"]);
    }

    #[test]
    fn filtered_selected_paused_and_ended() {
        let mut view = view();
        press(&mut view, "/lab/a\n");
        assert_eq!(pods(&view), ["a"]);
        press(&mut view, "\u{1b}");
        assert_eq!(pods(&view).len(), 3);
        press(&mut view, "G");
        assert_eq!(view.place(), Some(2));
        press(&mut view, "jjjkk");
        assert_eq!(view.place(), Some(0));
        press(&mut view, "p");
        view.update(Vec::new());
        assert_eq!(pods(&view).len(), 3, "paused");
        press(&mut view, "p");
        view.update(Vec::new());
        assert!(pods(&view).is_empty() && view.selected.is_none(), "what is gone is not shown");
        assert_eq!(press(&mut view, "?"), Asked::Nothing);
        assert_eq!(press(&mut view, "x"), Asked::Nothing);
        assert_eq!(press(&mut view, "q"), Asked::End);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(view.key(interrupt), Asked::End);
    }

    #[test]
    fn drawn_at_every_size() {
        let mut view = view();
        let text = screen(&mut view, 120, 24);
        for part in ["RX bit/s", "lab/b", "40.0k", "2 no_peer", "help"] {
            assert!(text.contains(part), "no {part} in:\n{text}");
        }
        press(&mut view, "\n");
        view.tell(Found {
            programs: vec!["tcx veth_ingress".to_owned()],
            features: vec!["rx-gro".to_owned()],
            targets: vec!["b eth0".to_owned()],
        });
        let text = screen(&mut view, 120, 40);
        for part in ["ipv4_udp", "0-127", "tcx veth_ingress", "rx-gro", "cpu", "b eth0"] {
            assert!(text.contains(part), "no {part} in:\n{text}");
        }
        press(&mut view, "?");
        assert!(screen(&mut view, 120, 40).contains("sort by another column"));
        for (width, height) in [(1, 1), (20, 3), (40, 10), (80, 24), (300, 100)] {
            let _unused: String = screen(&mut view, width, height);
        }
    }

    #[test]
    fn a_thousand_ports_scroll() {
        let mut view = View::default();
        let ports =
            |n: u64| (0..1_000).map(|pod| port_example(&format!("pod{pod:04}"), n * pod, 0, 0)).collect();
        view.update(vec![snapshot(0, ports(0))]);
        view.update(vec![snapshot(1_000, ports(1))]);
        assert!(screen(&mut view, 100, 20).contains("pod0999"));
        press(&mut view, "j");
        assert_eq!(view.place(), Some(0));
        press(&mut view, "G");
        let text = screen(&mut view, 100, 20);
        assert!(text.contains("pod0000") && !text.contains("pod0999"), "{text}");
    }
}
