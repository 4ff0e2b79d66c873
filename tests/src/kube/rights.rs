//! What a service account may do, and what it asked for: the rules of its roles beside the API server's audit log.
//!
//! Flows in: roles as the API server has them, and a line of the log for each call. Flows out: rights that nothing needed and calls
//! that were refused. Rights of roles that every account has (`system:discovery`) are not looked at.

use std::{collections::BTreeSet, fmt, fs};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::World;

/// Something that a rule allows: one verb for one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// The only namespace in which it holds; none if it holds everywhere.
    pub namespace: Option<String>,
    /// API group; empty for Kubernetes' first one.
    pub group: String,
    /// Resource, with its subresource behind a slash.
    pub resource: String,
    /// The only object that it is about; none if it is about all.
    pub object: Option<String>,
    /// The verb.
    pub verb: String,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, resource, .. } = self;
        write!(f, "{verb} {resource}")?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if let Some(object) = &self.object {
            write!(f, " {object}")?;
        }
        match &self.namespace {
            Some(namespace) => write!(f, " (Role in {namespace})"),
            None => f.write_str(" (ClusterRole)"),
        }
    }
}

/// Something that the API server was asked for: an `Event` of `audit.k8s.io/v1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The verb, as roles spell it.
    pub verb: String,
    /// API group; empty for Kubernetes' first one, and for what is no resource.
    pub group: String,
    /// Resource, with its subresource behind a slash; empty for what is no resource.
    pub resource: String,
    /// Namespace, where the call names one.
    pub namespace: Option<String>,
    /// Object, where the call names one.
    pub object: Option<String>,
    /// Path and query.
    pub uri: String,
    /// Status of the answer.
    pub code: u64,
}

impl Call {
    fn read(line: &str) -> Result<(String, Self)> {
        let event: Value = serde_json::from_str(line).context("a line is no JSON")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &event["objectRef"];
        let named = |field: &str| Some(text(&object[field])).filter(|name| !name.is_empty());
        let resource = match named("subresource") {
            Some(part) => format!("{}/{part}", text(&object["resource"])),
            None => text(&object["resource"]),
        };
        let call = Self {
            verb: text(&event["verb"]),
            group: text(&object["apiGroup"]),
            resource,
            namespace: named("namespace"),
            object: named("name"),
            uri: text(&event["requestURI"]),
            code: event["responseStatus"]["code"]
                .as_u64()
                .context("a call has no answer")?,
        };
        Ok((text(&event["user"]["username"]), call))
    }

    fn is_refused(&self) -> bool {
        matches!(self.code, 401 | 403)
    }

    /// Whether the call is one that the right allows.
    fn needs(&self, right: &Right) -> bool {
        // An apply that makes the object is asked for both (`patch.go` of k8s.io/apiserver, `patchResource`); the log has the first.
        let made = self.verb == "patch" && self.code == 201;
        let verb = self.verb == right.verb || made && right.verb == "create";
        let inside =
            |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        verb && self.group == right.group
            && self.resource == right.resource
            && inside(&right.namespace, &self.namespace)
            && inside(&right.object, &self.object)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.verb, self.uri, self.code)
    }
}

/// Rights and calls that do not fit together.
#[derive(Debug, Default)]
pub struct Misfits {
    /// Rights that no call needed.
    pub unused: BTreeSet<Right>,
    /// Calls that were refused.
    pub refused: Vec<Call>,
}

impl Misfits {
    /// Compares. A call that a `Role` allows is none that a `ClusterRole` is needed for.
    #[must_use]
    pub fn of(rights: &BTreeSet<Right>, calls: &[Call]) -> Self {
        let mut unused = rights.clone();
        for call in calls.iter().filter(|call| !call.is_refused()) {
            let in_role = |right: &&Right| right.namespace.is_some() && call.needs(right);
            let narrow = rights.iter().any(|right| in_role(&right));
            unused.retain(|right| {
                let this = !narrow || right.namespace.is_some();
                !(this && call.needs(right))
            });
        }
        let refused = calls.iter().filter(|call| call.is_refused());
        Self {
            unused,
            refused: refused.cloned().collect(),
        }
    }
}

impl fmt::Display for Misfits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for right in &self.unused {
            writeln!(f, "nothing needed: {right}")?;
        }
        for call in &self.refused {
            writeln!(f, "refused: {call}")?;
        }
        Ok(())
    }
}

/// The rights of a `ClusterRole` or a `Role`.
///
/// # Errors
/// A rule is not one of names alone: `*` allows what nobody can list.
pub fn rights(role: &Value) -> Result<BTreeSet<Right>> {
    let namespace = role["metadata"]["namespace"].as_str();
    let words = |rule: &Value, field: &str| -> Result<Vec<String>> {
        let words = rule[field].as_array().into_iter().flatten();
        let words = words.map(|word| word.as_str().map(str::to_owned));
        let words: Option<Vec<_>> = words.collect();
        let words = words.with_context(|| format!("`{field}` are no texts: {rule}"))?;
        ensure!(
            words.iter().all(|word| !word.contains('*')),
            "`{field}` allows everything: {rule}"
        );
        Ok(words)
    };
    let mut rights = BTreeSet::new();
    let rules = role["rules"].as_array().context("a role has no rules")?;
    for rule in rules {
        let objects = match words(rule, "resourceNames")? {
            names if names.is_empty() => vec![None],
            names => names.into_iter().map(Some).collect(),
        };
        let before = rights.len();
        for group in words(rule, "apiGroups")? {
            for resource in words(rule, "resources")? {
                for verb in words(rule, "verbs")? {
                    rights.extend(objects.iter().map(|object| Right {
                        namespace: namespace.map(str::to_owned),
                        group: group.clone(),
                        resource: resource.clone(),
                        object: object.clone(),
                        verb: verb.clone(),
                    }));
                }
            }
        }
        ensure!(
            rights.len() > before,
            "a rule allows nothing that others do not: {rule}"
        );
    }
    Ok(rights)
}

impl World {
    /// What a service account has asked of the API server until now, refusals included. The world was made with `audit`.
    ///
    /// # Errors
    /// There is no log, or it has something else in it.
    pub fn calls(&self, namespace: &str, account: &str) -> Result<Vec<Call>> {
        let user = format!("system:serviceaccount:{namespace}:{account}");
        let file = self.state().join("audit.log");
        let text = fs::read_to_string(&file)
            .with_context(|| format!("failed to read {}", file.display()))?;
        // A line without an end is still being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let calls = whole.lines().map(Call::read);
        let calls = calls.filter(|read| match read {
            Ok((who, _)) => *who == user,
            Err(_) => true,
        });
        calls.map(|read| read.map(|(_, call)| call)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(verb: &str, resource: &str, namespace: Option<&str>, code: u64) -> Call {
        Call {
            verb: verb.to_owned(),
            group: String::new(),
            resource: resource.to_owned(),
            namespace: namespace.map(str::to_owned),
            object: namespace.map(|_| "one".to_owned()),
            uri: format!("/{resource}"),
            code,
        }
    }

    fn unused(roles: &[Value], calls: &[Call]) -> Vec<String> {
        let rights = roles.iter().map(|role| rights(role).expect("a role"));
        let misfits = Misfits::of(&rights.flatten().collect(), calls);
        misfits.unused.iter().map(ToString::to_string).collect()
    }

    fn role(namespace: Option<&str>, rule: &Value) -> Value {
        json!({ "metadata": { "namespace": namespace }, "rules": [rule] })
    }

    #[test]
    fn every_verb_of_every_resource_is_a_right_that_a_call_needs() {
        let rule = json!({ "apiGroups": [""], "resources": ["pods", "pods/status"], "verbs": ["list", "patch"] });
        let pods = role(None, &rule);
        let calls = [
            call("list", "pods", None, 200),
            call("patch", "pods/status", Some("a"), 200),
            // Refused calls show no need.
            call("list", "pods/status", None, 403),
        ];
        assert_eq!(
            unused(&[pods], &calls),
            ["patch pods (ClusterRole)", "list pods/status (ClusterRole)"]
        );
    }

    #[test]
    fn what_a_role_allows_needs_no_cluster_role() {
        let rule = json!({ "apiGroups": [""], "resources": ["services"], "verbs": ["get"] });
        let both = [role(None, &rule), role(Some("a"), &rule)];
        let inside = call("get", "services", Some("a"), 200);
        let outside = call("get", "services", Some("b"), 404);
        let all = [inside.clone(), outside.clone()];
        assert_eq!(unused(&both, &all), [""; 0]);
        assert_eq!(unused(&both, &[inside]), ["get services (ClusterRole)"]);
        assert_eq!(unused(&both, &[outside]), ["get services (Role in a)"]);
    }

    #[test]
    fn an_apply_that_makes_an_object_needs_two_rights() {
        let rule = json!({
            "apiGroups": [""], "resources": ["services"], "verbs": ["create", "patch"], "resourceNames": ["one", "two"],
        });
        let services = [role(Some("a"), &rule)];
        let made = call("patch", "services", Some("a"), 201);
        assert_eq!(
            unused(&services, &[made]),
            [
                "create services two (Role in a)",
                "patch services two (Role in a)"
            ]
        );
        let changed = call("patch", "services", Some("a"), 200);
        assert_eq!(unused(&services, &[changed]).len(), 3);
    }

    #[test]
    fn what_nobody_can_list_is_no_right_of_ours() {
        for rule in [
            json!({ "apiGroups": [""], "resources": ["*"], "verbs": ["get"] }),
            json!({ "apiGroups": [""], "resources": ["pods"], "verbs": [] }),
        ] {
            assert!(rights(&role(None, &rule)).is_err(), "{rule}");
        }
    }

    #[test]
    fn lines_of_the_log_are_read() {
        let line = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "stage": "ResponseComplete",
            "requestURI": "/apis/cardinal.dev/v1alpha1/namespaces/a/cells/one/status", "verb": "patch",
            "user": { "username": "system:serviceaccount:a:b" },
            "objectRef": {
                "resource": "cells", "subresource": "status", "namespace": "a", "name": "one", "apiGroup": "cardinal.dev",
            },
            "responseStatus": { "code": 403 },
        });
        let (user, call) = Call::read(&line.to_string()).expect("an event");
        assert_eq!(user, "system:serviceaccount:a:b");
        assert_eq!(
            (&*call.group, &*call.resource),
            ("cardinal.dev", "cells/status")
        );
        let misfits = Misfits::of(&BTreeSet::new(), &[call]);
        assert_eq!(
            misfits.to_string(),
            "refused: patch /apis/cardinal.dev/v1alpha1/namespaces/a/cells/one/status (403)\n"
        );
    }
}
