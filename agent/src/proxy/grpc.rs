//! What is different where a request is a call of gRPC: it brings its own time, and its errors are a
//! status of gRPC in an answer that is otherwise good.

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use snapshot::model::{Limit, RuleTimeouts};

use super::body::ResponseBody;
use super::log::Reason;
use super::respond::Refusal;

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Digits of a timeout at most (gRPC over HTTP/2, `TimeoutValue`).
const MAX_DIGITS: usize = 8;

/// Whether a request is a call, by its content type.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    // gRPC-Web and others that only begin like it are spoken over any HTTP.
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The time limits of a call: those of its rule, none of them later than the call's own deadline. The head
/// of a stream may come with its first message, so that a call without any limit is waited for as long as
/// its client waits.
pub(super) fn timeouts(rule: RuleTimeouts, headers: &HeaderMap) -> Result<RuleTimeouts, Refusal> {
    let mut given = headers.get_all(TIMEOUT).iter();
    let own = match (given.next(), given.next()) {
        (None, _) => None,
        (Some(value), None) => Some(timeout(value.as_bytes()).ok_or_else(malformed)?),
        (Some(_), Some(_)) => return Err(malformed()),
    };
    let request = match (rule.request, own) {
        (Limit::After(rule), Some(own)) => Limit::After(rule.min(own)),
        (_, Some(own)) => Limit::After(own),
        (Limit::Unset, None) => Limit::Off,
        (limit, None) => limit,
    };
    Ok(RuleTimeouts { request, ..rule })
}

fn malformed() -> Refusal {
    Refusal::new(
        Reason::BadRequest,
        "expected one `grpc-timeout` of 1 to 8 digits and a unit of H, M, S, m, u and n",
    )
}

fn timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    let valid = (1..=MAX_DIGITS).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    let value: u64 = std::str::from_utf8(digits)
        .ok()
        .filter(|_| valid)?
        .parse()
        .ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(value * 3600),
        b'M' => Duration::from_secs(value * 60),
        b'S' => Duration::from_secs(value),
        b'm' => Duration::from_millis(value),
        b'u' => Duration::from_micros(value),
        b'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

/// The answer for a refusal: its status is in headers of a response without body (gRPC over HTTP/2,
/// `Trailers-Only`).
pub(super) fn refusal(refusal: &Refusal, request_id: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("application/grpc");
    headers.insert(header::CONTENT_TYPE, kind);
    let message = match &refusal.message {
        Some(message) => format!("{}: {message} ({request_id})", refusal.reason.as_str()),
        None => format!("{} ({request_id})", refusal.reason.as_str()),
    };
    say(headers, code(refusal.reason.status()), &message);
    response
}

/// The end of an answer whose time is over.
pub(super) fn deadline_exceeded() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    let reason = Reason::UpstreamTimeout;
    say(&mut trailers, code(reason.status()), reason.as_str());
    trailers
}

fn say(headers: &mut HeaderMap, code: &'static str, message: &str) {
    headers.insert(STATUS, HeaderValue::from_static(code));
    // Printable ASCII is header text.
    if let Ok(message) = HeaderValue::from_str(&encoded(message)) {
        headers.insert(MESSAGE, message);
    }
}

/// The code of a status ("HTTP to gRPC Status Code Mapping"). What Gateway API answers with 500 because a
/// route leads nowhere is `UNAVAILABLE`, as the conformance suite has it; a body that is too long is
/// `RESOURCE_EXHAUSTED`, as gRPC says of messages; what took too long is `DEADLINE_EXCEEDED`.
fn code(status: StatusCode) -> &'static str {
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => "4",
        StatusCode::FORBIDDEN => "7",
        StatusCode::PAYLOAD_TOO_LARGE => "8",
        StatusCode::NOT_FOUND => "12",
        StatusCode::BAD_REQUEST | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "13",
        StatusCode::UNAUTHORIZED => "16",
        _ => "14",
    }
}

/// A message as header text (gRPC over HTTP/2, `Status-Message`): printable ASCII, all else and `%` as
/// `%` and two digits.
fn encoded(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b'%' => text.push_str("%25"),
            b' '..=b'~' => text.push(char::from(byte)),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
    use snapshot::model::{Limit, RuleTimeouts};

    use super::{encoded, is_grpc, timeouts};

    #[test]
    fn grpc_is_told_by_its_whole_type() {
        for (given, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x=y", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(given));
            assert_eq!(is_grpc(&headers), expected, "{given}");
        }
    }

    fn limits(rule: Limit, given: &[&'static str]) -> Option<Limit> {
        let mut headers = HeaderMap::new();
        for value in given {
            headers.append(super::TIMEOUT, HeaderValue::from_static(value));
        }
        let rule = RuleTimeouts {
            request: rule,
            ..RuleTimeouts::default()
        };
        timeouts(rule, &headers).ok().map(|limits| limits.request)
    }

    #[test]
    fn the_shorter_of_two_deadlines_holds() {
        let after = |millis| Limit::After(Duration::from_millis(millis));
        for (rule, given, expected) in [
            (Limit::Unset, &[][..], Some(Limit::Off)),
            (Limit::Off, &[], Some(Limit::Off)),
            (after(5), &[], Some(after(5))),
            (Limit::Unset, &["2S"], Some(after(2000))),
            (Limit::Off, &["2S"], Some(after(2000))),
            (after(5), &["2S"], Some(after(5))),
            (after(5000), &["2S"], Some(after(2000))),
            (Limit::Off, &["0n"], Some(after(0))),
            (
                Limit::Off,
                &["99999999H"],
                Some(after(99_999_999 * 3_600_000)),
            ),
            (Limit::Off, &["1M"], Some(after(60_000))),
            (Limit::Off, &["7m"], Some(after(7))),
            (Limit::Off, &["7000u"], Some(after(7))),
            (Limit::Off, &["7000000n"], Some(after(7))),
            (Limit::Off, &["100000000n"], None),
            (Limit::Off, &["S"], None),
            (Limit::Off, &[""], None),
            (Limit::Off, &["1"], None),
            (Limit::Off, &["1s"], None),
            (Limit::Off, &["-1S"], None),
            (Limit::Off, &["+1S"], None),
            (Limit::Off, &["1 S"], None),
            (Limit::Off, &["1S", "1S"], None),
        ] {
            assert_eq!(limits(rule, given), expected, "{rule:?} {given:?}");
        }
    }

    #[test]
    fn messages_are_header_text() {
        for (given, expected) in [
            ("no_route (1-2)", "no_route (1-2)"),
            ("100 %", "100 %25"),
            ("a\nb\u{7f}", "a%0Ab%7F"),
            ("für", "f%C3%BCr"),
        ] {
            assert_eq!(encoded(given), expected);
            assert!(HeaderValue::from_str(&encoded(given)).is_ok());
        }
    }
}
