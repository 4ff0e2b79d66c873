//! Answers load balancers that ask a node whether it takes what they bring for a gateway, at the port that the cluster set apart for
//! that (`healthCheckNodePort`, which services with `externalTrafficPolicy: Local` have), in kube-proxy's words.
//!
//! Flows in: the gateways of the active snapshot, ticks, and whether the agent is ready: it is the one endpoint of such a service on
//! its node. Flows out: 200 or 503. Where kube-proxy runs, it answers there: a port is opened when nobody has taken it for [`GRACE`],
//! and one that is taken is left to whoever has it.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as Bound};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use snapshot::model::{Gateway, NodeCheck, ObjectName, Port};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// How long a port is left to kube-proxy.
const GRACE: Duration = Duration::from_secs(5);
/// Connections of one port at once; load balancers have a few.
const CONNECTIONS: usize = 64;
/// Until a request must have come.
const REQUEST: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 128;
/// How much of a service's traffic the node may take: its number of endpoints (KEP-4770).
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// Whether the agent takes connections.
pub(crate) type Ready = Arc<dyn Fn() -> bool + Send + Sync>;

/// The ports of this node at which load balancers ask.
pub(crate) struct HealthChecks {
    ready: Ready,
    /// Whose each port is, and since when that is known.
    wanted: BTreeMap<Port, (ObjectName, Instant)>,
    open: BTreeMap<Port, Answering>,
    /// Ports of which was said that somebody else has them.
    told: BTreeSet<Port>,
}

/// A task that answers at a port until this is dropped.
struct Answering(JoinHandle<()>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl HealthChecks {
    pub(crate) fn new(ready: Ready) -> Self {
        Self {
            ready,
            wanted: BTreeMap::new(),
            open: BTreeMap::new(),
            told: BTreeSet::new(),
        }
    }

    /// Takes over what gateways have now. Ports that they have no more are closed.
    pub(crate) fn follow<'a>(&mut self, gateways: impl Iterator<Item = &'a Gateway>, now: Instant) {
        let checks = gateways.filter_map(|gateway| gateway.health_check.as_ref());
        let mut wanted = BTreeMap::new();
        for NodeCheck { service, port } in checks {
            let known = self.wanted.get(port);
            let same = known.filter(|(known, _)| known == service);
            let since = same.map_or(now, |(_, since)| *since);
            wanted.insert(*port, (service.clone(), since));
        }
        let stays = |port: &Port| wanted.get(port) == self.wanted.get(port);
        self.open.retain(|port, _| stays(port));
        self.told.retain(stays);
        self.wanted = wanted;
    }

    /// Opens the ports that nobody has taken.
    pub(crate) fn open(&mut self, now: Instant) {
        for (port, (service, since)) in &self.wanted {
            if self.open.contains_key(port) || now.saturating_duration_since(*since) < GRACE {
                continue;
            }
            match listen(*port) {
                Ok(listener) => {
                    self.told.remove(port);
                    tracing::info!(%port, %service, "load balancers that ask about this node are answered");
                    let serving = serve(listener, service.clone(), Arc::clone(&self.ready));
                    self.open.insert(*port, Answering(tokio::spawn(serving)));
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    if self.told.insert(*port) {
                        tracing::info!(
                            %port, %service,
                            "load balancers that ask about this node are left to whoever listens there, such as kube-proxy"
                        );
                    }
                }
                Err(error) => {
                    if self.told.insert(*port) {
                        tracing::error!(
                            %port, %service,
                            error = &error as &dyn std::error::Error,
                            "load balancers that ask about this node cannot be answered; it is tried again"
                        );
                    }
                }
            }
        }
    }
}

/// At all addresses of the node, of both families where it has both.
fn listen(port: Port) -> io::Result<TcpListener> {
    let bound = match bind((Ipv6Addr::UNSPECIFIED, port.get()).into()) {
        // The kernel has no IPv6.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            bind((Ipv4Addr::UNSPECIFIED, port.get()).into())?
        }
        bound => bound?,
    };
    TcpListener::from_std(bound)
}

fn bind(address: SocketAddr) -> io::Result<Bound> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

async fn serve(listener: TcpListener, service: ObjectName, ready: Ready) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let service = Arc::new(service);
    loop {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (service, ready) = (Arc::clone(&service), Arc::clone(&ready));
                tokio::spawn(async move {
                    converse(stream, &service, &ready).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a load balancer's connection was not accepted");
                // Out of file descriptors, most likely; a pause keeps the loop from spinning.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, service: &ObjectName, ready: &Ready) {
    let answers =
        service_fn(|_: Request<Incoming>| async { Ok::<_, Infallible>(answer(service, ready())) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .serve_connection(TokioIo::new(stream), answers);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a load balancer's connection ended early");
    }
}

/// Whatever was asked, as kube-proxy says it.
fn answer(service: &ObjectName, ready: bool) -> Response<Full<Bytes>> {
    let endpoints = u8::from(ready);
    let body = json!({
        "service": { "namespace": service.namespace(), "name": service.name() },
        "localEndpoints": endpoints,
        "serviceProxyHealthy": ready,
    });
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = match ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, u16::from(endpoints).into());
    response
}

#[cfg(test)]
mod tests;
