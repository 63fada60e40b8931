//! Attaching: one function a hook.

use aya::programs::{
    LinkOrder, TcAttachType,
    links::FdLink,
    tc::{SchedClassifierLink, TcAttachOptions},
};

use super::{Datapath, Error, link_error, pin_error};

impl Datapath {
    /// Attaches the TC program to a link's ingress by TCX, behind everything that is there, and pins the
    /// link, so that it stays when we end. The link is looked up in the calling thread's namespace.
    ///
    /// Minimum kernel version: 6.6.
    ///
    /// # Errors
    ///
    /// When the link is gone or the kernel refuses.
    pub fn attach(&mut self, link: &str) -> Result<(), Error> {
        let action = format!("attach tcx ingress to {link}");
        let program = self.program()?;
        let id = program
            .attach_with_options(link, TcAttachType::Ingress, TcAttachOptions::TcxOrder(LinkOrder::last()))
            .map_err(|source| Error::program(action.clone(), super::load::INGRESS, source))?;
        let attached: SchedClassifierLink = program
            .take_link(id)
            .map_err(|source| Error::program(action.clone(), super::load::INGRESS, source))?;
        let attached = FdLink::try_from(attached).map_err(|source| link_error(action, source))?;
        let path = self.pins.link(link);
        // Dropping the returned handle keeps the pin.
        attached.pin(&path).map(drop).map_err(|source| pin_error("pin the link", path, source))
    }
}
