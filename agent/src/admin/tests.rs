use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{Method, StatusCode};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Admin, AdminError, Rehearsed, View, get, lines, post, route};
use crate::explain::{Names, Refusal, Request};
use crate::flows::Wanted;
use crate::status::{AgentStatus, ConfigStatus, DatapathStatus, Status};

struct Small {
    ready: AtomicBool,
}

impl View for Small {
    fn ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    fn status(&self) -> Status {
        Status {
            agent: AgentStatus {
                version: "0".into(),
                pid: 1,
                started_at: "2026-01-01T00:00:00Z".into(),
                ready: self.ready(),
            },
            config: ConfigStatus {
                generation: 1,
                source: "file".into(),
                path: "p".into(),
                version: "v".into(),
                digest: "d".into(),
                last_reload_at: "2026-01-01T00:00:00Z".into(),
                last_attempt_at: "2026-01-01T00:00:00Z".into(),
                last_attempt: "accepted".into(),
                mistakes: Vec::new(),
                cluster: None,
            },
            datapath: DatapathStatus {
                enforcing: false,
                kernel: String::new(),
                hook: String::new(),
                bpffs: String::new(),
                generation: 0,
                events_lost: 0,
                quarantine: Vec::new(),
                programs: Vec::new(),
                tables: Vec::new(),
            },
            cells: Vec::new(),
            pods: Vec::new(),
            listeners: Vec::new(),
            placements: Vec::new(),
            backends: Vec::new(),
            drops: Vec::new(),
            rules: Vec::new(),
            key_sets: Vec::new(),
            not_enforced: Vec::new(),
        }
    }

    fn metrics(&self) -> String {
        "# EOF\n".to_owned()
    }

    fn events(&self, since: u64) -> serde_json::Value {
        serde_json::json!({ "next": since })
    }

    fn names(&self) -> Option<Names> {
        None
    }

    fn flows(&self, wanted: Wanted) -> Option<mpsc::Receiver<Bytes>> {
        let (sender, receiver) = mpsc::channel(wanted.last);
        for number in 0..wanted.last {
            // The channel has room for them all.
            drop(sender.try_send(format!("{{\"n\":{number}}}\n").into()));
        }
        Some(receiver)
    }

    fn rehearse(&self, request: Request) -> Rehearsed {
        Box::pin(async move {
            Err(match request.documents.as_slice() {
                [] => Refusal::Failed("no documents".to_owned()),
                [first, ..] => Refusal::Mistakes(vec![first.path.clone()]),
            })
        })
    }

    fn requests(&self, since: u64) -> serde_json::Value {
        serde_json::json!({ "next": since })
    }
}

fn small() -> Arc<Small> {
    Arc::new(Small {
        ready: AtomicBool::new(false),
    })
}

#[test]
fn every_path_answers_and_others_say_what_there_is() {
    let view = small();
    let status = |method: &Method, path: &str, query: Option<&str>| {
        route(method, path, query, view.as_ref()).status()
    };
    assert_eq!(status(&Method::GET, "/livez", None), StatusCode::OK);
    assert_eq!(
        status(&Method::GET, "/readyz", None),
        StatusCode::SERVICE_UNAVAILABLE
    );
    view.ready.store(true, Ordering::Relaxed);
    assert_eq!(status(&Method::GET, "/readyz", None), StatusCode::OK);
    let own = format!("container={}", super::container().expect("/proc"));
    for (query, expected) in [
        (own.as_str(), StatusCode::OK),
        ("container=1", StatusCode::SERVICE_UNAVAILABLE),
        ("container=x", StatusCode::SERVICE_UNAVAILABLE),
    ] {
        assert_eq!(
            status(&Method::GET, "/readyz", Some(query)),
            expected,
            "{query}"
        );
    }
    for path in [
        "/metrics",
        "/debug/config",
        "/debug/status",
        "/debug/events",
        "/debug/requests",
    ] {
        assert_eq!(status(&Method::GET, path, None), StatusCode::OK, "{path}");
        assert_eq!(
            status(&Method::POST, path, None),
            StatusCode::METHOD_NOT_ALLOWED,
            "{path}"
        );
    }
    assert_eq!(
        status(&Method::GET, "/debug/events", Some("since=5")),
        StatusCode::OK
    );
    assert_eq!(
        status(&Method::GET, "/debug/events", Some("since=x")),
        StatusCode::BAD_REQUEST
    );
    assert_eq!(status(&Method::GET, "/", None), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_socket_is_the_owners_and_a_dead_one_is_replaced() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("sub/admin.sock");
    let admin = Admin::open(&path, None, small()).await.expect("opens");
    let mode = std::fs::metadata(&path)
        .expect("socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let (status, body) = get(&path, "/debug/config").await.expect("answers");
    assert_eq!(status, StatusCode::OK);
    let config: serde_json::Value = serde_json::from_slice(&body).expect("json");
    assert_eq!(config["source"], "file");

    let second = Admin::open(&path, None, small())
        .await
        .err()
        .expect("refused");
    assert!(matches!(second, AdminError::InUse(_)));
    assert!(
        second.to_string().contains("another agent answers"),
        "{second}"
    );

    drop(admin);
    assert!(!path.exists());
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a dead socket"));
    Admin::open(&path, None, small())
        .await
        .expect("replaces the dead socket");
}

#[tokio::test]
async fn lines_come_one_by_one() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("admin.sock");
    let _admin = Admin::open(&path, None, small()).await.expect("opens");
    let mut seen = Vec::new();
    lines(&path, "/debug/flows?last=3", &mut |line| {
        seen.push(String::from_utf8_lossy(line).into_owned());
        Ok(())
    })
    .await
    .expect("answers");
    assert_eq!(seen, [r#"{"n":0}"#, r#"{"n":1}"#, r#"{"n":2}"#]);
    let error = lines(&path, "/debug/flows?sinse=3", &mut |_| Ok(()))
        .await
        .expect_err("a word that is not known");
    assert!(
        error.to_string().contains("`sinse` is not known"),
        "{error}"
    );
    // Who wants no more says so by an error.
    lines(&path, "/debug/flows?last=3", &mut |_| {
        anyhow::bail!("enough")
    })
    .await
    .expect_err("enough");
}

#[tokio::test]
async fn documents_are_tried_for_the_owner_of_the_socket_only() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("admin.sock");
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|free| free.local_addr())
        .expect("a port");
    let _admin = Admin::open(&path, Some(address), small())
        .await
        .expect("opens");
    let question = r#"{"connection":{"from":{"name":"a"},"to":{"place":{"name":"b"},"protocol":6,"port":1},"sport":null,"family":null}}"#;
    let body = format!(r#"{{"documents":[{{"path":"x.yaml","text":""}}],"question":{question}}}"#);
    let (status, said) = post(&path, "/debug/explain", body.clone().into_bytes())
        .await
        .expect("answers");
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(&said[..], br#"{"mistakes":["x.yaml"]}"#);
    let (status, _) = post(&path, "/debug/explain", b"{}".to_vec())
        .await
        .expect("answers");
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, _) = get(&path, "/debug/explain").await.expect("answers");
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    let (status, _) = get(&path, "/debug/names").await.expect("answers");
    assert_eq!(status, StatusCode::NOT_FOUND);

    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("the loopback door");
    let request = format!(
        "POST /debug/explain HTTP/1.0\r\nHost: admin\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text");
    assert!(answer.starts_with("HTTP/1.0 403"), "{answer}");
}

#[tokio::test]
async fn a_missing_agent_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let error = get(&folder.path().join("none.sock"), "/livez")
        .await
        .expect_err("nobody there");
    assert!(
        error
            .to_string()
            .contains("no agent answers on admin socket"),
        "{error}"
    );
}
