//! Snapshots built by hand, a running router, upstreams that tell what they saw, and clients.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use cardinal_agent::compile::route::compile;
use cardinal_agent::proxy::{AccessRecord, Proxy, ProxyConfig, Reason, Sockets};
use cardinal_agent::route::{Datagrams, RouteTable};
use cardinal_agent::upstream::Timeouts;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use snapshot::model::{
    Cell, CellId, Component, ComponentId, ComponentKind, Endpoint, EndpointId, EndpointKind, Gate,
    Gateway, HostPattern, Hostname, Intra, L7Kind, Listener, ListenerProtocol, Name, ObjectName,
    Origin, Parent, PathMatch, Pattern, Platform, Port, RequestMatch, Route, Rule, SectionName,
    Target, Upstream, UpstreamHost, WeightedTarget, Workloads,
};
use snapshot::path::CanonicalPath;
use snapshot::{Shared, Snapshot, Source};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) type Body = BoxBody<Bytes, hyper::Error>;

/// What must come, comes within this, however busy the machine is.
pub(crate) const SURELY: Duration = Duration::from_secs(60);
/// Longer than any test runs.
pub(crate) const FOREVER: Duration = Duration::from_secs(3600);

pub(crate) fn source() -> Source {
    Source::new("test.yaml", 1, "")
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

pub(crate) fn section(text: &str) -> SectionName {
    SectionName::new(text).expect("a name")
}

pub(crate) fn object(text: &str) -> ObjectName {
    ObjectName::new("default", text).expect("an object's name")
}

pub(crate) fn port(number: u16) -> Port {
    NonZeroU16::new(number).expect("a port")
}

pub(crate) fn path(text: &str) -> CanonicalPath {
    CanonicalPath::new(text).expect("a path")
}

pub(crate) fn host(text: &str) -> HostPattern {
    match text.strip_prefix("*.") {
        Some(suffix) => HostPattern::Wildcard(Hostname::new(suffix).expect("a host")),
        None => HostPattern::Exact(Hostname::new(text).expect("a host")),
    }
}

pub(crate) fn empty() -> Snapshot {
    Snapshot {
        digest: "0".into(),
        platform: Platform::default().into(),
        cells: BTreeMap::new(),
        services: BTreeMap::new(),
        routing_tables: BTreeMap::new(),
        gateways: BTreeMap::new(),
        routes: Vec::new(),
        l4_routes: Vec::new(),
        network: snapshot::model::NetworkPolicies::default(),
        awaited: BTreeSet::new(),
        certificates: BTreeMap::new(),
        warnings: Vec::new(),
    }
}

/// A port that nothing uses. Below the range from which the kernel gives ports to clients, so that no
/// connection of another test takes it.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 90).expect("it is small") * 128;
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub(crate) fn listener(called: &str, at: u16, hostname: Option<&str>) -> Listener {
    Listener {
        name: section(called),
        declared: source(),
        port: port(at),
        protocol: ListenerProtocol::Http,
        hostname: hostname.map(host),
        policy: None,
        clients: None,
    }
}

pub(crate) fn gateway(called: &str, gate: Option<Gate>, listeners: Vec<Listener>) -> Gateway {
    Gateway {
        name: object(called),
        declared: source(),
        addresses: vec![Ipv4Addr::LOCALHOST.into()],
        listeners,
        unserved: Vec::new(),
        gate,
        node_ports: snapshot::model::NodePorts::None,
        health_check: None,
        identity: None,
    }
}

pub(crate) fn route(called: &str, hosts: &[&str], rules: Vec<Rule>) -> Route {
    Route {
        kind: L7Kind::Http,
        name: object(called),
        origin: Origin::Document,
        declared: source(),
        parents: vec![Parent {
            gateway: object("gw"),
            listener: None,
            port: None,
        }],
        hostnames: hosts.iter().map(|one| host(one)).collect(),
        created: None,
        rules,
    }
}

pub(crate) fn rule(matches: Vec<RequestMatch>, targets: Vec<WeightedTarget>) -> Rule {
    Rule {
        targets,
        ..Rule::new(source(), matches)
    }
}

pub(crate) fn prefix(text: &str) -> RequestMatch {
    RequestMatch::new(PathMatch::Prefix(path(text)))
}

pub(crate) fn exact(text: &str) -> RequestMatch {
    RequestMatch::new(PathMatch::Exact(path(text)))
}

pub(crate) fn regex(text: &str) -> RequestMatch {
    RequestMatch::new(PathMatch::Regex(Pattern::whole(text).expect("a pattern")))
}

pub(crate) fn to(address: SocketAddr) -> WeightedTarget {
    weighted(1, address)
}

pub(crate) fn weighted(weight: u32, address: SocketAddr) -> WeightedTarget {
    let upstream = Upstream::Tcp {
        host: UpstreamHost::Address(address.ip()),
        port: port(address.port()),
        tls: None,
    };
    WeightedTarget::new(weight, Target::Upstreams([upstream].into()))
}

/// Routes as snapshots have them.
pub(crate) fn shared(routes: Vec<Route>) -> Vec<Shared<Route>> {
    routes.into_iter().map(Shared::from).collect()
}

/// A snapshot with gateway `gw`, one HTTP listener on a free port, and these routes.
pub(crate) fn plain(routes: Vec<Route>) -> (Snapshot, SocketAddr) {
    let mut snapshot = empty();
    let at = free_port();
    let gateway = gateway("gw", None, vec![listener("http", at, None)]);
    snapshot.gateways.insert(gateway.name.clone(), gateway);
    snapshot.routes = shared(routes);
    (snapshot, (Ipv4Addr::LOCALHOST, at).into())
}

pub(crate) fn cell_id(project: &str) -> CellId {
    CellId {
        organization: name("acme"),
        project: name(project),
        environment: name("prod"),
    }
}

pub(crate) fn component_id(project: &str, component: &str) -> ComponentId {
    ComponentId {
        cell: cell_id(project),
        component: name(component),
    }
}

pub(crate) fn endpoint_id(project: &str, component: &str) -> EndpointId {
    EndpointId {
        component: component_id(project, component),
        endpoint: name("api"),
    }
}

/// A cell with one component that has one HTTP endpoint `api`.
pub(crate) fn cell(project: &str, component: &str, address: IpAddr, at: u16) -> Cell {
    let id = component_id(project, component);
    let endpoint = Endpoint {
        id: endpoint_id(project, component),
        declared: source(),
        kind: EndpointKind::Http,
        port: port(at),
        base_path: path("/"),
        public: None,
        organization: None,
    };
    let one = Component {
        id: id.clone(),
        declared: source(),
        kind: ComponentKind::Service,
        workloads: Workloads::Addresses(vec![address]),
        service_addresses: Vec::new(),
        session_affinity: None,
        traffic_distribution: Default::default(),
        endpoints: BTreeMap::from([(name("api"), endpoint)]),
        connections: Vec::new(),
    };
    Cell {
        id: cell_id(project),
        declared: source(),
        borders: Default::default(),
        intra: Intra::Open,
        intra_declared: source(),
        components: BTreeMap::from([(id.component, one.into())]),
        east: Vec::new(),
        south: Vec::new(),
    }
}

/// The usual settings, with upstreams that a busy machine holds up for longer than usual.
pub(crate) fn patient() -> ProxyConfig {
    ProxyConfig {
        timeouts: Timeouts {
            connect: SURELY,
            head: SURELY,
            ..Timeouts::default()
        },
        ..ProxyConfig::default()
    }
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(SURELY, waited).await;
    waited.unwrap_or_else(|_| panic!("{what}: never"));
}

/// A router that serves a snapshot.
pub(crate) struct Router {
    pub(crate) proxy: Proxy,
    pub(crate) table: Arc<ArcSwap<RouteTable>>,
}

impl Router {
    pub(crate) fn start(snapshot: &Snapshot) -> Self {
        Self::with(snapshot, patient())
    }

    pub(crate) fn with(snapshot: &Snapshot, config: ProxyConfig) -> Self {
        let compiled = compile(snapshot, 1).expect("the snapshot compiles");
        let addresses = compiled.addresses();
        let datagrams = compiled.datagram_addresses();
        let table = Arc::new(ArcSwap::from_pointee(compiled));
        let config = ProxyConfig { cores: 2, ..config };
        Self::listening(config, table, &addresses, &datagrams, Sockets::default())
    }

    /// A router with so many cores that takes the sockets of another one, which goes on.
    pub(crate) fn after(before: &Self, snapshot: &Snapshot, cores: usize) -> Self {
        let compiled = compile(snapshot, 1).expect("the snapshot compiles");
        let addresses = compiled.addresses();
        let datagrams = compiled.datagram_addresses();
        let table = Arc::new(ArcSwap::from_pointee(compiled));
        let config = ProxyConfig {
            cores,
            ..ProxyConfig::default()
        };
        let sockets = before.proxy.share().expect("descriptors");
        let next = Self::listening(config, table, &addresses, &datagrams, sockets);
        next.proxy.published();
        next
    }

    fn listening(
        config: ProxyConfig,
        table: Arc<ArcSwap<RouteTable>>,
        addresses: &BTreeSet<SocketAddr>,
        datagrams: &BTreeMap<SocketAddr, Datagrams>,
        sockets: Sockets,
    ) -> Self {
        let proxy = Proxy::start_with(config, Arc::clone(&table), sockets);
        let proxy = proxy.expect("the router starts");
        proxy.open(addresses).expect("its sockets open").commit();
        let datagrams = proxy.open_datagrams(datagrams);
        datagrams.expect("its sockets open").commit();
        Self { proxy, table }
    }

    /// Waits until the log has a record that fits.
    pub(crate) async fn record(&self, fits: impl Fn(&AccessRecord) -> bool) -> Arc<AccessRecord> {
        let found = async {
            loop {
                let records = self.proxy.log().since(0);
                if let Some(found) = records.iter().find(|one| fits(one)) {
                    return Arc::clone(found);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let found = tokio::time::timeout(SURELY, found).await;
        found.unwrap_or_else(|_| panic!("no such record in {:#?}", self.proxy.log().since(0)))
    }

    /// Serves another snapshot from now on.
    pub(crate) fn publish(&self, snapshot: &Snapshot, generation: u64) {
        let compiled = compile(snapshot, generation).expect("the snapshot compiles");
        let opened = self.proxy.open(&compiled.addresses());
        let datagrams = self.proxy.open_datagrams(&compiled.datagram_addresses());
        let (opened, datagrams) = (
            opened.expect("its sockets open"),
            datagrams.expect("its sockets open"),
        );
        compiled.adopt(&self.table.load());
        self.table.store(Arc::new(compiled));
        opened.commit();
        datagrams.commit();
    }

    /// The value of a series; 0 if there is none.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let mut registry = prometheus_client::registry::Registry::default();
        self.proxy.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("it encodes");
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        value.unwrap_or_default()
    }

    pub(crate) async fn reason(&self, reason: Reason) -> Arc<AccessRecord> {
        self.record(|one| one.reason == reason).await
    }
}

/// Starts an HTTP/1.1 upstream that answers with what it saw, as JSON.
pub(crate) async fn echo(called: &'static str) -> SocketAddr {
    serve(move |request| async move { echoed(called, request).await }).await
}

async fn echoed(called: &'static str, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let headers: Vec<(String, String)> = parts
        .headers
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into(),
            )
        })
        .collect();
    let body = body.collect().await.expect("the body arrives").to_bytes();
    let told = json!({
        "name": called,
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "query": parts.uri.query(),
        "uri": parts.uri.to_string(),
        "version": format!("{:?}", parts.version),
        "headers": headers,
        "bytes": body.len(),
    });
    let mut response = Response::new(full(told.to_string()));
    response
        .headers_mut()
        .insert("x-cell-name", called.parse().expect("a header value"));
    response
}

pub(crate) fn full(text: String) -> Body {
    Full::new(Bytes::from(text))
        .map_err(|never| match never {})
        .boxed()
}

/// Starts an HTTP/1.1 upstream.
pub(crate) async fn serve<F, R>(handler: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    serve_on(listener, handler);
    address
}

pub(crate) fn serve_on<F, R>(listener: TcpListener, handler: F)
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let handler = handler.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let answer = handler(request);
                    async move { Ok::<_, std::convert::Infallible>(answer.await) }
                });
                let _ended = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            });
        }
    });
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(name)
            .map(|value| value.to_str().expect("ASCII"))
    }

    /// Values of a header as the upstream saw them.
    pub(crate) fn seen(&self, header: &str) -> Vec<String> {
        self.json()["headers"]
            .as_array()
            .expect("an echo")
            .iter()
            .filter(|pair| pair[0] == header)
            .map(|pair| pair[1].as_str().expect("text").to_owned())
            .collect()
    }
}

/// One request over a new HTTP/1.1 connection; `uri` is `http://host/path`, sent in origin form.
pub(crate) async fn send(at: SocketAddr, request: Request<Body>) -> Reply {
    send_from(None, at, request).await
}

/// The same from a given source address.
pub(crate) async fn send_from(
    from: Option<IpAddr>,
    at: SocketAddr,
    mut request: Request<Body>,
) -> Reply {
    let stream = connect(from, at).await;
    if let Some(authority) = request.uri().authority().cloned() {
        if !request.headers().contains_key("host") {
            let value = authority.as_str().parse().expect("a header value");
            request.headers_mut().insert("host", value);
        }
        let target = request.uri().path_and_query().expect("a path").as_str();
        *request.uri_mut() = target.parse().expect("a path");
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("a connection");
    tokio::spawn(connection);
    reply(sender.send_request(request).await.expect("an answer")).await
}

pub(crate) async fn connect(from: Option<IpAddr>, at: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    if let Some(from) = from {
        socket.bind((from, 0).into()).expect("a loopback address");
    }
    socket.connect(at).await.expect("somebody listens")
}

pub(crate) async fn reply(response: Response<Incoming>) -> Reply {
    let (parts, body) = response.into_parts();
    Reply {
        status: parts.status,
        headers: parts.headers,
        body: body.collect().await.expect("the body arrives").to_bytes(),
    }
}

pub(crate) fn get(uri: &str) -> Request<Body> {
    Request::get(uri)
        .body(full(String::new()))
        .expect("a request")
}

/// An HTTP/2 connection with prior knowledge.
pub(crate) async fn http2(at: SocketAddr) -> hyper::client::conn::http2::SendRequest<Body> {
    http2_with_end(at).await.0
}

/// The same, and how it ends.
pub(crate) async fn http2_with_end(
    at: SocketAddr,
) -> (
    hyper::client::conn::http2::SendRequest<Body>,
    tokio::task::JoinHandle<hyper::Result<()>>,
) {
    let stream = TcpStream::connect(at).await.expect("somebody listens");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("a connection");
    (sender, tokio::spawn(connection))
}

/// Sends bytes as they are and reads until the router closes, or has answered every request and is then silent for a while.
pub(crate) async fn raw(at: SocketAddr, bytes: &[u8]) -> String {
    let asked = String::from_utf8_lossy(bytes).matches(" HTTP/1.").count();
    let bodiless = bytes.starts_with(b"HEAD ");
    let answered = |told: &[u8]| answers(told, bodiless).is_some_and(|answers| answers >= asked);
    raw_until(at, bytes, answered, Duration::from_millis(300)).await
}

/// Sends bytes as they are and reads until the router closes, or has said enough and is then silent for so long.
pub(crate) async fn raw_until(
    at: SocketAddr,
    bytes: &[u8],
    enough: impl Fn(&[u8]) -> bool,
    quiet: Duration,
) -> String {
    let mut stream = TcpStream::connect(at).await.expect("somebody listens");
    stream.write_all(bytes).await.expect("they are taken");
    let mut answer = Vec::new();
    loop {
        // What has to follow is waited for, however slow the machine is.
        let patience = match enough(&answer) {
            true => quiet,
            false => SURELY,
        };
        let read = tokio::time::timeout(patience, stream.read_buf(&mut answer)).await;
        if !matches!(read, Ok(Ok(1..))) {
            return String::from_utf8_lossy(&answer).into_owned();
        }
    }
}

/// How many answers of HTTP/1.1 these bytes are; none if the last one is not whole.
fn answers(mut told: &[u8], bodiless: bool) -> Option<usize> {
    let after = |told: &[u8], end: &str| {
        let at = told
            .windows(end.len())
            .position(|part| part == end.as_bytes());
        at.map(|at| at + end.len())
    };
    let mut count = 0;
    while !told.is_empty() {
        let (head, mut body) = told.split_at(after(told, "\r\n\r\n")?);
        let head = String::from_utf8_lossy(head).to_ascii_lowercase();
        let status = head.get(9..12)?;
        let interim = status.starts_with('1') && status != "101";
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if interim || bodiless || ["204", "304"].contains(&status) {
            // There is no body.
        } else if let Some(length) = length {
            body = body.get(length..)?;
        } else if head.contains("transfer-encoding: chunked") {
            let end = if body.starts_with(b"0\r\n") {
                0
            } else {
                after(body, "\r\n0\r\n")? - 3
            };
            body = &body[end + after(&body[end..], "\r\n\r\n")?..];
        } else {
            return None;
        }
        count += usize::from(!interim);
        told = body;
    }
    Some(count)
}

pub(crate) fn addresses(list: &[SocketAddr]) -> BTreeSet<SocketAddr> {
    list.iter().copied().collect()
}

/// A gateway with one HTTP listener on loopback, as a document with others behind it.
pub(crate) fn http_gateway(name: &str, at: u16) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: {name} }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ value: 127.0.0.1 }}]
  listeners: [{{ name: http, port: {at}, protocol: HTTP }}]
---
"
    )
}

/// A backend with these endpoints, as a document behind others.
pub(crate) fn backend(called: &str, endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|at| format!("{{ ip: {{ address: {}, port: {} }} }}", at.ip(), at.port()))
        .collect();
    format!(
        "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: {{ name: {called} }}
spec: {{ endpoints: [{}] }}
",
        endpoints.join(", ")
    )
}

/// A gateway on a free port and one `HTTPRoute` with these rules, as YAML of `spec.rules`; `more` are
/// further documents. Backends are `name` and address.
pub(crate) fn written(
    rules: &str,
    backends: &[(&str, SocketAddr)],
    more: &str,
) -> (Snapshot, SocketAddr) {
    let at = free_port();
    let edge = http_gateway("gw", at);
    let mut text = format!(
        "
{edge}apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: r }}
spec:
  parentRefs: [{{ name: gw }}]
  rules:
{rules}
"
    );
    for (called, address) in backends {
        text.push_str(&backend(called, &[*address]));
    }
    text.push_str(more);
    let snapshot = crate::documents::snapshot(&text);
    (snapshot, (Ipv4Addr::LOCALHOST, at).into())
}

/// `backendRefs` of one rule to these backends, in the flow style of YAML.
pub(crate) fn refs(backends: &[&str]) -> String {
    let refs: Vec<_> = backends
        .iter()
        .map(|name| format!("{{ group: gateway.envoyproxy.io, kind: Backend, name: {name} }}"))
        .collect();
    format!("backendRefs: [{}]", refs.join(", "))
}
