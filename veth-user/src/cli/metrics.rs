//! `veth metrics`.

use std::{convert::Infallible, net::SocketAddr, process::ExitCode, rc::Rc, time::Duration};

use anyhow::{Context as _, Result};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Mutex, task::LocalSet};

use super::{
    print,
    up::{Ended, interruptible},
};
use crate::{
    state::Roots,
    stats::{
        Source, Wanted,
        metrics::{self, Scraped},
    },
    text::with_causes,
};

/// The pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a client may take to ask.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serve the counters of every veth to Prometheus, by HTTP
///
/// `/metrics` has the counters of all topologies that are up at that moment, as OpenMetrics text; `/healthz` says
/// that there is somebody. Reads maps and netlink for each request and keeps nothing, so that it may be ended and
/// started again at any time. Whoever reaches the address can read it: it has no password.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth metrics
  sudo veth metrics --listen '[::1]:9500'
  curl -s http://127.0.0.1:9464/metrics")]
pub(super) struct Args {
    /// Address and port
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9464")]
    listen: SocketAddr,

    /// Also split what each port received by protocol, size, number of receivers and reason of the slow path: about
    /// forty more series for each
    #[arg(long)]
    detail: bool,
}

/// What all requests share.
struct Scraper {
    source: Mutex<Source>,
    detail: bool,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    super::privilege::require("metrics")?;
    let Args { listen, detail } = args;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
    let source = Rc::new(Scraper { source: Mutex::new(Source::open(roots, Wanted::All)?), detail });
    print(&format!("serving http://{}/metrics\n", listener.local_addr().context("listen")?))?;
    let local = LocalSet::new();
    match interruptible(local.run_until(serve(listener, source))).await? {
        Ended::By(never) => match never {},
        // A signal is the usual way to end it.
        Ended::Signal(_) => Ok(ExitCode::SUCCESS),
    }
}

async fn serve(listener: TcpListener, source: Rc<Scraper>) -> Infallible {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of descriptors, or the client has gone: the next may do.
            Err(error) => {
                log::warn!("accept a connection: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let source = Rc::clone(&source);
        let service = service_fn(move |request| {
            let source = Rc::clone(&source);
            async move { Ok::<_, Infallible>(answer(&request, &source).await) }
        });
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        let connection = server.serve_connection(TokioIo::new(stream), service);
        tokio::task::spawn_local(async move {
            // A client that goes away amid of it is no concern of ours.
            if let Err(error) = connection.await {
                log::debug!("a connection ended: {}", with_causes(&error));
            }
        });
    }
}

async fn answer(request: &Request<Incoming>, source: &Scraper) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/metrics" => match scrape(source).await {
            Ok(text) => {
                let mut response = Response::new(Full::from(text));
                let content = hyper::header::HeaderValue::from_static(metrics::CONTENT_TYPE);
                response.headers_mut().insert(CONTENT_TYPE, content);
                response
            }
            Err(error) => {
                log::warn!("{error:#}");
                plain(StatusCode::INTERNAL_SERVER_ERROR, "the counters could not be read; the log says why\n")
            }
        },
        _ => plain(StatusCode::NOT_FOUND, "there are /metrics and /healthz\n"),
    }
}

/// What is up at this moment. One topology that cannot be read hides no other.
async fn scrape(source: &Scraper) -> Result<String> {
    let Scraper { source, detail } = source;
    let read = source.lock().await.take().await?;
    let scraped = read.into_iter().map(|(topology, result)| {
        let snapshot = result.inspect_err(|error| log::warn!("{topology}: {}", with_causes(error)));
        Scraped { topology, snapshot: snapshot.ok() }
    });
    metrics::render(scraped.collect(), *detail).context("write the metrics")
}
