//! What a rule, or one of its targets, changes on the way.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::{Cors, Hostname, PathRewrite, Pattern, Port, Target};

/// What is changed on the way, or answered here.
#[derive(Clone, Debug)]
pub enum Filter {
    /// Headers of the request.
    RequestHeaders(Arc<HeaderEdits>),
    /// Headers of the response.
    ResponseHeaders(Arc<HeaderEdits>),
    /// The path, the host, or both.
    Rewrite(Arc<Rewrite>),
    /// The client is sent elsewhere; nothing goes upstream.
    Redirect(Arc<Redirect>),
    /// The router answers itself; nothing goes upstream.
    Respond(Arc<DirectResponse>),
    /// A copy of the request goes to another target as well.
    Mirror(Arc<Mirror>),
    /// Which pages of other origins may read answers.
    Cors(Arc<Cors>),
    /// A filter that cannot be applied: its requests answer 500 (Gateway API, `HTTPRouteFilter`). The
    /// text says why.
    Broken(Arc<str>),
}

/// What is sent upstream instead of what was asked for.
#[derive(Clone, Debug)]
pub struct Rewrite {
    /// The path.
    pub path: Option<PathRewrite>,
    /// The host.
    pub hostname: Option<HostRewrite>,
}

impl From<PathRewrite> for Filter {
    fn from(path: PathRewrite) -> Self {
        Self::Rewrite(Arc::new(Rewrite {
            path: Some(path),
            hostname: None,
        }))
    }
}

/// Headers that frame a message or belong to one connection: to edit them would desynchronise the two
/// sides (RFC 9110, section 7.6.1; RFC 9112, section 6). `host` has a field of its own in `URLRewrite`.
pub const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Edits of headers; names are lower case and valid (RFC 9110, section 5.1), values are valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Replace.
    pub set: Vec<(String, String)>,
    /// Append.
    pub add: Vec<(String, String)>,
    /// Delete.
    pub remove: Vec<String>,
}

/// Where the host sent upstream comes from.
#[derive(Clone, Debug)]
pub enum HostRewrite {
    /// This one.
    Name(Hostname),
    /// The value of a request header, lower case; the host stays when the header is not there.
    Header(String),
    /// The name of the backend's endpoint; the host stays for one that is known by address.
    Backend,
    /// The request's path, with every match of a pattern replaced; the substitution is in the syntax of
    /// `regex::Captures::expand`.
    Path {
        /// The pattern.
        pattern: Pattern,
        /// The replacement.
        substitution: String,
    },
}

/// Another place for the client; what is absent stays as the request has it.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// Whether the place speaks TLS.
    pub tls: Option<bool>,
    /// Its host.
    pub hostname: Option<Hostname>,
    /// Its port. Without it: the well-known one of a given scheme, else the listener's.
    pub port: Option<Port>,
    /// Its path.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// Where copies of requests go.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Where to.
    pub target: Target,
    /// So many requests ..
    pub share: u32,
    /// .. of so many are copied.
    pub of: NonZeroU32,
}

/// A response that needs no upstream.
#[derive(Clone, Debug)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// `Content-Type`, a valid header value.
    pub content_type: Option<String>,
    /// Body.
    pub body: String,
    /// Edits of its headers.
    pub headers: HeaderEdits,
}
