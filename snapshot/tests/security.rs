//! What `SecurityPolicy` documents mean where they are merged, and what they say of other origins.

use snapshot::model::{Allowed, Auth, OriginPattern};
use snapshot::{Rejections, Snapshot, SourceFile, parse, take};

const GATEWAY: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: edge, namespace: infra }
spec:
  gatewayClassName: cardinal
  addresses: [{ value: 192.0.2.10 }]
  listeners: [{ name: http, port: 80, protocol: HTTP, allowedRoutes: { namespaces: { from: All } } }]
";

const ROUTE: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: shop }
spec:
  parentRefs: [{ name: edge, namespace: infra }]
  rules: [{ backendRefs: [{ group: gateway.envoyproxy.io, kind: Backend, name: shop }] }]
";

const BACKEND: &str = "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: { name: shop }
spec: { endpoints: [{ ip: { address: 10.3.0.1, port: 8080 } }] }
";

const KEYS: &str = "extractFrom: [{ headers: [x-key] }], credentialRefs: [{ name: keys }]";

fn secret(namespace: &str, client: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Secret
metadata: {{ name: keys, namespace: {namespace} }}
type: Opaque
stringData: {{ {client}: key-of-{client}, .htpasswd: '{client}:{{SHA}}W6ph5Mm5Pz8GgiULbPgzG37mj9g=' }}
"
    )
}

/// The policy of the gateway, in its namespace.
fn above(fields: &str) -> String {
    policy("above, namespace: infra", "Gateway, name: edge", fields)
}

/// The policy of the route.
fn own(fields: &str) -> String {
    policy("own", "HTTPRoute, name: shop", fields)
}

fn policy(metadata: &str, target: &str, fields: &str) -> String {
    format!(
        "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: SecurityPolicy
metadata: {{ name: {metadata} }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, kind: {target} }}]
  {fields}
"
    )
}

fn read(documents: &[String]) -> Result<Snapshot, Rejections> {
    let text = [GATEWAY, ROUTE, BACKEND].concat() + &documents.concat();
    parse(&[SourceFile::new("a.yaml", text)])
}

fn taken(documents: &[String]) -> Snapshot {
    read(documents).unwrap_or_else(|rejections| panic!("{rejections}"))
}

fn auth(snapshot: &Snapshot) -> &Auth {
    let auth = snapshot.routes[0].rules[0].auth.as_ref();
    auth.expect("the route has a policy")
}

#[test]
fn a_policy_says_which_pages_may_ask() {
    let snapshot = taken(&[own(
        "cors: { allowOrigins: ['https://*:*', '*'], allowMethods: ['*', GET], allowHeaders: [X-One], maxAge: 1m30s }",
    )]);
    let auth = auth(&snapshot);
    assert!(auth.is_open());
    let cors = auth.cors.as_ref().expect("other origins");
    let pattern = |text| OriginPattern::of_policy(text).expect(text);
    assert_eq!(cors.origins, [pattern("https://*"), pattern("*")]);
    assert_eq!(cors.methods, Allowed::Any);
    assert_eq!(cors.headers, Allowed::Names(vec!["x-one".to_owned()]));
    assert_eq!(cors.expose, Allowed::Names(Vec::new()));
    assert!(cors.max_age == 90 && !cors.credentials);
    for (fields, message) in [
        ("allowOrigins: []", "expected"),
        ("allowOrigins: [shop.test]", "expected `*` or an origin"),
        ("allowMethods: ['GET PUT']", "the name of a method"),
        ("maxAge: 1500ms", "whole seconds"),
        ("maxAge: 5", "expected"),
        ("origins: []", "unknown field"),
    ] {
        let refused = read(&[own(&format!("cors: {{ {fields} }}"))]);
        let refused = refused.expect_err(fields).to_string();
        let named = refused.contains("spec.cors") && refused.contains(message);
        assert!(named, "{fields}: {refused}");
    }
}

#[test]
fn what_a_merged_policy_refers_to_is_where_the_policy_is_that_names_it() {
    let secrets = [secret("infra", "far"), secret("default", "near")];
    let documents = |above_fields: &str, own_fields: &str| {
        let own = own(&format!("mergeType: JSONMerge\n  {own_fields}"));
        [&secrets[..], &[above(above_fields), own]].concat()
    };
    let keys = format!("apiKeyAuth: {{ {KEYS} }}");
    let users = |rest: &str| format!("basicAuth: {{ users: {{ name: keys }}{rest} }}");
    for (above, own, client, user) in [
        (
            &keys,
            "apiKeyAuth: { sanitize: true, credentialRefs: [{ name: keys }], extractFrom: [{ params: [k] }] }",
            Some("near"),
            None,
        ),
        (
            &keys,
            "authorization: { defaultAction: Allow }",
            Some("far"),
            None,
        ),
        (&users(""), &keys, Some("near"), Some("far")),
        (
            &users(", forwardUsernameHeader: x-user"),
            &users(""),
            None,
            Some("near"),
        ),
    ] {
        let snapshot = taken(&documents(above, own));
        let auth = auth(&snapshot);
        assert_eq!(auth.closed, None, "{above} {own}");
        let clients = auth.api_keys.as_ref().map(|keys| &keys.clients);
        let has = |name: &str| clients.is_some_and(|all| all.values().any(|one| one == name));
        assert_eq!(clients.is_some(), client.is_some());
        assert!(client.is_none_or(has), "{above} {own}");
        let users = auth.users.as_ref();
        let found = users.and_then(|users| users.passwords.keys().next());
        assert_eq!(found.map(String::as_str), user, "{above} {own}");
    }
    // A policy that stands alone names no other namespace's.
    let refused = read(&[own(
        "basicAuth: { users: { name: keys, namespace: infra } }",
    )]);
    let refused = refused.expect_err("another namespace").to_string();
    assert!(
        refused.contains("spec.basicAuth.users.namespace"),
        "{refused}"
    );
}

#[test]
fn targets_are_no_part_of_what_is_merged() {
    let own = own("mergeType: StrategicMerge\n  cors: { allowCredentials: true }");
    let own = own.replace(
        "targetRefs: [{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop }]",
        "targetRef: { group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop }",
    );
    let snapshot = taken(&[above("cors: { allowOrigins: ['*'] }"), own]);
    let cors = auth(&snapshot).cors.as_ref().expect("other origins");
    assert!(cors.credentials && cors.origins == [OriginPattern::Any]);
}

#[test]
fn what_comes_of_two_policies_has_to_be_good_too() {
    let provider = |name: &str| {
        format!(
            "jwt: {{ providers: [{{ name: {name}, localJWKS: {{ inline: '{{\"keys\": [{{\"kty\": \"OKP\", \"crv\": \"Ed25519\", \"x\": \"MeSatYDspAyf5iMv4x2PluRGfOyWml7X2dc7bFOPFFk\"}}]}}' }} }}] }}"
        )
    };
    let above = above(&format!(
        "{}\n  authorization: {{ rules: [{{ action: Allow, principal: {{ jwt: {{ provider: far, scopes: [a] }} }} }}] }}",
        provider("far")
    ));
    let own = |kind| own(&format!("mergeType: {kind}\n  {}", provider("near")));
    let refused = read(&[above.clone(), own("StrategicMerge")]);
    let refused = refused
        .expect_err("the rule's provider is gone")
        .to_string();
    assert!(
        refused.contains("spec.mergeType") && refused.contains("SecurityPolicy infra/above"),
        "{refused}"
    );
    let refused = read(&[above, own("Replace")]).expect_err("no such type");
    assert!(refused.to_string().contains("spec.mergeType"), "{refused}");
}

#[test]
fn a_policy_that_is_merged_into_a_refused_one_closes_and_one_that_is_not_stands_alone() {
    let class = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: { name: cardinal }
spec: { controllerName: cardinal.dev/gateway-controller }
";
    for (merge, closed) in [("mergeType: JSONMerge", true), ("", false)] {
        let above = above("jwt: { providers: [] }");
        let own = own(&format!("cors: {{ allowOrigins: ['*'] }}\n  {merge}"));
        let texts = [class, GATEWAY, ROUTE, BACKEND, &above, &own];
        let taken = take(
            texts
                .iter()
                .enumerate()
                .map(|(at, text)| SourceFile::new(at.to_string(), *text)),
        );
        assert_eq!(auth(&taken.snapshot).closed.is_some(), closed, "{merge}");
    }
}
