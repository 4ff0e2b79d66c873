//! What is to be said of an object, put into the status that it has.
//!
//! Flows in: what we say, without times, and the object's status. Flows out: the new status, or nothing if there is nothing new. What
//! others say stays: their entries for parents and ancestors, conditions of other types, other fields. The time of a
//! condition changes with its status only (Kubernetes API conventions, `lastTransitionTime`).

use serde_json::{Map, Value};
use snapshot::status::ConditionKind;

use super::CONTROLLER;

/// What we say of an object.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) enum Said {
    /// A status that is ours alone.
    Whole {
        /// `conditions` are merged by type, those in `listeners` by the listener's name too.
        fields: Map<String, Value>,
        /// Types of conditions that are ours and are said at times only: one that is not said goes.
        passing: &'static [ConditionKind],
    },
    /// Our entries in a list that we share with other controllers.
    Shared {
        /// `parents` or `ancestors`.
        list: &'static str,
        /// `parentRef` or `ancestorRef`.
        reference: &'static str,
        /// Each with the reference and `conditions`.
        entries: Vec<Map<String, Value>>,
    },
    /// A condition that another controller may be there to write: one of its type whose reason is none of ours is that one's, and
    /// stays.
    Yielding {
        /// Without the time.
        condition: Map<String, Value>,
        /// All that we give.
        reasons: [&'static str; 2],
    },
}

/// How many ancestors a policy's status holds (Gateway API, `PolicyStatus.ancestors`), and parents that of a route has room for
/// (`RouteStatus.parents`).
const MOST_ANCESTORS: usize = 16;
const MOST_PARENTS: usize = 32;

impl Said {
    /// The status with this in it; none if it is already. `now` is the time of conditions that change.
    pub(crate) fn merged(&self, status: Option<&Value>, now: &str) -> Option<Value> {
        let empty = Map::new();
        let before = status.and_then(Value::as_object).unwrap_or(&empty);
        let mut after = before.clone();
        match self {
            Self::Whole { fields, passing } => {
                for (name, value) in fields {
                    let old = before.get(name);
                    let new = match (name.as_str(), value) {
                        ("conditions", Value::Array(conditions)) => {
                            Value::Array(kept(conditions, list(old), passing, now))
                        }
                        ("listeners", Value::Array(listeners)) => {
                            Value::Array(listeners_of(listeners, list(old), now))
                        }
                        // What is not known is not said; the API server drops a field of a patch that is null.
                        (_, Value::Null) if old.is_none() => continue,
                        _ => value.clone(),
                    };
                    after.insert(name.clone(), new);
                }
            }
            Self::Shared {
                list: name,
                reference,
                entries,
            } => {
                let old = list(before.get(*name));
                let most = if *name == "parents" {
                    MOST_PARENTS
                } else {
                    MOST_ANCESTORS
                };
                let others = old.iter().filter(|entry| !ours(entry)).count();
                let room = most.saturating_sub(others).min(entries.len());
                let mut new: Vec<_> = entries[..room].iter().map(Some).collect();
                // Others may keep the list in an order of their own: what is there stays where it is.
                let mut all = Vec::new();
                for entry in old {
                    if !ours(entry) {
                        all.push(entry.clone());
                        continue;
                    }
                    let same = new.iter_mut().find(|new| {
                        new.is_some_and(|new| new.get(*reference) == entry.get(*reference))
                    });
                    if let Some(same) = same.and_then(Option::take) {
                        let known = list(entry.get("conditions"));
                        all.push(entry_of(same, known, now));
                    }
                }
                let new = new.into_iter().flatten();
                all.extend(new.map(|entry| entry_of(entry, &[], now)));
                if all.is_empty() && old.is_empty() {
                    return None;
                }
                after.insert((*name).to_owned(), Value::Array(all));
            }
            Self::Yielding { condition, reasons } => {
                let old = list(before.get("conditions"));
                let mut same = old
                    .iter()
                    .filter(|old| old.get("type") == condition.get("type"));
                let is_ours = |old: &Value| {
                    let reason = old.get("reason").and_then(Value::as_str);
                    reason.is_some_and(|reason| reasons.contains(&reason))
                };
                if !same.all(is_ours) {
                    return None;
                }
                let new = [Value::Object(condition.clone())];
                after.insert(
                    "conditions".to_owned(),
                    Value::Array(kept(&new, old, &[], now)),
                );
            }
        }
        (after != *before).then_some(Value::Object(after))
    }
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn ours(entry: &Value) -> bool {
    entry.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER)
}

/// An entry of ours, where these conditions were.
fn entry_of(entry: &Map<String, Value>, known: &[Value], now: &str) -> Value {
    let mut entry = entry.clone();
    entry.insert("controllerName".into(), CONTROLLER.into());
    if let Some(Value::Array(conditions)) = entry.get_mut("conditions") {
        *conditions = replaced(conditions, known, now);
    }
    Value::Object(entry)
}

fn listeners_of(listeners: &[Value], old: &[Value], now: &str) -> Vec<Value> {
    let listeners = listeners.iter();
    listeners
        .map(|listener| {
            let same = old
                .iter()
                .find(|old| old.get("name") == listener.get("name"));
            let known = list(same.and_then(|same| same.get("conditions")));
            let mut listener = listener.clone();
            if let Some(Value::Array(conditions)) = listener.get_mut("conditions") {
                *conditions = replaced(conditions, known, now);
            }
            listener
        })
        .collect()
}

/// Ours in the place of those of the same type, the others as they are, without those of types that are ours and pass.
fn kept(new: &[Value], old: &[Value], passing: &[ConditionKind], now: &str) -> Vec<Value> {
    let is_new = |one: &Value| new.iter().any(|new| new.get("type") == one.get("type"));
    let is_ours = |one: &Value| {
        let kind = one.get("type").and_then(Value::as_str);
        passing.iter().any(|own| Some(own.as_str()) == kind)
    };
    let others = old.iter().filter(|one| !is_new(one) && !is_ours(one));
    let others = others.cloned();
    let mut all = replaced(new, old, now);
    all.extend(others);
    all
}

/// Ours alone, with the times of those that keep their status.
fn replaced(new: &[Value], old: &[Value], now: &str) -> Vec<Value> {
    new.iter()
        .map(|condition| {
            let same = old.iter().find(|old| {
                old.get("type") == condition.get("type")
                    && old.get("status") == condition.get("status")
            });
            let time = same.and_then(|same| same.get("lastTransitionTime"));
            let mut condition = condition.clone();
            if let Some(condition) = condition.as_object_mut() {
                let time = time.cloned().unwrap_or_else(|| now.into());
                condition.insert("lastTransitionTime".into(), time);
            }
            condition
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};
    use snapshot::status::ConditionKind;

    use super::Said;

    const NOW: &str = "2026-11-27T10:00:00Z";
    const THEN: &str = "2026-11-27T09:00:00Z";

    fn map(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            _ => panic!("a mapping"),
        }
    }

    fn condition(kind: &str, status: &str, generation: i64) -> Value {
        json!({"type": kind, "status": status, "reason": kind, "message": "", "observedGeneration": generation})
    }

    fn timed(mut condition: Value, time: &str) -> Value {
        condition["lastTransitionTime"] = time.into();
        condition
    }

    fn parents(entries: &[(&str, Value)]) -> Said {
        Said::Shared {
            list: "parents",
            reference: "parentRef",
            entries: entries
                .iter()
                .map(|(name, condition)| {
                    map(json!({"parentRef": {"name": name}, "conditions": [condition]}))
                })
                .collect(),
        }
    }

    #[test]
    fn entries_of_other_controllers_stay() {
        let theirs = json!({
            "parentRef": {"name": "a"}, "controllerName": "example.com/other",
            "conditions": [timed(condition("Accepted", "False", 1), THEN)]
        });
        let status = json!({"parents": [
            theirs,
            {"parentRef": {"name": "gone"}, "controllerName": "cardinal.dev/gateway-controller", "conditions": []}
        ]});
        let said = parents(&[("a", condition("Accepted", "True", 2))]);
        let merged = said.merged(Some(&status), NOW).expect("news");
        let ours = json!({
            "parentRef": {"name": "a"}, "controllerName": "cardinal.dev/gateway-controller",
            "conditions": [timed(condition("Accepted", "True", 2), NOW)]
        });
        assert_eq!(merged, json!({"parents": [theirs, ours]}));
        assert_eq!(said.merged(Some(&merged), "later"), None);
        // A route that left our gateways takes our entries along, and nobody else's.
        let left = parents(&[]).merged(Some(&merged), NOW).expect("news");
        assert_eq!(left, json!({"parents": [theirs]}));
        assert_eq!(parents(&[]).merged(Some(&left), NOW), None);
        assert_eq!(parents(&[]).merged(None, NOW), None);
    }

    #[test]
    fn entries_stay_in_the_order_that_others_gave_them() {
        let entry = |name: &str, controller: &str| {
            json!({
                "parentRef": {"name": name}, "controllerName": controller,
                "conditions": [timed(condition("Accepted", "True", 1), THEN)]
            })
        };
        let own = |name: &str| entry(name, "cardinal.dev/gateway-controller");
        let status = json!({"parents": [
            own("c"), entry("x", "example.com/other"), own("gone"), own("a"), entry("y", "example.com/other")
        ]});
        let accepted = || condition("Accepted", "True", 1);
        let said = parents(&[("a", accepted()), ("b", accepted()), ("c", accepted())]);
        let merged = said.merged(Some(&status), THEN).expect("news");
        let wanted = json!({"parents": [
            own("c"), entry("x", "example.com/other"), own("a"), entry("y", "example.com/other"), own("b")
        ]});
        assert_eq!(merged, wanted);
        // Whatever order they are in, all is said.
        let mut sorted = wanted;
        sorted["parents"].as_array_mut().expect("a list").reverse();
        assert_eq!(said.merged(Some(&sorted), NOW), None);
    }

    #[test]
    fn a_time_changes_with_the_status_only() {
        let status = json!({"parents": [{
            "parentRef": {"name": "a"}, "controllerName": "cardinal.dev/gateway-controller",
            "conditions": [timed(condition("Accepted", "True", 1), THEN)]
        }]});
        let said = parents(&[("a", condition("Accepted", "True", 2))]);
        let merged = said.merged(Some(&status), NOW).expect("another generation");
        let found = &merged["parents"][0]["conditions"][0];
        assert_eq!(*found, timed(condition("Accepted", "True", 2), THEN));
        let said = parents(&[("a", condition("Accepted", "False", 2))]);
        let merged = said.merged(Some(&merged), NOW).expect("another status");
        let found = &merged["parents"][0]["conditions"][0];
        assert_eq!(*found, timed(condition("Accepted", "False", 2), NOW));
    }

    #[test]
    fn a_status_of_our_own_replaces_its_defaults_and_keeps_what_it_does_not_know() {
        let status = json!({
            "conditions": [
                {"type": "Accepted", "status": "Unknown", "reason": "Pending", "lastTransitionTime": THEN},
                {"type": "Audited", "status": "True"}
            ],
            "listeners": [
                {"name": "a", "attachedRoutes": 1, "conditions": [timed(condition("Accepted", "True", 1), THEN)]},
                {"name": "gone", "attachedRoutes": 0, "conditions": []}
            ],
            "other": 7
        });
        let said = Said::Whole {
            fields: map(json!({
                "conditions": [condition("Accepted", "True", 1)],
                "listeners": [
                    {"name": "b", "attachedRoutes": 0, "conditions": [condition("Accepted", "True", 1)]},
                    {"name": "a", "attachedRoutes": 2, "conditions": [condition("Accepted", "True", 1)]}
                ]
            })),
            passing: &[],
        };
        let merged = said.merged(Some(&status), NOW).expect("news");
        assert_eq!(
            merged,
            json!({
                "conditions": [
                    timed(condition("Accepted", "True", 1), NOW),
                    {"type": "Audited", "status": "True"}
                ],
                "listeners": [
                    {"name": "b", "attachedRoutes": 0, "conditions": [timed(condition("Accepted", "True", 1), NOW)]},
                    {"name": "a", "attachedRoutes": 2, "conditions": [timed(condition("Accepted", "True", 1), THEN)]}
                ],
                "other": 7
            })
        );
        assert_eq!(said.merged(Some(&merged), "later"), None);
    }

    #[test]
    fn a_condition_of_ours_that_is_not_said_any_more_goes() {
        let status = json!({"conditions": [
            timed(condition("Accepted", "True", 1), THEN),
            {"type": "Audited", "status": "True"},
            timed(condition("ResolvedRefs", "False", 1), THEN)
        ]});
        let said = |conditions: Value| Said::Whole {
            fields: map(json!({ "conditions": conditions })),
            passing: &[ConditionKind::ResolvedRefs],
        };
        let without = said(json!([condition("Accepted", "True", 1)]));
        let merged = without.merged(Some(&status), NOW).expect("news");
        let left = json!({"conditions": [
            timed(condition("Accepted", "True", 1), THEN),
            {"type": "Audited", "status": "True"}
        ]});
        assert_eq!(merged, left);
        assert_eq!(without.merged(Some(&merged), "later"), None);
        let with = said(json!([
            condition("Accepted", "True", 1),
            condition("ResolvedRefs", "False", 1)
        ]));
        let merged = with.merged(Some(&status), NOW).expect("another order");
        let conditions = merged["conditions"].as_array().expect("a list");
        assert!(conditions.contains(&status["conditions"][2]));
    }

    fn valid(status: &str, reason: &str, message: &str) -> Said {
        Said::Yielding {
            condition: map(
                json!({"type": "Valid", "status": status, "reason": reason, "message": message}),
            ),
            reasons: ["Accepted", "Invalid"],
        }
    }

    #[test]
    fn a_condition_that_another_controller_wrote_is_left_to_it() {
        let refused = valid("False", "Invalid", "spec.egress: no");
        let merged = refused.merged(None, NOW).expect("nobody said anything");
        let ours = json!({
            "type": "Valid", "status": "False", "reason": "Invalid", "message": "spec.egress: no",
            "lastTransitionTime": NOW
        });
        assert_eq!(merged, json!({"conditions": [ours]}));
        assert_eq!(refused.merged(Some(&merged), "later"), None);
        // Ours follows the object, and keeps its time while its status stays.
        let other = valid("False", "Invalid", "spec.ingress: no");
        let told = other
            .merged(Some(&merged), "later")
            .expect("another message");
        assert_eq!(told["conditions"][0]["lastTransitionTime"], NOW);
        assert_eq!(told["conditions"][0]["message"], "spec.ingress: no");
        let taken = valid("True", "Accepted", "");
        let told = taken.merged(Some(&told), "later").expect("another status");
        assert_eq!(told["conditions"][0]["lastTransitionTime"], "later");
        // Cilium's has no reason.
        let theirs = json!({"conditions": [
            {"type": "Valid", "status": "True", "lastTransitionTime": THEN, "message": "Policy validation succeeded"}
        ]});
        assert_eq!(refused.merged(Some(&theirs), NOW), None);
        let beside = json!({"conditions": [{"type": "Audited", "status": "True"}], "derivativePolicies": {}});
        let merged = taken.merged(Some(&beside), NOW).expect("news");
        assert_eq!(merged["conditions"][1], beside["conditions"][0]);
        assert_eq!(merged["derivativePolicies"], json!({}));
    }

    #[test]
    fn a_policy_has_room_for_sixteen_ancestors_and_others_come_first() {
        let theirs: Vec<Value> = (0..15)
            .map(|number| json!({"ancestorRef": {"name": format!("t{number}")}, "controllerName": "example.com/other"}))
            .collect();
        let said = Said::Shared {
            list: "ancestors",
            reference: "ancestorRef",
            entries: ["a", "b"]
                .iter()
                .map(|name| map(json!({"ancestorRef": {"name": name}, "conditions": []})))
                .collect(),
        };
        let merged = said
            .merged(Some(&json!({"ancestors": theirs})), NOW)
            .expect("news");
        let all = merged["ancestors"].as_array().expect("a list");
        assert_eq!(all.len(), 16);
        assert_eq!(all[..15], theirs);
        assert_eq!(all[15]["ancestorRef"]["name"], "a");
    }
}
