//! What the router makes of a client's bytes, compared with what another server makes of the same ones.
//!
//! Requests are made of parts that servers have argued about, broken at random places, and sent in random pieces. Whatever
//! reaches the upstream is a request that `hyper` reads in the same bytes, with the same body, in the same order; a router
//! that is stricter leaves some out. Bodies hold requests that nobody is to see.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Router, connect, full, plain, prefix, route, rule, serve, to};

/// Messages that are sent, and how many of them at once.
const CASES: usize = 600;
const AT_ONCE: usize = 40;

/// A request as it was read: method, target, body.
type Read = (String, String, Vec<u8>);

/// What a server read, by its client.
type Log = Arc<Mutex<HashMap<IpAddr, Vec<Read>>>>;

async fn read(request: Request<Incoming>) -> Option<Read> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    let mut target = parts
        .uri
        .path_and_query()
        .map_or("/", |one| one.as_str())
        .to_owned();
    // The router passes a path on in one way of writing it.
    while target.contains("//") {
        target = target.replace("//", "/");
    }
    Some((parts.method.to_string(), target, body.to_vec()))
}

/// What `hyper` reads.
async fn reference(bytes: &[u8]) -> Vec<Read> {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let log = Arc::new(Mutex::new(Vec::new()));
    let service = service_fn(|request| {
        let log = Arc::clone(&log);
        async move {
            if let Some(read) = read(request).await {
                log.lock().expect("no panic").push(read);
            }
            Ok::<_, Infallible>(Response::new(full(String::new())))
        }
    });
    client.write_all(bytes).await.expect("there is room");
    client.shutdown().await.expect("it ends");
    // What it refuses, it has not read.
    let _refused = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(server), service)
        .await;
    let log = log.lock().expect("no panic");
    log.clone()
}

/// A request that is as it should be, if `unusual` says nothing.
fn request(unusual: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let line = (
        select(&["GET", "POST", "PUT", "DELETE"][..]),
        select(&["/", "/a/b?c=d", "http://a/x"][..]),
        "[a-z]{1,8}",
    );
    let fields = vec(
        select(&["x-a: b\r\n", "X-B:c\r\n", "accept: \t*/* \r\n"][..]),
        0..3,
    );
    let body = (
        0..3_u8,
        vec(1..30_usize, 0..4),
        any::<bool>(),
        any::<bool>(),
    );
    let odd = vec((select(unusual), any::<Index>()), 0..2);
    (line, fields, body, odd).prop_map(|((method, target, id), fields, body, odd)| {
        let mut head = format!("{method} {target}{id} HTTP/1.1\r\nHost: a\r\n");
        let (kind, pieces, extended, trailed) = body;
        let mut rest = String::new();
        fields.iter().for_each(|field| head += field);
        match kind {
            0 => {}
            1 => {
                let length = pieces.iter().sum::<usize>().min(SMUGGLED.len());
                rest += &SMUGGLED[..length];
                head += &format!("Content-Length: {length}\r\n");
            }
            _ => {
                head += "Transfer-Encoding: chunked\r\n";
                for piece in pieces {
                    let extension = if extended { ";a=\"b\";c" } else { "" };
                    rest += &format!("{piece:x}{extension}\r\n{}\r\n", &SMUGGLED[..piece]);
                }
                rest += if trailed {
                    "0\r\nx-t: 1\r\n\r\n"
                } else {
                    "0\r\n\r\n"
                };
            }
        }
        for (text, at) in odd {
            // Where a field begins.
            let starts: Vec<usize> = head.match_indices('\n').map(|(at, _)| at + 1).collect();
            head.insert_str(*at.get(&starts), text);
        }
        format!("{head}\r\n{rest}").into_bytes()
    })
}

/// How bytes are broken.
#[derive(Clone, Debug)]
enum Break {
    Put(Index, &'static str),
    Replace(Index, u8),
    Remove(Index),
    Double(Index),
}

fn breaks() -> impl Strategy<Value = Break> {
    const PARTS: &[&str] = &[
        "\r",
        "\n",
        "\r\n",
        "\n\n",
        "\r\n\r\n",
        "\r\n ",
        " ",
        "\t",
        "\0",
        "\x0b",
        ":",
        ";",
        ",",
        "0",
        "5",
        "f",
        "x",
        "+",
        "-",
        "\u{e9}",
        "Content-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Connection: close\r\n",
        "0\r\n\r\n",
    ];
    const BYTES: &[u8] = b"\r\n \t\0\x0b\x7f:;,05fxX+-\"/\xff";
    prop_oneof![
        3 => (any::<Index>(), select(PARTS)).prop_map(|(at, part)| Break::Put(at, part)),
        2 => (any::<Index>(), select(BYTES)).prop_map(|(at, byte)| Break::Replace(at, byte)),
        1 => any::<Index>().prop_map(Break::Remove),
        1 => any::<Index>().prop_map(Break::Double),
    ]
}

fn broken(mut bytes: Vec<u8>, breaks: Vec<Break>) -> Vec<u8> {
    for one in breaks {
        match one {
            Break::Put(at, part) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, part.bytes());
            }
            Break::Replace(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            Break::Remove(at) => {
                bytes.remove(at.index(bytes.len()));
            }
            Break::Double(at) => {
                let at = at.index(bytes.len());
                bytes.insert(at, bytes[at]);
            }
        }
    }
    bytes
}

/// Bytes to send, where they are cut, and whether nothing is wrong with them.
fn message() -> impl Strategy<Value = (Vec<u8>, Vec<Index>, bool)> {
    const UNUSUAL: &[&str] = &[
        "Content-Length: 3\r\n",
        "Content-Length: 3, 3\r\n",
        "Content-Length : 3\r\n",
        "Content-Length:\r\n",
        "Content-Length: 0x3\r\n",
        "content-length: 03\r\n",
        "Content-Length:\n 3\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: Chunked \r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding:\x0bchunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "TE: trailers\r\n",
        "X: a\rTransfer-Encoding: chunked\r\n",
        "X: a\nTransfer-Encoding: chunked\r\n",
        "X: a\n\n",
        " x: folded\r\n",
        "Connection: close\r\n",
        "Connection: keep-alive\r\n",
        "Connection: content-length\r\n",
        "Connection: transfer-encoding\r\n",
        "Expect: 100-continue\r\n",
        "Upgrade: h2c\r\nConnection: upgrade\r\n",
        "Host: b\r\n",
    ];
    let whole = vec(request(&["x-c: d\r\n"]), 1..4).prop_map(|all| (all.concat(), true));
    let odd = (vec(request(UNUSUAL), 1..4), vec(breaks(), 0..3))
        .prop_map(|(all, breaks)| (broken(all.concat(), breaks), false));
    let bytes = prop_oneof![1 => whole, 4 => odd];
    (bytes, vec(any::<Index>(), 0..6)).prop_map(|((mut bytes, whole), cuts)| {
        bytes.extend_from_slice(b"GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        (bytes, cuts, whole)
    })
}

/// Sends bytes from an address in these pieces and reads until the router closes, or says nothing more.
async fn exchanged(from: IpAddr, at: SocketAddr, bytes: &[u8], cuts: &[Index], patience: Duration) {
    let mut stream = connect(Some(from), at).await;
    stream.set_nodelay(true).expect("an option");
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    for piece in cuts.windows(2) {
        // It may refuse before it has read everything.
        if stream.write_all(&bytes[piece[0]..piece[1]]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut answers = [0; 4096];
    while let Ok(Ok(1..)) = tokio::time::timeout(patience, stream.read(&mut answers)).await {}
}

#[tokio::test]
async fn proxy_reads_no_request_where_another_server_reads_none() {
    let log = Log::default();
    let up = {
        let log = Arc::clone(&log);
        serve(move |request: Request<Incoming>| {
            let log = Arc::clone(&log);
            async move {
                let way = request
                    .headers()
                    .get_all("x-forwarded-for")
                    .iter()
                    .next_back();
                let way = way.and_then(|way| way.to_str().ok()).unwrap_or_default();
                let from = way.rsplit(", ").next().and_then(|from| from.parse().ok());
                let from: IpAddr = from.expect("the router says from where");
                if let Some(read) = read(request).await {
                    log.lock()
                        .expect("no panic")
                        .entry(from)
                        .or_default()
                        .push(read);
                }
                Response::new(full(String::new()))
            }
        })
        .await
    };
    let routes = vec![route("r", &[], vec![rule(vec![prefix("/")], vec![to(up)])])];
    let (snapshot, at) = plain(routes);
    let _router = Router::start(&snapshot);

    let strategy = message();
    // The same messages each time: one that is read otherwise is to be looked at, and not to come and go.
    let mut runner = TestRunner::deterministic();
    let cases: Vec<_> = (0..CASES)
        .map(|_| strategy.new_tree(&mut runner).expect("a message").current())
        .collect();
    let address = |case: usize| -> IpAddr {
        let [_, _, high, low] = u32::try_from(case).expect("few").to_be_bytes();
        Ipv4Addr::new(127, 77, high, low).into()
    };
    let mut together = tokio::task::JoinSet::new();
    for (number, (bytes, cuts, whole)) in cases.iter().cloned().enumerate() {
        if together.len() == AT_ONCE {
            together.join_next().await.expect("some").expect("no panic");
        }
        // What is broken may be waited for on both sides.
        let patience = Duration::from_millis(if whole { 60_000 } else { 500 });
        together.spawn(async move {
            exchanged(address(number), at, &bytes, &cuts, patience).await;
        });
    }
    while let Some(ended) = together.join_next().await {
        ended.expect("no panic");
    }
    let log = std::mem::take(&mut *log.lock().expect("no panic"));
    let mut passed = 0;
    for (number, (bytes, _, whole)) in cases.iter().enumerate() {
        let expected = reference(bytes).await;
        let found = log.get(&address(number)).cloned().unwrap_or_default();
        passed += found.len();
        let shown = bytes.escape_ascii();
        if *whole {
            assert_eq!(found, expected, "{shown}");
            continue;
        }
        let mut rest = expected.iter();
        let inside = found.iter().all(|one| rest.any(|other| other == one));
        assert!(
            inside,
            "{shown}\nwas read as {found:?}\ninstead of {expected:?}"
        );
    }
    assert!(passed > CASES, "most requests are good ones");
}
