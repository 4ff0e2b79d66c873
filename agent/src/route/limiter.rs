//! How many requests of a route pass: the rules of a rate limit, and their buckets.
//!
//! Flows in: a request and the time. Flows out: whether it passes, and what its client is told of the strictest
//! rule that is for it. Buckets are those of the node: all cores take from the same.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use snapshot::model::{
    Cidr, Inverted, RateLimit, RatePath, RateRule, RateSelector, RateText, TextMatch,
};
use snapshot::path::CanonicalPath;

use super::query;
use crate::resilience::{Bucket, Rate, Taken};

/// Parts of the buckets of a rule that has one for each value, each with a lock of its own.
const PARTS: usize = 16;

/// Buckets of one part at most. When all of them are in use, new values share one.
const PER_PART: usize = 1024;

/// A rate limit of a route, compiled.
#[derive(Debug)]
pub struct Limiter {
    /// Rules with selectors, the strictest first.
    rules: Vec<Arc<Rule>>,
    /// For requests that none of them is for.
    other: Option<Arc<Rule>>,
}

/// Rules of a policy that all of its routes share.
#[derive(Debug, Default)]
pub struct SharedRules(Vec<Arc<Rule>>);

#[derive(Debug)]
struct Rule {
    selectors: Vec<Selector>,
    rate: Rate,
    cost: u32,
    /// What the document says: a rule that says the same keeps its buckets.
    said: String,
    buckets: OnceLock<Arc<Buckets>>,
}

#[derive(Debug)]
struct Selector {
    headers: Vec<(HeaderName, RateText)>,
    of: RateSelector,
}

/// Buckets of a rule.
#[derive(Debug, Default)]
struct Buckets {
    one: Bucket,
    by_value: [Mutex<Part>; PARTS],
    /// Values are remembered as hashes that nobody outside can guess.
    keys: [RandomState; 2],
}

#[derive(Debug, Default)]
struct Part {
    buckets: HashMap<u128, Bucket>,
    /// For values that find no room.
    late: Bucket,
}

/// A request as a rate limit sees it.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// Its method.
    pub method: &'a Method,
    /// The one path.
    pub path: &'a CanonicalPath,
    /// Its query as sent, without `?`.
    pub query: Option<&'a str>,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Address of the client.
    pub client: IpAddr,
}

/// What is said of the rule that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Tokens of the full bucket.
    pub limit: u32,
    /// What was taken.
    pub taken: Taken,
}

impl Verdict {
    /// Headers that tell the client (draft-polli-ratelimit-headers-03), with `x-` as Envoy writes them.
    pub fn headers(&self) -> [(HeaderName, HeaderValue); 3] {
        let seconds = self.taken.full_in.as_nanos().div_ceil(1_000_000_000);
        let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
        [
            ("x-ratelimit-limit", u64::from(self.limit)),
            ("x-ratelimit-remaining", self.taken.remaining.into()),
            ("x-ratelimit-reset", seconds),
        ]
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from(value)))
    }
}

impl Limiter {
    /// Compiles a policy's rate limit for one of its routes.
    pub fn new(limit: &RateLimit, shared: &mut SharedRules) -> Self {
        let rules = limit.rules.iter().map(|rule| match rule.shared {
            true => shared.rule(rule),
            false => Arc::new(Rule::new(rule)),
        });
        let (other, mut rules): (Vec<Arc<Rule>>, Vec<Arc<Rule>>) =
            rules.partition(|rule| rule.selectors.is_empty());
        rules.sort_by_key(|rule| {
            // Nanoseconds of a request: the more of them, the stricter.
            let nanos = rule.rate.period.as_nanos() / u128::from(rule.rate.requests.get());
            std::cmp::Reverse(nanos)
        });
        Self {
            rules,
            other: other.into_iter().next(),
        }
    }

    /// Takes over the buckets of the same route before, of rules that say the same.
    pub(super) fn adopt(&self, before: &Self) {
        for rule in self.all() {
            if let Some(same) = before.all().find(|old| old.said == rule.said) {
                // Nobody has asked this rule for its buckets yet: it is not published. One that is shared
                // may have got the same ones with another route.
                let _ = rule
                    .buckets
                    .set(Arc::clone(same.buckets.get_or_init(Arc::default)));
            }
        }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.rules.iter().chain(&self.other)
    }

    /// Asks every rule that is for a request, the strictest first, until one refuses it. None: no rule is.
    pub fn ask(&self, asking: Asking<'_>, now: Duration) -> Option<Verdict> {
        let mut strictest = None;
        for rule in &self.rules {
            let Some(values) = rule.values(asking) else {
                continue;
            };
            let verdict = rule.take(&values, now);
            if !verdict.taken.allowed {
                return Some(verdict);
            }
            strictest.get_or_insert(verdict);
        }
        strictest.or_else(|| Some(self.other.as_ref()?.take(&[], now)))
    }
}

impl SharedRules {
    fn rule(&mut self, rule: &RateRule) -> Arc<Rule> {
        let rule = Rule::new(rule);
        if let Some(same) = self.0.iter().find(|one| one.said == rule.said) {
            return Arc::clone(same);
        }
        let rule = Arc::new(rule);
        self.0.push(Arc::clone(&rule));
        rule
    }
}

impl Rule {
    fn new(rule: &RateRule) -> Self {
        Self {
            selectors: rule.selectors.iter().map(Selector::new).collect(),
            rate: Rate {
                requests: rule.requests,
                period: rule.period,
            },
            cost: rule.cost,
            said: format!("{rule:?}"),
            buckets: OnceLock::new(),
        }
    }

    /// The values of a request that are counted for themselves, if the rule is for it.
    fn values(&self, asking: Asking<'_>) -> Option<Vec<u8>> {
        let mut values = Vec::new();
        let fits = self
            .selectors
            .iter()
            .all(|one| one.fits(asking, &mut values));
        fits.then_some(values)
    }

    fn take(&self, values: &[u8], now: Duration) -> Verdict {
        let buckets = self.buckets.get_or_init(Arc::default);
        let taken = if values.is_empty() {
            buckets.one.take(self.cost, self.rate, now)
        } else {
            buckets.take(values, self.cost, self.rate, now)
        };
        Verdict {
            limit: self.rate.requests.get(),
            taken,
        }
    }
}

impl Buckets {
    fn take(&self, values: &[u8], cost: u32, rate: Rate, now: Duration) -> Taken {
        let [high, low] = [0, 1].map(|at| self.keys[at].hash_one(values));
        let key = u128::from(high) << 64 | u128::from(low);
        let part = &self.by_value[high as usize % PARTS];
        // Buckets are valid whenever a panic elsewhere leaves them.
        let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
        let part = &mut *part;
        if !part.buckets.contains_key(&key) {
            if part.buckets.len() >= PER_PART {
                // One that is full again is as good as none.
                part.buckets.retain(|_, bucket| !bucket.is_full(now));
            }
            if part.buckets.len() >= PER_PART {
                return part.late.take(cost, rate, now);
            }
        }
        part.buckets.entry(key).or_default().take(cost, rate, now)
    }
}

impl Selector {
    fn new(of: &RateSelector) -> Self {
        let headers = of.headers.iter().filter_map(|(name, text)| {
            // Names of the snapshot are header names.
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, text.clone()))
        });
        Self {
            headers: headers.collect(),
            of: of.clone(),
        }
    }

    fn fits(&self, asking: Asking<'_>, values: &mut Vec<u8>) -> bool {
        let of = &self.of;
        let method = asking.method.as_str();
        let methods = &of.methods;
        let client = Cidr::host(asking.client.to_canonical());
        (methods.is_empty()
            || methods
                .iter()
                .any(|one| holds(one, |wanted| wanted == method)))
            && of
                .path
                .as_ref()
                .is_none_or(|path| holds(path, |wanted| leads(wanted, asking.path)))
            && of.source.as_ref().is_none_or(|source| {
                let inside = source.network.contains(&client);
                if inside && source.distinct {
                    count(values, client.address().to_string().as_bytes());
                }
                inside
            })
            && self.headers.iter().all(|(name, wanted)| {
                let lines: Vec<&[u8]> = asking
                    .headers
                    .get_all(name)
                    .iter()
                    .map(HeaderValue::as_bytes)
                    .collect();
                // Several lines are one value (RFC 9110, section 5.3).
                let value = (!lines.is_empty()).then(|| lines.join(&b','));
                looks_like(wanted, value.as_deref(), values)
            })
            && of.query.iter().all(|(name, wanted)| {
                let value = query::first(asking.query, name);
                looks_like(wanted, value.as_deref(), values)
            })
    }
}

fn holds<T>(condition: &Inverted<T>, test: impl FnOnce(&T) -> bool) -> bool {
    test(&condition.wanted) != condition.invert
}

fn looks_like(wanted: &RateText, value: Option<&[u8]>, values: &mut Vec<u8>) -> bool {
    match wanted {
        RateText::Like(like) => holds(like, |text: &TextMatch| {
            value.is_some_and(|value| text.matches(value))
        }),
        RateText::Distinct => {
            if let Some(value) = value {
                count(values, value);
            }
            value.is_some()
        }
    }
}

/// Adds a value with its length, so that no two lists of values are one text.
fn count(values: &mut Vec<u8>, value: &[u8]) {
    values.extend_from_slice(&value.len().to_le_bytes());
    values.extend_from_slice(value);
}

fn leads(wanted: &RatePath, path: &CanonicalPath) -> bool {
    match wanted {
        RatePath::Exact(exact) => exact.as_str() == path.as_str(),
        RatePath::Regex(pattern) => pattern.regex().is_match(path.as_str()),
        RatePath::Prefix(prefix) => prefix.covers(path),
    }
}

#[cfg(test)]
mod tests;
