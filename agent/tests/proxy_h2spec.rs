//! The public conformance suite for HTTP/2, h2spec, against the agent: over TLS and in cleartext.
//!
//! `CARDINAL_H2SPEC` names its program; without the variable it is looked for on `PATH` and where `go install` puts it. This
//! test fails without it: `go install github.com/summerwind/h2spec/cmd/h2spec@latest`.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};

/// Cases that the router does not meet, by the suite, section and number that h2spec gives them, and why.
const NOT_MET: [(&str, &str, &str); 1] = [(
    "cleartext",
    "http2/3.5/2",
    "what does not begin with HTTP/2's preface is HTTP/1.1 on the same port, and is answered as such before the end",
)];

/// Cases of the suite; fewer in a report mean that it did not run to its end.
const CASES: usize = 145;

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // What ended already cannot be ended; the report then says what is missing.
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

#[test]
fn proxy_h2spec_finds_what_is_listed_and_nothing_else() {
    let h2spec = program();
    let folder = tempfile::tempdir().expect("a folder");
    let (plain, tls) = (free(), free());
    documents(folder.path(), plain, tls, upstream());
    let child = Command::new(env!("CARGO_BIN_EXE_cardinal-agent"))
        .args(["--datapath", "none", "--threads", "1", "--config"])
        .arg(folder.path().join("config"))
        .arg("--state")
        .arg(folder.path().join("state"))
        .arg("--admin")
        .arg(folder.path().join("admin.sock"))
        .stderr(Stdio::null())
        .spawn()
        .expect("the agent starts");
    let _agent = Agent(child);
    let start = Instant::now();
    while std::net::TcpStream::connect(plain).is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing listens");
        std::thread::sleep(Duration::from_millis(20));
    }
    for (transport, at, flags) in [
        ("cleartext", plain, &[][..]),
        ("TLS", tls, &["--tls", "--insecure"]),
    ] {
        let report = folder.path().join("report.xml");
        let output = Command::new(&h2spec)
            .args(["--host", "127.0.0.1", "--port", &at.port().to_string()])
            .args(flags)
            // Seconds for each answer, of which the usual two are little on a busy machine.
            .args(["--timeout", "20"])
            .arg("--junit-report")
            .arg(&report)
            .output()
            .expect("h2spec starts");
        let said = String::from_utf8_lossy(&output.stdout);
        let report = fs::read_to_string(&report).expect("it reports");
        let cases = cases(&report);
        assert_eq!(cases.len(), CASES, "over {transport}:\n{said}");
        for (case, passed) in cases {
            let listed = NOT_MET
                .iter()
                .find(|(over, known, _)| *over == transport && *known == case);
            match (passed, listed) {
                (false, None) => panic!("{case} over {transport} is not met:\n{said}"),
                (true, Some(_)) => panic!("{case} over {transport} is met, and listed as not"),
                (true, None) | (false, Some(_)) => {}
            }
        }
    }
}

/// Cases of a report in JUnit's form, as suite, section and number, and whether each passed.
fn cases(report: &str) -> Vec<(String, bool)> {
    let mut cases = Vec::new();
    let mut numbers = std::collections::HashMap::new();
    for part in report.split("<testcase ").skip(1) {
        let section = part
            .split_once("package=\"")
            .and_then(|(_, rest)| rest.split_once('"'))
            .map_or("", |(package, _)| package);
        let number = numbers.entry(section.to_owned()).or_insert(0);
        *number += 1;
        let failed =
            part.contains("<failure") || part.contains("<error") || part.contains("<skipped");
        cases.push((format!("{section}/{number}"), !failed));
    }
    cases
}

fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("CARDINAL_H2SPEC") {
        return named.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([Path::new(&home).join("go/bin")])
        .map(|dir| dir.join("h2spec"))
        .find(|file| file.is_file())
        .expect(
            "h2spec is not installed: go install github.com/summerwind/h2spec/cmd/h2spec@latest",
        )
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("it is bound")
}

/// Answers every request with a few bytes, from a thread of its own.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("it is bound");
    listener.set_nonblocking(true).expect("a mode");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("it is watched");
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper::service::service_fn(|request: http::Request<_>| async {
                    let body: hyper::body::Incoming = request.into_body();
                    body.collect().await?;
                    let answer = Full::new(bytes::Bytes::from_static(b"answer"));
                    Ok::<_, hyper::Error>(http::Response::new(answer))
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                tokio::spawn(async move {
                    // Requests that break off are what the suite is about.
                    let _ended = hyper::server::conn::http1::Builder::new()
                        .serve_connection(io, service)
                        .await;
                });
            }
        });
    });
    at
}

fn documents(folder: &Path, plain: SocketAddr, tls: SocketAddr, up: SocketAddr) {
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let documents = [
        serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "host"}, "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": pair.cert.pem(), "tls.key": pair.signing_key.serialize_pem()},
        }),
        serde_json::json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "edge"},
            "spec": {
                "gatewayClassName": "cardinal",
                "addresses": [{"value": "127.0.0.1"}],
                "listeners": [
                    {"name": "http", "port": plain.port(), "protocol": "HTTP"},
                    {"name": "https", "port": tls.port(), "protocol": "HTTPS",
                     "tls": {"mode": "Terminate", "certificateRefs": [{"name": "host"}]}},
                ],
            },
        }),
        serde_json::json!({
            "apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "Backend", "metadata": {"name": "up"},
            "spec": {"endpoints": [{"ip": {"address": "127.0.0.1", "port": up.port()}}]},
        }),
        serde_json::json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "all"},
            "spec": {
                "parentRefs": [{"name": "edge"}],
                "rules": [{"backendRefs": [{"group": "gateway.envoyproxy.io", "kind": "Backend", "name": "up"}]}],
            },
        }),
    ];
    let config = folder.join("config");
    fs::create_dir(&config).expect("a folder");
    for (number, document) in documents.iter().enumerate() {
        let text = document.to_string();
        fs::write(config.join(format!("{number}.json")), text).expect("it is written");
    }
}
