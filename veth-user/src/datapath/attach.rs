//! Attaching: one function a hook. Each replaces an attachment of ours that is there already, in place, and refuses
//! to become a second one.

use std::{
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::programs::{
    LinkOrder, Program, ProgramError, ProgramInfo, SchedClassifier, TcAttachType, XdpMode,
    links::{FdLink, LinkError, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
    xdp::XdpLink,
};

use super::{
    Datapath, Error, Hook, Place, check_look_up, link_error,
    load::{COUNT, INGRESS, XDP, count},
    pin_error,
    pins::remove_pin,
};
use crate::net::{
    Netlink, Netns,
    link::Link,
    tc::{Direction, Filter, Position},
};

/// How often a list of programs is read that changes meanwhile.
const QUERY_TRIES: u32 = 5;

/// Our filters' number, "veth" in ASCII: no other tool's by accident.
const HANDLE: u32 = u32::from_be_bytes(*b"veth");

/// The priority of our filters. The kernel gives 49,152 and less to those who do not care, and people write small
/// numbers, so the last place is behind all of them.
const fn priority(place: Place) -> u16 {
    match place {
        Place::First => 1,
        Place::Last => 0xfffe,
    }
}

/// A pod's end whose other end is in another pod, and what is counted there.
pub struct InnerEnd<'a> {
    /// The pod.
    pub namespace: &'a Netns,
    /// The link in it.
    pub link: &'a Link,
    /// Where the attachment is pinned, where it is one that is.
    pub pin: PathBuf,
    /// The slot of the port whose frames come in there.
    pub from: u32,
    /// The port's own.
    pub to: u32,
}

/// Whether our counter is on a pod's end.
///
/// # Errors
///
/// When the kernel does not answer.
pub async fn has_counter(namespace: &Netns, link: &Link, hook: Hook) -> Result<bool, Error> {
    let there = if hook == Hook::Tcx {
        namespace.run(|| tcx_chain(&link.name, TcAttachType::Ingress))??
    } else {
        let filters = namespace.netlink()?.filters(link.index, Direction::Ingress).await?;
        filters.into_iter().map(from_filter).collect()
    };
    Ok(there.iter().any(|attached| attached.name == COUNT))
}

/// A program on a link's ingress, whoever attached it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Where.
    pub hook: Hook,
    /// The program's number, where it is one: filters of other kinds have none.
    pub program: Option<u32>,
    /// Its name, or the kind of the filter.
    pub name: String,
    /// Its place among filters.
    pub position: Option<Position>,
}

impl Attached {
    /// Whether it carries the name of one of our programs.
    #[must_use]
    pub fn is_named_ours(&self) -> bool {
        [INGRESS, XDP, COUNT].contains(&self.name.as_str())
    }
}

/// What is attached to a link's ingress, in the order it runs: XDP, then TCX, then filters. The link is one of the
/// calling thread's namespace.
///
/// # Errors
///
/// When the kernel does not answer.
pub async fn attached(netlink: &Netlink, link: &Link) -> Result<Vec<Attached>, Error> {
    let mut all = Vec::new();
    if let Some(xdp) = link.xdp {
        let name = name_of(xdp.id);
        let hook = if xdp.native { Hook::Xdp } else { Hook::XdpGeneric };
        all.push(Attached { hook, program: Some(xdp.id), name, position: None });
    }
    all.extend(tcx_chain(&link.name, TcAttachType::Ingress)?);
    all.extend(netlink.filters(link.index, Direction::Ingress).await?.into_iter().map(from_filter));
    Ok(all)
}

/// What is attached to a link's ingress by one hook.
///
/// # Errors
///
/// When the kernel does not answer.
pub async fn attached_by(netlink: &Netlink, link: &Link, hook: Hook) -> Result<Vec<Attached>, Error> {
    match hook {
        Hook::Tcx => tcx_chain(&link.name, TcAttachType::Ingress),
        Hook::Clsact | Hook::Xdp | Hook::XdpGeneric => {
            Ok(attached(netlink, link).await?.into_iter().filter(|attached| attached.hook == hook).collect())
        }
    }
}

/// What is attached to a link's egress. `bpf_redirect_peer` goes past all of it.
///
/// # Errors
///
/// When the kernel does not answer.
pub async fn attached_to_egress(netlink: &Netlink, link: &Link) -> Result<Vec<Attached>, Error> {
    let mut all = tcx_chain(&link.name, TcAttachType::Egress)?;
    all.extend(netlink.filters(link.index, Direction::Egress).await?.into_iter().map(from_filter));
    Ok(all)
}

fn from_filter(filter: Filter) -> Attached {
    let Filter { kind, position, program, name } = filter;
    Attached { hook: Hook::Clsact, program, name: name.unwrap_or(kind), position: Some(position) }
}

/// The TCX programs of a link; none on kernels without TCX, and none for whoever may not ask.
fn tcx_chain(link: &str, direction: TcAttachType) -> Result<Vec<Attached>, Error> {
    let entry = |program: ProgramInfo| Attached {
        hook: Hook::Tcx,
        program: Some(program.id()),
        name: program.name_as_str().unwrap_or_default().to_owned(),
        position: None,
    };
    let action = format!("list the TCX programs on {link}");
    check_look_up(&action)?;
    let mut tries = 0;
    loop {
        let error = match SchedClassifier::query_tcx(link, direction) {
            Ok((_, chain)) => return Ok(chain.into_iter().map(entry).collect()),
            Err(error) => error,
        };
        let errno = match &error {
            ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
            _ => None,
        };
        if matches!(errno, Some(libc::EINVAL | libc::EPERM)) {
            return Ok(Vec::new());
        }
        // A program may go between the list and the look at it.
        tries += 1;
        if tries == QUERY_TRIES {
            return Err(Error::program(action, INGRESS, error));
        }
    }
}

/// A loaded program's name.
fn name_of(program: u32) -> String {
    let info = aya::programs::loaded_programs().flatten().find(|info| info.id() == program);
    info.and_then(|info| info.name_as_str().map(str::to_owned)).unwrap_or_default()
}

impl Datapath {
    /// Attaches to a link's ingress, so that it stays when we end: TCX and XDP attachments are pinned, filters stay
    /// as long as their link. The link is one of the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// When the link is gone, the kernel refuses, or a program of ours is there that belongs to somebody else.
    pub async fn attach(
        &mut self,
        netlink: &Netlink,
        hook: Hook,
        place: Place,
        link: &Link,
    ) -> Result<(), Error> {
        let there = attached(netlink, link).await?;
        let pin = self.pins.link(&link.name);
        self.pins.adopt(&pin)?;
        let is_ours = |program: Option<u32>| program.is_some_and(|program| self.programs.contains(&program));
        let replaceable =
            |attached: &&Attached| attached.hook == hook && (is_ours(attached.program) || pin.exists());
        let second = |attached: &&Attached| attached.is_named_ours() && !replaceable(attached);
        if let Some(Attached { hook, program, .. }) = there.iter().find(second) {
            let (link, hook, program) = (link.name.clone(), *hook, program.unwrap_or_default());
            return Err(Error::AttachedTwice { link, hook, program });
        }
        let taken = |attached: &&Attached| attached.hook.is_xdp() && !attached.is_named_ours();
        if hook.is_xdp()
            && let Some(Attached { name, .. }) = there.iter().find(taken)
        {
            return Err(Error::XdpTaken { link: link.name.clone(), program: name.clone() });
        }
        match hook {
            Hook::Tcx => self.attach_tcx(place, link),
            Hook::Clsact => self.attach_clsact(netlink, place, link).await,
            Hook::Xdp => self.attach_xdp(XdpMode::Driver, link),
            Hook::XdpGeneric => self.attach_xdp(XdpMode::Skb, link),
        }
    }

    /// Counts what comes out of a pod's end, from the slot of another pod to its own. The program stays when we end.
    ///
    /// # Errors
    ///
    /// When the link is gone or the kernel refuses.
    pub async fn attach_counter(&self, hook: Hook, place: Place, end: &InnerEnd<'_>) -> Result<(), Error> {
        let InnerEnd { namespace, link, pin, from, to } = end;
        let action = format!("attach {hook} ingress to {}", link.name);
        let failed = |source| Error::program(action.clone(), COUNT, source);
        let mut ebpf = count(&self.pins, *from, *to)?;
        let Some(Program::SchedClassifier(program)) = ebpf.program_mut(COUNT) else {
            return Err(Error::NotLoaded);
        };
        if hook != Hook::Tcx {
            let netlink = namespace.netlink()?;
            netlink.add_clsact(link.index).await?;
            let fd = program.fd().map_err(failed)?;
            let put =
                netlink.put_filter(link.index, Direction::Ingress, position(place), fd.as_fd(), COUNT).await;
            return Ok(put?);
        }
        self.pins.adopt(pin)?;
        if let Ok(there) = pinned::<SchedClassifierLink>(pin, &action)
            && program.attach_to_link(there).is_ok()
        {
            return Ok(());
        }
        // A look at it may have found it gone from the link, so that its pin is worth nothing.
        remove_pin(pin)?;
        check_look_up(&action)?;
        let options = || TcAttachOptions::TcxOrder(order(place));
        let attached = namespace.run(|| {
            let id = program.attach_with_options(&link.name, TcAttachType::Ingress, options())?;
            program.take_link(id)
        })?;
        self::pin(attached.map_err(failed)?, pin.clone(), &action)
    }

    /// TCX. Minimum kernel version: 6.6.
    fn attach_tcx(&mut self, place: Place, link: &Link) -> Result<(), Error> {
        let action = format!("attach tcx ingress to {}", link.name);
        let failed = |source| Error::program(action.clone(), INGRESS, source);
        let path = self.pins.link(&link.name);
        let program = self.classifier();
        if path.exists() {
            let pinned: SchedClassifierLink = pinned(&path, &action)?;
            return program.attach_to_link(pinned).map(drop).map_err(failed);
        }
        check_look_up(&action)?;
        let options = TcAttachOptions::TcxOrder(order(place));
        let id = program.attach_with_options(&link.name, TcAttachType::Ingress, options).map_err(failed)?;
        let attached = program.take_link(id).map_err(failed)?;
        pin(attached, path, &action)
    }

    /// A clsact filter at our own position, through netlink: aya's attachment would end with this process.
    async fn attach_clsact(&mut self, netlink: &Netlink, place: Place, link: &Link) -> Result<(), Error> {
        netlink.add_clsact(link.index).await?;
        let program = self.classifier();
        let failed =
            |source| Error::program(format!("attach clsact ingress to {}", link.name), INGRESS, source);
        let fd = program.fd().map_err(failed)?;
        let position = position(place);
        match netlink.put_filter(link.index, Direction::Ingress, position, fd.as_fd(), INGRESS).await {
            // A priority holds filters of one kind and protocol.
            Err(error) if error.errno() == Some(libc::EINVAL) => {
                Err(Error::PriorityTaken { link: link.name.clone(), priority: position.priority })
            }
            result => Ok(result?),
        }
    }

    /// XDP. Minimum kernel version: 6.2, for redirects that neither crash nor corrupt on veth.
    fn attach_xdp(&mut self, mode: XdpMode, link: &Link) -> Result<(), Error> {
        let action = format!("attach xdp to {}", link.name);
        let failed = |source| Error::program(action.clone(), XDP, source);
        let path = self.pins.link(&link.name);
        let program = self.xdp()?;
        if path.exists() {
            let pinned: XdpLink = pinned(&path, &action)?;
            return program.attach_to_link(pinned).map(drop).map_err(failed);
        }
        let id = program.attach_to_if_index(link.index, mode).map_err(failed)?;
        let attached = program.take_link(id).map_err(failed)?;
        pin(attached, path, &action)
    }
}

/// An attachment that was pinned, to put another program into.
fn pinned<T: TryFrom<FdLink, Error = LinkError>>(path: &Path, action: &str) -> Result<T, Error> {
    let pinned = PinnedLink::from_pin(path).map_err(|source| link_error(action, source))?;
    T::try_from(FdLink::from(pinned)).map_err(|source| link_error(action, source))
}

/// Pins an attachment, so that it stays when we end.
fn pin<T>(attached: T, path: PathBuf, action: &str) -> Result<(), Error>
where
    FdLink: TryFrom<T, Error = LinkError>,
{
    let attached = FdLink::try_from(attached).map_err(|source| link_error(action, source))?;
    // Dropping the returned handle keeps the pin.
    attached.pin(&path).map(drop).map_err(|source| pin_error("pin the link", path, source))
}

/// Takes our filter, one of these programs, off a link that is not ours to delete. The qdisc stays: others may come to use
/// it, and an empty one does nothing. Succeeds if there is none.
///
/// # Errors
///
/// When the kernel refuses.
pub async fn detach_clsact(netlink: &Netlink, link: &Link, programs: &[u32]) -> Result<(), Error> {
    for filter in netlink.filters(link.index, Direction::Ingress).await? {
        let is_ours = filter.program.is_some_and(|program| programs.contains(&program));
        if filter.position.handle == HANDLE && is_ours {
            netlink.delete_filter(link.index, filter.position).await?;
        }
    }
    Ok(())
}

fn order(place: Place) -> LinkOrder {
    match place {
        Place::Last => LinkOrder::last(),
        Place::First => LinkOrder::first(),
    }
}

const fn position(place: Place) -> Position {
    Position { priority: priority(place), handle: HANDLE }
}
