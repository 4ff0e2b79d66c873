//! Time limits and retries of a rule.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::document::duration::duration;
use crate::model::{Failures, Jitter, Limit, Retry, RetryBudget, RuleTimeouts};
use crate::reader::Field;

/// Most tries after the first that a document may ask for.
const MAX_ATTEMPTS: i64 = 100;
/// Statuses that are listed at most: all that there may be.
const MAX_CODES: usize = 200;

/// `timeouts`; zero switches a limit off.
pub(super) fn timeouts(field: &Field<'_>) -> Option<RuleTimeouts> {
    let mut object = field.object()?;
    let mut limit = |name| match object.optional(name) {
        None => Some(Limit::Unset),
        Some(field) => field.parse(duration).map(|given| {
            if given.is_zero() {
                Limit::Off
            } else {
                Limit::After(given)
            }
        }),
    };
    let (request, backend) = (limit("request"), limit("backendRequest"));
    object.finish();
    let timeouts = RuleTimeouts {
        request: request?,
        backend: backend?,
        ..RuleTimeouts::default()
    };
    if let (Limit::After(whole), Limit::After(one)) = (timeouts.request, timeouts.backend)
        && one > whole
    {
        field.mistake("`backendRequest` is longer than `request`, which one try is part of");
        return None;
    }
    Some(timeouts)
}

/// `retry`; connections that fail before an answer begins are tried again whatever it lists.
pub(super) fn retry(field: &Field<'_>) -> Option<Retry> {
    let mut object = field.object()?;
    let mut codes = BTreeSet::new();
    if let Some(field) = object.optional("codes") {
        for item in field.limited_list(MAX_CODES) {
            let Some(code) = item.integer(400..=599) else {
                continue;
            };
            if !u16::try_from(code).is_ok_and(|code| codes.insert(code)) {
                item.mistake(format_args!("status {code} is in the list already"));
            }
        }
    }
    let attempts = match object.optional("attempts") {
        Some(field) => field
            .integer(0..=MAX_ATTEMPTS)
            .and_then(|attempts| u32::try_from(attempts).ok()),
        None => Some(Retry::ATTEMPTS),
    };
    let backoff = match object.optional("backoff") {
        Some(field) => field.parse(duration),
        None => Some(Retry::BACKOFF),
    };
    object.finish();
    // Of nothing the double is nothing, and retries would come at once.
    let backoff = backoff?.max(Duration::from_millis(1));
    Some(Retry {
        attempts: attempts?,
        codes,
        grpc_codes: BTreeSet::new(),
        failures: Failures::ALL,
        backoff,
        max_backoff: backoff * Retry::GROWTH,
        jitter: Jitter::Above,
        budget: RetryBudget::default(),
    })
}
