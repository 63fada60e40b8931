//! Queueing disciplines and filters: the clsact hook, which every kernel has.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};

use super::{Netlink, Result};

/// Every protocol, as a filter wants it said.
#[expect(clippy::cast_possible_truncation, reason = "0x0003")]
const ALL_PROTOCOLS: u32 = (libc::ETH_P_ALL as u16).to_be() as u32;

/// The qdisc that programs hang on without shaping anything.
const CLSACT: &str = "clsact";

/// A queueing discipline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qdisc {
    /// The link it is on.
    pub link: u32,
    /// Its kind: `noqueue`, `clsact`, ….
    pub kind: String,
}

impl Qdisc {
    /// Whether it is what programs hang on: `clsact`, or its older form.
    #[must_use]
    pub fn is_hook(&self) -> bool {
        self.kind == CLSACT || self.kind == "ingress"
    }
}

/// Which way frames go through a clsact qdisc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the link.
    Ingress,
    /// Out of it.
    Egress,
}

impl Direction {
    const fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { major: TcHandle::CLSACT.major, minor }
    }
}

/// Where a filter stands: filters run in the order of their priorities, and handles tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Lower runs first.
    pub priority: u16,
    /// The filter's number at its priority.
    pub handle: u32,
}

/// A filter of a clsact qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its kind: `bpf`, `flower`, ….
    pub kind: String,
    /// Where it stands.
    pub position: Position,
    /// Its program, where it is one.
    pub program: Option<u32>,
    /// The program's name, as whoever attached it says.
    pub name: Option<String>,
}

impl Netlink {
    /// Every qdisc of the namespace.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn qdiscs(&self) -> Result<Vec<Qdisc>> {
        let message = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let rows = self.dump("list qdiscs", message).await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| match row {
                RouteNetlinkMessage::NewQueueDiscipline(message) => Some(Qdisc {
                    link: u32::try_from(message.header.index).ok()?,
                    kind: kind(&message.attributes).unwrap_or_default(),
                }),
                _ => None,
            })
            .collect())
    }

    /// Makes sure that a link has a clsact qdisc.
    ///
    /// # Errors
    ///
    /// When the kernel has none, or the link is gone.
    pub async fn add_clsact(&self, link: u32) -> Result<()> {
        let action = format!("add a clsact qdisc to link {link}");
        match self.create(&action, RouteNetlinkMessage::NewQueueDiscipline(clsact(link))).await {
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
            result => result,
        }
    }

    /// The filters of a link's clsact qdisc, in the order they run. None where there is no such qdisc.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn filters(&self, link: u32, direction: Direction) -> Result<Vec<Filter>> {
        let message = filter_message(link, direction);
        let action = format!("list the filters of link {link}");
        let rows = match self.dump(&action, RouteNetlinkMessage::GetTrafficFilter(message)).await {
            Err(error) if error.errno() == Some(libc::ENODEV) => Vec::new(),
            rows => rows?,
        };
        let mut filters: Vec<Filter> = rows
            .into_iter()
            .filter_map(|row| match row {
                RouteNetlinkMessage::NewTrafficFilter(message) => filter(&message),
                _ => None,
            })
            .collect();
        filters.sort_by_key(|filter| filter.position.priority);
        Ok(filters)
    }

    /// Puts a program into a link's clsact qdisc, in direct-action mode. What stands at this very position is
    /// replaced at once, so that no frame goes without; nothing else is touched.
    ///
    /// # Errors
    ///
    /// When the link has no clsact qdisc, or the kernel refuses the program.
    pub async fn put_filter(
        &self,
        link: u32,
        direction: Direction,
        position: Position,
        program: BorrowedFd<'_>,
        name: &str,
    ) -> Result<()> {
        let mut message = at(filter_message(link, direction), position);
        let options = [
            TcFilterBpfOption::ProgFd(program.as_raw_fd().unsigned_abs()),
            TcFilterBpfOption::ProgName(name.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        message.attributes = vec![
            TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
            TcAttribute::Options(options.into_iter().map(TcOption::Bpf).collect()),
        ];
        let action = format!("attach {name} to the clsact qdisc of link {link}");
        self.replace(&action, RouteNetlinkMessage::NewTrafficFilter(message)).await
    }

    /// Removes one filter of a link's clsact ingress. Succeeds if there is none.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn delete_filter(&self, link: u32, position: Position) -> Result<()> {
        let mut message = at(filter_message(link, Direction::Ingress), position);
        message.attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned())];
        let action = format!("remove the filter of priority {} from link {link}", position.priority);
        gone_is_fine(self.change(&action, RouteNetlinkMessage::DelTrafficFilter(message)).await)
    }
}

fn clsact(link: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = link.cast_signed();
    message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    message.header.parent = TcHandle::CLSACT;
    message.attributes = vec![TcAttribute::Kind(CLSACT.to_owned())];
    message
}

fn filter_message(link: u32, direction: Direction) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = link.cast_signed();
    message.header.parent = direction.parent();
    message
}

fn at(mut message: TcMessage, Position { priority, handle }: Position) -> TcMessage {
    message.header.handle = handle.into();
    message.header.info = u32::from(priority) << 16 | ALL_PROTOCOLS;
    message
}

/// A filter out of its row. Rows that only announce a priority have no handle and are none.
fn filter(message: &TcMessage) -> Option<Filter> {
    let TcHeader { handle, info, .. } = message.header;
    let position = Position { priority: u16::try_from(info >> 16).ok()?, handle: handle.into() };
    let mut filter = Filter { kind: kind(&message.attributes)?, position, program: None, name: None };
    if position.handle == 0 {
        return None;
    }
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = Some(*id),
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name = Some(name.clone()),
                _ => {}
            }
        }
    }
    Some(filter)
}

fn kind(attributes: &[TcAttribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.clone()),
        _ => None,
    })
}

/// ENOENT: no such qdisc or filter. EINVAL: no qdisc of that kind. ENODEV: the link is gone with all of it.
fn gone_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Ok(()),
        result => result,
    }
}
