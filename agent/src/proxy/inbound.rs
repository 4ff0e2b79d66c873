//! A request as the stages see it.

use std::net::IpAddr;
use std::sync::Arc;

use http::request::Parts;

use super::connection::Conn;
use super::normalise::Normal;
use super::seen::Seen;
use super::tokens::Known;
use super::tunnel::OnUpgrade;
use super::websocket::Asked;
use crate::route::Identity;
use crate::route::key::KeySubject;
use crate::route::matching::Subject;
use crate::upstream::RequestBody;

/// A request taken apart.
pub(super) struct Inbound {
    pub(super) parts: Box<Parts>,
    pub(super) body: RequestBody,
    pub(super) normal: Normal,
    /// What its head has, as it was read.
    pub(super) seen: Seen,
    pub(super) upgrade: Option<(OnUpgrade, Asked)>,
    /// Address of whom it is from.
    pub(super) client: IpAddr,
    /// The good tokens that its rule's policy asked for.
    pub(super) tokens: Vec<Known>,
    /// What upstreams are shown if they ask.
    pub(super) identity: Option<Arc<Identity>>,
}

impl Inbound {
    /// The one path.
    pub(super) fn path(&self) -> &str {
        self.normal.path.as_str()
    }

    /// Host in lower case, without port.
    pub(super) fn host(&self) -> &str {
        &self.normal.host
    }

    pub(super) fn subject(&self) -> Subject<'_> {
        Subject {
            path: &self.normal.path,
            method: &self.parts.method,
            headers: &self.parts.headers,
            query: self.parts.uri.query(),
        }
    }

    /// What a routing key can be read from. `listener`: by which it came.
    pub(super) fn key_subject<'a>(
        &'a self,
        conn: &'a Conn,
        listener: Option<&'a str>,
    ) -> KeySubject<'a> {
        KeySubject {
            headers: &self.parts.headers,
            path: &self.normal.path,
            query: self.parts.uri.query(),
            host: &self.normal.host,
            sni: conn.sni.as_deref(),
            certificate: conn.certificate.as_ref(),
            tokens: self.tokens.iter().map(|known| &*known.0).collect(),
            listener,
            client: self.client,
        }
    }
}
