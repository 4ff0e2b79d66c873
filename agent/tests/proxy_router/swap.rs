//! Tables and listeners that change under load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use cardinal_agent::compile::route::compile;
use cardinal_agent::route::RouteTable;
use http::{Request, Response};

use crate::support::{
    Router, addresses, connect, echo, empty, free_port, full, gateway, get, http2, listener,
    object, plain, prefix, reply, route, rule, send, serve, to,
};
use crate::tls::{Authority, https};

#[tokio::test]
async fn proxy_swaps_tables_without_a_failed_request() {
    let (a, b) = (echo("a").await, echo("b").await);
    let rules = |up| vec![route("r", &[], vec![rule(vec![prefix("/")], vec![to(up)])])];
    let (mut snapshot, at) = plain(rules(a));
    let router = Router::start(&snapshot);
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for _ in 0..4 {
        let stop = Arc::clone(&stop);
        clients.push(tokio::spawn(async move {
            let mut sender = http2(at).await;
            let mut served = 0;
            while !stop.load(Ordering::Relaxed) {
                let answer = sender
                    .send_request(get("http://x/"))
                    .await
                    .expect("an answer");
                assert_eq!(answer.status(), 200);
                reply(answer).await;
                served += 1;
            }
            served
        }));
    }
    for generation in 2..40 {
        snapshot.routes = rules(if generation % 2 == 0 { b } else { a });
        let table = compile(&snapshot, generation).expect("it compiles");
        let opened = router
            .proxy
            .open(&table.addresses())
            .expect("nothing is new");
        router.table.store(Arc::new(table));
        opened.commit();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(
        send(at, get("http://x/")).await.json()["name"],
        "a",
        "generation 39"
    );
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.expect("no request failed") > 10);
    }
    let generations: std::collections::BTreeSet<u64> = router
        .proxy
        .log()
        .since(0)
        .iter()
        .map(|one| one.generation)
        .collect();
    assert!(generations.len() > 5, "{generations:?}");
}

#[tokio::test]
async fn proxy_opens_and_closes_listeners_and_drains() {
    let up = serve(|_: Request<hyper::body::Incoming>| async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Response::new(full("slow".into()))
    })
    .await;
    let (mut snapshot, at) = plain(vec![route(
        "r",
        &[],
        vec![rule(vec![prefix("/")], vec![to(up)])],
    )]);
    let router = Router::start(&snapshot);
    let running = tokio::spawn(send(at, get("http://x/")));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let other = free_port();
    let gateway = snapshot
        .gateways
        .get_mut(&object("gw"))
        .expect("it is there");
    gateway.listeners = vec![listener("http", other, None)];
    let table = compile(&snapshot, 2).expect("it compiles");
    let dropped = router.proxy.open(&table.addresses()).expect("it is free");
    drop(dropped);
    let now = (at.ip(), other).into();
    tokio::net::TcpStream::connect(now)
        .await
        .expect_err("the change was undone");
    let opened = router.proxy.open(&table.addresses()).expect("it is free");
    router.table.store(Arc::new(table));
    opened.commit();
    assert_eq!(running.await.expect("it runs on").body, "slow");
    let answer = send(now, get("http://x/")).await;
    assert_eq!(answer.body, "slow");
    for attempt in 0.. {
        if tokio::net::TcpStream::connect(at).await.is_err() {
            break;
        }
        assert!(attempt < 100, "the old address still accepts");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let last = tokio::spawn(send(now, get("http://x/")));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let left = router.proxy.shutdown(Duration::from_secs(5)).await;
    assert_eq!(left, 0);
    assert_eq!(last.await.expect("it was finished").body, "slow");
    assert!(addresses(&[at]).contains(&at));
}

/// Publishes a table and waits until nobody holds the one before.
async fn replace(router: &Router, snapshot: &snapshot::Snapshot, generation: u64) {
    let table = compile(snapshot, generation).expect("it compiles");
    let old: Weak<RouteTable> = Arc::downgrade(&router.table.swap(Arc::new(table)));
    for attempt in 0.. {
        if old.upgrade().is_none() {
            break;
        }
        assert!(
            attempt < 200,
            "somebody still holds a table that was replaced"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn proxy_keeps_no_table_for_a_connection() {
    let up = echo("a").await;
    let authority = Authority::new();
    let (plain_at, tls_at) = (free_port(), free_port());
    let mut snapshot = empty();
    let certificate = authority.certificate("main", &["x.org"]);
    let listeners = vec![
        listener("http", plain_at, None),
        https("https", tls_at, None, "main"),
    ];
    snapshot
        .certificates
        .insert(certificate.name.clone(), Arc::new(certificate));
    let made = gateway("gw", None, listeners);
    snapshot.gateways.insert(made.name.clone(), made);
    snapshot.routes = vec![route("r", &[], vec![rule(vec![prefix("/")], vec![to(up)])])];
    let router = Router::start(&snapshot);
    let mut plain = kept(connect(None, ([127, 0, 0, 1], plain_at).into()).await).await;
    let stream = connect(None, ([127, 0, 0, 1], tls_at).into()).await;
    let shaken = authority
        .handshake(stream, Some("x.org"), &["http/1.1"])
        .await;
    let mut tls = kept(shaken.expect("it shakes hands")).await;
    for generation in 2..4 {
        for sender in [&mut plain, &mut tls] {
            assert_eq!(asked(sender).await, 200);
        }
        replace(&router, &snapshot, generation).await;
    }
    // The port that spoke HTTP speaks HTTPS from now on, and the other way round: an old connection is
    // not what the listener is for.
    let made = snapshot
        .gateways
        .get_mut(&object("gw"))
        .expect("it is there");
    made.listeners = vec![
        https("https", plain_at, None, "main"),
        listener("http", tls_at, None),
    ];
    replace(&router, &snapshot, 4).await;
    for sender in [&mut plain, &mut tls] {
        assert_eq!(asked(sender).await, 421);
        sender.ready().await.expect_err("the connection ends");
    }
    let answer = send(([127, 0, 0, 1], tls_at).into(), get("http://x.org/")).await;
    assert_eq!(answer.status, 200);
}

type Sender = hyper::client::conn::http1::SendRequest<crate::support::Body>;

async fn kept<T>(stream: T) -> Sender
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let io = hyper_util::rt::TokioIo::new(stream);
    let (sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .expect("a connection");
    tokio::spawn(connection);
    sender
}

async fn asked(sender: &mut Sender) -> u16 {
    sender.ready().await.expect("the connection stays");
    let request = Request::get("/")
        .header("host", "x.org")
        .body(full(String::new()));
    let answer = sender
        .send_request(request.expect("a request"))
        .await
        .expect("an answer");
    reply(answer).await.status.as_u16()
}
