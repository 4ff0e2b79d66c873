//! `sessionPersistence` of a rule.

use std::time::Duration;

use super::headers::header_name;
use crate::document::duration::duration;
use crate::model::{Carrier, SessionPersistence};
use crate::reader::{Field, Object, quoted};

/// Gateway API: bytes of a session's name.
const MAX_NAME: usize = 128;

/// Reads the field; `usual` is the session's name where none is given.
pub(super) fn session(field: &Field<'_>, usual: &str) -> Option<SessionPersistence> {
    let mut object = field.object()?;
    let name = match object.optional("sessionName") {
        Some(field) => field.parse(name),
        None => Some(usual.to_owned()),
    };
    let cookie = match object.optional("type") {
        Some(field) => field.choice(&[("Cookie", true), ("Header", false)]),
        None => Some(true),
    };
    let absolute = time(&mut object, "absoluteTimeout");
    let idle = time(&mut object, "idleTimeout");
    let config = object.optional("cookieConfig");
    let permanent = match &config {
        Some(field) => {
            let mut object = field.object()?;
            let permanent = match object.optional("lifetimeType") {
                Some(field) => field.choice(&[("Permanent", true), ("Session", false)]),
                None => Some(false),
            };
            object.finish();
            permanent
        }
        None => Some(false),
    };
    object.finish();
    let (cookie, absolute, permanent) = (cookie?, absolute?, permanent?);
    if let (false, Some(config)) = (cookie, &config) {
        config.mistake("a session in a header has no cookie");
        return None;
    }
    if permanent && absolute.is_none() {
        field.mistake("a cookie that outlives the browser needs `absoluteTimeout`");
        return None;
    }
    let name = name?;
    Some(SessionPersistence {
        name: if cookie {
            name
        } else {
            name.to_ascii_lowercase()
        },
        carrier: if cookie {
            Carrier::Cookie { permanent }
        } else {
            Carrier::Header
        },
        absolute,
        idle: idle?,
    })
}

/// A time limit; zero is none.
fn time(object: &mut Object<'_>, field: &'static str) -> Option<Option<Duration>> {
    match object.optional(field) {
        Some(field) => field
            .parse(duration)
            .map(|given| Some(given).filter(|given| !given.is_zero())),
        None => Some(None),
    }
}

fn name(text: &str) -> Result<String, String> {
    match header_name(text) {
        Ok(_) if text.len() <= MAX_NAME => Ok(text.to_owned()),
        _ => Err(format!(
            "expected a name of at most {MAX_NAME} letters, digits and marks of a token, got {}",
            quoted(text)
        )),
    }
}
