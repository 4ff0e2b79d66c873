//! What a component's service addresses promise, in the words of a Kubernetes `Service`.

use std::time::Duration;

use crate::model::TrafficDistribution;
use crate::reader::{Field, Object};

/// What Kubernetes takes when no time is given.
pub(in crate::document) const DEFAULT: Duration = Duration::from_secs(10_800);
/// The longest that it takes, in seconds.
const LONGEST: i64 = 86_400;

/// How connections to the service addresses are led.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    pub(super) session_affinity: Option<Duration>,
    pub(super) distribution: TrafficDistribution,
}

/// Reads the fields of a component; `used` tells whether it has service addresses.
pub(super) fn traffic(component: &mut Object<'_>, used: bool) -> Traffic {
    let affinity = component.optional("sessionAffinity");
    let config = component.optional("sessionAffinityConfig");
    let distribution = component.optional("trafficDistribution");
    if !used {
        for field in [&affinity, &config, &distribution].into_iter().flatten() {
            field.warning("has no effect: the component has no `serviceAddresses`");
        }
    }
    let client = affinity
        .as_ref()
        .and_then(|field| field.choice(&[("None", false), ("ClientIP", true)]));
    let time = config.as_ref().and_then(timeout);
    let kept = match (client, config) {
        (Some(true), _) => Some(time.unwrap_or(DEFAULT)),
        // Whether the choice was meant to be `ClientIP` cannot be known.
        (None, Some(_)) if affinity.is_some() => None,
        (_, Some(config)) => {
            config.mistake("needs `sessionAffinity: ClientIP`");
            None
        }
        _ => None,
    };
    let choices = [
        ("PreferSameNode", TrafficDistribution::PreferSameNode),
        ("PreferSameZone", TrafficDistribution::PreferSameZone),
    ];
    Traffic {
        session_affinity: kept,
        distribution: distribution
            .and_then(|field| field.choice(&choices))
            .unwrap_or_default(),
    }
}

/// `{clientIP: {timeoutSeconds}}`.
pub(in crate::document) fn timeout(field: &Field<'_>) -> Option<Duration> {
    let mut config = field.object()?;
    let client = config.optional("clientIP");
    config.finish();
    let mut client = client?.object()?;
    let seconds = client
        .optional("timeoutSeconds")
        .and_then(|field| field.integer(1..=LONGEST));
    client.finish();
    seconds
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(Duration::from_secs)
}
