//! Which agent writes status: the one that holds a `Lease` (coordination.k8s.io/v1).
//!
//! As `client-go` does it: the holder renews every [`RETRY`], and stops by itself when it could not for [`DEADLINE`]. Others take a
//! lease that has not changed for [`DURATION`] by their own clocks; nobody compares times of two machines. A node's agent holds
//! it under the node's name, so that one that is started again goes on at once.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::explain;

/// Name of the lease.
const NAME: &str = "cardinal-agent";
/// How long a lease holds after it was renewed.
const DURATION: Duration = Duration::from_secs(15);
/// When a holder that could not renew stops. It is looked at after each attempt: even the slowest one ends before others may begin.
const DEADLINE: Duration = Duration::from_secs(8);
/// How often it is renewed or looked at.
const RETRY: Duration = Duration::from_secs(2);
/// Until the API server must answer.
const ANSWER: Duration = Duration::from_secs(4);

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is free, or held by us: write it.
    Write,
    /// Somebody else holds it.
    Wait,
}

/// What is known of the lease.
#[derive(Debug)]
struct Election {
    me: String,
    /// Holder and time of renewal as they were last seen, and when they were first seen so.
    seen: Option<(Option<String>, Option<MicroTime>, Instant)>,
    /// When we wrote it last.
    renewed: Option<Instant>,
}

impl Election {
    fn new(me: &str) -> Self {
        Self {
            me: me.to_owned(),
            seen: None,
            renewed: None,
        }
    }

    /// Looks at the lease as it is.
    fn judge(&mut self, spec: Option<&LeaseSpec>, now: Instant) -> Step {
        let Some(spec) = spec else {
            return Step::Write;
        };
        let holder = spec.holder_identity.clone().filter(|name| !name.is_empty());
        let same = self
            .seen
            .as_ref()
            .is_some_and(|(who, when, _)| *who == holder && *when == spec.renew_time);
        if !same {
            self.seen = Some((holder.clone(), spec.renew_time.clone(), now));
        }
        let since = self.seen.as_ref().map_or(now, |(_, _, since)| *since);
        let expired = now.saturating_duration_since(since) >= DURATION;
        match holder {
            Some(holder) if holder != self.me && !expired => Step::Wait,
            _ => Step::Write,
        }
    }

    fn renewed(&mut self, now: Instant) {
        self.renewed = Some(now);
    }

    fn lost(&mut self) {
        self.renewed = None;
    }

    fn leads(&self, now: Instant) -> bool {
        self.renewed
            .is_some_and(|renewed| now.saturating_duration_since(renewed) < DEADLINE)
    }

    /// The lease with our name in it.
    fn written(&self, before: Option<Lease>, now: MicroTime) -> Lease {
        let mut lease = before.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_ref() != Some(&self.me) {
            spec.holder_identity = Some(self.me.clone());
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
        spec.renew_time = Some(now);
        lease
    }
}

/// Competes for the lease, and tells whether it is held, as long as it is polled.
pub(crate) async fn compete(client: Client, me: String, leads: watch::Sender<bool>) {
    let api: Api<Lease> = Api::default_namespaced(client);
    let mut election = Election::new(&me);
    let mut complained = false;
    loop {
        match timeout(ANSWER, attempt(&api, &mut election)).await {
            Ok(Ok(())) => complained = false,
            Ok(Err(error)) if !complained => {
                complained = true;
                tracing::warn!(
                    error = explain(&error),
                    "the lease for writing status cannot be had or kept"
                );
            }
            Ok(Err(_)) | Err(_) => {}
        }
        let now = election.leads(Instant::now());
        leads.send_if_modified(|before| {
            let differs = *before != now;
            if differs {
                tracing::info!(holder = me, leads = now, "writing status");
            }
            *before = now;
            differs
        });
        tokio::time::sleep(RETRY).await;
    }
}

async fn attempt(api: &Api<Lease>, election: &mut Election) -> Result<(), kube::Error> {
    let lease = api.get_opt(NAME).await?;
    let spec = lease.as_ref().and_then(|lease| lease.spec.as_ref());
    // Time runs from before the answer, so that we stop no later than others may begin.
    let now = Instant::now();
    if election.judge(spec, now) == Step::Wait {
        election.lost();
        return Ok(());
    }
    let fresh = lease.is_none();
    let written = election.written(lease, MicroTime(Timestamp::now()));
    let outcome = match fresh {
        true => api.create(&PostParams::default(), &written).await,
        // The version in it makes the API server refuse what somebody else was faster with.
        false => api.replace(NAME, &PostParams::default(), &written).await,
    };
    match outcome {
        Ok(_) => election.renewed(now),
        Err(kube::Error::Api(status)) if status.code == 409 => election.lost(),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Gives the lease back, so that another agent need not wait for its end.
pub(crate) async fn give_back(client: Client, me: &str) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::default_namespaced(client);
    let Some(mut lease) = api.get_opt(NAME).await? else {
        return Ok(());
    };
    let Some(spec) = lease.spec.as_mut() else {
        return Ok(());
    };
    if spec.holder_identity.as_deref() == Some(me) {
        spec.holder_identity = Some(String::new());
        api.replace(NAME, &PostParams::default(), &lease).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use k8s_openapi::jiff::Timestamp;

    use super::{DEADLINE, DURATION, Election, Step};

    fn held(by: &str, second: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(by.to_owned()),
            renew_time: Some(MicroTime(Timestamp::from_second(second).expect("a moment"))),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_when_it_has_not_changed_for_its_duration() {
        let start = Instant::now();
        let mut election = Election::new("node-1");
        assert_eq!(election.judge(None, start), Step::Write);
        let other = held("node-2", 1_000);
        assert_eq!(election.judge(Some(&other), start), Step::Wait);
        let nearly = start + DURATION - Duration::from_millis(1);
        assert_eq!(election.judge(Some(&other), nearly), Step::Wait);
        // Renewed: the time starts again, whatever the other's clock says.
        let renewed = held("node-2", 500);
        assert_eq!(election.judge(Some(&renewed), nearly), Step::Wait);
        assert_eq!(election.judge(Some(&renewed), start + DURATION), Step::Wait);
        let over = nearly + DURATION;
        assert_eq!(election.judge(Some(&renewed), over), Step::Write);
    }

    #[test]
    fn one_that_is_ours_or_nobodys_is_taken_at_once() {
        let now = Instant::now();
        let mut election = Election::new("node-1");
        assert_eq!(election.judge(Some(&held("node-1", 1)), now), Step::Write);
        assert_eq!(election.judge(Some(&held("", 1)), now), Step::Write);
    }

    #[test]
    fn a_holder_stops_by_itself_before_others_may_begin() {
        let start = Instant::now();
        let mut election = Election::new("node-1");
        assert!(!election.leads(start));
        election.renewed(start);
        assert!(election.leads(start + DEADLINE - Duration::from_millis(1)));
        assert!(!election.leads(start + DEADLINE));
        assert!(DEADLINE + super::RETRY + super::ANSWER < DURATION);
        election.renewed(start + DEADLINE);
        election.lost();
        assert!(!election.leads(start + DEADLINE));
    }

    #[test]
    fn transitions_count_holders_and_not_renewals() {
        let moment = || MicroTime(Timestamp::from_second(5).expect("a moment"));
        let first = Election::new("node-1").written(None, moment());
        let again = Election::new("node-1").written(Some(first), moment());
        let other = Election::new("node-2").written(Some(again.clone()), moment());
        let transitions = |lease: &super::Lease| lease.spec.as_ref()?.lease_transitions;
        assert_eq!(transitions(&again), Some(1));
        assert_eq!(transitions(&other), Some(2));
        let mut many = other;
        many.spec.as_mut().expect("a spec").lease_transitions = Some(i32::MAX);
        let more = Election::new("node-3").written(Some(many), moment());
        assert_eq!(transitions(&more), Some(i32::MAX));
    }
}
