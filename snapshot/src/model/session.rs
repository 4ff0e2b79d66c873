//! Sessions: clients that keep the endpoint which served them first (Gateway API, GEP-1619).

use std::time::Duration;

/// How a rule keeps a client at one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPersistence {
    /// Name of the cookie, or of the header in lower case; a token of RFC 9110, section 5.6.2.
    pub name: String,
    /// Where clients bring it.
    pub carrier: Carrier,
    /// How long a session lasts at most.
    pub absolute: Option<Duration>,
    /// How long it lasts without a request.
    pub idle: Option<Duration>,
}

/// Where clients bring their session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// In a cookie; a permanent one outlives the browser, as long as the session lasts.
    Cookie {
        /// Whether it is.
        permanent: bool,
    },
    /// In a header, which clients take over from the answer.
    Header,
}
