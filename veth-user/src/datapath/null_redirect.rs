//! The floor of the technique, to measure against: programs that only call `bpf_redirect_peer`.

use std::os::fd::AsFd as _;

use aya::{
    Ebpf,
    programs::{LinkOrder, Program, TcAttachType, tc::TcAttachOptions},
};

use super::{
    Error, Hook,
    load::{NULL_REDIRECT, load_null_redirect},
};
use crate::net::{
    Netlink,
    link::Link,
    tc::{Direction, Position},
};

/// Programs that are attached before all others, for as long as this lives.
#[derive(Default)]
pub struct NullRedirect {
    loaded: Vec<Ebpf>,
}

impl NullRedirect {
    /// Hands every frame that comes in on a link to the peer of another, whoever it is for.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn attach(
        &mut self,
        netlink: &Netlink,
        hook: Hook,
        link: &Link,
        target: u32,
    ) -> Result<(), Error> {
        let failed = |source| {
            Error::program(format!("attach {NULL_REDIRECT} to {}", link.name), NULL_REDIRECT, source)
        };
        let mut ebpf = load_null_redirect(target)?;
        let Some(Program::SchedClassifier(program)) = ebpf.program_mut(NULL_REDIRECT) else {
            return Err(Error::NotLoaded);
        };
        if hook == Hook::Tcx {
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            program.attach_with_options(&link.name, TcAttachType::Ingress, options).map_err(failed)?;
        } else {
            netlink.add_clsact(link.index).await?;
            let fd = program.fd().map_err(failed)?;
            let first = Position { priority: 1, handle: 1 };
            netlink.put_filter(link.index, Direction::Ingress, first, fd.as_fd(), NULL_REDIRECT).await?;
        }
        self.loaded.push(ebpf);
        Ok(())
    }
}
