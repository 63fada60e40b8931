//! A route netlink socket that was opened in one namespace and is used from anywhere.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::Handle;
use tokio::task::JoinHandle;

use super::{Error, Netns, Result};

/// How long an interrupted dump is read again before giving up. Where hundreds of links are being made, every
/// reading may be interrupted for a while.
const DUMP_PATIENCE: Duration = Duration::from_secs(10);

/// The pause before the first repetition. It doubles each time.
const DUMP_PAUSE: Duration = Duration::from_millis(1);

/// A connection to the kernel's route netlink, bound to the namespace it was opened in.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    driver: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Netlink {
    /// Connects in the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn open() -> Result<Self> {
        // Without strict checks the kernel overlooks what a dump is asked for: only of one link, or of another
        // namespace. Since 4.20.
        let (mut connection, handle, _messages) = rtnetlink::new_connection_with_strict_check()
            .map_err(|source| Error::new("open a netlink socket", source))?;
        // The end of a dump says whether it failed.
        connection.set_forward_done(true);
        Ok(Self { handle, driver: tokio::spawn(connection) })
    }

    /// Connects in another namespace. The socket stays there, whoever uses it.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered or the kernel gives no socket.
    pub fn open_in(namespace: &Netns) -> Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        namespace.run(|| {
            let _entered = runtime.enter();
            Self::open()
        })?
    }

    /// Sends a request that makes something, and fails with `EEXIST` if it is there already.
    pub(super) async fn create(&self, action: &str, message: RouteNetlinkMessage) -> Result<()> {
        self.acknowledged(action, message, NLM_F_CREATE | NLM_F_EXCL).await
    }

    /// Sends a request that makes something or overwrites what is there.
    pub(super) async fn replace(&self, action: &str, message: RouteNetlinkMessage) -> Result<()> {
        self.acknowledged(action, message, NLM_F_CREATE | netlink_packet_core::NLM_F_REPLACE).await
    }

    /// Sends a request that changes or removes something.
    pub(super) async fn change(&self, action: &str, message: RouteNetlinkMessage) -> Result<()> {
        self.acknowledged(action, message, 0).await
    }

    async fn acknowledged(&self, action: &str, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self.request(action, request)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(answer) = answer.payload
                && answer.code.is_some()
            {
                return Err(Error::new(action, answer.to_io()));
            }
        }
        Ok(())
    }

    /// Asks for one thing.
    pub(super) async fn get(
        &self,
        action: &str,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST;
        let mut answers = self.request(action, request)?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(row) => return Ok(row),
                NetlinkPayload::Error(answer) if answer.code.is_some() => {
                    return Err(Error::new(action, answer.to_io()));
                }
                _ => {}
            }
        }
        Err(Error::new(action, io::Error::from(io::ErrorKind::UnexpectedEof)))
    }

    /// Reads a whole table. A dump that the kernel marks as interrupted by a change is read again:
    /// rtnetlink itself ignores the mark and would return a table with holes.
    pub(super) async fn dump(
        &self,
        action: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        let start = Instant::now();
        let mut pause = DUMP_PAUSE;
        'attempt: while start.elapsed() < DUMP_PATIENCE {
            let mut request = NetlinkMessage::from(message.clone());
            request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let mut answers = self.request(action, request)?;
            let mut table = Vec::new();
            while let Some(answer) = answers.next().await {
                if answer.header.flags & NLM_F_DUMP_INTR != 0 {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(DUMP_PATIENCE / 10);
                    continue 'attempt;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(row) => table.push(row),
                    NetlinkPayload::Error(answer) if answer.code.is_some() => {
                        return Err(Error::new(action, answer.to_io()));
                    }
                    NetlinkPayload::Done(end) if end.code < 0 => {
                        return Err(Error::new(action, io::Error::from_raw_os_error(-end.code)));
                    }
                    _ => {}
                }
            }
            return Ok(table);
        }
        Err(Error::new(
            format!("{action}: the table changed under every reading for {DUMP_PATIENCE:?}"),
            io::Error::from(io::ErrorKind::Interrupted),
        ))
    }

    fn request(
        &self,
        action: &str,
        request: NetlinkMessage<RouteNetlinkMessage>,
    ) -> Result<impl futures_util::Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + use<>> {
        self.handle.clone().request(request).map_err(|error| Error::new(action, io::Error::other(error)))
    }
}

/// Runs a closure on a thread of its own and waits for it, so that whatever the closure does to its thread
/// (above all: enter a namespace) ends with that thread.
pub(super) fn on_own_thread<T: Send>(action: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|source| Error::new(format!("{action}: start a thread"), source))?
            .join()
            .map_err(|_panic| Error::new(action, io::Error::other("the thread panicked")))
    })
}
