use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{Method, StatusCode};

use super::{Admin, AdminError, View, get, route};
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
            },
            datapath: DatapathStatus {
                enforcing: false,
                kernel: String::new(),
                hook: String::new(),
                bpffs: String::new(),
                generation: 0,
                events_lost: 0,
                programs: Vec::new(),
            },
            cells: Vec::new(),
            pods: Vec::new(),
            listeners: Vec::new(),
            drops: Vec::new(),
            rules: Vec::new(),
            not_enforced: Vec::new(),
        }
    }

    fn metrics(&self) -> String {
        "# EOF\n".to_owned()
    }

    fn events(&self, since: u64) -> serde_json::Value {
        serde_json::json!({ "next": since })
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
