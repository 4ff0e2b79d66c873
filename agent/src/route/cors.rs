//! Answers to browsers about requests from other origins (Fetch, section 3.2).
//!
//! The rule decides alone: what an upstream says of other origins is replaced.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, request};
use snapshot::model::{Allowed, Cors as Model, OriginPattern};

/// A rule's permissions, as header values.
#[derive(Debug)]
pub struct Cors {
    origins: Vec<OriginPattern>,
    credentials: bool,
    methods: List,
    headers: List,
    expose: List,
    max_age: HeaderValue,
}

#[derive(Debug)]
enum List {
    Any,
    Names(Option<HeaderValue>),
}

impl List {
    fn new(allowed: &Allowed) -> Result<Self, String> {
        let names = match allowed {
            Allowed::Any => return Ok(Self::Any),
            Allowed::Names(names) => names.join(", "),
        };
        if names.is_empty() {
            return Ok(Self::Names(None));
        }
        HeaderValue::from_str(&names)
            .map(|value| Self::Names(Some(value)))
            .map_err(|_| format!("`{names}` is not a header value"))
    }

    /// The value to send, where `*` is `any`.
    fn value(&self, any: impl FnOnce() -> Option<HeaderValue>) -> Option<HeaderValue> {
        match self {
            Self::Any => any(),
            Self::Names(names) => names.clone(),
        }
    }
}

/// The method that a browser asks for, if the request is a preflight (Fetch, "CORS-preflight request").
pub fn preflight(method: &Method, headers: &HeaderMap) -> Option<Method> {
    if *method != Method::OPTIONS || !headers.contains_key(header::ORIGIN) {
        return None;
    }
    let asked = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    Method::from_bytes(asked.as_bytes()).ok()
}

impl Cors {
    /// Takes a rule's permissions, or says what is no header value.
    pub fn new(model: &Model) -> Result<Self, String> {
        Ok(Self {
            origins: model.origins.clone(),
            credentials: model.credentials,
            methods: List::new(&model.methods)?,
            headers: List::new(&model.headers)?,
            expose: List::new(&model.expose)?,
            max_age: HeaderValue::from(model.max_age),
        })
    }

    /// `Access-Control-Allow-Origin` for an origin, if it is allowed: with credentials never `*`, and
    /// never the `null` of whoever hides his origin.
    fn origin(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        let text = origin.to_str().ok()?;
        if self.is_public() {
            return Some(HeaderValue::from_static("*"));
        }
        let covered = self.origins.iter().any(|one| one.covers(text));
        (covered && text != "null").then(|| origin.clone())
    }

    /// Whether every origin gets the same answer.
    fn is_public(&self) -> bool {
        !self.credentials && self.origins.contains(&OriginPattern::Any)
    }

    /// Headers of the answer to a preflight: those that say yes, or none of them.
    pub fn answer(&self, request: &request::Parts) -> HeaderMap {
        let mut headers = HeaderMap::new();
        self.vary(&mut headers);
        let origin = request.headers.get(header::ORIGIN);
        let Some(origin) = origin.and_then(|origin| self.origin(origin)) else {
            return headers;
        };
        let asked = |name: &HeaderName| request.headers.get(name).cloned();
        let star = || HeaderValue::from_static("*");
        let all = |name: HeaderName| {
            if self.credentials {
                asked(&name)
            } else {
                Some(star())
            }
        };
        let methods = self
            .methods
            .value(|| all(header::ACCESS_CONTROL_REQUEST_METHOD));
        let allowed = self
            .headers
            .value(|| all(header::ACCESS_CONTROL_REQUEST_HEADERS));
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        if let Some(methods) = methods {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        }
        if let Some(allowed) = allowed {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        }
        // Fetch reads these of the response proper only; the Gateway API wants them told to a preflight as well. With
        // credentials "all" means the names of a response that is not there yet.
        let exposed = self.expose.value(|| (!self.credentials).then(star));
        if let Some(exposed) = exposed {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        headers
    }

    /// Says on a response who may read it.
    pub fn decorate(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        for name in [
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            headers.remove(name);
        }
        self.vary(headers);
        let Some(origin) = origin.and_then(|origin| self.origin(origin)) else {
            return;
        };
        // With credentials `*` would be the name of a header: then all are named.
        let exposed = self.expose.value(|| {
            if !self.credentials {
                return Some(HeaderValue::from_static("*"));
            }
            let names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
            HeaderValue::from_str(&names.join(", ")).ok()
        });
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        if let Some(exposed) = exposed {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
    }

    /// Keeps caches from giving one origin's answer to another.
    fn vary(&self, headers: &mut HeaderMap) {
        if !self.is_public() {
            headers.append(header::VARY, HeaderValue::from_static("origin"));
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Request};
    use snapshot::model::{Allowed, Cors as Model, OriginPattern};

    use super::{Cors, preflight};

    fn cors(origins: &[&str], star: bool, credentials: bool) -> Cors {
        let list = |names: &[&str]| {
            if star {
                Allowed::Any
            } else {
                Allowed::Names(names.iter().map(|one| (*one).to_owned()).collect())
            }
        };
        let pattern = |text: &&str| OriginPattern::new(text).expect("table entry is an origin");
        Cors::new(&Model {
            origins: origins.iter().map(pattern).collect(),
            methods: list(&["PUT", "DELETE"]),
            headers: list(&["x-one", "x-two"]),
            expose: list(&["x-seen"]),
            max_age: 5,
            credentials,
        })
        .expect("header values")
    }

    fn told(headers: &HeaderMap) -> String {
        let mut lines: Vec<_> = headers
            .iter()
            .filter_map(|(name, value)| {
                let name = name.as_str().strip_prefix("access-control-")?;
                Some(format!("{name}={}", value.to_str().expect("ASCII")))
            })
            .collect();
        lines.sort();
        lines.join(" ")
    }

    #[test]
    fn preflights_are_answered_by_the_rule() {
        let only = &["https://a.test"][..];
        for (origins, star, credentials, origin, expected) in [
            (
                only,
                false,
                false,
                "https://a.test",
                "allow-headers=x-one, x-two allow-methods=PUT, DELETE allow-origin=https://a.test expose-headers=x-seen max-age=5",
            ),
            (only, false, false, "https://b.test", ""),
            (
                &["*"][..],
                true,
                false,
                "https://b.test",
                "allow-headers=* allow-methods=* allow-origin=* expose-headers=* max-age=5",
            ),
            (
                &["*"][..],
                true,
                true,
                "https://b.test",
                "allow-credentials=true allow-headers=x-asked allow-methods=PATCH allow-origin=https://b.test max-age=5",
            ),
            (&["*"][..], true, true, "null", ""),
        ] {
            let request = Request::options("/")
                .header("origin", origin)
                .header("access-control-request-method", "PATCH")
                .header("access-control-request-headers", "x-asked")
                .body(())
                .expect("a request");
            let (parts, ()) = request.into_parts();
            assert_eq!(
                preflight(&parts.method, &parts.headers),
                Some(http::Method::PATCH)
            );
            let answer = cors(origins, star, credentials).answer(&parts);
            assert_eq!(told(&answer), expected, "{origins:?} {origin}");
        }
    }

    #[test]
    fn responses_say_who_may_read_them_whatever_the_upstream_says() {
        for (origins, star, credentials, origin, expected) in [
            (
                "https://a.test",
                false,
                true,
                Some("https://a.test"),
                "allow-credentials=true allow-origin=https://a.test expose-headers=x-seen",
            ),
            ("https://a.test", false, true, Some("https://b.test"), ""),
            ("https://a.test", false, true, None, ""),
            (
                "*",
                true,
                false,
                Some("https://b.test"),
                "allow-origin=* expose-headers=*",
            ),
            (
                "*",
                true,
                true,
                Some("https://b.test"),
                "allow-credentials=true allow-origin=https://b.test expose-headers=x-up, vary",
            ),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-up", HeaderValue::from_static("1"));
            headers.insert(
                "access-control-allow-origin",
                HeaderValue::from_static("https://evil.test"),
            );
            let origin = origin.map(HeaderValue::from_static);
            cors(&[origins], star, credentials).decorate(origin.as_ref(), &mut headers);
            assert_eq!(told(&headers), expected, "{origins} {origin:?}");
            assert_eq!(headers.contains_key("vary"), origins != "*" || credentials);
        }
    }
}
