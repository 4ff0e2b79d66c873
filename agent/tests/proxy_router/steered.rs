//! Callers that are components: the west gate, east addressed directly, south by name. What the kernel
//! steers is played by ordinary sockets on loopback addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use cardinal_agent::proxy::{ProxyConfig, Reason};
use http::Request;
use snapshot::Snapshot;
use snapshot::model::{
    East, Filter, Gate, Hostname, Origin, PathRewrite, South, SouthDestination, SouthProtocol,
    Target, WeightedTarget,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::auth::Issuer;
use crate::support::{
    Reply, Router, cell, connect, echo, empty, endpoint_id, free_port, full, gateway, get,
    listener, name, path, port, prefix, regex, route, rule, send_from, source,
};
use crate::tls::Authority;

const SHOP: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1));
const BANK: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const THIRD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 3, 1));
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 9, 9));

fn south(called: &str, hosts: &[&str], at: u16, protocol: SouthProtocol) -> South {
    South {
        declared: source(),
        name: name(called),
        from: Vec::new(),
        destination: SouthDestination::Hosts {
            hosts: hosts
                .iter()
                .map(|one| Hostname::new(one).expect("a host"))
                .collect(),
            protocol,
        },
        port: port(at),
    }
}

/// Cells shop and third call; bank serves `/api` at `up` through its west gate, `/api/books/*` with a
/// token. Shop declared the call.
fn world(up: SocketAddr, issuer: &Issuer, gates: (u16, u16)) -> Snapshot {
    let mut snapshot = empty();
    let mut shop = cell("shop", "orders", SHOP, 9);
    shop.east.push(East {
        declared: source(),
        from: vec![name("orders")],
        to: endpoint_id("bank", "ledger"),
    });
    for one in [
        shop,
        cell("bank", "ledger", BANK, up.port()),
        cell("third", "spy", THIRD, 9),
    ] {
        snapshot.cells.insert(one.id.clone(), one.into());
    }
    for (called, gate, at) in [
        ("in", Gate::Internal, gates.0),
        ("out", Gate::External, gates.1),
    ] {
        let gateway = gateway(called, Some(gate), vec![listener("http", at, None)]);
        snapshot.gateways.insert(gateway.name.clone(), gateway);
        let strip = Filter::from(PathRewrite::Strip(path("/bank/ledger")));
        let target = || {
            vec![WeightedTarget::new(
                1,
                Target::Endpoint(endpoint_id("bank", "ledger").into()),
            )]
        };
        let mut open = rule(vec![regex("/bank/ledger(/api/open)")], target());
        open.filters.push(strip.clone());
        let mut books = rule(vec![regex("/bank/ledger(/api/books/[^/]+)")], target());
        books.filters.push(strip);
        books.auth = Some(issuer.auth(&["read"]));
        let mut denied = rule(vec![prefix("/bank/ledger/api")], Vec::new());
        denied.auth = Some(issuer.deny());
        let mut made = route(
            &format!("ledger-{gate}"),
            &["acme.internal"],
            vec![open, books, denied],
        );
        made.parents[0].gateway = gateway_name(called);
        made.origin = Origin::Endpoint {
            endpoint: endpoint_id("bank", "ledger").into(),
            gate,
        };
        snapshot.routes.push(made.into());
    }
    snapshot
}

fn gateway_name(text: &str) -> snapshot::model::ObjectName {
    crate::support::object(text)
}

fn config(steered: Vec<SocketAddr>) -> ProxyConfig {
    ProxyConfig {
        loopback: true,
        inside: true,
        steered,
        ..ProxyConfig::default()
    }
}

#[tokio::test]
async fn proxy_gates_admit_components_by_declaration_only() {
    let issuer = Issuer::new(None, &[]);
    let up = echo("ledger").await;
    let (west, north) = (free_port(), free_port());
    let router = Router::with(&world(up, &issuer, (west, north)), config(Vec::new()));
    let uri = "http://acme.internal/bank/ledger/api/open";
    for (from, gate, status, error) in [
        (SHOP, west, 200, ""),
        (BANK, west, 200, ""),
        (STRANGER, west, 200, ""),
        (STRANGER, north, 200, ""),
        (THIRD, west, 403, "east_not_declared"),
        (SHOP, north, 403, "north_from_cell"),
        (BANK, north, 403, "north_from_cell"),
    ] {
        let answer = send_from(Some(from), (BANK, gate).into(), get(uri)).await;
        assert_eq!(answer.status, status, "{from} {gate}");
        if status == 200 {
            assert_eq!(answer.json()["uri"], "/api/open");
        } else {
            assert_eq!(answer.json()["error"], error, "{from}");
        }
    }
    let record = router.reason(Reason::EastNotDeclared).await;
    assert_eq!(record.caller.as_deref(), Some("acme/third/prod/spy"));
}

#[tokio::test]
async fn proxy_serves_steered_east_with_the_rules_of_the_west_gate() {
    let issuer = Issuer::new(None, &[]);
    // The endpoint's own address is where callers send to; the upstream listens on another address
    // of the same port, because here no kernel tells the two apart.
    let listener = TcpListener::bind("127.0.5.2:0").await.expect("a port");
    let at = listener.local_addr().expect("it is bound");
    let original: SocketAddr = (BANK, at.port()).into();
    crate::support::serve_on(
        listener,
        |request: Request<hyper::body::Incoming>| async move {
            http::Response::new(full(request.uri().to_string()))
        },
    );
    let mut snapshot = world(original, &issuer, (free_port(), free_port()));
    let bank = snapshot
        .cells
        .get_mut(&endpoint_id("bank", "ledger").component.cell)
        .expect("it is there");
    let ledger = bank
        .components
        .get_mut(&name("ledger"))
        .expect("it is there");
    ledger.workloads = snapshot::model::Workloads::Addresses(vec![at.ip()]);
    ledger.service_addresses = vec![original.ip()];
    let router = Router::with(&snapshot, config(vec![original]));
    let ask = |from: IpAddr, target: &str, token: Option<String>| {
        let mut request = get(&format!("http://ledger.bank:1{target}"));
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().expect("a value");
            request.headers_mut().insert("authorization", value);
        }
        send_from(Some(from), original, request)
    };
    let told = |answer: Reply| {
        (
            answer.status.as_u16(),
            String::from_utf8_lossy(&answer.body).into_owned(),
        )
    };
    assert_eq!(
        told(ask(SHOP, "/api/open?x=1", None).await),
        (200, "/api/open?x=1".into())
    );
    assert_eq!(ask(SHOP, "/api/books/1", None).await.status, 401);
    let token = issuer.token(serde_json::json!({"scope": "read"}));
    assert_eq!(
        told(ask(SHOP, "/api/books/1", Some(token.clone())).await),
        (200, "/api/books/1".into())
    );
    assert_eq!(ask(SHOP, "/api/other", Some(token)).await.status, 403);
    assert_eq!(ask(SHOP, "/outside", None).await.status, 404);
    let refused = ask(THIRD, "/api/open", None).await;
    assert_eq!(refused.json()["error"], "east_not_declared");
    let record = router
        .record(|one| one.path.as_deref() == Some("/bank/ledger/api/open"))
        .await;
    assert_eq!(record.listener.as_deref(), Some("east"));
    // A source that is no component is closed without a word.
    let mut stream = connect(Some(STRANGER), original).await;
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    router.reason(Reason::CallerUnknown).await;
}

#[tokio::test]
async fn proxy_passes_south_tls_by_declared_name_only() {
    let authority = Authority::new();
    let certificate = authority.certificate("api", &["api.localhost"]);
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(certificate.chain, certificate.key)
        .expect("a certificate");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("it is bound").port();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(server));
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.expect("it shakes hands");
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.expect("the client ends");
                stream.write_all(&all).await.expect("it listens still");
                stream.shutdown().await.expect("it ends");
            });
        }
    });
    let mut snapshot = empty();
    let mut shop = cell("shop", "orders", SHOP, 9);
    shop.south
        .push(south("api", &["api.localhost"], at, SouthProtocol::Tls));
    snapshot.cells.insert(shop.id.clone(), shop.into());
    let third = cell("third", "spy", THIRD, 9);
    snapshot.cells.insert(third.id.clone(), third.into());
    let original: SocketAddr = (Ipv4Addr::new(127, 0, 77, 1), at).into();
    let router = Router::with(&snapshot, config(vec![original]));

    let stream = connect(Some(SHOP), original).await;
    let mut tls = authority
        .handshake(stream, Some("api.localhost"), &[])
        .await
        .expect("it passes");
    let sent = vec![7; 300_000];
    tls.write_all(&sent).await.expect("it is taken");
    tls.shutdown().await.expect("half closed");
    let mut back = Vec::new();
    tls.read_to_end(&mut back)
        .await
        .expect("the other half is open");
    assert_eq!(back, sent);
    drop(tls);
    let record = router
        .record(|one| one.host.as_deref() == Some("api.localhost"))
        .await;
    assert_eq!(record.reason, Reason::Ok);
    assert_eq!(record.listener.as_deref(), Some("south"));
    assert!(
        record.bytes_in > 300_000 && record.bytes_out > 300_000,
        "{record:?}"
    );

    for name in [Some("evil.localhost"), None] {
        let stream = connect(Some(SHOP), original).await;
        let error = authority
            .handshake(stream, name, &[])
            .await
            .expect_err("not declared");
        assert!(error.to_string().contains("UnrecognisedName"), "{error}");
    }
    router
        .record(|one| {
            one.reason == Reason::SniNotDeclared && one.host.as_deref() == Some("evil.localhost")
        })
        .await;
    // Bytes that are no TLS say nothing, whatever they look like.
    let mut stream = connect(Some(SHOP), original).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: api.localhost\r\n\r\n")
        .await
        .expect("sent");
    let mut answer = Vec::new();
    // The router may reset after its alert, because bytes of ours were left unread.
    let _ended = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    router.reason(Reason::NotTls).await;
    // Another cell declared nothing.
    let mut stream = connect(Some(THIRD), original).await;
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    router.reason(Reason::SouthNotDeclared).await;
}

#[tokio::test]
async fn proxy_checks_the_host_of_every_south_request() {
    let up = echo("world").await;
    let mut snapshot = empty();
    let mut shop = cell("shop", "orders", SHOP, 9);
    shop.south.push(south(
        "api",
        &["api.localhost"],
        up.port(),
        SouthProtocol::Http,
    ));
    shop.south.push(south(
        "tls",
        &["other.localhost"],
        up.port(),
        SouthProtocol::Tls,
    ));
    snapshot.cells.insert(shop.id.clone(), shop.into());
    let original: SocketAddr = (Ipv4Addr::new(127, 0, 77, 1), up.port()).into();
    let router = Router::with(&snapshot, config(vec![original]));
    let at = up.port();
    let answer = send_from(
        Some(SHOP),
        original,
        get(&format!("http://api.localhost:{at}/a/%2e%2e//b?q")),
    )
    .await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json()["uri"],
        "/a/%2e%2e//b?q",
        "nothing here decides by the path"
    );
    assert_eq!(
        answer.seen("x-forwarded-for"),
        [""; 0],
        "the inside stays inside"
    );
    for refused in [
        "api.localhost",
        "api.localhost:1",
        "evil.localhost",
        "other.localhost",
    ] {
        let authority = match refused.contains("api") {
            true => refused.to_owned(),
            false => format!("{refused}:{at}"),
        };
        let answer = send_from(Some(SHOP), original, get(&format!("http://{authority}/"))).await;
        assert_eq!(answer.json()["error"], "host_not_declared", "{authority}");
        assert_eq!(answer.status, 403);
    }
    router.reason(Reason::HostNotDeclared).await;
    // One connection, two hosts: each request is checked.
    let stream = connect(Some(SHOP), original).await;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
            .await
            .expect("a connection");
    tokio::spawn(connection);
    for (host, status) in [("api", 200), ("evil", 403), ("api", 200)] {
        let request = Request::get("/").header("host", format!("{host}.localhost:{at}"));
        let request = request.body(full(String::new())).expect("a request");
        sender.ready().await.expect("the connection stays");
        let answer = sender.send_request(request).await.expect("an answer");
        assert_eq!(crate::support::reply(answer).await.status, status);
    }
}

#[tokio::test]
async fn proxy_follows_no_declared_name_inside() {
    let up = echo("inside").await;
    let mut snapshot = empty();
    let mut shop = cell("shop", "orders", SHOP, 9);
    shop.south.push(south(
        "api",
        &["api.localhost"],
        up.port(),
        SouthProtocol::Http,
    ));
    snapshot.cells.insert(shop.id.clone(), shop.into());
    // The name leads to an address of a component.
    let bank = cell("bank", "ledger", BANK, up.port());
    snapshot.cells.insert(bank.id.clone(), bank.into());
    let original: SocketAddr = (Ipv4Addr::new(127, 0, 77, 1), up.port()).into();
    let mut config = config(vec![original]);
    config.inside = false;
    let router = Router::with(&snapshot, config);
    let uri = format!("http://api.localhost:{}/", up.port());
    let answer = send_from(Some(SHOP), original, get(&uri)).await;
    assert_eq!(answer.status, 502);
    let record = router.reason(Reason::UpstreamResolve).await;
    assert!(
        record
            .detail
            .as_deref()
            .is_some_and(|one| one.contains("inside")),
        "{record:?}"
    );
}

/// The first flight of a TLS client, as bytes.
fn client_hello(name: &'static str) -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(Authority::new().roots())
        .with_no_client_auth();
    let name = name.try_into().expect("a name");
    let mut client =
        rustls::ClientConnection::new(std::sync::Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("into memory");
    bytes
}

#[tokio::test]
async fn proxy_reads_hellos_in_any_pieces_and_no_endless_ones() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("it is bound").port();
    // The upstream sends back what it was sent.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let mut snapshot = empty();
    let mut shop = cell("shop", "orders", SHOP, 9);
    shop.south
        .push(south("api", &["api.localhost"], at, SouthProtocol::Tls));
    snapshot.cells.insert(shop.id.clone(), shop.into());
    let original: SocketAddr = (Ipv4Addr::new(127, 0, 77, 1), at).into();
    let router = Router::with(&snapshot, config(vec![original]));

    let whole = client_hello("api.localhost");
    // The same handshake message in records of 50 bytes each.
    let mut records = Vec::new();
    for piece in whole[5..].chunks(50) {
        records.extend_from_slice(&whole[..3]);
        records.extend_from_slice(&u16::try_from(piece.len()).expect("small").to_be_bytes());
        records.extend_from_slice(piece);
    }
    for (bytes, size) in [
        (&whole, 7),
        (&whole, 1000),
        (&records, 61),
        (&records, 10_000),
    ] {
        let mut stream = connect(Some(SHOP), original).await;
        stream.set_nodelay(true).expect("an option");
        for piece in bytes.chunks(size) {
            stream.write_all(piece).await.expect("it is taken");
            tokio::task::yield_now().await;
        }
        stream.write_all(b"early data").await.expect("it is taken");
        stream.shutdown().await.expect("half closed");
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.expect("it comes back");
        assert_eq!(
            back,
            [bytes.as_slice(), b"early data"].concat(),
            "pieces of {size}"
        );
    }

    // A handshake message that is told to be longer than any ClientHello.
    let mut endless = Vec::new();
    for _ in 0..40 {
        endless.extend_from_slice(&[22, 3, 1, 2, 0]);
        endless.extend_from_slice(&[0; 512]);
    }
    endless[5..9].copy_from_slice(&[1, 0, 0xff, 0xff]);
    let mut stream = connect(Some(SHOP), original).await;
    // The router may end the connection before it took all of it.
    let _taken = stream.write_all(&endless).await;
    let mut back = Vec::new();
    let _ended = stream.read_to_end(&mut back).await;
    assert!(back.len() <= 7, "an alert at most: {back:?}");
    let record = router.reason(Reason::NotTls).await;
    assert!(record.upstream.is_none(), "{record:?}");
}

#[tokio::test]
async fn proxy_ends_tunnels_that_are_no_longer_declared() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("it is bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let mut snapshot = empty();
    let mut shop = cell("shop", "orders", SHOP, 9);
    shop.south
        .push(south("a", &["a.localhost"], at, SouthProtocol::Tls));
    shop.south
        .push(south("b", &["b.localhost"], at, SouthProtocol::Tls));
    let id = shop.id.clone();
    snapshot.cells.insert(id.clone(), shop.into());
    let original: SocketAddr = (Ipv4Addr::new(127, 0, 77, 1), at).into();
    let router = Router::with(&snapshot, config(vec![original]));
    let mut tunnels = Vec::new();
    for name in ["a.localhost", "b.localhost"] {
        let mut stream = connect(Some(SHOP), original).await;
        let hello = client_hello(name);
        stream.write_all(&hello).await.expect("it is taken");
        let mut back = vec![0; hello.len()];
        stream.read_exact(&mut back).await.expect("it comes back");
        tunnels.push(stream);
    }
    let shop = snapshot.cells.get_mut(&id).expect("it is there");
    shop.south.remove(0);
    let table = cardinal_agent::compile::route::compile(&snapshot, 2).expect("it compiles");
    let old = std::sync::Arc::downgrade(&router.table.swap(std::sync::Arc::new(table)));
    let limit = crate::support::SURELY;
    let ended = tokio::time::timeout(limit, tunnels[0].read(&mut [0; 1])).await;
    assert_eq!(ended.expect("it ends soon").unwrap_or(0), 0);
    router.reason(Reason::SniNotDeclared).await;
    // The other one goes on, and holds no table for it.
    tunnels[1].write_all(b"x").await.expect("it is taken");
    tunnels[1]
        .read_exact(&mut [0; 1])
        .await
        .expect("it comes back");
    let freed = async {
        while old.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    };
    // The tunnel that ended writes its record before it lets go of the table.
    let freed = tokio::time::timeout(limit, freed).await;
    freed.expect("nobody holds the table");
}

#[tokio::test]
async fn proxy_shares_no_south_connection_between_callers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("it is bound").port();
    // The upstream tells on which of its connections a request came.
    tokio::spawn(async move {
        for connection in 0.. {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            tokio::spawn(async move {
                while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {
                    let head = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
                    let answer = format!("{head}{connection:03}");
                    stream
                        .write_all(answer.as_bytes())
                        .await
                        .expect("it is taken");
                }
            });
        }
    });
    let mut snapshot = empty();
    for (project, component, address) in [("shop", "orders", SHOP), ("third", "spy", THIRD)] {
        let mut one = cell(project, component, address, 9);
        one.south
            .push(south("api", &["api.localhost"], at, SouthProtocol::Http));
        snapshot.cells.insert(one.id.clone(), one.into());
    }
    let original: SocketAddr = (Ipv4Addr::new(127, 0, 77, 1), at).into();
    let _router = Router::with(&snapshot, config(vec![original]));
    let mut used = Vec::new();
    for from in [SHOP, THIRD] {
        let mut own = std::collections::BTreeSet::new();
        for _ in 0..12 {
            let answer = send_from(
                Some(from),
                original,
                get(&format!("http://api.localhost:{at}/")),
            );
            own.insert(answer.await.body);
        }
        used.push(own);
    }
    assert!(used[0].len() < 12, "connections are kept: {used:?}");
    assert!(used[0].is_disjoint(&used[1]), "{used:?}");
}
