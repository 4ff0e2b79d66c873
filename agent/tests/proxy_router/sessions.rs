//! Clients that keep the endpoint which served them first.

use std::collections::BTreeSet;

use http::Request;

use crate::support::{Reply, Router, echo, full, refs, send, written};

async fn ask(at: std::net::SocketAddr, path: &str, header: Option<(&str, &str)>) -> Reply {
    let mut request = Request::get(format!("http://x{path}"));
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    send(at, request.body(full(String::new())).expect("a request")).await
}

fn named(reply: &Reply) -> String {
    reply.json()["name"].as_str().expect("a name").to_owned()
}

#[tokio::test]
async fn proxy_keeps_a_client_at_its_endpoint() {
    let (a, b, c) = (echo("a").await, echo("b").await, echo("c").await);
    let rule = |path: &str, session: &str| {
        format!(
            "    - matches: [{{ path: {{ value: {path} }} }}]
      sessionPersistence: {{ {session} }}
      {}
",
            refs(&["a", "b", "c"])
        )
    };
    let rules = [
        rule("/cookie", "sessionName: Keep"),
        rule("/header", "sessionName: X-Keep, type: Header"),
        rule(
            "/permanent",
            "absoluteTimeout: 1h, cookieConfig: { lifetimeType: Permanent }",
        ),
        rule("/idle", "sessionName: idle, idleTimeout: 1h"),
    ];
    let backends = [("a", a), ("b", b), ("c", c)];
    let (snapshot, at) = written(&rules.concat(), &backends, "");
    let _router = Router::start(&snapshot);
    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        let first = ask(at, "/cookie", None).await;
        let cookie = first.header("set-cookie").expect("a session").to_owned();
        assert!(cookie.starts_with("Keep="), "{cookie}");
        assert!(cookie.ends_with("; Path=/; HttpOnly"), "{cookie}");
        let pair = cookie.split(';').next().expect("a pair");
        let other = format!("x=y; {pair}; z=Keep=1");
        seen.insert(named(&first));
        for _ in 0..4 {
            let again = ask(at, "/cookie/2", Some(("cookie", &other))).await;
            assert_eq!(named(&again), named(&first));
            assert_eq!(again.header("set-cookie"), None);
        }
    }
    assert_eq!(seen.len(), 3, "{seen:?}");

    let first = ask(at, "/header", None).await;
    let session = first.header("x-keep").expect("a session").to_owned();
    for _ in 0..8 {
        let again = ask(at, "/header", Some(("x-keep", &session))).await;
        assert_eq!(named(&again), named(&first));
    }
    // What leads to no endpoint of the rule is nobody's session, and begins a new one.
    let now = session.split('.').nth(1).expect("a time");
    for made_up in ["", "127.0.0.1:1", "..", &format!("00.{now}.{now}")] {
        let answer = ask(at, "/header", Some(("x-keep", made_up))).await;
        assert_eq!(answer.status, 200);
        assert_ne!(answer.header("x-keep"), Some(made_up));
    }

    let permanent = ask(at, "/permanent", None).await;
    let cookie = permanent.header("set-cookie").expect("a session");
    assert!(cookie.starts_with("cardinal-default-r-2="), "{cookie}");
    assert!(cookie.contains("; Max-Age=3600"), "{cookie}");

    // A session that is over is followed by another, wherever it leads.
    let digest = session.split('.').next().expect("a digest");
    let over = format!("idle={digest}.1000001.1000000");
    let answer = ask(at, "/idle", Some(("cookie", &over))).await;
    let cookie = answer.header("set-cookie").expect("a session").to_owned();
    assert!(!cookie.contains("1000001"), "{cookie}");
    let pair = cookie.split(';').next().expect("a pair");
    let kept = ask(at, "/idle", Some(("cookie", pair))).await;
    assert_eq!(named(&kept), named(&answer));
    assert!(kept.header("set-cookie").is_some(), "it was seen");
}
