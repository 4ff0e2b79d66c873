//! Label selectors, and which namespaces may refer to something (Kubernetes, `LabelSelector`; Gateway API,
//! `FromNamespaces`).

use std::collections::BTreeMap;

use crate::reader::Field;

/// Labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

/// Requirements on labels, all of which hold; an empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    equal: Labels,
    expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Expression {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Whether an object with these labels is selected.
    pub(crate) fn selects(&self, labels: &Labels) -> bool {
        self.equal
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|one| one.holds(labels))
    }
}

impl Expression {
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            // Labels that are not there are not in the list either.
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// Reads a selector.
pub(crate) fn selector(field: &Field<'_>) -> Option<Selector> {
    let mut object = field.object()?;
    let equal = object.optional("matchLabels");
    let expressions = object.list("matchExpressions");
    object.finish();
    let mut selector = Selector::default();
    for (key, value) in equal.map(|field| field.entries()).unwrap_or_default() {
        selector
            .equal
            .insert(key.to_owned(), value.string()?.to_owned());
    }
    for field in &expressions {
        selector.expressions.push(expression(field)?);
    }
    Some(selector)
}

fn expression(field: &Field<'_>) -> Option<Expression> {
    let mut object = field.object()?;
    let key = object
        .required("key")
        .and_then(|field| field.some_string().map(str::to_owned));
    let operator = object.required("operator").and_then(|field| {
        field.choice(&[
            ("In", Operator::In),
            ("NotIn", Operator::NotIn),
            ("Exists", Operator::Exists),
            ("DoesNotExist", Operator::DoesNotExist),
        ])
    });
    let values: Option<Vec<String>> = object
        .list("values")
        .iter()
        .map(|field| field.string().map(str::to_owned))
        .collect();
    object.finish();
    let (operator, values) = (operator?, values?);
    let wants = matches!(operator, Operator::In | Operator::NotIn);
    if wants == values.is_empty() {
        field.mistake(match wants {
            true => "expected at least one of `values` with this operator",
            false => "expected no `values` with this operator",
        });
        return None;
    }
    Some(Expression {
        key: key?,
        operator,
        values,
    })
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
    use super::{Expression, Labels, Operator, Selector};

    #[test]
    fn every_requirement_must_hold() {
        let labels = |text: &str| -> Labels {
            let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect()
        };
        let expression = |operator, values: &[&str]| Expression {
            key: "tier".to_owned(),
            operator,
            values: values.iter().map(|&one| one.to_owned()).collect(),
        };
        // Selector's equal labels, its expression, labels of the object, whether it is selected.
        let table = [
            ("", None, "", true),
            ("a=b", None, "a=b,c=d", true),
            ("a=b", None, "a=c", false),
            (
                "",
                Some(expression(Operator::In, &["x", "y"])),
                "tier=y",
                true,
            ),
            ("", Some(expression(Operator::In, &["x"])), "", false),
            ("", Some(expression(Operator::NotIn, &["x"])), "", true),
            (
                "",
                Some(expression(Operator::NotIn, &["x"])),
                "tier=x",
                false,
            ),
            ("", Some(expression(Operator::Exists, &[])), "tier=x", true),
            (
                "",
                Some(expression(Operator::DoesNotExist, &[])),
                "tier=x",
                false,
            ),
            ("a=b", Some(expression(Operator::Exists, &[])), "a=b", false),
        ];
        for (equal, one, given, expected) in table {
            let selector = Selector {
                equal: labels(equal),
                expressions: one.into_iter().collect(),
            };
            assert_eq!(
                selector.selects(&labels(given)),
                expected,
                "{selector:?} {given}"
            );
        }
    }
}
