//! The admin interface: a Unix socket for everybody who may open it, and optionally loopback.
//!
//! It reads; what it is asked to try it takes back, and only the socket may ask for that. There is no authentication, so the socket's mode is the owner's alone and an address is
//! a loopback one.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use tokio::sync::mpsc;

use crate::explain::{Explanation, Names, Refusal, Request as Asked};
use crate::flows::Wanted;

mod client;

pub use client::{ClientError, get, lines, post};

/// An answer to come about documents that are not active.
pub type Rehearsed = Pin<Box<dyn Future<Output = Result<Explanation, Refusal>> + Send>>;

/// How large documents may be together.
const MAX_DOCUMENTS: usize = 64 << 20;

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// The owner's socket.
    Socket,
    /// A port of the loopback interface, which every user of the machine reaches.
    Loopback,
}

/// What the interface shows. Implemented once by the app; tests implement it small.
pub trait View: Send + Sync + 'static {
    /// Whether the first generation is active and the agent is not draining.
    fn ready(&self) -> bool;
    /// Everything, for `status`.
    fn status(&self) -> crate::status::Status;
    /// Metrics in the OpenMetrics text format.
    fn metrics(&self) -> String;
    /// Kernel events from a number on: `{"next", "events"}`.
    fn events(&self, since: u64) -> serde_json::Value;
    /// What the numbers of the kernel's maps mean; none without a datapath.
    fn names(&self) -> Option<Names>;
    /// Kernel events as lines, for a reader that may stay; none without a datapath.
    fn flows(&self, wanted: Wanted) -> Option<mpsc::Receiver<Bytes>>;
    /// What documents would say that are not active.
    fn rehearse(&self, request: Asked) -> Rehearsed;
    /// Requests from a number on: `{"next", "requests"}`.
    fn requests(&self, since: u64) -> serde_json::Value;
}

/// Why the interface cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Somebody answers on the socket.
    #[error("another agent answers on admin socket `{}`; give this one a socket of its own with --admin", .0.display())]
    InUse(PathBuf),
    /// Something else is in its place.
    #[error("`{}` is there and is no socket, so it stays; --admin names another place", .0.display())]
    NotASocket(PathBuf),
    /// The socket cannot be made.
    #[error("failed to open admin socket `{}`", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The address cannot be opened.
    #[error("failed to listen on admin address {address}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An open admin interface. Dropping it removes the socket.
pub struct Admin {
    path: PathBuf,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Admin {
    /// Opens the socket and, if wanted, the address, and serves until dropped.
    pub async fn open(
        path: &Path,
        address: Option<SocketAddr>,
        view: Arc<dyn View>,
    ) -> Result<Self, AdminError> {
        let unix = bind(path).await?;
        let mut admin = Self {
            path: path.to_owned(),
            tasks: Vec::new(),
        };
        let served = Arc::clone(&view);
        admin.tasks.push(tokio::spawn(async move {
            loop {
                match unix.accept().await {
                    Ok((stream, _)) => serve(stream, Door::Socket, Arc::clone(&served)),
                    Err(error) => accept_failed(&error).await,
                }
            }
        }));
        if let Some(address) = address {
            let tcp = TcpListener::bind(address)
                .await
                .map_err(|source| AdminError::Address { address, source })?;
            admin.tasks.push(tokio::spawn(async move {
                loop {
                    match tcp.accept().await {
                        Ok((stream, _)) => serve(stream, Door::Loopback, Arc::clone(&view)),
                        Err(error) => accept_failed(&error).await,
                    }
                }
            }));
        }
        Ok(admin)
    }

    /// Closes the socket and the address: another agent may open them when this returns. Answers that are under way end.
    pub async fn close(mut self) {
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            // It was told to end.
            let _ = task.await;
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "admin socket was already gone");
        }
    }
}

/// Binds the socket; a dead one of an agent that was killed is replaced.
async fn bind(path: &Path) -> Result<UnixListener, AdminError> {
    let failed = |source| AdminError::Socket {
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    // A connection to a file that is no socket is refused as well, and nobody's file is ours to remove.
    if fs::symlink_metadata(path).is_ok_and(|there| !there.file_type().is_socket()) {
        return Err(AdminError::NotASocket(path.to_owned()));
    }
    match tokio::net::UnixStream::connect(path).await {
        Ok(_) => return Err(AdminError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

async fn accept_failed(error: &io::Error) {
    tracing::warn!(%error, "admin interface failed to accept a connection");
    // Out of file descriptors, most likely; a pause keeps the loop from spinning.
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    door: Door,
    view: Arc<dyn View>,
) {
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let view = Arc::clone(&view);
            async move { Ok::<_, Infallible>(answer(request, door, view.as_ref()).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(10))
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "admin connection ended early");
        }
    });
}

/// The mount namespace of this process, by its number: each container has its own, and all of a node share the admin socket.
///
/// # Errors
/// There is no `/proc`.
pub fn container() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/mnt")?.ino())
}

/// Whether the agent was asked for that is in the container of whoever asks; one that asks for none means any.
fn is_own_container(query: Option<&str>) -> bool {
    let asked = query.and_then(|query| query.strip_prefix("container="));
    asked.is_none_or(|asked| container().is_ok_and(|own| asked.parse() == Ok(own)))
}

const JSON: &str = "application/json";
const EXPLAIN: &str = "/debug/explain";
const FLOWS: &str = "/debug/flows";
const TEXT: &str = "text/plain; charset=utf-8";

async fn answer(request: Request<Incoming>, door: Door, view: &dyn View) -> Response<Answered> {
    if request.uri().path() == EXPLAIN {
        return explain(request, door, view).await.map(Either::Left);
    }
    if request.uri().path() == FLOWS && request.method() == Method::GET {
        return flows(request.uri().query().unwrap_or_default(), view);
    }
    route(
        request.method(),
        request.uri().path(),
        request.uri().query(),
        view,
    )
    .map(Either::Left)
}

/// Kernel events, line by line.
fn flows(query: &str, view: &dyn View) -> Response<Answered> {
    let wanted = match Wanted::parse(query) {
        Ok(wanted) => wanted,
        Err(message) => {
            return respond(StatusCode::BAD_REQUEST, TEXT, message + "\n").map(Either::Left);
        }
    };
    let Some(lines) = view.flows(wanted) else {
        return unjudged().map(Either::Left);
    };
    let mut response = Response::new(Either::Right(Lines(lines)));
    response.headers_mut().insert(
        CONTENT_TYPE,
        http::HeaderValue::from_static("application/x-ndjson"),
    );
    response
}

fn unjudged() -> Response<Full<Bytes>> {
    respond(
        StatusCode::NOT_FOUND,
        TEXT,
        "the agent runs with --datapath none: nothing is judged in the kernel\n".to_owned(),
    )
}

/// A body whose end is not known, in chunks.
#[derive(Debug)]
struct Lines(mpsc::Receiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let line = ready!(self.0.poll_recv(context));
        Poll::Ready(line.map(|line| Ok(Frame::data(line))))
    }
}

/// A body that is all there, or one that comes.
type Answered = Either<Full<Bytes>, Lines>;

/// Takes documents and a question, and answers for them.
async fn explain(request: Request<Incoming>, door: Door, view: &dyn View) -> Response<Full<Bytes>> {
    if request.method() != Method::POST {
        let mut response = respond(
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "only POST\n".to_owned(),
        );
        response
            .headers_mut()
            .insert(ALLOW, http::HeaderValue::from_static("POST"));
        return response;
    }
    if door == Door::Loopback {
        return respond(
            StatusCode::FORBIDDEN,
            TEXT,
            "documents are tried for the owner of the admin socket only\n".to_owned(),
        );
    }
    let bad = |message: String| respond(StatusCode::BAD_REQUEST, TEXT, message + "\n");
    let body = match Limited::new(request.into_body(), MAX_DOCUMENTS)
        .collect()
        .await
    {
        Ok(body) => body.to_bytes(),
        Err(error) => return bad(error.to_string()),
    };
    let asked: Asked = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => return bad(error.to_string()),
    };
    match view.rehearse(asked).await {
        Ok(explanation) => json(&explanation),
        Err(refusal) => {
            let mut response = json(&refusal);
            *response.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
            response
        }
    }
}

fn route(
    method: &Method,
    path: &str,
    query: Option<&str>,
    view: &dyn View,
) -> Response<Full<Bytes>> {
    let known = [
        "/livez",
        "/readyz",
        "/metrics",
        "/debug/config",
        "/debug/status",
        "/debug/events",
        "/debug/requests",
        "/debug/names",
        FLOWS,
        EXPLAIN,
    ];
    if !known.contains(&path) {
        return respond(
            StatusCode::NOT_FOUND,
            TEXT,
            format!("not found; there are {}\n", known.join(", ")),
        );
    }
    if method != Method::GET && method != Method::HEAD {
        let mut response = respond(
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "only GET and HEAD\n".to_owned(),
        );
        response
            .headers_mut()
            .insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/livez" => respond(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" if !is_own_container(query) => respond(
            StatusCode::SERVICE_UNAVAILABLE,
            TEXT,
            "not ready: the agent of another container has the node\n".to_owned(),
        ),
        "/readyz" if view.ready() => respond(StatusCode::OK, TEXT, "ready\n".to_owned()),
        "/readyz" => respond(
            StatusCode::SERVICE_UNAVAILABLE,
            TEXT,
            "not ready: no active generation, or draining\n".to_owned(),
        ),
        "/metrics" => respond(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            view.metrics(),
        ),
        // `answer` takes the methods that these are for.
        FLOWS | EXPLAIN => respond(StatusCode::OK, JSON, String::new()),
        "/debug/config" => json(&view.status().config),
        "/debug/status" => json(&view.status()),
        "/debug/names" => match view.names() {
            Some(names) => json(&names),
            None => unjudged(),
        },
        numbered => match since(query) {
            Ok(since) if numbered == "/debug/events" => json(&view.events(since)),
            Ok(since) => json(&view.requests(since)),
            Err(message) => respond(StatusCode::BAD_REQUEST, TEXT, message),
        },
    }
}

fn since(query: Option<&str>) -> Result<u64, String> {
    let Some(query) = query.filter(|query| !query.is_empty()) else {
        return Ok(0);
    };
    query
        .strip_prefix("since=")
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| format!("expected `since=<number>`, got `{query}`\n"))
}

fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string(value) {
        Ok(text) => respond(StatusCode::OK, JSON, text),
        Err(error) => respond(
            StatusCode::INTERNAL_SERVER_ERROR,
            TEXT,
            format!("{error}\n"),
        ),
    }
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
