//! The router's choice of a rule, against the precedence as it is written down: Exact, then RegularExpression by length of its text, then
//! the longest PathPrefix; then a method, then more headers, then document order.

use std::fmt::Write as _;
use std::net::SocketAddr;

use cardinal_agent::compile::route::compile;
use cardinal_agent::route::matching::Subject;
use http::{HeaderMap, HeaderValue, Method};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, prop_assert_eq, prop_oneof, proptest};
use regex::Regex;
use snapshot::SourceFile;
use snapshot::path::CanonicalPath;

#[derive(Clone, Debug)]
enum Path {
    Exact(String),
    Regex(String),
    Prefix(String),
}

#[derive(Clone, Debug)]
struct Rule {
    path: Path,
    method: Option<&'static str>,
    headers: Vec<&'static str>,
}

#[derive(Clone, Debug)]
struct Asked {
    path: String,
    method: &'static str,
    headers: Vec<&'static str>,
}

fn segments() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        Just("/a"),
        Just("/b"),
        Just("/ab"),
        Just("/A"),
        Just("/a%20b")
    ];
    vec(segment, 1..4).prop_map(|parts| parts.concat())
}

fn pattern() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("/a"),
        Just("/b"),
        Just("/[^/]+"),
        Just("(/a|/b)"),
        Just("(/a)?"),
        Just("/a?b*"),
        Just("/.*"),
        Just("(?i:/a)"),
        Just("/a{1,2}"),
        Just("/ab"),
        Just("/(a|ab)"),
        Just("(/a/b|/b)"),
    ];
    vec(piece, 1..4).prop_map(|parts| format!("/{}", parts.concat().trim_start_matches('/')))
}

fn method() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("GET"), Just("POST"), Just("HEAD")]
}

fn headers() -> impl Strategy<Value = Vec<&'static str>> {
    prop_oneof![
        Just(vec![]),
        Just(vec!["x-one"]),
        Just(vec!["x-two"]),
        Just(vec!["x-one", "x-two"])
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let path = prop_oneof![
        segments().prop_map(Path::Exact),
        pattern().prop_map(Path::Regex),
        prop_oneof![segments(), Just("/".to_owned())].prop_map(Path::Prefix),
    ];
    (path, option::of(method()), headers()).prop_map(|(path, method, headers)| Rule {
        path,
        method,
        headers,
    })
}

fn asked() -> impl Strategy<Value = Asked> {
    let path = prop_oneof![
        segments(),
        segments().prop_map(|path| path + "/"),
        Just("/".to_owned())
    ];
    (path, method(), headers()).prop_map(|(path, method, headers)| Asked {
        path,
        method,
        headers,
    })
}

/// One route with a rule each, and a Backend each, so that the rule's position is seen in its target.
fn documents(rules: &[Rule]) -> SourceFile {
    let mut text = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: { name: front }\nspec:\n  gatewayClassName: cardinal\n  \
                    addresses: [{ type: IPAddress, value: 192.0.2.1 }]\n  listeners: [{ name: http, port: 80, protocol: HTTP }]\n---\n\
                    apiVersion: gateway.envoyproxy.io/v1alpha1\nkind: Backend\nmetadata: { name: one }\nspec:\n  endpoints: [{ ip: { address: 192.0.2.2, port: 80 } }]\n---\n\
                    apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: all }\nspec:\n  parentRefs: [{ name: front }]\n  rules:\n"
        .to_owned();
    for rule in rules {
        let (kind, value) = match &rule.path {
            Path::Exact(value) => ("Exact", value),
            Path::Regex(value) => ("RegularExpression", value),
            Path::Prefix(value) => ("PathPrefix", value),
        };
        write!(text, "    - backendRefs: [{{ group: gateway.envoyproxy.io, kind: Backend, name: one }}]\n      matches:\n        - path: {{ type: {kind}, value: '{value}' }}\n")
            .expect("text grows");
        if let Some(method) = rule.method {
            writeln!(text, "          method: {method}").expect("text grows");
        }
        if !rule.headers.is_empty() {
            let list: Vec<_> = rule
                .headers
                .iter()
                .map(|name| format!("{{ name: {name}, value: yes-it-is }}"))
                .collect();
            writeln!(text, "          headers: [{}]", list.join(", ")).expect("text grows");
        }
    }
    SourceFile {
        path: "all.yaml".to_owned(),
        bytes: text.into_bytes(),
    }
}

/// The precedence, read slowly.
fn expected(rules: &[Rule], asked: &Asked) -> Option<usize> {
    let path = CanonicalPath::new(&asked.path).expect("drawn paths are canonical");
    let fits = |rule: &Rule| {
        let path = match &rule.path {
            Path::Exact(value) => value == path.as_str(),
            Path::Regex(value) => Regex::new(&format!("^(?:{value})$"))
                .expect("drawn patterns compile")
                .is_match(path.as_str()),
            Path::Prefix(value) => CanonicalPath::new(value).expect("canonical").covers(&path),
        };
        path && rule.method.is_none_or(|method| method == asked.method)
            && rule.headers.iter().all(|name| asked.headers.contains(name))
    };
    let rank = |rule: &Rule| match &rule.path {
        Path::Exact(_) => (2, 0),
        Path::Regex(value) => (1, value.len()),
        Path::Prefix(value) => (0, value.trim_end_matches('/').len()),
    };
    // Of equals the first one wins, and `max_by_key` keeps the last: hence from the end.
    rules
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, rule)| fits(rule))
        .max_by_key(|(_, rule)| (rank(rule), rule.method.is_some(), rule.headers.len()))
        .map(|(index, _)| index)
}

proptest! {
    #[test]
    fn property_the_rule_is_that_of_the_written_precedence(rules in vec(rule(), 1..16), requests in vec(asked(), 1..32)) {
        let snapshot = snapshot::parse(&[documents(&rules)]).expect("drawn documents are valid");
        let table = compile(&snapshot, 1).expect("drawn documents compile");
        let bind = table.bind(SocketAddr::from(([192, 0, 2, 1], 80))).expect("the listener");
        let host = bind.listener("any.example.test").and_then(|listener| listener.rules("any.example.test")).expect("the route's rules");
        for asked in requests {
            let path = CanonicalPath::new(&asked.path).expect("drawn paths are canonical");
            let mut headers = HeaderMap::new();
            for name in &asked.headers {
                headers.insert(*name, HeaderValue::from_static("yes-it-is"));
            }
            let method = Method::from_bytes(asked.method.as_bytes()).expect("a method");
            let found = host.find(Subject { path: &path, method: &method, headers: &headers });
            prop_assert_eq!(found.map(|matched| matched.rule.index), expected(&rules, &asked), "{:?}", asked);
        }
    }

    #[test]
    fn property_a_canonical_path_is_its_own_and_leaves_nothing_to_resolve(path in "/[a-zA-Z0-9./;%~ _-]{0,24}") {
        if let Ok(path) = CanonicalPath::new(&path) {
            let text = path.as_str();
            let again = CanonicalPath::new(text).expect("canonical");
            prop_assert_eq!(again.as_str(), text);
            let dots = text.split('/').any(|segment| matches!(segment.split(';').next(), Some("." | "..")));
            prop_assert_eq!((dots, text.contains("//"), text.contains("%2F")), (false, false, false), "{}", text);
        }
    }
}
