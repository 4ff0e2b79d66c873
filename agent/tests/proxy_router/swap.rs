//! Tables and listeners that change under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cardinal_agent::compile::route::compile;
use http::{Request, Response};

use crate::support::{
    Router, addresses, echo, free_port, full, get, http2, listener, object, plain, prefix, reply,
    route, rule, send, serve, to,
};

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
