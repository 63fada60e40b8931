//! Messages of the programs, forwarded to the `log` crate while somebody watches.

use std::io;

use aya::programs::ProgramInfo as Info;
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

use super::{Error, load::INGRESS, pins::Pins};

/// Forwards messages until dropped. Ends at once, and well, where the programs were loaded with logging off.
///
/// # Errors
///
/// When the program is not pinned, or its messages cannot be read.
pub async fn forward(pins: &Pins) -> Result<(), Error> {
    let path = pins.program(INGRESS);
    let action = || format!("read the messages of {}", path.display());
    let program = Info::from_pin(&path).map_err(|source| Error::kernel(action(), source))?;
    let logger = EbpfLogger::init_from_id(program.id()).map_err(|source| Error::kernel(action(), source))?;
    // SAFETY: the logger owns its ring buffer's descriptor, always gives the same, and lives as long as this.
    let logger = unsafe { AsyncFd::register(logger) };
    let mut logger = logger.map_err(|source| Error::kernel(action(), io::Error::from(source)))?;
    loop {
        let mut ready =
            logger.readable_mut().await.map_err(|source: io::Error| Error::kernel(action(), source))?;
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}
