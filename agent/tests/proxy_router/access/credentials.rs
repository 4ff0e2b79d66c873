//! Keys and passwords of clients.

use cardinal_agent::proxy::Reason;
use serde_json::{Value, json};

use super::{SHOP, ask, policy, world};
use crate::support::{Router, echo, free_port};

#[tokio::test]
async fn proxy_knows_clients_by_their_keys_and_hides_the_keys() {
    let up = echo("a").await;
    let at = free_port();
    let secret = "---
apiVersion: v1
kind: Secret
metadata: { name: clients }
type: Opaque
stringData: { acme: key-of-acme-1, globex: key-of-globex-2 }
";
    let spec = "  apiKeyAuth:
    credentialRefs: [{ group: '', kind: Secret, name: clients }]
    extractFrom: [{ headers: [X-Api-Key], params: [key], cookies: [k] }]
    forwardClientIDHeader: X-Client
    sanitize: true";
    let more = policy("p", SHOP, spec) + secret;
    let world = world(at, up, &more);
    let shown = format!("{world:?}");
    assert!(!shown.contains("key-of-acme-1") && shown.contains("acme"));
    let router = Router::start(&world);
    let answer = ask(
        at,
        "GET",
        "http://x/?a=1&key=key-of-acme-1&b=2",
        &[("x-client", "root")],
    )
    .await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        (answer.seen("x-client"), answer.json()["query"].clone()),
        (vec!["acme".into()], json!("a=1&b=2"))
    );
    let answer = ask(at, "GET", "http://x/?key=key-of-acme-1", &[]).await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()["query"].clone()),
        (200, Value::Null)
    );
    let headers = [
        ("x-api-key", "key-of-globex-2"),
        ("cookie", "s=1; k=key-of-globex-2"),
    ];
    let answer = ask(at, "GET", "http://x/", &headers).await;
    assert_eq!(
        (answer.seen("x-client"), answer.seen("x-api-key")),
        (vec!["globex".into()], vec![])
    );
    assert_eq!(answer.seen("cookie"), ["s=1"]);
    for (what, uri, headers, reason) in [
        (
            "none",
            "http://x/",
            vec![("x-client", "acme")],
            "credential_missing",
        ),
        (
            "wrong",
            "http://x/?key=key-of-acme-2",
            vec![],
            "credential_invalid",
        ),
        (
            "the name",
            "http://x/?key=acme",
            vec![],
            "credential_invalid",
        ),
        (
            "two",
            "http://x/?key=key-of-acme-1",
            vec![("x-api-key", "key-of-globex-2")],
            "credential_invalid",
        ),
    ] {
        let answer = ask(at, "GET", uri, &headers).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()["error"].as_str()),
            (401, Some(reason)),
            "{what}"
        );
        assert_eq!(
            answer.json()["message"],
            "Client authentication failed.",
            "{what}"
        );
        assert_eq!(answer.header("www-authenticate"), None);
    }
    router.reason(Reason::CredentialInvalid).await;
    let shown = format!(
        "{:?} {:?}",
        router.proxy.log().since(0),
        router.table.load()
    );
    assert!(!shown.contains("key-of-"), "no key in records or tables");
}

#[tokio::test]
async fn proxy_knows_users_by_their_passwords() {
    let up = echo("a").await;
    let at = free_port();
    let more = policy(
        "p",
        "kind: Gateway, name: edge, sectionName: http",
        "  basicAuth: { users: { name: users }, forwardUsernameHeader: x-user }",
    ) + "---
apiVersion: v1
kind: Secret
metadata: { name: users }
type: Opaque
stringData:
  .htpasswd: |
    # `password`
    ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=
";
    let _router = Router::start(&world(at, up, &more));
    for (value, status, message) in [
        // ann:password
        (Some("Basic YW5uOnBhc3N3b3Jk"), 200, ""),
        (Some("basic YW5uOnBhc3N3b3Jk"), 200, ""),
        // ann:passwort, bob:password, ann without colon
        (
            Some("Basic YW5uOnBhc3N3b3J0"),
            401,
            "User authentication failed. Invalid username/password combination.",
        ),
        (
            Some("Basic Ym9iOnBhc3N3b3Jk"),
            401,
            "User authentication failed. Invalid username/password combination.",
        ),
        (
            Some("Basic YW5u"),
            401,
            "User authentication failed. Invalid username/password combination.",
        ),
        (
            Some("Bearer x"),
            401,
            "User authentication failed. Missing username and password.",
        ),
        (
            None,
            401,
            "User authentication failed. Missing username and password.",
        ),
    ] {
        let headers: Vec<_> = value
            .map(|value| ("authorization", value))
            .into_iter()
            .collect();
        let answer = ask(at, "GET", "http://x/a", &headers).await;
        assert_eq!(answer.status, status, "{value:?}");
        if status == 401 {
            assert_eq!(answer.json()["message"], message, "{value:?}");
            assert_eq!(
                answer.header("www-authenticate"),
                Some("Basic realm=\"http://x/a\"")
            );
        } else {
            assert_eq!(answer.seen("x-user"), ["ann"]);
        }
    }
}
