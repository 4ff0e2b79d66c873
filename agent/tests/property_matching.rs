//! The router's choice of a rule, against the precedence as it is written down and read slowly: the most specific host, then
//! Exact, RegularExpression by length of its text, the longest PathPrefix; then a method, more headers, more query
//! parameters; then the oldest route, its name, the rule's and the match's position.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use cardinal_agent::compile::route::{compile, next};
use cardinal_agent::route::RouteTable;
use cardinal_agent::route::matching::Subject;
use http::{HeaderMap, HeaderValue, Method};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use proptest::sample::subsequence;
use regex::Regex;
use snapshot::path::CanonicalPath;
use snapshot::{Linker, Read, SourceFile};

#[derive(Clone, Debug)]
enum Path {
    Exact(String),
    Regex(String),
    Prefix(String),
}

/// A header or parameter with its expected value; patterns start with `~`.
type Text = (&'static str, &'static str);

#[derive(Clone, Debug)]
struct Match {
    path: Path,
    method: Option<&'static str>,
    headers: Vec<Text>,
    query: Vec<Text>,
}

#[derive(Clone, Debug)]
struct Route {
    /// Position in `CREATED`.
    created: usize,
    hostnames: Vec<&'static str>,
    rules: Vec<Vec<Match>>,
}

#[derive(Clone, Debug)]
struct Asked {
    host: &'static str,
    path: String,
    method: &'static str,
    headers: Vec<Text>,
    query: Vec<Text>,
}

/// Route, rule and match.
type Place = (usize, usize);

/// From the oldest to none, which counts as the youngest.
const CREATED: [&str; 3] = [
    "'2024-01-01T00:00:00Z'",
    "'2024-01-01T01:30:00+01:00'",
    "null",
];
const HOSTS: [&str; 4] = ["a.b.test", "*.b.test", "*.test", "c.test"];

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

fn wanted() -> impl Strategy<Value = Vec<Text>> {
    prop_oneof![
        2 => Just(vec![]),
        1 => Just(vec![("x-one", "1")]),
        1 => Just(vec![("x-one", "~[0-9]")]),
        1 => Just(vec![("x-two", "~(1|2){2}")]),
        1 => Just(vec![("x-one", "1"), ("x-two", "12")]),
    ]
}

fn given() -> impl Strategy<Value = Vec<Text>> {
    let all = vec![
        ("x-one", "1"),
        ("x-one", "2"),
        ("x-two", "12"),
        ("x-two", "1"),
    ];
    subsequence(all, 0..4)
}

fn one_match() -> impl Strategy<Value = Match> {
    let path = prop_oneof![
        segments().prop_map(Path::Exact),
        pattern().prop_map(Path::Regex),
        prop_oneof![segments(), Just("/".to_owned())].prop_map(Path::Prefix),
    ];
    let parts = (path, option::of(method()), wanted(), wanted());
    parts.prop_map(|(path, method, headers, query)| Match {
        path,
        method,
        headers,
        query,
    })
}

fn route() -> impl Strategy<Value = Route> {
    let hostnames = subsequence(HOSTS.to_vec(), 0..3);
    let rules = vec(vec(one_match(), 1..3), 1..6);
    (0..CREATED.len(), hostnames, rules).prop_map(|(created, hostnames, rules)| Route {
        created,
        hostnames,
        rules,
    })
}

fn asked() -> impl Strategy<Value = Asked> {
    let path = prop_oneof![
        segments(),
        segments().prop_map(|path| path + "/"),
        Just("/".to_owned())
    ];
    let host = prop_oneof![
        Just("a.b.test"),
        Just("x.b.test"),
        Just("b.test"),
        Just("c.test"),
        Just("other")
    ];
    (host, path, method(), given(), given()).prop_map(|(host, path, method, headers, query)| {
        Asked {
            host,
            path,
            method,
            headers,
            query,
        }
    })
}

const FRONT: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: { name: front }\nspec:\n  gatewayClassName: cardinal\n  \
     addresses: [{ type: IPAddress, value: 192.0.2.1 }]\n  listeners: [{ name: http, port: 80, protocol: HTTP }]\n---\n\
     apiVersion: gateway.envoyproxy.io/v1alpha1\nkind: Backend\nmetadata: { name: one }\nspec:\n  endpoints: [{ ip: { address: 192.0.2.2, port: 80 } }]\n";

/// A document for each route, `r<position>`; in the order of `order`.
fn documents(routes: &[Route], order: &[usize]) -> SourceFile {
    let mut text = FRONT.to_owned();
    for index in order {
        let route = &routes[*index];
        write!(
            text,
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: r{index}, creationTimestamp: {} }}\n\
             spec:\n  parentRefs: [{{ name: front }}]\n  hostnames: [{}]\n  rules:\n",
            CREATED[route.created],
            quoted(&route.hostnames),
        )
        .expect("text grows");
        for rule in &route.rules {
            text.push_str("    - backendRefs: [{ group: gateway.envoyproxy.io, kind: Backend, name: one }]\n      matches:\n");
            for one in rule {
                written(&mut text, one);
            }
        }
    }
    SourceFile {
        path: "all.yaml".to_owned(),
        bytes: text.into_bytes(),
    }
}

fn quoted(list: &[&str]) -> String {
    let list: Vec<_> = list.iter().map(|one| format!("'{one}'")).collect();
    list.join(", ")
}

fn written(text: &mut String, one: &Match) {
    let (kind, value) = match &one.path {
        Path::Exact(value) => ("Exact", value),
        Path::Regex(value) => ("RegularExpression", value),
        Path::Prefix(value) => ("PathPrefix", value),
    };
    writeln!(text, "        - path: {{ type: {kind}, value: '{value}' }}").expect("text grows");
    if let Some(method) = one.method {
        writeln!(text, "          method: {method}").expect("text grows");
    }
    for (field, list) in [("headers", &one.headers), ("queryParams", &one.query)] {
        let list: Vec<_> = list
            .iter()
            .map(|(name, value)| match value.strip_prefix('~') {
                Some(value) => {
                    format!("{{ type: RegularExpression, name: {name}, value: '{value}' }}")
                }
                None => format!("{{ name: {name}, value: '{value}' }}"),
            })
            .collect();
        writeln!(text, "          {field}: [{}]", list.join(", ")).expect("text grows");
    }
}

fn whole(pattern: &str) -> Regex {
    Regex::new(&format!("^(?:{pattern})$")).expect("drawn patterns compile")
}

/// Whether values as they were given fit what is wanted; `join` says what several of one name mean.
fn fit(wanted: &[Text], given: &[Text], join: impl Fn(Vec<&str>) -> Option<String>) -> bool {
    wanted.iter().all(|(name, expected)| {
        let values = given.iter().filter(|(other, _)| other == name);
        let value = join(values.map(|(_, value)| *value).collect());
        value.is_some_and(|value| match expected.strip_prefix('~') {
            Some(pattern) => whole(pattern).is_match(&value),
            None => value == *expected,
        })
    })
}

/// Characters of a host that covers `asked`; no pattern covers less than one does.
fn host_rank(pattern: &str, asked: &str) -> Option<(bool, usize)> {
    match pattern.strip_prefix('*') {
        Some(suffix) => (asked.len() > suffix.len() && asked.ends_with(suffix))
            .then_some((false, pattern.len())),
        None => (pattern == asked).then_some((true, pattern.len())),
    }
}

/// The precedence, read slowly.
fn expected(routes: &[Route], asked: &Asked) -> Option<Place> {
    let path = CanonicalPath::new(&asked.path).expect("drawn paths are canonical");
    // Hosts first: rules of a broader host are not asked where a narrower one is claimed.
    let host_of = |route: &Route| -> Option<(bool, usize)> {
        if route.hostnames.is_empty() {
            return Some((false, 0));
        }
        let ranks = route.hostnames.iter();
        ranks.filter_map(|one| host_rank(one, asked.host)).max()
    };
    let best = routes.iter().filter_map(host_of).max()?;
    let fits = |one: &Match| {
        let path = match &one.path {
            Path::Exact(value) => value == path.as_str(),
            Path::Regex(value) => whole(value).is_match(path.as_str()),
            Path::Prefix(value) => CanonicalPath::new(value).expect("canonical").covers(&path),
        };
        let joined = |values: Vec<&str>| (!values.is_empty()).then(|| values.join(","));
        let first = |values: Vec<&str>| values.first().map(|one| (*one).to_owned());
        path && one.method.is_none_or(|method| method == asked.method)
            && fit(&one.headers, &asked.headers, joined)
            && fit(&one.query, &asked.query, first)
    };
    let rank = |one: &Match| match &one.path {
        Path::Exact(_) => (2, 0),
        Path::Regex(value) => (1, value.len()),
        Path::Prefix(value) => (0, value.trim_end_matches('/').len()),
    };
    // The second time is half an hour after the first, whatever its zone makes of it.
    let mut found: BTreeMap<_, Place> = BTreeMap::new();
    for (at, route) in routes.iter().enumerate() {
        if host_of(route) != Some(best) {
            continue;
        }
        for (rule, matches) in route.rules.iter().enumerate() {
            for (position, one) in matches.iter().enumerate().filter(|(_, one)| fits(one)) {
                let key = (
                    std::cmp::Reverse((
                        rank(one),
                        one.method.is_some(),
                        one.headers.len(),
                        one.query.len(),
                    )),
                    (route.created, format!("r{at}"), rule, position),
                );
                let before = found.insert(key, (at, rule));
                assert_eq!(before, None, "two matches have one rank");
            }
        }
    }
    found.into_values().next()
}

fn chosen(table: &RouteTable, asked: &Asked) -> Option<Place> {
    let bind = table
        .bind(SocketAddr::from(([192, 0, 2, 1], 80)))
        .expect("the listener");
    let path = CanonicalPath::new(&asked.path).expect("drawn paths are canonical");
    let mut headers = HeaderMap::new();
    for (name, value) in &asked.headers {
        headers.append(*name, HeaderValue::from_static(value));
    }
    let query: Vec<_> = asked
        .query
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let query = query.join("&");
    let method = Method::from_bytes(asked.method.as_bytes()).expect("a method");
    let rules = bind.listener(asked.host)?.rules(asked.host)?;
    let found = rules.find(Subject {
        path: &path,
        method: &method,
        headers: &headers,
        query: (!query.is_empty()).then_some(&*query),
    })?;
    let route = found.rule.route.strip_prefix("default/r")?;
    Some((route.parse().expect("a position"), found.rule.index))
}

proptest! {
    #[test]
    fn property_the_rule_is_that_of_the_written_precedence(
        routes in vec(route(), 1..6),
        requests in vec(asked(), 1..32),
        backwards in any::<bool>(),
    ) {
        // The order of documents says nothing: the precedence is total.
        let mut order: Vec<usize> = (0..routes.len()).collect();
        if backwards {
            order.reverse();
        }
        let snapshot = snapshot::parse(&[documents(&routes, &order)]).expect("drawn documents are valid");
        let table = compile(&snapshot, 1).expect("drawn documents compile");
        for asked in requests {
            prop_assert_eq!(chosen(&table, &asked), expected(&routes, &asked), "{:?}", asked);
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

/// The table of some of the routes; `r<position>` keeps its name.
fn table_of(routes: &[Route], some: &[usize]) -> RouteTable {
    let documents = [documents(routes, some)];
    let snapshot = snapshot::parse(&documents).expect("drawn documents are valid");
    compile(&snapshot, 1).expect("drawn documents compile")
}

/// A table as text, in which the entries of maps and sets have an order: they have none of their own.
fn canonical(table: &RouteTable) -> String {
    let text = format!("{table:#?}");
    let lines: Vec<&str> = text.lines().collect();
    block(&lines)
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Lines of one level with what is below them. Keys of maps that take several lines stay with their values, as an entry ends
/// with a comma.
fn block(lines: &[&str]) -> String {
    let mut text = String::new();
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        let below = lines[at + 1..]
            .iter()
            .take_while(|other| indentation(other) > indentation(line))
            .count();
        let inside = &lines[at + 1..at + 1 + below];
        text.push_str(line);
        text.push('\n');
        // A struct has its name before the brace, a map or set has none.
        let unordered = line.trim() == "{" || line.ends_with(": {");
        if unordered {
            let mut entries: Vec<String> = entries(inside).into_iter().map(block).collect();
            entries.sort_unstable();
            text.push_str(&entries.concat());
        } else if !inside.is_empty() {
            text.push_str(&block(inside));
        }
        at += 1 + below;
    }
    text
}

fn entries<'a>(lines: &'a [&'a str]) -> Vec<&'a [&'a str]> {
    let level = lines.first().map_or(0, |line| indentation(line));
    lines
        .split_inclusive(|line| indentation(line) == level && line.ends_with(','))
        .collect()
}

proptest! {
    // Each case compiles many tables.
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Of matches that fit one request the router prefers one to each other one, whoever else is there: no two are
    /// equal, nothing goes in a circle, and the winner of all is the one that wins against each.
    #[test]
    fn property_precedence_is_a_total_order(
        matches in vec((0..CREATED.len(), one_match()), 2..6),
        requests in vec(asked(), 8..24),
    ) {
        let routes: Vec<Route> = matches
            .into_iter()
            .map(|(created, one)| Route { created, hostnames: Vec::new(), rules: vec![vec![one]] })
            .collect();
        let winner = |some: &[usize], asked: &Asked| {
            chosen(&table_of(&routes, some), asked).map(|(route, _)| route)
        };
        let alone: Vec<RouteTable> = (0..routes.len()).map(|at| table_of(&routes, &[at])).collect();
        for asked in requests {
            let fit: Vec<usize> = (0..routes.len())
                .filter(|at| chosen(&alone[*at], &asked).is_some())
                .collect();
            // How many of the others each wins against: in a total order these are all the numbers there are.
            let mut wins = vec![0; fit.len()];
            for (i, a) in fit.iter().enumerate() {
                for (j, b) in fit.iter().enumerate().skip(i + 1) {
                    let first = winner(&[*a, *b], &asked);
                    prop_assert_eq!(first, winner(&[*b, *a], &asked), "{:?}", asked);
                    prop_assert!(first == Some(*a) || first == Some(*b), "{:?}", asked);
                    wins[if first == Some(*a) { i } else { j }] += 1;
                }
            }
            let best = wins.iter().position(|won| *won + 1 == fit.len());
            let all: Vec<usize> = (0..routes.len()).collect();
            prop_assert_eq!(winner(&all, &asked), best.map(|at| fit[at]), "{:?}", asked);
            wins.sort_unstable();
            prop_assert_eq!(wins, (0..fit.len()).collect::<Vec<_>>(), "{:?}", asked);
        }
    }

    /// The same documents make the same table, whatever order their files come in.
    #[test]
    fn property_a_route_table_compiled_twice_is_equal(
        routes in vec(route(), 1..6),
        turn in any::<prop::sample::Index>(),
    ) {
        let order: Vec<usize> = (0..routes.len()).collect();
        let mut turned = order.clone();
        turned.rotate_left(turn.index(routes.len()));
        let snapshot = |order: &[usize]| {
            // A file for each route: where it is written is part of a table, as messages name it.
            let files: Vec<SourceFile> = order
                .iter()
                .map(|at| {
                    let mut file = documents(&routes, &[*at]);
                    file.path = format!("r{at}.yaml");
                    let text = String::from_utf8(file.bytes).expect("it is text");
                    file.bytes = text.strip_prefix(FRONT).expect("it begins so").as_bytes().to_vec();
                    file
                })
                .chain([SourceFile { path: "front.yaml".to_owned(), bytes: FRONT.as_bytes().to_vec() }])
                .collect();
            snapshot::parse(&files).expect("drawn documents are valid")
        };
        let (one, two) = (snapshot(&order), snapshot(&turned));
        let first = canonical(&compile(&one, 1).expect("drawn documents compile"));
        for again in [&one, &two] {
            let again = canonical(&compile(again, 1).expect("drawn documents compile"));
            prop_assert!(first == again, "{}\n{}", first, again);
        }
        // What is compared tells tables apart.
        let mut fewer = routes.clone();
        fewer[0].rules[0][0].method = Some("PATCH");
        let other = table_of(&fewer, &order);
        prop_assert!(first != canonical(&other));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What a table takes over from the one before is as if it were made anew.
    #[test]
    fn property_a_table_that_takes_over_is_as_one_made_anew(
        routes in vec((route(), route(), any::<bool>()), 1..6),
        steps in vec(vec(0..3_usize, 5), 2..7),
    ) {
        let class = "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: { name: cardinal }\nspec: { controllerName: cardinal.dev/gateway-controller }\n---\n";
        let read = |path: String, text: String| {
            Arc::new(snapshot::read(&SourceFile { path, bytes: text.into_bytes() }))
        };
        let front = read("front".to_owned(), format!("{class}{FRONT}"));
        let reads = |routes: &[Route]| -> Vec<Arc<Read>> {
            let one = |at| {
                let file = documents(routes, &[at]);
                let text = String::from_utf8(file.bytes).expect("it is text");
                let text = text.strip_prefix(FRONT).expect("it begins so");
                read(format!("r{at}"), text.to_owned())
            };
            (0..routes.len()).map(one).collect()
        };
        let first: Vec<Route> = routes.iter().map(|(first, ..)| first.clone()).collect();
        // Often a route that takes another's place has its hosts, and comes where that one came.
        let second = routes.iter().map(|(first, second, same)| match same {
            true => Route { hostnames: first.hostnames.clone(), created: first.created, ..second.clone() },
            false => second.clone(),
        });
        let forms = [reads(&first), reads(&second.collect::<Vec<_>>())];
        let mut linker = Linker::default();
        let mut table = RouteTable::default();
        for (generation, step) in (1..).zip(steps) {
            let there = step.into_iter().take(routes.len()).enumerate();
            let mut objects: Vec<Arc<Read>> = there
                .filter_map(|(at, form)| Some(Arc::clone(&forms.get(form)?[at])))
                .collect();
            let count = objects.len();
            objects.push(Arc::clone(&front));
            let snapshot = linker.link(&objects).snapshot;
            prop_assert_eq!(snapshot.routes.len(), count);
            table = next(&snapshot, &[], generation, &table).expect("drawn documents compile");
            let anew = compile(&snapshot, generation).expect("drawn documents compile");
            prop_assert_eq!(without_numbers(&table), without_numbers(&anew));
        }
    }
}

/// A table as text, but for numbers of targets and positions of routes: they only have to tell these apart, and to keep their
/// order.
fn without_numbers(table: &RouteTable) -> String {
    let text = canonical(table);
    let says = |line: &&str| {
        let line = line.trim();
        !line.starts_with("id: ") && !line.starts_with("order: ")
    };
    text.lines().filter(says).collect::<Vec<_>>().join("\n")
}

/// Tables of whole configurations: cells, tokens, routing tables, certificates.
#[test]
fn a_route_table_of_the_examples_compiled_twice_is_equal() {
    let valid = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/valid");
    let mut compared = 0;
    for folder in std::fs::read_dir(valid).expect("the examples are in the tree") {
        let folder = folder.expect("it can be listed").path();
        let mut files: Vec<SourceFile> = std::fs::read_dir(&folder)
            .expect("an example is a folder")
            .map(|file| {
                let path = file.expect("it can be listed").path();
                SourceFile {
                    path: path
                        .file_name()
                        .expect("it has a name")
                        .to_string_lossy()
                        .into_owned(),
                    bytes: std::fs::read(&path).expect("it can be read"),
                }
            })
            .collect();
        let first = snapshot::parse(&files).expect("the example is valid");
        files.reverse();
        let second = snapshot::parse(&files).expect("the example is valid");
        let tables = [&first, &first, &second]
            .map(|snapshot| canonical(&compile(snapshot, 1).expect("it compiles")));
        assert!(tables[0] == tables[1], "{}", folder.display());
        assert!(tables[0] == tables[2], "{}", folder.display());
        compared += 1;
    }
    assert!(compared > 3, "{compared} examples");
}
