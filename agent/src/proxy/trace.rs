//! The trace that a request belongs to (W3C Trace Context, level 1): continued, or begun here.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::worker::Worker;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Bit of `trace-flags`: whoever called records the trace (section 3.2.2.5.1).
const SAMPLED: u8 = 1;

/// A request's place in its trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace; zero: none.
    pub trace: u128,
    /// The caller's span; zero: the trace begins here.
    pub parent: u64,
    /// The span of this request.
    pub span: u64,
    /// The span of the request to the upstream; zero until there is one.
    pub upstream: u64,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

impl TraceContext {
    /// The context of a request: that of its headers, or a new one, of which `ratio` are recorded.
    pub(super) fn of(headers: &HeaderMap, worker: &Worker, ratio: f64) -> Self {
        let span = worker.random();
        let mut context = received(headers).unwrap_or_else(|| {
            let low = worker.random();
            Self {
                trace: u128::from(worker.random()) << 64 | u128::from(low),
                // The upper 53 bits are a number that a float holds exactly.
                sampled: ((low >> 11) as f64) < ratio * (1_u64 << 53) as f64,
                ..Self::default()
            }
        });
        context.span = span;
        context
    }

    /// Tells the upstream. What a client sent and could not be read goes no further, and neither does the
    /// state that belongs to it (section 3.2.2.4).
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        if self.parent == 0 {
            headers.remove(TRACESTATE);
        }
        if let Ok(value) = HeaderValue::from_str(&self.traceparent()) {
            headers.insert(TRACEPARENT, value);
        }
    }

    fn traceparent(&self) -> String {
        let flags = if self.sampled { SAMPLED } else { 0 };
        format!("00-{:032x}-{:016x}-{flags:02x}", self.trace, self.upstream)
    }
}

/// `traceparent`, if it is one (section 3.2.2). Versions to come may have more behind what is known.
fn received(headers: &HeaderMap) -> Option<TraceContext> {
    let mut lines = headers.get_all(TRACEPARENT).iter();
    let text = lines.next()?.to_str().ok()?;
    if lines.next().is_some() || !text.is_ascii() || text.len() < 55 {
        return None;
    }
    let (known, more) = text.split_at(55);
    let mut parts = known.split('-');
    let mut part = |length: usize| {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        parts
            .next()
            .filter(|part| part.len() == length && part.bytes().all(hex))
    };
    let version = part(2)?;
    let (trace, parent, flags) = (part(32)?, part(16)?, part(2)?);
    let whole = more.is_empty() || (version != "00" && more.starts_with('-'));
    let trace = u128::from_str_radix(trace, 16).ok()?;
    let parent = u64::from_str_radix(parent, 16).ok()?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    (version != "ff" && whole && trace != 0 && parent != 0).then_some(TraceContext {
        trace,
        parent,
        span: 0,
        upstream: 0,
        sampled: flags & SAMPLED != 0,
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::{TraceContext, received};

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn read(text: &str) -> Option<TraceContext> {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", HeaderValue::from_str(text).expect("a value"));
        received(&headers)
    }

    #[test]
    fn a_context_is_read_as_the_recommendation_says() {
        let context = read(GOOD).expect("a context");
        assert_eq!(context.trace, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(
            (context.parent, context.sampled),
            (0x00f0_67aa_0ba9_02b7, true)
        );
        assert!(
            !read(&GOOD.replace("-01", "-00"))
                .expect("a context")
                .sampled
        );
        assert!(
            read(&GOOD.replace("-01", "-03"))
                .expect("a context")
                .sampled
        );
        let later = format!("{}-what-comes", GOOD.replacen("00-", "01-", 1));
        assert!(read(&later).is_some());
        for wrong in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-more"),
            &format!("{GOOD}0"),
            &GOOD.replacen("00-", "ff-", 1),
            &GOOD.replacen("00-", "0g-", 1),
            &GOOD.to_ascii_uppercase(),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1x",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        let mut twice = HeaderMap::new();
        twice.append("traceparent", HeaderValue::from_static(GOOD));
        twice.append("traceparent", HeaderValue::from_static(GOOD));
        assert_eq!(received(&twice), None);
    }

    #[test]
    fn an_upstream_is_told_of_its_own_span() {
        let mut context = read(GOOD).expect("a context");
        context.upstream = 0x1f;
        let mut headers = HeaderMap::new();
        headers.insert("tracestate", HeaderValue::from_static("a=1"));
        context.tell(&mut headers);
        assert_eq!(
            headers["traceparent"],
            "00-4bf92f3577b34da6a3ce929d0e0e4736-000000000000001f-01"
        );
        assert_eq!(headers["tracestate"], "a=1");
        context.parent = 0;
        context.tell(&mut headers);
        assert!(!headers.contains_key("tracestate"));
    }
}
