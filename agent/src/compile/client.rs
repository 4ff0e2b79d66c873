//! Policies of listeners towards their clients, made ready for handshakes and requests.

use std::sync::Arc;

use http::HeaderName;
use rustls::server::NoClientAuth;
use snapshot::model::{ClientIp, ClientPolicy, ClientTls, MessageEdits};

use super::filter::{edits, pairs};
use crate::route::client::{ClientSettings, Handshakes, ListenerEdits};

/// Makes a policy ready, or says why it cannot be.
pub(super) fn settings(policy: &Arc<ClientPolicy>) -> Result<ClientSettings, String> {
    let header = match &policy.client_ip {
        Some(ClientIp::Header { name, .. }) => {
            let name = HeaderName::from_bytes(name.as_bytes());
            Some(name.map_err(|error| error.to_string())?)
        }
        _ => None,
    };
    let tls = match policy.tls == ClientTls::default() {
        true => None,
        false => {
            let settings = Handshakes::new(&policy.tls).settings(Arc::new(NoClientAuth));
            Some(settings.map_err(|error| format!("`tls` leaves nothing to speak: {error}"))?)
        }
    };
    Ok(ClientSettings {
        policy: Arc::clone(policy),
        tls,
        header,
        early: messages(&policy.early)?,
        late: messages(&policy.late)?,
    })
}

fn messages(said: &MessageEdits) -> Result<ListenerEdits, String> {
    let absent = pairs(&said.add_if_absent)?;
    Ok(ListenerEdits::new(said, edits(&said.edits)?, absent))
}
