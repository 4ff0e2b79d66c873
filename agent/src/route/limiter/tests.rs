use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use snapshot::model::{
    Inverted, Pattern, RateLimit, RatePath, RateRule, RateSelector, RateSource, RateText, TextMatch,
};
use snapshot::path::CanonicalPath;

use super::{Asking, Limiter, PARTS, PER_PART, SharedRules};

const NOW: Duration = Duration::from_secs(1000);

fn any() -> RateSelector {
    RateSelector {
        headers: Vec::new(),
        query: Vec::new(),
        methods: Vec::new(),
        path: None,
        source: None,
    }
}

fn rule(requests: u32, selectors: Vec<RateSelector>) -> RateRule {
    RateRule {
        selectors,
        requests: NonZeroU32::new(requests).expect("not zero"),
        period: Duration::from_secs(60),
        cost: 1,
        shared: false,
    }
}

fn exact(text: &str, invert: bool) -> RateText {
    RateText::Like(Inverted {
        wanted: TextMatch::Exact(text.to_owned()),
        invert,
    })
}

fn header(name: &str, text: RateText) -> RateSelector {
    RateSelector {
        headers: vec![(name.to_owned(), text)],
        ..any()
    }
}

fn path(text: &str) -> CanonicalPath {
    CanonicalPath::new(text).expect("a path")
}

struct Request {
    method: Method,
    path: CanonicalPath,
    query: Option<&'static str>,
    headers: HeaderMap,
    client: IpAddr,
}

impl Request {
    fn new(target: &'static str, headers: &[(&'static str, &str)]) -> Self {
        let (at, query) = match target.split_once('?') {
            Some((at, query)) => (at, Some(query)),
            None => (target, None),
        };
        let headers = headers.iter().map(|(name, value)| {
            let value = HeaderValue::from_str(value).expect("a value");
            (HeaderName::from_static(name), value)
        });
        Self {
            method: Method::GET,
            path: path(at),
            query,
            headers: headers.collect(),
            client: [192, 0, 2, 1].into(),
        }
    }

    fn asking(&self) -> Asking<'_> {
        Asking {
            method: &self.method,
            path: &self.path,
            query: self.query,
            headers: &self.headers,
            client: self.client,
        }
    }
}

fn limiter(rules: Vec<RateRule>) -> Limiter {
    Limiter::new(&RateLimit { rules }, &mut SharedRules::default())
}

/// How many of a hundred requests pass.
fn passed(limiter: &Limiter, request: &Request) -> usize {
    let asked = (0..100).map(|_| limiter.ask(request.asking(), NOW));
    asked
        .filter(|verdict| verdict.is_none_or(|verdict| verdict.taken.allowed))
        .count()
}

#[test]
fn rules_are_for_the_requests_that_fit() {
    let invert = true;
    let network = |text: &str| RateSource {
        network: text.parse().expect("a network"),
        distinct: false,
    };
    let method = |text: &str, invert| Inverted {
        wanted: text.to_owned(),
        invert,
    };
    let on = |wanted, invert| RateSelector {
        path: Some(Inverted { wanted, invert }),
        ..any()
    };
    let regex = |text| TextMatch::Regex(Pattern::whole(text).expect("a pattern"));
    let like = |wanted| {
        RateText::Like(Inverted {
            wanted,
            invert: false,
        })
    };
    for (selector, target, headers, fits) in [
        (
            header("x-a", exact("1", false)),
            "/",
            vec![("x-a", "1")],
            true,
        ),
        (
            header("x-a", exact("1", false)),
            "/",
            vec![("x-a", "2")],
            false,
        ),
        (header("x-a", exact("1", false)), "/", vec![], false),
        (
            header("x-a", exact("1", invert)),
            "/",
            vec![("x-a", "2")],
            true,
        ),
        (header("x-a", exact("1", invert)), "/", vec![], true),
        (
            header("x-a", exact("1,2", false)),
            "/",
            vec![("x-a", "1"), ("x-a", "2")],
            true,
        ),
        (
            header("x-a", like(regex("[0-9]+"))),
            "/",
            vec![("x-a", "77")],
            true,
        ),
        (
            header("x-a", like(regex("[0-9]+"))),
            "/",
            vec![("x-a", "a7")],
            false,
        ),
        (
            header("x-a", RateText::Distinct),
            "/",
            vec![("x-a", "")],
            true,
        ),
        (header("x-a", RateText::Distinct), "/", vec![], false),
        (
            RateSelector {
                query: vec![("a".into(), exact("b c", false))],
                ..any()
            },
            "/?a=b%20c",
            vec![],
            true,
        ),
        (
            RateSelector {
                methods: vec![method("POST", false), method("GET", false)],
                ..any()
            },
            "/",
            vec![],
            true,
        ),
        (
            RateSelector {
                methods: vec![method("GET", invert)],
                ..any()
            },
            "/",
            vec![],
            false,
        ),
        (
            on(RatePath::Prefix(path("/a")), false),
            "/a/b",
            vec![],
            true,
        ),
        (
            on(RatePath::Prefix(path("/a")), false),
            "/ab",
            vec![],
            false,
        ),
        (
            on(RatePath::Prefix(path("/a")), invert),
            "/ab",
            vec![],
            true,
        ),
        (on(RatePath::Prefix(path("/")), false), "/ab", vec![], true),
        (
            on(RatePath::Exact(path("/a")), false),
            "/a/b",
            vec![],
            false,
        ),
        (
            on(
                RatePath::Regex(Pattern::whole("/[ab]").expect("a pattern")),
                false,
            ),
            "/b",
            vec![],
            true,
        ),
        (
            RateSelector {
                source: Some(network("192.0.2.0/24")),
                ..any()
            },
            "/",
            vec![],
            true,
        ),
        (
            RateSelector {
                source: Some(network("198.51.100.0/24")),
                ..any()
            },
            "/",
            vec![],
            false,
        ),
    ] {
        let case = format!("{selector:?} {target} {headers:?}");
        let limiter = limiter(vec![rule(3, vec![selector.clone()])]);
        let request = Request::new(target, &headers);
        assert_eq!(
            passed(&limiter, &request),
            if fits { 3 } else { 100 },
            "{case}"
        );
        // All selectors must fit.
        let never = header("x-never", exact("1", false));
        let both = self::limiter(vec![rule(3, vec![selector, never])]);
        assert_eq!(passed(&both, &request), 100, "{case}");
    }
}

#[test]
fn the_strictest_rule_decides_and_the_open_one_is_for_the_rest() {
    let kind = |kind: &str| header("x-kind", exact(kind, false));
    let rules = vec![
        rule(50, vec![header("x-all", exact("1", false))]),
        rule(5, vec![]),
        rule(20, vec![kind("a")]),
    ];
    let limiter = limiter(rules);
    let both = Request::new("/", &[("x-all", "1"), ("x-kind", "a")]);
    let first = limiter.ask(both.asking(), NOW).expect("a rule");
    assert_eq!((first.limit, first.taken.remaining), (20, 19));
    let told = first
        .headers()
        .map(|(name, value)| format!("{name}: {value:?}"));
    assert_eq!(
        told,
        [
            "x-ratelimit-limit: \"20\"",
            "x-ratelimit-remaining: \"19\"",
            "x-ratelimit-reset: \"3\""
        ]
    );
    assert_eq!(passed(&limiter, &both), 19);
    // What the strictest refused was not taken from the other.
    let all = Request::new("/", &[("x-all", "1")]);
    assert_eq!(passed(&limiter, &all), 30);
    // The rule without selectors is not for them.
    let other = Request::new("/", &[]);
    assert_eq!(passed(&limiter, &other), 5);
}

#[test]
fn distinct_values_are_counted_each_for_itself() {
    let limiter = limiter(vec![rule(3, vec![header("x-user", RateText::Distinct)])]);
    for user in ["a", "b", "c"] {
        assert_eq!(passed(&limiter, &Request::new("/", &[("x-user", user)])), 3);
    }
    let by_address = RateSelector {
        source: Some(RateSource {
            network: "192.0.2.0/24".parse().expect("a network"),
            distinct: true,
        }),
        ..any()
    };
    let limiter = self::limiter(vec![rule(3, vec![by_address])]);
    for last in 1..4 {
        let request = Request {
            client: [192, 0, 2, last].into(),
            ..Request::new("/", &[])
        };
        assert_eq!(passed(&limiter, &request), 3);
    }
}

#[test]
fn memory_is_bounded_and_values_without_room_share_a_bucket() {
    let limiter = limiter(vec![rule(1, vec![header("x-user", RateText::Distinct)])]);
    let room = PARTS * PER_PART;
    let ask = |user: usize, now| {
        let request = Request::new("/", &[("x-user", &user.to_string())]);
        limiter.ask(request.asking(), now).expect("a rule").taken
    };
    let passed = (0..2 * room).filter(|user| ask(*user, NOW).allowed).count();
    // Each has a bucket as long as there is room, and then one for each part.
    assert!(passed > room / 2 && passed <= room + PARTS, "{passed}");
    // Those that are full again make room.
    let later = NOW + Duration::from_secs(60);
    assert!((2 * room..2 * room + 100).all(|user| ask(user, later).allowed));
}

#[test]
fn buckets_go_over_to_the_next_table() {
    let open = || rule(3, vec![]);
    let before = limiter(vec![open()]);
    let request = Request::new("/", &[]);
    assert_eq!(passed(&before, &request), 3);
    let same = limiter(vec![rule(9, vec![header("x", exact("1", false))]), open()]);
    same.adopt(&before);
    assert_eq!(passed(&same, &request), 0);
    let other = limiter(vec![rule(4, vec![])]);
    other.adopt(&before);
    assert_eq!(passed(&other, &request), 4);
}

#[test]
fn routes_share_a_rule_that_says_so() {
    let request = Request::new("/", &[]);
    for (shared, together) in [(true, 3), (false, 6)] {
        let rule = RateRule {
            shared,
            ..rule(3, vec![])
        };
        let limit = RateLimit { rules: vec![rule] };
        let mut rules = SharedRules::default();
        let [a, b] = [0, 1].map(|_| Limiter::new(&limit, &mut rules));
        assert_eq!(passed(&a, &request) + passed(&b, &request), together);
        // And so in the next generation.
        let mut rules = SharedRules::default();
        let [c, d] = [0, 1].map(|_| Limiter::new(&limit, &mut rules));
        c.adopt(&a);
        d.adopt(&b);
        assert_eq!(passed(&c, &request) + passed(&d, &request), 0);
    }
}
