//! From the filters of a rule, or of a target, to what the router applies.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use snapshot::exact;
use snapshot::model::{DirectResponse, Filter, HeaderEdits, HostRewrite, Redirect};

use crate::route::Edits;
use crate::route::cors::Cors;
use crate::route::filter::{self, Answer, Filters, Host};

/// Compiles a list of filters, or says what cannot be part of a message.
pub(super) fn filters(list: &[Filter]) -> Result<Filters, String> {
    let mut filters = Filters::default();
    for one in list {
        match one {
            Filter::RequestHeaders(given) => filters.request.push(edits(given)?),
            Filter::ResponseHeaders(given) => filters.response.push(edits(given)?),
            Filter::Rewrite(change) => {
                if let Some(path) = &change.path {
                    filters.path = Some(path.clone().into());
                }
                if let Some(hostname) = &change.hostname {
                    filters.host = Some(host(hostname)?.into());
                }
            }
            Filter::Redirect(given) => {
                filters.answer = Some(Answer::Redirect(redirect(given)?).into());
            }
            Filter::Respond(given) => {
                filters.answer = Some(Answer::Response(response(given)?).into());
            }
            Filter::Cors(given) => filters.cors = Some(Arc::new(Cors::new(given)?)),
            // Targets are numbered by who compiles them.
            Filter::Mirror(_) => {}
            Filter::Broken(why) => filters.broken = Some(Arc::clone(why)),
        }
    }
    Ok(filters)
}

fn host(rewrite: &HostRewrite) -> Result<Host, String> {
    Ok(match rewrite {
        HostRewrite::Name(name) => Host::Name(value(name.as_str())?),
        HostRewrite::Header(given) => Host::Header(name(given)?),
        HostRewrite::Backend => Host::Backend,
        HostRewrite::Path {
            pattern,
            substitution,
        } => Host::Path(pattern.clone(), substitution.clone()),
    })
}

fn redirect(given: &Redirect) -> Result<filter::Redirect, String> {
    Ok(filter::Redirect {
        status: status(given.status)?,
        tls: given.tls,
        host: given.hostname.as_ref().map(|name| name.as_str().into()),
        port: given.port.map(|port| port.get()),
        path: given.path.clone(),
    })
}

fn response(given: &DirectResponse) -> Result<filter::Response, String> {
    Ok(filter::Response {
        status: status(given.status)?,
        content_type: given.content_type.as_deref().map(value).transpose()?,
        body: Bytes::copy_from_slice(given.body.as_bytes()),
        headers: edits(&given.headers)?,
    })
}

fn status(code: u16) -> Result<StatusCode, String> {
    StatusCode::from_u16(code).map_err(|_| format!("`{code}` is not a status"))
}

/// Edits of headers, ready to be applied.
pub(super) fn edits(edits: &HeaderEdits) -> Result<Edits, String> {
    let names: Result<_, String> = edits.remove.iter().map(|one| name(one)).collect();
    Ok(Edits {
        set: pairs(&edits.set)?,
        add: pairs(&edits.add)?,
        remove: exact(names?),
    })
}

/// Headers with their values.
pub(super) fn pairs(list: &[(String, String)]) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let pairs = list.iter().map(|(a, b)| Ok((name(a)?, value(b)?)));
    pairs.collect::<Result<_, String>>().map(exact)
}

fn name(text: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("`{text}` is not a header name"))
}

fn value(text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(text).map_err(|_| format!("`{text}` is not a header value"))
}
