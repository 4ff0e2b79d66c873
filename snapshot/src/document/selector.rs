//! Label selectors, and which namespaces may refer to something (Kubernetes, `LabelSelector`; Gateway API,
//! `FromNamespaces`).

use std::collections::BTreeSet;
use std::fmt;

use super::labels::Labels;
use crate::reader::{Field, Object};

/// Requirements of a selector.
const MAX_ITEMS: usize = 64;
/// Values of a requirement. Kubernetes has no limit.
const MAX_VALUES: usize = 1024;

/// Requirements on labels, all of which hold; an empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Selector(Vec<Requirement>);

/// What is asked of the labels of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Requirement {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    DoesNotExist(String),
}

#[derive(Clone, Copy)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Whether an object with these labels is selected.
    pub(crate) fn selects(&self, labels: &Labels) -> bool {
        self.0.iter().all(|one| one.holds(labels))
    }

    /// The keys that it asks for.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|requirement| match requirement {
            Requirement::In(key, _)
            | Requirement::NotIn(key, _)
            | Requirement::Exists(key)
            | Requirement::DoesNotExist(key) => key.as_str(),
        })
    }

    /// Two selectors: requirements on labels of another object, if there are any, and the others. `part` tells for each key whose
    /// label it is, and what that one calls it.
    pub(crate) fn split(self, part: impl Fn(&str) -> Part) -> (Option<Self>, Self) {
        let (mut others, mut own) = (Vec::new(), Vec::new());
        for mut requirement in self.0 {
            let (Requirement::In(key, _)
            | Requirement::NotIn(key, _)
            | Requirement::Exists(key)
            | Requirement::DoesNotExist(key)) = &mut requirement;
            match part(key) {
                Part::Own(name) => {
                    *key = name;
                    own.push(requirement);
                }
                Part::Other(name) => {
                    *key = name;
                    others.push(requirement);
                }
            }
        }
        ((!others.is_empty()).then_some(Self(others)), Self(own))
    }
}

/// Whose label a key is, and its name there.
pub(crate) enum Part {
    /// The object's own.
    Own(String),
    /// That of the other object.
    Other(String),
}

/// As `kubectl --selector` takes it.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            let (key, word, values) = match requirement {
                Requirement::In(key, values) => (key, "in", values),
                Requirement::NotIn(key, values) => (key, "notin", values),
                Requirement::Exists(key) => {
                    f.write_str(key)?;
                    continue;
                }
                Requirement::DoesNotExist(key) => {
                    write!(f, "!{key}")?;
                    continue;
                }
            };
            write!(f, "{key} {word} (")?;
            for (index, value) in values.iter().enumerate() {
                let comma = if index > 0 { "," } else { "" };
                write!(f, "{comma}{value}")?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        let is_in = |key: &String, values: &BTreeSet<String>| {
            labels.get(key).is_some_and(|value| values.contains(value))
        };
        match self {
            Self::In(key, values) => is_in(key, values),
            // An object without the label too.
            Self::NotIn(key, values) => !is_in(key, values),
            Self::Exists(key) => labels.has(key),
            Self::DoesNotExist(key) => !labels.has(key),
        }
    }
}

/// Reads a selector that is a mapping of its own.
pub(crate) fn selector(field: &Field<'_>) -> Option<Selector> {
    let mut object = field.object()?;
    let selector = requirements(&mut object);
    object.finish();
    selector
}

/// Reads `matchLabels` and `matchExpressions` of a mapping; none: at least one of them has mistakes.
pub(crate) fn requirements(object: &mut Object<'_>) -> Option<Selector> {
    let mut wanted = Vec::new();
    let mut count = 0;
    if let Some(field) = object.optional("matchLabels") {
        for (key, value) in field.entries() {
            count += 1;
            let value = value.string().map(str::to_owned);
            wanted.extend(value.map(|value| Requirement::In(key.to_owned(), [value].into())));
        }
    }
    if let Some(field) = object.optional("matchExpressions") {
        let items = limited(&field, field.list(), MAX_ITEMS);
        count += items.len();
        wanted.extend(items.iter().filter_map(expression));
    }
    (wanted.len() == count).then_some(Selector(wanted))
}

fn expression(field: &Field<'_>) -> Option<Requirement> {
    let mut object = field.object()?;
    let key = object
        .required("key")
        .and_then(|field| Some(field.some_string()?.to_owned()));
    let operator = object.required("operator").and_then(|field| {
        field.choice(&[
            ("In", Operator::In),
            ("NotIn", Operator::NotIn),
            ("Exists", Operator::Exists),
            ("DoesNotExist", Operator::DoesNotExist),
        ])
    });
    let (key, operator) = (key?, operator?);
    let requirement = match operator {
        Operator::In => Requirement::In(key, values(&mut object)?),
        Operator::NotIn => Requirement::NotIn(key, values(&mut object)?),
        Operator::Exists => Requirement::Exists(key),
        Operator::DoesNotExist => Requirement::DoesNotExist(key),
    };
    object.finish();
    Some(requirement)
}

fn values(object: &mut Object<'_>) -> Option<BTreeSet<String>> {
    let field = object.required("values")?;
    let items = limited(&field, field.some_list(), MAX_VALUES);
    let values = items.iter().map(|item| Some(item.string()?.to_owned()));
    let values: BTreeSet<_> = values.collect::<Option<_>>()?;
    (!values.is_empty()).then_some(values)
}

/// All items, also where there are too many: a policy that is refused closes what it selects.
fn limited<'a>(field: &Field<'a>, items: Vec<Field<'a>>, limit: usize) -> Vec<Field<'a>> {
    if items.len() > limit {
        field.mistake(format_args!(
            "expected at most {limit} items, got {}",
            items.len()
        ));
    }
    items
}

/// Namespaces from which something may be referred to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// That of the object itself.
    Same,
    All,
    None,
    Selected(Selector),
}

/// Reads `namespaces` of `allowedRoutes` or `allowedListeners`.
pub(crate) fn namespaces(field: &Field<'_>, usual: From) -> Option<From> {
    #[derive(Clone, Copy)]
    enum Word {
        Same,
        All,
        None,
        Selector,
    }
    let mut object = field.object()?;
    let from = object.optional("from");
    let selector_field = object.optional("selector");
    object.finish();
    let word = match from {
        Some(from) => Some(from.choice(&[
            ("Same", Word::Same),
            ("All", Word::All),
            ("None", Word::None),
            ("Selector", Word::Selector),
        ])?),
        None => None,
    };
    match (word, selector_field) {
        (Some(Word::Selector), Some(field)) => selector(&field).map(From::Selected),
        (Some(Word::Selector), None) => {
            field.mistake("expected `selector` with `from: Selector`");
            None
        }
        (_, Some(field)) => {
            field.mistake("has no effect without `from: Selector`");
            None
        }
        (Some(Word::Same), None) => Some(From::Same),
        (Some(Word::All), None) => Some(From::All),
        (Some(Word::None), None) => Some(From::None),
        (None, None) => Some(usual),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Labels, Requirement, Selector};

    #[test]
    fn every_requirement_must_hold() {
        let labels = |text: &str| -> Labels {
            let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            pairs.collect()
        };
        let set = |text: &str| -> BTreeSet<String> { text.split(',').map(str::to_owned).collect() };
        let tier = || "tier".to_owned();
        // Requirements, labels of the object, whether it is selected.
        let table = [
            (vec![], "", true),
            (
                vec![Requirement::In(tier(), set("x,y"))],
                "tier=y,a=b",
                true,
            ),
            (vec![Requirement::In(tier(), set("x"))], "", false),
            (vec![Requirement::NotIn(tier(), set("x"))], "", true),
            (vec![Requirement::NotIn(tier(), set("x"))], "tier=x", false),
            (vec![Requirement::Exists(tier())], "tier=x", true),
            (vec![Requirement::DoesNotExist(tier())], "tier=x", false),
            (
                vec![
                    Requirement::Exists(tier()),
                    Requirement::In("a".to_owned(), set("b")),
                ],
                "tier=x,a=c",
                false,
            ),
        ];
        for (wanted, given, expected) in table {
            let selector = Selector(wanted);
            assert_eq!(
                selector.selects(&labels(given)),
                expected,
                "{selector:?} {given}"
            );
        }
    }
}
