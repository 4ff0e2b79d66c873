//! Upstreams that fail in every way we know: the client gets the status that tells which, and no byte of a failed answer
//! is ever part of another one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cardinal_agent::proxy::{ProxyConfig, Reason};
use cardinal_agent::upstream::Timeouts;
use http_body_util::BodyExt;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::support::{
    FOREVER, Router, SURELY, free_port, get, http2, patient, plain, prefix, raw, route, rule, to,
    until,
};

/// What an upstream does with the first request that it gets.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Sends this, then waits for the next request.
    Say(&'static str),
    /// Sends this and closes.
    SayAndClose(&'static str),
    /// Sends this and resets the connection.
    SayAndReset(&'static str),
    /// Sends this over and over.
    Flood(&'static str),
    /// Does nothing for longer than anybody waits.
    Nothing,
}

/// An upstream that acts once; whatever is asked after that gets `good`.
async fn upstream(act: Act) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("it is bound");
    let acted = Arc::new(AtomicBool::new(false));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acted = Arc::clone(&acted);
            tokio::spawn(async move {
                // Whoever hangs up on it has had enough.
                let _ended = serve(stream, act, &acted).await;
            });
        }
    });
    at
}

async fn serve(mut stream: TcpStream, act: Act, acted: &AtomicBool) -> std::io::Result<()> {
    const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";
    let mut buffer = [0; 8192];
    while stream.read(&mut buffer).await? > 0 {
        if acted.swap(true, Ordering::Relaxed) {
            stream.write_all(GOOD).await?;
            continue;
        }
        match act {
            Act::Say(text) => stream.write_all(text.as_bytes()).await?,
            Act::SayAndClose(text) => return stream.write_all(text.as_bytes()).await,
            Act::SayAndReset(text) => {
                stream.write_all(text.as_bytes()).await?;
                // What was sent is to arrive before the reset takes it back.
                tokio::time::sleep(Duration::from_millis(300)).await;
                return SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            Act::Flood(text) => loop {
                stream.write_all(text.as_bytes()).await?;
                tokio::task::yield_now().await;
            },
            Act::Nothing => tokio::time::sleep(FOREVER).await,
        }
    }
    Ok(())
}

fn impatient() -> ProxyConfig {
    ProxyConfig {
        timeouts: Timeouts {
            connect: Duration::from_millis(300),
            head: Duration::from_secs(2),
            ..Timeouts::default()
        },
        ..ProxyConfig::default()
    }
}

fn router(up: SocketAddr, config: ProxyConfig) -> (Router, SocketAddr) {
    let (snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    (Router::with(&snapshot, config), at)
}

/// Asks by both codecs. Gives the status, and the body if it was whole.
async fn ask(at: SocketAddr, codec: &str) -> (u16, Option<String>) {
    if codec == "h2" {
        let answer = http2(at).await.send_request(get("http://a/")).await;
        let answer = answer.expect("an answer");
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.ok();
        let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
        return (status, text);
    }
    let mut stream = TcpStream::connect(at).await.expect("somebody listens");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(&mut stream))
            .await
            .expect("a connection");
    let asked = async {
        let mut request = get("/");
        let host = http::HeaderValue::from_static("a");
        request.headers_mut().insert("host", host);
        let answer = sender.send_request(request).await.expect("an answer");
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.ok();
        let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
        drop(sender);
        (status, text)
    };
    let (answer, _ended) = tokio::join!(asked, connection);
    answer
}

#[tokio::test]
async fn proxy_tells_how_an_upstream_failed_and_mixes_no_answers() {
    use Act::{Flood, Nothing, Say, SayAndClose, SayAndReset};
    for (act, status, reason, body) in [
        (Nothing, 504, Reason::UpstreamTimeout, None),
        (SayAndClose(""), 502, Reason::UpstreamReset, None),
        (SayAndReset(""), 502, Reason::UpstreamReset, None),
        (
            SayAndClose("HTTP/1.1 200 OK\r\nX: "),
            502,
            Reason::UpstreamReset,
            None,
        ),
        (
            Say("\u{16}\u{3}\u{1}wry wry wry\r\n\r\n"),
            502,
            Reason::UpstreamReset,
            None,
        ),
        (
            Say("HTTP/9.9 200 wry\r\n\r\nwry"),
            502,
            Reason::UpstreamReset,
            None,
        ),
        (
            Say("HTTP/1.1 999999 wry\r\n\r\nwry"),
            502,
            Reason::UpstreamReset,
            None,
        ),
        // Interim answers alone are no answer, however many.
        (
            Flood("HTTP/1.1 100 Continue\r\n\r\n"),
            504,
            Reason::UpstreamTimeout,
            None,
        ),
        (
            Flood("HTTP/1.1 103 Early Hints\r\nLink: </wry>\r\n\r\n"),
            504,
            Reason::UpstreamTimeout,
            None,
        ),
        // A head without end.
        (
            Flood("HTTP/1.1 200 OK\r\nX-Wry: wry\r\n"),
            502,
            Reason::UpstreamReset,
            None,
        ),
        // The head was passed on; that its body is not whole cannot be overheard.
        (
            SayAndReset("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nwry"),
            200,
            Reason::UpstreamReset,
            None,
        ),
        (
            SayAndClose("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nwry"),
            200,
            Reason::UpstreamReset,
            None,
        ),
        (
            SayAndClose("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nwry\r\n"),
            200,
            Reason::UpstreamReset,
            None,
        ),
        (
            Say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nwry\r\nzz\r\n"),
            200,
            Reason::UpstreamReset,
            None,
        ),
        // More than was announced is nobody's.
        (
            Say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokwry"),
            200,
            Reason::Ok,
            Some("ok"),
        ),
    ] {
        for codec in ["h1", "h2"] {
            let config = match reason {
                Reason::UpstreamTimeout => impatient(),
                _ => patient(),
            };
            let (router, at) = router(upstream(act).await, config);
            let told = ask(at, codec).await;
            assert_eq!(told.0, status, "{codec} {act:?}: {told:?}");
            let record = router.reason(reason).await;
            assert_eq!(record.status, status, "{codec} {act:?}");
            if status == 200 {
                assert_eq!(told.1.as_deref(), body, "{codec} {act:?}");
            } else {
                let text = told.1.expect("the router's own answer is whole");
                // No letter of the word is a digit of a request id.
                assert!(!text.contains("wry"), "{codec} {act:?}: {text}");
            }
            for _ in 0..4 {
                let next = ask(at, codec).await;
                assert_eq!(next, (200, Some("good".to_owned())), "{codec} {act:?}");
            }
        }
    }
}

#[tokio::test]
async fn proxy_waits_for_no_connection_that_nobody_takes() {
    // Nothing listens.
    let (refused, at) = router(
        (std::net::Ipv4Addr::LOCALHOST, free_port()).into(),
        patient(),
    );
    assert_eq!(ask(at, "h1").await.0, 502);
    let record = refused.reason(Reason::UpstreamConnect).await;
    assert!(record.detail.is_some(), "{record:?}");

    // The queue of connections is full, and the kernel drops what comes.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    socket.bind(&any.into()).expect("a port");
    socket.listen(0).expect("it listens");
    let full = socket.local_addr().expect("it is bound");
    let full = full.as_socket().expect("an address of the internet");
    let mut waiting = Vec::new();
    while let Ok(Ok(one)) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(full)).await
    {
        waiting.push(one);
        assert!(waiting.len() < 64, "the queue takes everything");
    }
    let (blackholed, at) = router(full, impatient());
    // The kernel would try for two minutes.
    let given_up = tokio::time::timeout(SURELY, ask(at, "h1")).await;
    assert_eq!(given_up.expect("the router gives up").0, 502);
    blackholed.reason(Reason::UpstreamConnect).await;
}

#[tokio::test]
async fn proxy_says_goodbye_on_both_codecs_when_it_drains() {
    let (gate, asked) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (waits, counts) = (Arc::clone(&gate), Arc::clone(&asked));
    let up = crate::support::serve(move |_| {
        let (waits, counts) = (Arc::clone(&waits), Arc::clone(&counts));
        async move {
            counts.fetch_add(1, Ordering::SeqCst);
            waits.acquire().await.expect("it stays open").forget();
            http::Response::new(crate::support::full("slow".into()))
        }
    })
    .await;
    let (router, at) = router(up, patient());
    let mut sender = http2(at).await;
    let second = sender.send_request(get("http://a/"));
    let second = tokio::spawn(async move {
        let answer = second.await.expect("an answer");
        answer.into_body().collect().await.expect("its body")
    });
    let first = tokio::spawn(raw(at, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    until("both are under way", || asked.load(Ordering::SeqCst) == 2).await;
    let drained = router.proxy.shutdown(SURELY);
    let go_on = async {
        // Whoever takes no connection any more is draining.
        until("it drains", || std::net::TcpStream::connect(at).is_err()).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        gate.add_permits(2);
    };
    let (cut, first, second, ()) = tokio::join!(drained, first, second, go_on);
    assert_eq!(cut, 0, "requests that were under way ended");
    let first = first.expect("it ends").to_ascii_lowercase();
    assert!(first.ends_with("slow"), "{first}");
    assert!(first.contains("connection: close"), "{first}");
    assert_eq!(second.expect("it ends").to_bytes(), "slow");
    // The connection was told to go away, and takes no further request.
    let ready = tokio::time::timeout(SURELY, sender.ready()).await;
    assert!(matches!(ready, Ok(Err(_))), "{ready:?}");
}

#[tokio::test]
async fn proxy_holds_back_an_upstream_whose_reader_waits() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let up = listener.local_addr().expect("it is bound");
    let (told, mut taken) = tokio::sync::watch::channel(0_usize);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("the router comes");
        let mut buffer = [0; 4096];
        let _head = stream.read(&mut buffer).await.expect("a request");
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1_u64 << 32);
        stream
            .write_all(head.as_bytes())
            .await
            .expect("it is taken");
        let part = vec![7; 1 << 16];
        while stream.write_all(&part).await.is_ok() {
            told.send_modify(|taken| *taken += part.len());
        }
    });
    let (_router, at) = router(up, patient());
    // It asks, and reads nothing.
    let mut client = TcpStream::connect(at).await.expect("somebody listens");
    let asked = client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    asked.await.expect("it is taken");
    while tokio::time::timeout(Duration::from_secs(1), taken.changed())
        .await
        .is_ok()
    {
        let taken = *taken.borrow_and_update();
        assert!(taken < 64 << 20, "64 MiB were taken that nobody reads");
    }
}
