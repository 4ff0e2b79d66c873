//! What a rule, or one of its targets, changes or answers: compiled, in the order in which it is applied.

use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use snapshot::model::{PathRewrite, Pattern};

use super::cors::Cors;
use super::{Edits, RouteTarget};

/// The filters of one list. None of them contradicts another: the documents saw to that.
#[derive(Debug, Default)]
pub struct Filters {
    /// Why the list cannot be applied; its requests answer 500.
    pub broken: Option<Arc<str>>,
    /// Which pages of other origins may read answers.
    pub cors: Option<Arc<Cors>>,
    /// The answer to every request; then nothing goes upstream.
    pub answer: Option<Box<Answer>>,
    /// The path.
    pub path: Option<Box<PathRewrite>>,
    /// The host sent upstream.
    pub host: Option<Box<Host>>,
    /// Headers of the request.
    pub request: Vec<Edits>,
    /// Headers of the response.
    pub response: Vec<Edits>,
    /// Where copies of the request go.
    pub mirrors: Vec<Mirror>,
}

/// The filters of a rule or a target. Most have none, and take no memory for those that they could have.
#[derive(Debug, Default)]
pub struct FilterList(Option<Box<Filters>>);

impl From<Filters> for FilterList {
    fn from(filters: Filters) -> Self {
        Self((!filters.is_empty()).then(|| Box::new(filters)))
    }
}

impl Deref for FilterList {
    type Target = Filters;

    fn deref(&self) -> &Filters {
        static NONE: Filters = Filters::NONE;
        self.0.as_deref().unwrap_or(&NONE)
    }
}

impl Filters {
    /// None of them.
    const NONE: Self = Self {
        broken: None,
        cors: None,
        answer: None,
        path: None,
        host: None,
        request: Vec::new(),
        response: Vec::new(),
        mirrors: Vec::new(),
    };

    fn is_empty(&self) -> bool {
        let Self {
            broken,
            cors,
            answer,
            path,
            host,
            request,
            response,
            mirrors,
        } = self;
        broken.is_none()
            && cors.is_none()
            && answer.is_none()
            && path.is_none()
            && host.is_none()
            && request.is_empty()
            && response.is_empty()
            && mirrors.is_empty()
    }
}

/// Where copies go.
#[derive(Debug)]
pub struct Mirror {
    /// Where to.
    pub target: RouteTarget,
    /// So many requests ..
    pub share: u32,
    /// .. of so many are copied.
    pub of: NonZeroU32,
}

/// A response that needs no upstream.
#[derive(Debug)]
pub enum Answer {
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// Said as it is written.
    Response(Response),
}

/// Another place for the client.
#[derive(Debug)]
pub struct Redirect {
    /// Status.
    pub status: StatusCode,
    /// Whether the place speaks TLS; as the request when absent.
    pub tls: Option<bool>,
    /// Its host; the request's when absent.
    pub host: Option<Box<str>>,
    /// Its port, if it is given.
    pub port: Option<u16>,
    /// Its path; the request's when absent.
    pub path: Option<PathRewrite>,
}

impl Redirect {
    /// The port that `Location` names, or none if it is the well-known one of the scheme (Gateway API,
    /// `HTTPRequestRedirectFilter.port`). `tls` and `listener` are those of the request's connection.
    pub fn port(&self, tls: bool, listener: u16) -> Option<u16> {
        let known = |tls| if tls { 443 } else { 80 };
        let port = match (self.port, self.tls) {
            (Some(port), _) => port,
            (None, Some(tls)) => known(tls),
            (None, None) => listener,
        };
        (port != known(self.tls.unwrap_or(tls))).then_some(port)
    }
}

/// A response as it is written.
#[derive(Debug)]
pub struct Response {
    /// Status.
    pub status: StatusCode,
    /// `Content-Type`.
    pub content_type: Option<HeaderValue>,
    /// Body.
    pub body: Bytes,
    /// Edits of its headers.
    pub headers: Edits,
}

/// Where the host sent upstream comes from.
#[derive(Debug)]
pub enum Host {
    /// This one.
    Name(HeaderValue),
    /// A header of the request, if it is there.
    Header(HeaderName),
    /// The name of the backend's endpoint, if it has one.
    Backend,
    /// The request's path with every match of a pattern replaced.
    Path(Pattern, String),
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::Redirect;

    #[test]
    fn ports_of_redirects_follow_the_gateway_api() {
        for (port, scheme, tls, listener, expected) in [
            (None, None, false, 80, None),
            (None, None, false, 8080, Some(8080)),
            (None, None, true, 443, None),
            (None, None, true, 8443, Some(8443)),
            (None, Some(true), false, 8080, None),
            (None, Some(true), false, 80, None),
            (None, Some(false), true, 443, None),
            (Some(80), None, false, 8080, None),
            (Some(8443), Some(true), false, 80, Some(8443)),
            (Some(443), Some(true), false, 80, None),
            (Some(80), Some(true), false, 80, Some(80)),
            (Some(443), None, false, 80, Some(443)),
        ] {
            let redirect = Redirect {
                status: StatusCode::FOUND,
                tls: scheme,
                host: None,
                port,
                path: None,
            };
            assert_eq!(
                redirect.port(tls, listener),
                expected,
                "{port:?} {scheme:?} {tls} {listener}"
            );
        }
    }
}
