//! `GRPCRoute`, and calls of gRPC however they are routed: a client and a server of gRPC with the router between them.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cardinal_agent::proxy::Reason;
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::client::Grpc as Client;
use tonic::server::{Grpc as Server, ServerStreamingService, StreamingService, UnaryService};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::auth::Issuer;
use crate::documents::snapshot;
use crate::support::{
    Body, Router, SURELY, backend, free_port, full, get, http_gateway, http2, send, until,
};
use crate::tls::Issued;
use crate::traffic_policy::policy;
use crate::upstream_tls::accept;

/// The one message of the service.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Note {
    #[prost(string, tag = "1")]
    pub(crate) text: String,
    #[prost(uint32, tag = "2")]
    pub(crate) count: u32,
}

type Codec = ProstCodec<Note, Note>;
type Notes = Pin<Box<dyn Stream<Item = Result<Note, Status>> + Send>>;
type Answer<T> = Pin<Box<dyn Future<Output = Result<tonic::Response<T>, Status>> + Send>>;

/// `shop.v1.Notes`, and whatever else it is asked as: the last part of the path is what it does.
#[derive(Clone, Copy)]
struct Service {
    name: &'static str,
}

/// Answers with its name, and says in metadata what it saw.
struct Say(Service, String);

impl UnaryService<Note> for Say {
    type Response = Note;
    type Future = Answer<Note>;

    fn call(&mut self, request: tonic::Request<Note>) -> Self::Future {
        let Service { name } = self.0;
        let path = std::mem::take(&mut self.1);
        Box::pin(async move {
            let seen = request.metadata().get("x-set").cloned();
            let note = request.into_inner();
            if note.text == "wait" {
                std::future::pending::<()>().await;
            }
            if note.text == "deny" {
                let mut status = Status::permission_denied("für 100 % of you");
                let value = "because".parse().expect("a value");
                status.metadata_mut().insert("x-why", value);
                return Err(status);
            }
            let mut answer = tonic::Response::new(Note {
                text: name.to_owned(),
                count: note.count + 1,
            });
            let metadata = answer.metadata_mut();
            metadata.insert("x-path", path.parse().expect("a value"));
            metadata.insert("x-gone", "1".parse().expect("a value"));
            if let Some(seen) = seen {
                metadata.insert("x-seen", seen);
            }
            Ok(answer)
        })
    }
}

/// Counts down, one message after the other; a text is how it ends.
struct Count;

impl ServerStreamingService<Note> for Count {
    type Response = Note;
    type ResponseStream = Notes;
    type Future = Answer<Notes>;

    fn call(&mut self, request: tonic::Request<Note>) -> Self::Future {
        let note = request.into_inner();
        Box::pin(async move {
            let (told, notes) = mpsc::channel(1);
            tokio::spawn(async move {
                for count in (0..note.count).rev() {
                    let text = String::new();
                    if told.send(Ok(Note { text, count })).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                if !note.text.is_empty() {
                    let mut status = Status::data_loss(note.text);
                    let value = "trailer".parse().expect("a value");
                    status.metadata_mut().insert("x-end", value);
                    // Whoever hung up knows no end.
                    let _gone = told.send(Err(status)).await;
                }
            });
            Ok(tonic::Response::new(
                Box::pin(ReceiverStream::new(notes)) as Notes
            ))
        })
    }
}

/// Gives back each message as it comes.
struct Talk;

impl StreamingService<Note> for Talk {
    type Response = Note;
    type ResponseStream = Notes;
    type Future = Answer<Notes>;

    fn call(&mut self, request: tonic::Request<Streaming<Note>>) -> Self::Future {
        Box::pin(async move {
            let notes = request.into_inner().map(|note| {
                note.map(|note| Note {
                    count: note.count * 2,
                    ..note
                })
            });
            Ok(tonic::Response::new(Box::pin(notes) as Notes))
        })
    }
}

impl Service {
    async fn serve(self, request: Request<Incoming>) -> Response<tonic::body::Body> {
        let mut server = Server::new(Codec::default());
        let path = request.uri().path().to_owned();
        match path.rsplit('/').next() {
            Some("Count") => server.server_streaming(Count, request).await,
            Some("Talk") => server.streaming(Talk, request).await,
            _ => server.unary(Say(self, path), request).await,
        }
    }
}

/// Starts a server of gRPC: HTTP/2 without TLS, and nothing else.
pub(crate) async fn server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let service = Service { name };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            serve_on(service, stream);
        }
    });
    address
}

/// The same behind TLS.
pub(crate) async fn tls_server(name: &'static str, issued: &Issued) -> SocketAddr {
    let service = Service { name };
    accept(issued, None, move |stream, _| {
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        serve_on(service, stream);
    })
    .await
}

fn serve_on<T>(service: Service, stream: T)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| async move {
        Ok::<_, std::convert::Infallible>(service.serve(request).await)
    });
    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
}

/// A client of gRPC that asks for a host.
pub(crate) async fn client(at: SocketAddr, host: &str) -> Client<Channel> {
    let channel = Endpoint::from_shared(format!("http://{at}"))
        .expect("an address")
        .origin(format!("http://{host}").parse().expect("a host"))
        .connect()
        .await
        .expect("somebody listens");
    Client::new(channel)
}

pub(crate) fn note(text: &str, count: u32) -> Note {
    Note {
        text: text.to_owned(),
        count,
    }
}

fn path(path: &str) -> PathAndQuery {
    path.parse().expect("a path")
}

pub(crate) async fn unary(
    client: &mut Client<Channel>,
    to: &str,
    request: tonic::Request<Note>,
) -> Result<tonic::Response<Note>, Status> {
    client.ready().await.expect("a connection");
    client.unary(request, path(to), Codec::default()).await
}

async fn say(client: &mut Client<Channel>, to: &str) -> Result<String, Code> {
    match unary(client, to, tonic::Request::new(note("", 0))).await {
        Ok(answer) => Ok(answer.into_inner().text),
        Err(status) => Err(status.code()),
    }
}

/// A gateway and one route, of a kind, with `rules` in YAML; `more` are further documents.
fn documents(
    kind: &str,
    rules: &str,
    backends: &[(&str, SocketAddr)],
    more: &str,
) -> (String, u16) {
    let at = free_port();
    let edge = http_gateway("gw", at);
    let mut text = format!(
        "
{edge}apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{ name: r }}
spec:
  parentRefs: [{{ name: gw }}]
  hostnames: [grpc.example]
  rules:
{rules}
"
    );
    for (called, address) in backends {
        text.push_str(&backend(called, &[*address]));
    }
    text.push_str(more);
    (text, at)
}

fn routed(rules: &str, backends: &[(&str, SocketAddr)], more: &str) -> (Router, SocketAddr) {
    let (text, at) = documents("GRPCRoute", rules, backends, more);
    (Router::start(&snapshot(&text)), ([127, 0, 0, 1], at).into())
}

fn to(backend: &str) -> String {
    format!("{{ group: gateway.envoyproxy.io, kind: Backend, name: {backend} }}")
}

fn rule(matches: &str, backend: &str) -> String {
    format!(
        "    - {{ matches: [{matches}], backendRefs: [{}] }}\n",
        to(backend)
    )
}

#[tokio::test]
async fn proxy_carries_calls_of_every_shape() {
    let up = server("a").await;
    // By a route of either kind.
    let (text, http) = documents("HTTPRoute", &rule("", "a"), &[("a", up)], "");
    let _by_path = Router::start(&snapshot(&text));
    let (_router, at) = routed(
        &rule("{ method: { service: shop.v1.Notes } }", "a"),
        &[("a", up)],
        "",
    );
    for at in [at, ([127, 0, 0, 1], http).into()] {
        let mut client = client(at, "grpc.example").await;
        let request = tonic::Request::new(note("", 41));
        let answer = unary(&mut client, "/shop.v1.Notes/Say", request).await;
        let answer = answer.expect("an answer");
        assert_eq!(
            answer.metadata().get("x-path").expect("it is told"),
            "/shop.v1.Notes/Say"
        );
        assert_eq!(answer.into_inner(), note("a", 42));

        let refused = unary(
            &mut client,
            "/shop.v1.Notes/Say",
            tonic::Request::new(note("deny", 0)),
        );
        let refused = refused.await.expect_err("a status");
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert_eq!(refused.message(), "für 100 % of you");
        assert_eq!(
            refused.metadata().get("x-why").expect("metadata"),
            "because"
        );

        let request = tonic::Request::new(note("over", 9));
        client.ready().await.expect("a connection");
        let counting = client
            .server_streaming(request, path("/shop.v1.Notes/Count"), Codec::default())
            .await;
        let mut counting = counting.expect("a stream").into_inner();
        for count in (0..9).rev() {
            let one = counting.message().await.expect("no error yet");
            assert_eq!(one, Some(note("", count)));
        }
        let end = counting.message().await.expect_err("trailers say so");
        assert_eq!((end.code(), end.message()), (Code::DataLoss, "over"));
        assert_eq!(end.metadata().get("x-end").expect("metadata"), "trailer");

        // Each message is answered before the next one is sent.
        let (say, said) = mpsc::channel(1);
        client.ready().await.expect("a connection");
        let request = tonic::Request::new(ReceiverStream::new(said));
        say.send(note("", 0)).await.expect("somebody reads");
        let talk = client
            .streaming(request, path("/shop.v1.Notes/Talk"), Codec::default())
            .await;
        let mut talk = talk.expect("a stream").into_inner();
        let first = talk.message().await.expect("no error");
        assert_eq!(first, Some(note("", 0)));
        for count in 1..20 {
            say.send(note("n", count)).await.expect("somebody reads");
            let back = talk.message().await.expect("no error");
            assert_eq!(back, Some(note("n", count * 2)));
        }
        drop(say);
        assert_eq!(talk.message().await.expect("a good end"), None);
        let trailers = talk.trailers().await.expect("no error");
        assert!(trailers.is_some(), "a stream ends with trailers");
    }
}

#[tokio::test]
async fn proxy_finds_calls_by_service_then_method_then_headers() {
    let names = [
        "exact", "service", "tenant", "method", "word", "words", "rest",
    ];
    let mut backends = Vec::new();
    for name in names {
        backends.push((name, server(name).await));
    }
    // The order of documents is not the order of precedence.
    let rules = [
        ("{}", "rest"),
        ("{ method: { method: Say } }", "method"),
        (
            "{ method: { type: RegularExpression, service: 'shop[.].*' } }",
            "words",
        ),
        (
            "{ method: { type: RegularExpression, service: 'shop[.]v1[.]No.*', method: '.*' } }",
            "word",
        ),
        ("{ method: { service: shop.v1.Notes } }", "service"),
        (
            "{ method: { service: shop.v1.Notes }, headers: [{ name: x-tenant, value: acme }] }",
            "tenant",
        ),
        (
            "{ method: { service: shop.v1.Notes, method: Say } }",
            "exact",
        ),
    ];
    let rules: String = rules.iter().map(|(one, to)| rule(one, to)).collect();
    let (_router, at) = routed(&rules, &backends, "");
    let mut client = client(at, "grpc.example").await;
    for (to, expected) in [
        ("/shop.v1.Notes/Say", Ok("exact")),
        ("/shop.v1.Notes/Tell", Ok("service")),
        ("/shop.v1.Nobody/Say", Ok("word")),
        ("/shop.v2.Notes/Say", Ok("words")),
        ("/shop.v2.Notes/Tell", Ok("words")),
        ("/other.Notes/Say", Ok("method")),
        ("/other.Notes/Tell", Ok("rest")),
        ("/Shop.v1.Notes/Say", Ok("method")),
        // Not what a call looks like.
        ("/shop.v1.Notes/Say/More", Err(Code::Unimplemented)),
        ("/shop.v1.Notes", Err(Code::Unimplemented)),
        ("/shop.v1.Notes/", Err(Code::Unimplemented)),
    ] {
        let found = say(&mut client, to).await;
        assert_eq!(found.as_deref(), expected.as_deref(), "{to}");
    }
    let mut request = tonic::Request::new(note("", 0));
    let tenant = "acme".parse().expect("a value");
    request.metadata_mut().insert("x-tenant", tenant);
    let found = unary(&mut client, "/shop.v1.Notes/Tell", request).await;
    assert_eq!(found.expect("an answer").into_inner().text, "tenant");
    // What is not posted is no call, and this host has nothing else.
    let plain = send(at, get("http://grpc.example/shop.v1.Notes/Say")).await;
    assert_eq!(plain.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn proxy_filters_and_spreads_calls() {
    let (a, b, copy) = (server("a").await, server("b").await, server("copy").await);
    let rules = format!(
        "    - name: notes
      filters:
        - {{ type: RequestHeaderModifier, requestHeaderModifier: {{ set: [{{ name: x-set, value: rule }}] }} }}
        - {{ type: ResponseHeaderModifier, responseHeaderModifier: {{ remove: [x-gone], add: [{{ name: x-added, value: 'yes' }}] }} }}
        - {{ type: RequestMirror, requestMirror: {{ backendRef: {} }} }}
      sessionPersistence: {{ sessionName: x-keep, type: Header }}
      backendRefs: [{}, {}, {}]
",
        to("copy"),
        to("a").replace('}', ", weight: 1 }"),
        to("b").replace('}', ", weight: 3 }"),
        to("copy").replace('}', ", weight: 0 }"),
    );
    let (router, at) = routed(&rules, &[("a", a), ("b", b), ("copy", copy)], "");
    let mut client = client(at, "grpc.example").await;
    let mut count = [0; 2];
    let mut kept = None;
    for _ in 0..200 {
        let request = tonic::Request::new(note("", 0));
        let answer = unary(&mut client, "/shop.v1.Notes/Say", request).await;
        let answer = answer.expect("an answer");
        let metadata = answer.metadata();
        assert_eq!(metadata.get("x-seen").expect("it was set"), "rule");
        assert_eq!(metadata.get("x-added").expect("it was added"), "yes");
        assert_eq!(metadata.get("x-gone"), None);
        let session = metadata.get("x-keep").expect("a session").clone();
        let by = answer.into_inner().text;
        count[usize::from(by == "b")] += 1;
        kept = Some((session, by));
    }
    assert!((20..80).contains(&count[0]), "{count:?}");
    let (session, by) = kept.expect("there were calls");
    for _ in 0..20 {
        let mut request = tonic::Request::new(note("", 0));
        request.metadata_mut().insert("x-keep", session.clone());
        let answer = unary(&mut client, "/shop.v1.Notes/Say", request).await;
        assert_eq!(answer.expect("an answer").into_inner().text, by);
    }
    let record = router.reason(Reason::Ok).await;
    assert_eq!(record.route.as_deref(), Some("default/r"));
    // Copies are calls too.
    let sent = || {
        let mut registry = prometheus_client::registry::Registry::default();
        router.proxy.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("it is text");
        text.lines()
            .find(|line| line.contains("mirror") && line.contains("sent"))
            .and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .unwrap_or_default()
    };
    until("220 copies", || sent() >= 220).await;
}

/// One call by hand: a client of gRPC has a deadline of its own, and here it is the router's that counts.
async fn by_hand(
    at: SocketAddr,
    to: &str,
    headers: &[(&str, &str)],
) -> (HeaderMap, Option<HeaderMap>) {
    let mut request = Request::post(format!("http://grpc.example{to}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // A frame of gRPC: not compressed, 4 bytes: `wait` as the first field.
    let message = "\0\0\0\0\u{6}\n\u{4}wait".to_owned();
    let request = request.body(full(message)).expect("a request");
    let answer = http2(at).await.send_request(request).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    let head = answer.headers().clone();
    let body = answer.into_body().collect().await.expect("it is whole");
    (head, body.trailers().cloned())
}

/// A server that resets so many calls before it answers one, and how many it got.
async fn resetting(reason: h2::Reason, times: u32) -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut calls = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((_call, mut answer))) = calls.accept().await {
                    if count.fetch_add(1, Ordering::SeqCst) < times {
                        answer.send_reset(reason);
                        continue;
                    }
                    let head = Response::builder()
                        .header("content-type", "application/grpc")
                        .header("grpc-status", "0")
                        .body(())
                        .expect("a head");
                    answer.send_response(head, true).expect("it is taken");
                }
            });
        }
    });
    (address, count)
}

#[tokio::test]
async fn proxy_tries_again_what_an_upstream_refused_before_it_did_anything() {
    use h2::Reason as H2;
    let triggers = |list: &str| format!("retry: {{ retryOn: {{ triggers: [{list}] }} }}");
    for (reason, times, fields, status, tries) in [
        (H2::REFUSED_STREAM, 2, "retry: {}".to_owned(), "0", 3),
        (H2::REFUSED_STREAM, 1, triggers("refused-stream"), "0", 2),
        (H2::REFUSED_STREAM, 9, triggers("refused-stream"), "14", 3),
        // It may have begun.
        (H2::INTERNAL_ERROR, 1, triggers("refused-stream"), "14", 1),
        (H2::CANCEL, 1, triggers("refused-stream"), "14", 1),
        (H2::REFUSED_STREAM, 1, triggers("connect-failure"), "14", 1),
    ] {
        let (up, count) = resetting(reason, times).await;
        let more = policy("p", "kind: GRPCRoute, name: r", &fields);
        let (_router, at) = routed(&rule("{}", "a"), &[("a", up)], &more);
        let (head, _) = by_hand(at, "/shop.v1.Notes/Say", &[]).await;
        assert_eq!(head["grpc-status"], status, "{reason:?} {fields}");
        assert_eq!(count.load(Ordering::SeqCst), tries, "{reason:?} {fields}");
    }
}

#[tokio::test]
async fn proxy_ends_calls_at_their_deadline() {
    let up = server("a").await;
    let (router, at) = routed(&rule("{}", "a"), &[("a", up)], "");
    for given in ["200m", "200000u", "0n"] {
        let (head, trailers) = by_hand(at, "/shop.v1.Notes/Say", &[("grpc-timeout", given)]).await;
        assert_eq!(head["grpc-status"], "4", "{given}: {head:?}");
        let message = head["grpc-message"].to_str().expect("ASCII");
        assert!(message.starts_with("upstream_timeout"), "{message}");
        assert_eq!(trailers, None);
    }
    router
        .record(|one| {
            one.reason == Reason::UpstreamTimeout
                && one.path.as_deref() == Some("/shop.v1.Notes/Say")
        })
        .await;
    for bad in ["", "1", "1s", "123456789S", "-1S"] {
        let (head, _) = by_hand(at, "/shop.v1.Notes/Say", &[("grpc-timeout", bad)]).await;
        assert_eq!(head["grpc-status"], "13", "{bad}");
    }
    // A client that says so gives up as well; which of the two is first is not said.
    let mut client = client(at, "grpc.example").await;
    let mut request = tonic::Request::new(note("wait", 0));
    request.set_timeout(Duration::from_millis(200));
    let status = unary(&mut client, "/shop.v1.Notes/Say", request).await;
    let code = status.expect_err("nobody answers").code();
    assert!(
        matches!(code, Code::DeadlineExceeded | Code::Cancelled),
        "{code}"
    );
    // In time is in time.
    let mut request = tonic::Request::new(note("", 0));
    request.set_timeout(Duration::from_secs(60));
    let answer = unary(&mut client, "/shop.v1.Notes/Say", request).await;
    assert_eq!(answer.expect("an answer").into_inner().text, "a");
}

#[tokio::test]
async fn proxy_ends_a_stream_in_the_middle_with_trailers() {
    let up = server("a").await;
    let (router, at) = routed(&rule("{}", "a"), &[("a", up)], "");
    let mut request = Request::post("http://grpc.example/shop.v1.Notes/Count")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "3S");
    request = request.header("te", "trailers");
    // Field 2, a count of 2^21 - 1, at 5 ms each: hours.
    let message = Full::new(Bytes::from_static(b"\0\0\0\0\x04\x10\xff\xff\x7f"));
    let message: Body = message.map_err(|never| match never {}).boxed();
    let request = request.body(message).expect("a request");
    let answer = http2(at).await.send_request(request).await;
    let answer = answer.expect("an answer").into_body().collect().await;
    let answer = answer.expect("the stream is not reset");
    let trailers = answer.trailers().expect("they end it").clone();
    assert_eq!(trailers["grpc-status"], "4");
    assert_eq!(trailers["grpc-message"], "upstream_timeout");
    let bytes = answer.to_bytes().len();
    assert!(bytes > 0 && bytes % 9 == 0, "some messages came: {bytes}");
    router.reason(Reason::UpstreamTimeout).await;
    // The same by a rule's own limit.
    let rules = format!(
        "    - {{ timeouts: {{ request: 3s }}, backendRefs: [{}] }}\n",
        to("a")
    );
    let (text, at) = documents("HTTPRoute", &rules, &[("a", up)], "");
    let _router = Router::start(&snapshot(&text));
    let mut client = client(([127, 0, 0, 1], at).into(), "grpc.example").await;
    client.ready().await.expect("a connection");
    let request = tonic::Request::new(note("", 1 << 20));
    let counting = client.server_streaming(request, path("/a.B/Count"), Codec::default());
    let mut counting = counting.await.expect("a stream").into_inner();
    let end = loop {
        match counting.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::DeadlineExceeded, "{end:?}");
}

#[tokio::test]
async fn proxy_answers_calls_that_it_refuses_as_grpc_does() {
    let issuer = Issuer::new(None, &[]);
    let up = server("a").await;
    let nobody: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let one = |service: &str, name: &str, backends: &str| {
        format!(
            "    - {{ name: {name}, matches: [{{ method: {{ service: {service} }} }}], {backends} }}\n"
        )
    };
    let refs = |name: &str| format!("backendRefs: [{}]", to(name));
    let rules = [
        one("shop.Gone", "gone", &refs("nobody")),
        one(
            "shop.Weightless",
            "weightless",
            &refs("a").replace(" }]", ", weight: 0 }]"),
        ),
        one("shop.Secret", "secret", &refs("a")),
        one("shop.Mine", "mine", &refs("a")),
        one(
            "shop.Full",
            "full",
            "backendRefs: [{ group: cardinal.dev, kind: RoutingTable, name: t }]",
        ),
    ]
    .concat();
    let more = format!(
        "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: SecurityPolicy
metadata: {{ name: all }}
spec:
  targetRefs:
    - {{ group: gateway.networking.k8s.io, kind: GRPCRoute, name: r, sectionName: secret }}
    - {{ group: gateway.networking.k8s.io, kind: GRPCRoute, name: r, sectionName: mine }}
  jwt: {{ providers: [{{ name: p, localJWKS: {{ inline: '{}' }} }}] }}
  authorization:
    rules: [{{ action: Allow, principal: {{ jwt: {{ provider: p, scopes: [call] }} }} }}]
---
apiVersion: cardinal.dev/v1alpha1
kind: RoutingTable
metadata: {{ name: t }}
spec:
  version: '1'
  placements: {{ tier1: {{ url: 'http://{up}', concurrency_limit: 1, max_request_body_bytes: 64 }} }}
  defaultPlacement: tier1
",
        issuer.jwks()
    );
    let (router, at) = routed(&rules, &[("a", up), ("nobody", nobody)], &more);
    let mut client = client(at, "grpc.example").await;
    let mut call = async |to: &str, headers: &[(&'static str, String)], text: &str| {
        let mut request = tonic::Request::new(note(text, 0));
        for (name, value) in headers {
            let value = value.parse().expect("a value");
            request.metadata_mut().insert(*name, value);
        }
        match unary(&mut client, to, request).await {
            Ok(_) => (Code::Ok, String::new()),
            Err(status) => (status.code(), status.message().to_owned()),
        }
    };
    let token = |scope: &str| format!("Bearer {}", issuer.token(json!({ "scope": scope })));
    let key = [("x-routing-key", "acme".to_owned())];
    let long = "x".repeat(100);
    for (to, headers, text, code, word) in [
        (
            "/shop.Unknown/Say",
            &[][..],
            "",
            Code::Unimplemented,
            "no_route (",
        ),
        (
            "/shop.Gone/Say",
            &[],
            "",
            Code::Unavailable,
            "upstream_connect (",
        ),
        (
            "/shop.Weightless/Say",
            &[],
            "",
            Code::Unavailable,
            "no_target (",
        ),
        (
            "/shop.Secret/Say",
            &[],
            "",
            Code::Unauthenticated,
            "jwt_missing: Jwt is missing (",
        ),
        (
            "/shop.Secret/Say",
            &[("authorization", token("other"))],
            "",
            Code::PermissionDenied,
            "scope: RBAC: access denied (",
        ),
        (
            "/shop.Mine/Say",
            &[("authorization", token("call"))],
            "",
            Code::Ok,
            "",
        ),
        (
            "/shop.Full/Say",
            &[],
            "",
            Code::Internal,
            "routing_key_missing: ",
        ),
        ("/shop.Full/Say", &key, "", Code::Ok, ""),
        (
            "/shop.Full/Say",
            &key,
            &long,
            Code::ResourceExhausted,
            "body_size_limit (",
        ),
    ] {
        let (given, message) = call(to, headers, text).await;
        assert_eq!(given, code, "{to}: {message}");
        assert!(message.starts_with(word), "{to}: {message}");
    }
    // One call has the only slot.
    let mut other = self::client(at, "grpc.example").await;
    let waiting = tokio::spawn(async move {
        // The calls below ask for the slot as well.
        loop {
            let mut request = tonic::Request::new(note("wait", 0));
            let key = "acme".parse().expect("a value");
            request.metadata_mut().insert("x-routing-key", key);
            let refused = unary(&mut other, "/shop.Full/Say", request).await;
            assert_eq!(
                refused.map_err(|status| status.code()).err(),
                Some(Code::Unavailable)
            );
        }
    });
    let full = async {
        loop {
            let (code, message) = call("/shop.Full/Say", &key, "").await;
            if code != Code::Ok {
                return (code, message);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let full = tokio::time::timeout(SURELY, full).await;
    let (code, message) = full.expect("the slot is taken in the end");
    assert_eq!(code, Code::Unavailable);
    assert!(message.starts_with("concurrency_limit ("), "{message}");
    waiting.abort();
    router.reason(Reason::ConcurrencyLimit).await;
    // A host that nobody serves.
    let mut stranger = self::client(at, "stranger.example").await;
    assert_eq!(
        say(&mut stranger, "/shop.Mine/Say").await,
        Err(Code::Unimplemented)
    );
    // Whoever does not speak gRPC is answered in HTTP.
    let plain = send(at, get("http://grpc.example/shop.Unknown/Say")).await;
    assert_eq!(plain.status, StatusCode::NOT_FOUND);
    assert_eq!(plain.json()["error"], "no_route");
}

#[tokio::test]
async fn proxy_gives_a_host_to_the_older_kind_of_route() {
    let (call, up) = (server("call").await, crate::support::echo("path").await);
    for (http, grpc, winner) in [
        ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "HTTPRoute"),
        ("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z", "GRPCRoute"),
    ] {
        let other = format!(
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: other, creationTimestamp: '{http}' }}
spec:
  parentRefs: [{{ name: gw }}]
  hostnames: ['*.example', else.where]
  rules: [{{ backendRefs: [{}] }}]
",
            to("b")
        );
        let (text, at) = documents(
            "GRPCRoute",
            &rule("{}", "a"),
            &[("a", call), ("b", up)],
            &other,
        );
        let text = text.replace(
            "{ name: r }",
            &format!("{{ name: r, creationTimestamp: '{grpc}' }}"),
        );
        let snapshot = snapshot(&text);
        let warnings: Vec<String> = snapshot.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("parentRefs[0]"), "{warnings:?}");
        assert!(
            warnings[0].contains(&format!("`{winner}` default/")),
            "{warnings:?}"
        );
        let _router = Router::start(&snapshot);
        let at: SocketAddr = ([127, 0, 0, 1], at).into();
        let mut client = client(at, "grpc.example").await;
        let called = say(&mut client, "/shop.v1.Notes/Say").await;
        let plain = send(at, get("http://else.where/")).await.status;
        if winner == "GRPCRoute" {
            assert_eq!(called.as_deref(), Ok("call"));
            // One host of it is taken, so that none of the other is served.
            assert_eq!(plain, StatusCode::NOT_FOUND);
        } else {
            assert!(called.is_err(), "{called:?}");
            assert_eq!(plain, StatusCode::OK);
        }
    }
}
