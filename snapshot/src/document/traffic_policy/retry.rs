//! `spec.retry`.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{limit, some};
use crate::model::{Failures, Jitter, Limit, PolicyRetry, Retry, RetryBudget};
use crate::reader::Field;

/// Most tries after the first that a document may ask for.
const MAX_RETRIES: i64 = 100;
/// Statuses that are listed at most: all that there may be.
const MAX_CODES: usize = 500;

/// What makes a try be followed by another (Envoy Gateway, `TriggerEnum`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trigger {
    ServerError,
    GatewayError,
    Reset,
    ConnectFailure,
    Conflict,
    RefusedStream,
    Statuses,
    Grpc(u8),
}

const TRIGGERS: [(&str, Trigger); 12] = [
    ("5xx", Trigger::ServerError),
    ("gateway-error", Trigger::GatewayError),
    ("reset", Trigger::Reset),
    ("connect-failure", Trigger::ConnectFailure),
    ("retriable-4xx", Trigger::Conflict),
    ("refused-stream", Trigger::RefusedStream),
    ("retriable-status-codes", Trigger::Statuses),
    ("cancelled", Trigger::Grpc(1)),
    ("deadline-exceeded", Trigger::Grpc(4)),
    ("resource-exhausted", Trigger::Grpc(8)),
    ("internal", Trigger::Grpc(13)),
    ("unavailable", Trigger::Grpc(14)),
];

/// Without `retryOn` (Envoy Gateway, `Retry.retryOn`).
const USUAL: [Trigger; 5] = [
    Trigger::ConnectFailure,
    Trigger::RefusedStream,
    Trigger::Grpc(14),
    Trigger::Grpc(1),
    Trigger::Statuses,
];

/// Without `httpStatusCodes` (Envoy Gateway, `Retry.retryOn`).
const USUAL_STATUS: u16 = 503;

pub(super) fn read(field: &Field<'_>) -> Option<PolicyRetry> {
    let mut object = field.object()?;
    object.unsupported(&["numAttemptsPerPriority"]);
    let attempts = match object.optional("numRetries") {
        Some(field) => field
            .integer(0..=MAX_RETRIES)
            .and_then(|attempts| u32::try_from(attempts).ok()),
        None => Some(Retry::ATTEMPTS),
    };
    let causes = match object.optional("retryOn") {
        Some(field) => causes(&field),
        None => Some(of(&USUAL, &BTreeSet::from([USUAL_STATUS]))),
    };
    let pace = match object.optional("perRetry") {
        Some(field) => pace(&field),
        None => Some(Pace::default()),
    };
    object.finish();
    let (causes, pace) = (causes?, pace?);
    Some(PolicyRetry {
        retry: Retry {
            attempts: attempts?,
            codes: causes.codes,
            grpc_codes: causes.grpc,
            failures: causes.failures,
            backoff: pace.base,
            max_backoff: pace.most,
            jitter: Jitter::Full,
            budget: RetryBudget::default(),
        }
        .into(),
        timeout: pace.timeout,
    })
}

struct Causes {
    codes: BTreeSet<u16>,
    grpc: BTreeSet<u8>,
    failures: Failures,
}

fn causes(field: &Field<'_>) -> Option<Causes> {
    let mut object = field.object()?;
    let triggers: Option<Vec<Trigger>> = match object.optional("triggers") {
        Some(field) => field
            .limited_list(TRIGGERS.len())
            .iter()
            .map(|field| field.choice(&TRIGGERS))
            .collect(),
        None => Some(USUAL.into()),
    };
    let codes = object
        .optional("httpStatusCodes")
        .map(|field| (statuses(&field), field));
    object.finish();
    let triggers = triggers?;
    let codes = match codes {
        Some((codes, field)) => {
            if !triggers.contains(&Trigger::Statuses) {
                field.warning("has no effect without `retriable-status-codes` in `triggers`");
            }
            codes?
        }
        None => BTreeSet::from([USUAL_STATUS]),
    };
    Some(of(&triggers, &codes))
}

pub(super) fn statuses(field: &Field<'_>) -> Option<BTreeSet<u16>> {
    let mut codes = BTreeSet::new();
    for item in field.some_limited_list(MAX_CODES) {
        let code = u16::try_from(item.integer(100..=599)?).ok()?;
        if !codes.insert(code) {
            item.mistake(format_args!("status {code} is in the list already"));
        }
    }
    Some(codes)
}

/// What triggers stand for (Envoy, `x-envoy-retry-on` and `x-envoy-retry-grpc-on`).
fn of(triggers: &[Trigger], statuses: &BTreeSet<u16>) -> Causes {
    let mut causes = Causes {
        codes: BTreeSet::new(),
        grpc: BTreeSet::new(),
        failures: Failures::default(),
    };
    for trigger in triggers {
        match trigger {
            Trigger::ServerError => {
                causes.codes.extend(500..=599);
                causes.failures = Failures::ALL;
            }
            // A try without an answer would become one of these statuses.
            Trigger::GatewayError => {
                causes.codes.extend([502, 503, 504]);
                causes.failures = Failures::ALL;
            }
            Trigger::Reset => causes.failures = Failures::ALL,
            Trigger::ConnectFailure => causes.failures.connect = true,
            Trigger::RefusedStream => causes.failures.refused = true,
            Trigger::Conflict => causes.codes.extend([409]),
            Trigger::Statuses => causes.codes.extend(statuses),
            Trigger::Grpc(code) => causes.grpc.extend([*code]),
        }
    }
    causes
}

struct Pace {
    timeout: Limit,
    base: Duration,
    most: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            timeout: Limit::Unset,
            base: Retry::BACKOFF,
            most: Retry::BACKOFF * Retry::GROWTH,
        }
    }
}

fn pace(field: &Field<'_>) -> Option<Pace> {
    let mut object = field.object()?;
    let timeout = match object.optional("timeout") {
        Some(field) => limit(&field),
        None => Some(Limit::Unset),
    };
    let back_off = object.optional("backOff");
    object.finish();
    let usual = Pace::default();
    let (base, most) = match back_off {
        Some(field) => {
            let mut object = field.object()?;
            let base = match object.optional("baseInterval") {
                Some(field) => some(&field),
                None => Some(usual.base),
            };
            let most = object
                .optional("maxInterval")
                .map(|field| (some(&field), field));
            object.finish();
            let base = base?;
            let most = match most {
                Some((most, field)) => {
                    let most = most?;
                    if most < base {
                        field.mistake("is shorter than `baseInterval`");
                        return None;
                    }
                    most
                }
                None => base * Retry::GROWTH,
            };
            (base, most)
        }
        None => (usual.base, usual.most),
    };
    Some(Pace {
        timeout: timeout?,
        base,
        most,
    })
}
