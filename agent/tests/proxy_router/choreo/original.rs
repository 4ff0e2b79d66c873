//! The objects that OpenChoreo makes of an endpoint, as documents.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{gateway, row};
use crate::auth::Issuer;
use crate::vectors::text;

/// The original's objects of a set of routes, as `kubectl get -o json` has them. Two things differ: a backend is a `Backend`
/// of the name that its Service has, as documents without a cluster name their addresses, and the keys are at hand.
pub(super) struct Original {
    namespace: String,
    pub(super) documents: Vec<Value>,
}

impl Original {
    pub(super) fn new(namespace: &str, at: u16) -> Self {
        Self {
            namespace: namespace.to_owned(),
            documents: vec![gateway(at)],
        }
    }

    fn object(&mut self, kind: &str, name: &str, spec: Value) {
        let version = match kind {
            "HTTPRoute" => "gateway.networking.k8s.io/v1",
            _ => "gateway.envoyproxy.io/v1alpha1",
        };
        let named = json!({
            "apiVersion": version,
            "kind": kind,
            "metadata": { "namespace": self.namespace, "name": name },
            "spec": spec,
        });
        // Of two objects of one name the last is there.
        self.documents.retain(|other| {
            (&other["kind"], &other["metadata"]) != (&named["kind"], &named["metadata"])
        });
        self.documents.push(named);
    }

    /// A route of `http_routes`.
    pub(super) fn route(&mut self, route: &Value, up: SocketAddr) {
        let rewrite = &route["rewrite"];
        let filter = match text(rewrite, "kind") {
            "ReplacePrefixMatch" => json!({ "type": "URLRewrite", "urlRewrite": { "path": {
                "type": "ReplacePrefixMatch",
                "replacePrefixMatch": rewrite["replace_prefix_match"],
            } } }),
            "ExtensionRef" => json!({ "type": "ExtensionRef", "extensionRef": {
                "group": rewrite["group"],
                "kind": rewrite["ref_kind"],
                "name": rewrite["ref_name"],
            } }),
            other => panic!("rewrite {other}"),
        };
        let mut matches = json!({ "path": {
            "type": route["match"]["path_type"],
            "value": route["match"]["path"],
        } });
        if let Some(method) = route["match"]["method"].as_str() {
            matches["method"] = json!(method);
        }
        let service = text(&route["backend"], "service");
        let spec = json!({
            "parentRefs": [{
                "name": route["parent"]["name"],
                "namespace": route["parent"]["namespace"],
            }],
            "hostnames": route["hostnames"],
            "rules": [{
                "matches": [matches],
                "filters": [filter],
                "backendRefs": [{
                    "group": "gateway.envoyproxy.io", "kind": "Backend", "name": service,
                }],
            }],
        });
        self.object("HTTPRoute", text(route, "name"), spec);
        let endpoint = json!({ "ip": { "address": up.ip(), "port": up.port() } });
        self.object("Backend", service, json!({ "endpoints": [endpoint] }));
    }

    /// A filter of `http_route_filters`.
    pub(super) fn filter(&mut self, filter: &Value) {
        let spec = json!({ "urlRewrite": { "path": {
            "type": filter["rewrite_type"],
            "replaceRegexMatch": {
                "pattern": filter["pattern"],
                "substitution": filter["substitution"],
            },
        } } });
        self.object("HTTPRouteFilter", text(filter, "name"), spec);
    }

    /// A policy of `security_policies`; without an issuer it fetches its keys, as the row says.
    pub(super) fn policy(&mut self, policy: &Value, issuer: Option<&Issuer>) {
        let jwt = &policy["jwt"];
        let mut provider = json!({ "name": jwt["provider"] });
        match issuer {
            None => provider["remoteJWKS"] = json!({ "uri": jwt["remote_jwks_uri"] }),
            Some(issuer) => {
                let keys = issuer.jwks().to_string();
                provider["localJWKS"] = json!({ "type": "Inline", "inline": keys });
            }
        }
        let allow = &policy["allow_rule"];
        let spec = json!({
            "targetRefs": [policy["target"]],
            "jwt": { "providers": [provider] },
            "authorization": {
                "defaultAction": policy["default_action"],
                "rules": [{
                    "name": "allow",
                    "action": allow["action"],
                    "principal": { "jwt": {
                        "provider": allow["provider"], "scopes": allow["scopes"],
                    } },
                }],
            },
        });
        self.object("SecurityPolicy", text(policy, "name"), spec);
    }
}

/// The objects of the endpoint that the rows of `request` ask, out of the rows that say what the original makes of it.
pub(super) fn reading_list(
    file: &Value,
    issuer: Option<&Issuer>,
    at: u16,
    up: SocketAddr,
) -> Vec<Value> {
    let routes = &row(file, "http_routes", "service-public-three-operations")["expect"]["routes"];
    let filters = &row(file, "http_route_filters", "public-three-operations")["expect"]["filters"];
    let policies = &row(file, "security_policies", "public-three-operations")["expect"]["policies"];
    let mut original = Original::new(text(&routes[0], "namespace"), at);
    for route in routes.as_array().expect("a list") {
        original.route(route, up);
    }
    for filter in filters.as_array().expect("a list") {
        original.filter(filter);
    }
    for policy in policies.as_array().expect("a list") {
        original.policy(policy, issuer);
    }
    original.documents
}

/// The objects of a fixture, which has route, filter and policy in one.
pub(super) fn fixture(routes: &Value, issuer: &Issuer, at: u16, up: SocketAddr) -> Vec<Value> {
    let mut original = Original::new("dp", at);
    for given in routes.as_array().expect("a list") {
        let name = &given["name"];
        let mut route = json!({
            "name": name,
            "parent": { "name": "gateway-external", "namespace": "choreo-system" },
            "hostnames": given["hostnames"].as_array().cloned().unwrap_or_default(),
            "match": { "path_type": given["path_type"], "path": given["path"] },
            "rewrite": given["rewrite"],
            "backend": { "service": "service" },
        });
        if let Some(method) = given["method"].as_str() {
            route["match"]["method"] = json!(method);
        }
        let rewrite = &given["rewrite"];
        if rewrite["kind"] == "ReplaceRegexMatch" {
            original.filter(&json!({
                "name": name,
                "rewrite_type": rewrite["kind"],
                "pattern": rewrite["pattern"],
                "substitution": rewrite["substitution"],
            }));
            route["rewrite"] = json!({
                "kind": "ExtensionRef",
                "group": "gateway.envoyproxy.io",
                "ref_kind": "HTTPRouteFilter",
                "ref_name": name,
            });
        }
        original.route(&route, up);
        if let Some(scopes) = given["scopes_all_of"].as_array() {
            let policy = json!({
                "name": name,
                "target": { "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": name },
                "jwt": { "provider": "default" },
                "allow_rule": { "action": "Allow", "provider": "default", "scopes": scopes },
                "default_action": "Deny",
            });
            original.policy(&policy, Some(issuer));
        }
    }
    original.documents
}
