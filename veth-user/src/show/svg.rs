//! A picture.
//!
//! A card for each path, one below the other, with the pods in a grid on it, so that nothing can overlap however the
//! topology looks; what joins cards runs in a lane of its own to the right of them.

use std::fmt::Write as _;

use super::{HOST, elsewhere, ends, is_leg, leaves, list, ports_of, unconnected, what};
use crate::topology::{Kind, Topology};

/// Pods on a card; of more, the first few.
const PODS_MAX: usize = 60;
const PODS_FIRST: usize = 23;

/// Pods side by side.
const COLUMNS: usize = 6;

/// In units of a pixel: a character of the font, a line of it, the space within a box and between boxes.
const CHARACTER: usize = 7;
const LINE: usize = 15;
const PADDING: usize = 8;
const GAP: usize = 20;

/// The title of a card.
const TITLE: usize = 2 * LINE + PADDING;

/// A rectangle.
#[derive(Clone, Copy, Debug)]
struct Area {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
}

/// A pod on a card: its lines, the first of them its name.
#[derive(Debug)]
struct Tile {
    lines: Vec<String>,
    /// Whether it is on other cards as well.
    is_shared: bool,
}

/// A path, or whatever else has pods.
#[derive(Debug)]
struct Card {
    title: String,
    subtitle: String,
    kind: Option<Kind>,
    boxes: Vec<Tile>,
}

/// What joins two cards.
#[derive(Debug)]
struct Lane {
    ends: [usize; 2],
    lines: Vec<String>,
    is_cable: bool,
}

/// A picture of the topology that stands by itself.
#[must_use]
pub fn svg(topology: &Topology) -> String {
    let (cards, tracks) = describe(topology);
    let text_width =
        |lines: &[String]| lines.iter().map(|line| line.chars().count()).max().unwrap_or(0) * CHARACTER;
    let boxes = || cards.iter().flat_map(|card| &card.boxes);
    let cell = Area {
        x: 0,
        y: 0,
        width: boxes().map(|pod| text_width(&pod.lines)).max().unwrap_or(0) + 2 * PADDING,
        height: boxes().map(|pod| pod.lines.len()).max().unwrap_or(0) * LINE + 2 * PADDING,
    };
    let columns = boxes_a_row(&cards);
    let titles = cards.iter().map(|card| text_width(&[card.title.clone(), card.subtitle.clone()])).max();
    let width = (columns * (cell.width + GAP) + GAP).max(titles.unwrap_or(0) + 2 * GAP);

    let mut picture = Picture::default();
    let mut areas = Vec::new();
    let mut top = GAP + 2 * LINE;
    for (number, card) in cards.iter().enumerate() {
        let rows = card.boxes.len().div_ceil(COLUMNS);
        // Tall enough for what leaves it to the right.
        let leaving = tracks.iter().filter(|lane| lane.ends.contains(&number)).count();
        let height = (TITLE + GAP + rows * (cell.height + GAP)).max((leaving + 2) * LINE);
        let area = Area { x: GAP, y: top, width, height };
        picture.card(card, area, cell);
        areas.push(area);
        top += height + GAP;
    }

    let mut left = GAP + width + GAP;
    let mut used = vec![0; cards.len()];
    for lane in &tracks {
        let [from, to] = lane.ends.map(|card| {
            used[card] += 1;
            areas.get(card).map_or(0, |area| area.y + used[card] * LINE)
        });
        picture.lane(lane, GAP + width, left, [from, to]);
        left += text_width(&lane.lines) + 2 * GAP;
    }
    let title = escape(&topology.name);
    let title_width = topology.name.chars().count() * 2 * CHARACTER + 2 * GAP;
    let (width, height) = (left.max(title_width), top);
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="ui-monospace, 'DejaVu Sans Mono', monospace" font-size="11">
<title>{title}</title>
<rect width="{width}" height="{height}" fill="#ffffff"/>
<text x="{GAP}" y="{}" font-size="18" font-weight="bold" fill="#222222">{title}</text>
{}</svg>
"##,
        GAP + LINE,
        picture.items,
    )
}

/// What there is to draw.
fn describe(topology: &Topology) -> (Vec<Card>, Vec<Lane>) {
    let mut cards = Vec::new();
    let mut tracks = Vec::new();
    let is_alone = topology.cables.iter().all(|cable| !is_leg(cable))
        && topology.paths.iter().all(|path| leaves(path).is_none());
    let unconnected = unconnected(topology);
    let host = topology.paths.len();
    for (number, path) in topology.paths.iter().enumerate() {
        let ports = ports_of(topology, number);
        let shown = if ports.len() > PODS_MAX { PODS_FIRST } else { ports.len() };
        let mut boxes: Vec<Tile> = ports
            .iter()
            .take(shown)
            .map(|(pod, port)| {
                let elsewhere = elsewhere(topology, pod, number);
                let mut lines = vec![pod.name.clone(), ends(port)];
                lines.extend(port.addresses.iter().map(ToString::to_string));
                lines.extend(elsewhere.iter().map(|place| format!("also on {place}")));
                Tile { lines, is_shared: !elsewhere.is_empty() }
            })
            .collect();
        if ports.len() > shown {
            boxes.push(Tile { lines: vec![format!("and {} more", ports.len() - shown)], is_shared: false });
        }
        cards.push(Card {
            title: path.name.clone(),
            subtitle: format!("{}, MTU {}", what(path), path.mtu),
            kind: Some(path.kind),
            boxes,
        });
        if leaves(path).is_some() {
            let mut lines = vec!["gateway".to_owned()];
            lines.extend(path.gateway.iter().map(ToString::to_string));
            lines.extend(path.outside.then(|| "and outside".to_owned()));
            tracks.push(Lane { ends: [number, host], lines, is_cable: false });
        }
    }
    if !is_alone {
        cards.push(Card {
            title: HOST.to_owned(),
            subtitle: "the namespace that the host ends are in".to_owned(),
            kind: None,
            boxes: Vec::new(),
        });
    }
    for cable in &topology.cables {
        let ends = cable.ends.each_ref().map(|end| end.path.unwrap_or(host));
        let mut lines = vec![cable.name.clone(), format!("MTU {}", cable.mtu)];
        lines.extend(
            cable
                .ends
                .iter()
                .map(|end| format!("{} {}", end.link, list(end.addresses.iter())).trim_end().to_owned()),
        );
        if ends.iter().all(|end| *end < cards.len()) {
            tracks.push(Lane { ends, lines, is_cable: true });
        }
    }
    if !unconnected.is_empty() {
        let boxes = unconnected.iter().map(|pod| Tile { lines: vec![pod.name.clone()], is_shared: false });
        cards.push(Card {
            title: "on no path".to_owned(),
            subtitle: String::new(),
            kind: None,
            boxes: boxes.collect(),
        });
    }
    (cards, tracks)
}

fn boxes_a_row(cards: &[Card]) -> usize {
    cards.iter().map(|card| card.boxes.len()).max().unwrap_or(0).min(COLUMNS)
}

/// The items of a picture.
#[derive(Default)]
struct Picture {
    items: String,
}

impl Picture {
    fn add(&mut self, item: &str) {
        self.items.push_str(item);
        self.items.push('\n');
    }

    fn card(&mut self, card: &Card, area: Area, cell: Area) {
        let (fill, stroke) = colours(card.kind);
        self.rectangle(area, &format!(r#"rx="8" fill="{fill}" stroke="{stroke}" stroke-width="1.5""#));
        let x = area.x + PADDING + GAP / 2;
        self.text(
            x,
            area.y + LINE + PADDING / 2,
            r##"font-size="14" font-weight="bold" fill="#222222""##,
            &card.title,
        );
        self.text(x, area.y + 2 * LINE + PADDING / 2, r##"fill="#444444""##, &card.subtitle);
        let is_line = matches!(card.kind, Some(Kind::Direct | Kind::Wire));
        for (row, boxes) in card.boxes.chunks(COLUMNS).enumerate() {
            let y = area.y + TITLE + GAP + row * (cell.height + GAP);
            let bus = y - GAP / 2;
            let x = |column: usize| area.x + GAP + column * (cell.width + GAP);
            if card.kind.is_some() && !is_line {
                // A rail down the left side, and one along the row, from which each pod hangs.
                let start = area.x + GAP / 2;
                let end = x(boxes.len() - 1) + cell.width / 2;
                let from = area.y + TITLE;
                self.line(&format!("M{start} {from}V{bus}H{end}"), stroke, "");
            }
            for (column, pod) in boxes.iter().enumerate() {
                let place = Area { x: x(column), y, ..cell };
                if is_line && column > 0 {
                    let middle = y + cell.height / 2;
                    self.line(&format!("M{} {middle}H{}", place.x - GAP, place.x), stroke, "");
                } else if card.kind.is_some() && !is_line {
                    self.line(&format!("M{} {bus}V{y}", place.x + cell.width / 2), stroke, "");
                }
                self.pod(pod, place);
            }
        }
    }

    fn pod(&mut self, pod: &Tile, area: Area) {
        let stroke = if pod.is_shared {
            r##"stroke="#b00020" stroke-width="2" stroke-dasharray="5 3""##
        } else {
            r##"stroke="#777777""##
        };
        self.rectangle(area, &format!(r##"rx="14" fill="#ffffff" {stroke}"##));
        for (number, line) in pod.lines.iter().enumerate() {
            let style = if number == 0 { r#"font-weight="bold""# } else { "" };
            let y = area.y + PADDING + number * LINE + LINE * 3 / 4;
            self.text(area.x + PADDING, y, style, line);
        }
    }

    fn lane(&mut self, lane: &Lane, edge: usize, x: usize, [from, to]: [usize; 2]) {
        let style = if lane.is_cable { "" } else { r#"stroke-dasharray="4 4""# };
        self.line(&format!("M{edge} {from}H{x}V{to}H{edge}"), "#333333", style);
        let middle = from.midpoint(to).saturating_sub(lane.lines.len() * LINE / 2);
        for (number, line) in lane.lines.iter().enumerate() {
            let weight = if number == 0 { r#" font-weight="bold""# } else { "" };
            // With a halo: other tracks may pass behind it.
            let style = format!(r##"paint-order="stroke" stroke="#ffffff" stroke-width="4"{weight}"##);
            self.text(x + PADDING, middle + (number + 1) * LINE, &style, line);
        }
    }

    fn rectangle(&mut self, Area { x, y, width, height }: Area, style: &str) {
        self.add(&format!(r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" {style}/>"#));
    }

    fn line(&mut self, path: &str, stroke: &str, style: &str) {
        self.add(&format!(r#"<path d="{path}" fill="none" stroke="{stroke}" stroke-width="1.5" {style}/>"#));
    }

    fn text(&mut self, x: usize, y: usize, style: &str, text: &str) {
        self.add(&format!(r#"<text x="{x}" y="{y}" {style}>{}</text>"#, escape(text)));
    }
}

/// The fill and the outline of a card.
const fn colours(kind: Option<Kind>) -> (&'static str, &'static str) {
    match kind {
        Some(Kind::Direct) => ("#f3f3f3", "#666666"),
        Some(Kind::Wire) => ("#e6f4ea", "#1e7e34"),
        Some(Kind::Switch) => ("#e3f2fd", "#1565c0"),
        Some(Kind::Bridge) => ("#fff3e0", "#b35900"),
        Some(Kind::Route) => ("#f3e5f5", "#7b1fa2"),
        Some(Kind::Ovs) => ("#e0f2f1", "#00695c"),
        None => ("#fafafa", "#444444"),
    }
}

/// Text as XML has it. What XML 1.0 cannot hold at all becomes the replacement character.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\t' | '\n' | '\r' => escaped.push(' '),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            other => {
                let _unused: std::fmt::Result = write!(escaped, "{other}");
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use roxmltree::{Document, Node};

    use super::*;
    use crate::topology::model::DEFAULT_MTU;

    fn number(node: &Node<'_, '_>, name: &str) -> usize {
        node.attribute(name).unwrap_or("0").parse().unwrap()
    }

    /// Every rectangle of one roundness: 8 is a card's, 14 a pod's.
    fn areas(document: &Document<'_>, rx: &str) -> Vec<Area> {
        let nodes = document.descendants().filter(|node| node.attribute("rx") == Some(rx));
        nodes
            .map(|node| Area {
                x: number(&node, "x"),
                y: number(&node, "y"),
                width: number(&node, "width"),
                height: number(&node, "height"),
            })
            .collect()
    }

    fn overlap(a: &Area, b: &Area) -> bool {
        a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height
    }

    #[test]
    fn nothing_overlaps_and_all_is_inside() {
        let switches =
            [2, 7, 50, 60, 61, 1_000].map(|pods| Topology::switch("s", pods, DEFAULT_MTU).unwrap());
        let wire = Topology::wire("wire", DEFAULT_MTU).unwrap();
        for topology in switches.into_iter().chain([wire, super::super::tests::everything()]) {
            let text = svg(&topology);
            let document = Document::parse(&text).unwrap();
            let (width, height) =
                (number(&document.root_element(), "width"), number(&document.root_element(), "height"));
            let cards = areas(&document, "8");
            let pods = areas(&document, "14");
            for group in [&cards, &pods] {
                for (at, a) in group.iter().enumerate() {
                    assert!(a.x + a.width <= width && a.y + a.height <= height, "{a:?} is outside");
                    assert!(group[at + 1..].iter().all(|b| !overlap(a, b)), "{a:?}");
                }
            }
            for pod in &pods {
                let is_on = |card: &Area| {
                    card.x <= pod.x
                        && card.y <= pod.y
                        && pod.x + pod.width <= card.x + card.width
                        && pod.y + pod.height <= card.y + card.height
                };
                assert!(cards.iter().any(is_on), "{pod:?} is on no card");
            }
            for node in document.descendants().filter(|node| node.has_tag_name("text")) {
                assert!(number(&node, "x") < width && number(&node, "y") < height);
            }
        }
    }

    #[test]
    fn what_is_not_xml_is_replaced() {
        assert_eq!(escape("<a & 'b'>\u{1}\n"), "&lt;a &amp; &apos;b&apos;&gt;\u{fffd} ");
    }
}
