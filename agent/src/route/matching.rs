//! From path, method and headers to a rule, in Gateway API precedence.
//!
//! Exact paths are found by hash, prefixes by one hash lookup per segment of the request's path,
//! from the longest; regular expressions are tried in order, longest text first, but only those that
//! can begin with the path's first segments: all cells of an environment share a host, and `/{project}/{component}`
//! tells their operations apart. Calls of gRPC are found by the same two ways: by hash where service and method are
//! given, else among the patterns, by service and then by method. Between candidates of one path: those with a method,
//! then those with more headers, then those with more query parameters, then the order in which they were added.

use std::cmp::Reverse;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, Method};
use regex_syntax::hir::literal::Extractor;
use snapshot::exact;
use snapshot::model::{CallMatch, PathMatch, Pattern, RequestMatch, TextMatch};
use snapshot::path::CanonicalPath;

use super::{HashMap, RouteRule, RouteRules, query};

/// The rules of one host.
#[derive(Debug, Default)]
pub struct HostRules {
    /// Those of every path; many hosts have no other.
    root: Vec<Candidate>,
    paths: Option<Box<Paths>>,
    /// The routes that they are of, in order.
    routes: Vec<RouteRules>,
}

/// Rules of some paths.
#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<Box<str>, Vec<Candidate>>,
    /// By the first segments, two at most, that everything has which a shape matches; in order of rank.
    shaped: HashMap<Box<str>, Vec<(Shape, Candidate)>>,
    /// By prefix without trailing slash.
    prefix: HashMap<Box<str>, Vec<Candidate>>,
    /// Bytes of the longest prefix.
    longest: usize,
}

/// What a request is matched by.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The one path of the request.
    pub path: &'a CanonicalPath,
    /// Its method.
    pub method: &'a Method,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its query as sent, without `?`.
    pub query: Option<&'a str>,
}

/// The rule of a request.
#[derive(Clone, Copy, Debug)]
pub struct Matched<'a> {
    /// The rule.
    pub rule: &'a Arc<RouteRule>,
    /// The prefix that matched, without trailing slash; none for other kinds of match.
    pub prefix: Option<&'a str>,
}

/// What a path must look like where it is neither given whole nor by its beginning.
#[derive(Debug)]
enum Shape {
    Pattern(Pattern),
    Call(CallMatch),
}

/// How much a shape says of a part of the path: what says more comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Said {
    Exactly,
    /// By a pattern, the longest text as it was written first.
    Pattern(Reverse<usize>),
    Nothing,
}

impl From<&Pattern> for Said {
    fn from(pattern: &Pattern) -> Self {
        Self::Pattern(Reverse(pattern.text().len()))
    }
}

impl From<&Option<TextMatch>> for Said {
    fn from(text: &Option<TextMatch>) -> Self {
        match text {
            Some(TextMatch::Exact(_)) => Self::Exactly,
            Some(TextMatch::Regex(pattern)) => pattern.into(),
            None => Self::Nothing,
        }
    }
}

impl Shape {
    /// The segments with which everything begins that it matches.
    fn first_segments(&self) -> String {
        match self {
            Self::Pattern(pattern) => first_segments(pattern),
            Self::Call(CallMatch {
                service: Some(TextMatch::Exact(service)),
                ..
            }) => format!("/{service}"),
            Self::Call(_) => String::new(),
        }
    }

    /// Precedence among shapes that match one path: by service, then by method (Gateway API, `GRPCRouteRule`). All that
    /// match have the same characters of it, so that how they are given is what is left to compare.
    fn rank(&self) -> (Said, Said) {
        match self {
            Self::Pattern(pattern) => (pattern.into(), Said::Nothing),
            Self::Call(call) => ((&call.service).into(), (&call.method).into()),
        }
    }

    fn fits(&self, path: &str) -> bool {
        match self {
            Self::Pattern(pattern) => whole_match(pattern, path),
            Self::Call(call) => {
                let parts = path.strip_prefix('/').and_then(|path| path.split_once('/'));
                let fits = |wanted: &Option<TextMatch>, given: &str| match wanted {
                    Some(wanted) => wanted.matches(given.as_bytes()),
                    None => true,
                };
                parts.is_some_and(|(service, method)| {
                    !service.is_empty()
                        && !method.is_empty()
                        && !method.contains('/')
                        && fits(&call.service, service)
                        && fits(&call.method, method)
                })
            }
        }
    }
}

#[derive(Debug)]
struct Candidate {
    /// What is asked beside the path; most rules ask for nothing.
    asks: Option<Box<Asks>>,
    /// Document order.
    order: usize,
    rule: Arc<RouteRule>,
}

/// What a request must have beside its path.
#[derive(Debug, Default)]
struct Asks {
    method: Option<Method>,
    headers: Vec<(HeaderName, TextMatch)>,
    query: Vec<(String, TextMatch)>,
}

impl Candidate {
    fn rank(&self) -> impl Ord + use<> {
        let asks = self.asks.as_deref();
        (
            Reverse(asks.is_some_and(|asks| asks.method.is_some())),
            Reverse(asks.map_or(0, |asks| asks.headers.len())),
            Reverse(asks.map_or(0, |asks| asks.query.len())),
            self.order,
        )
    }

    fn fits(&self, subject: &Subject<'_>) -> bool {
        self.asks.as_ref().is_none_or(|asks| asks.meets(subject))
    }
}

impl Asks {
    fn is_empty(&self) -> bool {
        self.method.is_none() && self.headers.is_empty() && self.query.is_empty()
    }

    fn meets(&self, subject: &Subject<'_>) -> bool {
        self.method.as_ref().is_none_or(|m| m == subject.method)
            && self
                .headers
                .iter()
                .all(|(name, value)| header_matches(subject.headers, name, value))
            && self.query.iter().all(|(name, value)| {
                query::first(subject.query, name).is_some_and(|given| value.matches(&given))
            })
    }
}

/// Several values of one header are compared joined by a comma (RFC 9110, section 5.3).
fn header_matches(headers: &HeaderMap, name: &HeaderName, expected: &TextMatch) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else {
        return false;
    };
    let Some(second) = values.next() else {
        return expected.matches(first.as_bytes());
    };
    let mut joined = first.as_bytes().to_vec();
    for value in std::iter::once(second).chain(values) {
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
    }
    expected.matches(&joined)
}

/// What is wrong with a match that the model let through.
#[derive(Debug, thiserror::Error)]
pub enum MatchError {
    /// Not a method of RFC 9110.
    #[error("expected an HTTP method, got `{0}`")]
    Method(String),
    /// Not a header name.
    #[error("expected a header name, got `{0}`")]
    Header(String),
}

impl HostRules {
    /// Notes a route whose matches are added next.
    pub(crate) fn begin(&mut self, route: &RouteRules) {
        self.routes.push(Arc::clone(route));
    }

    /// The routes that they are of, in order.
    pub(crate) fn routes(&self) -> &[RouteRules] {
        &self.routes
    }

    /// Whether these are the rules of exactly these routes.
    pub(crate) fn are<'a>(
        &self,
        mut routes: impl ExactSizeIterator<Item = &'a RouteRules>,
    ) -> bool {
        routes.len() == self.routes.len()
            && self
                .routes
                .iter()
                .all(|own| routes.next().is_some_and(|other| Arc::ptr_eq(own, other)))
    }

    /// Adds one match of a rule. Rules are added in precedence order: what is equal in every other
    /// way goes to the one that was added first.
    pub fn add(
        &mut self,
        given: &RequestMatch,
        rule: &Arc<RouteRule>,
        order: usize,
    ) -> Result<(), MatchError> {
        let method = match &given.method {
            Some(text) => Some(
                Method::from_bytes(text.as_bytes())
                    .map_err(|_| MatchError::Method(text.clone()))?,
            ),
            None => None,
        };
        let mut headers: Vec<(HeaderName, TextMatch)> = Vec::with_capacity(given.headers.len());
        for (name, value) in &given.headers {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| MatchError::Header(name.clone()))?;
            // Gateway API: of equal names the first entry counts.
            if headers.iter().all(|(known, _)| *known != name) {
                headers.push((name, value.clone()));
            }
        }
        let asks = Asks {
            method,
            headers,
            query: given.query.clone(),
        };
        let candidate = Candidate {
            asks: (!asks.is_empty()).then(|| Box::new(asks)),
            order,
            rule: Arc::clone(rule),
        };
        self.push(&given.path, candidate);
        Ok(())
    }

    /// Nothing is added any more.
    pub(crate) fn complete(&mut self) {
        fn exactly<T>(lists: &mut HashMap<Box<str>, Vec<T>>) {
            lists.shrink_to_fit();
            for list in lists.values_mut() {
                *list = exact(std::mem::take(list));
            }
        }
        if let Some(paths) = &mut self.paths {
            exactly(&mut paths.exact);
            exactly(&mut paths.shaped);
            exactly(&mut paths.prefix);
        }
        self.root = exact(std::mem::take(&mut self.root));
        self.routes = exact(std::mem::take(&mut self.routes));
    }

    fn push(&mut self, path: &PathMatch, candidate: Candidate) {
        match path {
            PathMatch::Exact(path) => {
                let list = self.paths().exact.entry(path.as_str().into()).or_default();
                insert(list, candidate);
            }
            PathMatch::Prefix(path) => match path.without_slash() {
                "" => insert(&mut self.root, candidate),
                path => {
                    let paths = self.paths();
                    paths.longest = paths.longest.max(path.len());
                    insert(paths.prefix.entry(path.into()).or_default(), candidate);
                }
            },
            PathMatch::Regex(pattern) => self
                .paths()
                .shaped(Shape::Pattern(pattern.clone()), candidate),
            PathMatch::Call(CallMatch {
                service: Some(TextMatch::Exact(service)),
                method: Some(TextMatch::Exact(method)),
            }) => {
                let path = format!("/{service}/{method}");
                insert(
                    self.paths().exact.entry(path.into()).or_default(),
                    candidate,
                );
            }
            PathMatch::Call(call) => self.paths().shaped(Shape::Call(call.clone()), candidate),
        }
    }

    fn paths(&mut self) -> &mut Paths {
        self.paths.get_or_insert_default()
    }

    /// The rule of a request, or none.
    pub fn find(&self, subject: Subject<'_>) -> Option<Matched<'_>> {
        let paths = self.paths.as_ref();
        paths.and_then(|paths| paths.find(&subject)).or_else(|| {
            Some(Matched {
                rule: first(&self.root, &subject)?,
                prefix: Some(""),
            })
        })
    }
}

impl Paths {
    fn shaped(&mut self, shape: Shape, candidate: Candidate) {
        let list = self
            .shaped
            .entry(shape.first_segments().into())
            .or_default();
        let key = rank(&shape, &candidate);
        let at = list.partition_point(|(known, other)| rank(known, other) <= key);
        list.insert(at, (shape, candidate));
    }

    /// The rule of a request that has more of a path than its root, or none.
    fn find(&self, subject: &Subject<'_>) -> Option<Matched<'_>> {
        let path = subject.path.as_str();
        if let Some(rule) = self.exact.get(path).and_then(|list| first(list, subject)) {
            return Some(Matched { rule, prefix: None });
        }
        if let Some(candidate) = self.find_shaped(subject) {
            return Some(Matched {
                rule: &candidate.rule,
                prefix: None,
            });
        }
        let mut prefix = subject.path.without_slash();
        // How often is looked is for the rules to say: a client may send a path of a thousand segments.
        while prefix.len() > self.longest {
            prefix = parent(prefix)?;
        }
        while !prefix.is_empty() {
            if let Some((key, list)) = self.prefix.get_key_value(prefix)
                && let Some(rule) = first(list, subject)
            {
                return Some(Matched {
                    rule,
                    prefix: Some(key),
                });
            }
            prefix = parent(prefix)?;
        }
        None
    }

    fn find_shaped(&self, subject: &Subject<'_>) -> Option<&Candidate> {
        if self.shaped.is_empty() {
            return None;
        }
        let path = subject.path.as_str();
        let one = segments(path, 1);
        let two = segments(path, 2);
        let lists = ["", one, two];
        // A path of one segment has no second list to look at.
        let lists = if one == two { &lists[..2] } else { &lists[..] };
        lists
            .iter()
            .filter_map(|key| self.shaped.get(*key))
            .filter_map(|list| {
                list.iter()
                    .find(|(shape, one)| one.fits(subject) && shape.fits(path))
            })
            .min_by_key(|(shape, candidate)| rank(shape, candidate))
            .map(|(_, candidate)| candidate)
    }
}

/// The rule of the first candidate that fits.
fn first<'a>(list: &'a [Candidate], subject: &Subject<'_>) -> Option<&'a Arc<RouteRule>> {
    let found = list.iter().find(|one| one.fits(subject));
    found.map(|one| &one.rule)
}

/// A prefix without its last segment; none: it has none.
fn parent(prefix: &str) -> Option<&str> {
    // Segments are short, and a search that is made for long texts takes longer to begin.
    let slash = prefix.bytes().rposition(|byte| byte == b'/')?;
    prefix.get(..slash)
}

fn insert(list: &mut Vec<Candidate>, candidate: Candidate) {
    let at = list.partition_point(|other| other.rank() <= candidate.rank());
    list.insert(at, candidate);
}

/// Precedence where the path does not decide: by what is said of it, then by the rest of the match.
fn rank(shape: &Shape, candidate: &Candidate) -> impl Ord + use<> {
    (shape.rank(), candidate.rank())
}

/// The first `count` segments of a path, or all that it has before its last slash.
fn segments(path: &str, count: usize) -> &str {
    let ends = path.match_indices('/').map(|(at, _)| at).skip(1);
    path.get(..ends.take(count).last().unwrap_or(0))
        .unwrap_or_default()
}

/// The whole segments, two at most, with which everything begins that a pattern matches.
fn first_segments(pattern: &Pattern) -> String {
    // A pattern that the parser of its own engine cannot take apart may match anything.
    let Ok(parsed) = regex_syntax::parse(pattern.regex().as_str()) else {
        return String::new();
    };
    let begins = Extractor::new().extract(&parsed);
    let common = begins.longest_common_prefix().unwrap_or_default();
    match std::str::from_utf8(common) {
        Ok(common) if common.starts_with('/') => segments(common, 2).to_owned(),
        _ => String::new(),
    }
}

/// Route patterns are compiled for the whole path; this holds even for one that is not anchored.
fn whole_match(pattern: &Pattern, path: &str) -> bool {
    pattern
        .regex()
        .find(path)
        .is_some_and(|found| found.start() == 0 && found.end() == path.len())
}

#[cfg(test)]
mod tests {
    use snapshot::model::Pattern;

    use super::{first_segments, segments};

    #[test]
    fn patterns_are_found_by_the_segments_that_they_begin_with() {
        for (text, expected) in [
            ("^/shop/orders(/v1/books)$", "/shop/orders"),
            ("^/shop/orders(/v1/books/[^/]+)$", "/shop/orders"),
            ("^/shop/orders/[^/]+$", "/shop/orders"),
            ("^/shop/orders$", "/shop"),
            ("^/shop/or[^/]+$", "/shop"),
            ("^/shop/orders(/v1)?$", "/shop"),
            ("^/shop/orders/?x", "/shop"),
            ("^/shop/(a|b)/c$", "/shop"),
            ("^/shop/x/a|/other/y/b$", ""),
            ("^(?i)/shop/orders/x$", ""),
            ("^/shop(/orders)*/x$", "/shop"),
            ("/[^/]+/x", ""),
            ("^/s.hop/orders/x$", ""),
            ("^/s\\.hop/orders/x$", "/s.hop/orders"),
            (".*", ""),
        ] {
            let pattern = Pattern::new(text).expect("table entry compiles");
            assert_eq!(first_segments(&pattern), expected, "{text}");
            let whole = Pattern::whole(text).expect("table entry compiles");
            assert_eq!(first_segments(&whole), expected, "{text}");
        }
        for (path, one, two) in [
            ("/", "", ""),
            ("/a", "", ""),
            ("/a/", "/a", "/a"),
            ("/a/b", "/a", "/a"),
            ("/a/b/", "/a", "/a/b"),
            ("/a/b/c/d", "/a", "/a/b"),
        ] {
            assert_eq!((segments(path, 1), segments(path, 2)), (one, two), "{path}");
        }
    }
}
