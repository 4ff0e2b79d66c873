//! Readers over a tree: they take typed values out and collect every mistake on the way.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::model::Port;
use crate::report::{Mistake, Source, Warning};
use crate::tree::{Entry, Node, Value, below, shortened};

/// Collects what is said about documents.
#[derive(Default)]
pub(crate) struct Sink {
    mistakes: RefCell<Vec<Mistake>>,
    warnings: RefCell<Vec<Warning>>,
    tainted: RefCell<BTreeSet<(Arc<str>, usize)>>,
}

impl Sink {
    pub(crate) fn mistake(&self, source: Source, message: impl fmt::Display) {
        self.tainted
            .borrow_mut()
            .insert((source.file.clone(), source.document));
        self.mistakes.borrow_mut().push(Mistake {
            source,
            message: message.to_string(),
        });
    }

    pub(crate) fn warning(&self, source: Source, message: impl fmt::Display) {
        self.warnings.borrow_mut().push(Warning {
            source,
            message: message.to_string(),
        });
    }

    /// What is said meanwhile is not said of the document, but comes back: it is about a part that can be left out.
    pub(crate) fn aside<T>(&self, read: impl FnOnce() -> T) -> (T, Vec<Mistake>) {
        let mistakes = self.mistakes.take();
        let tainted = self.tainted.take();
        let value = read();
        self.tainted.replace(tainted);
        (value, self.mistakes.replace(mistakes))
    }

    /// Takes over what was said before.
    pub(crate) fn known(&self, mistakes: &[Mistake], warnings: &[Warning]) {
        for mistake in mistakes {
            self.mistake(mistake.source.clone(), &mistake.message);
        }
        self.warnings.borrow_mut().extend_from_slice(warnings);
    }

    /// Whether the document of `source` has mistakes: what refers into it may then miss something
    /// that is only unreadable, and to say so as well would be noise.
    pub(crate) fn tainted(&self, source: &Source) -> bool {
        let tainted = self.tainted.borrow();
        !tainted.is_empty() && tainted.contains(&(source.file.clone(), source.document))
    }

    /// How many mistakes were told.
    pub(crate) fn mistakes(&self) -> usize {
        self.mistakes.borrow().len()
    }

    /// The first thing that is wrong with a document, as its status has it.
    pub(crate) fn first(&self, source: &Source) -> Option<String> {
        let mistakes = self.mistakes.borrow();
        let own = mistakes
            .iter()
            .find(|one| one.source.file == source.file && one.source.document == source.document)?;
        Some(match own.source.field.is_empty() {
            true => own.message.clone(),
            false => format!("{}: {}", own.source.field, own.message),
        })
    }

    /// Everything, as it was said.
    pub(crate) fn told(self) -> (Vec<Mistake>, Vec<Warning>) {
        (self.mistakes.into_inner(), self.warnings.into_inner())
    }

    /// Everything, in file order.
    pub(crate) fn finish(self) -> (Vec<Mistake>, Vec<Warning>) {
        let mut mistakes = self.mistakes.into_inner();
        let mut warnings = self.warnings.into_inner();
        mistakes.sort_by(|a, b| a.source.position().cmp(&b.source.position()));
        mistakes.dedup();
        warnings.sort_by(|a, b| a.source.position().cmp(&b.source.position()));
        warnings.dedup();
        (mistakes, warnings)
    }
}

/// A value and where it is.
#[derive(Clone)]
pub(crate) struct Field<'a> {
    node: &'a Node,
    source: Source,
    sink: &'a Sink,
}

impl<'a> Field<'a> {
    /// The root of a document; `source` names the document.
    pub(crate) fn root(node: &'a Node, source: Source, sink: &'a Sink) -> Self {
        Self { node, source, sink }
    }

    /// The same value, whose mistakes are told to another.
    pub(crate) fn told<'b>(&self, sink: &'b Sink) -> Field<'b>
    where
        'a: 'b,
    {
        Field {
            node: self.node,
            source: self.source.clone(),
            sink,
        }
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    pub(crate) fn sink(&self) -> &'a Sink {
        self.sink
    }

    pub(crate) fn node(&self) -> &'a Node {
        self.node
    }

    pub(crate) fn value(&self) -> &'a Value {
        &self.node.value
    }

    pub(crate) fn mistake(&self, message: impl fmt::Display) {
        self.sink.mistake(self.source.clone(), message);
    }

    pub(crate) fn warning(&self, message: impl fmt::Display) {
        self.sink.warning(self.source.clone(), message);
    }

    /// Says that something else was expected here.
    pub(crate) fn expected(&self, what: impl fmt::Display) {
        if self.is_secret() {
            self.mistake(format_args!("expected {what}"));
        } else {
            self.mistake(format_args!("expected {what}, got {}", self.node.value));
        }
    }

    /// Whether the value is part of a `Secret`, at any field: a key may be in a wrong one, and
    /// messages go to logs.
    fn is_secret(&self) -> bool {
        self.source.object.starts_with("Secret")
    }

    /// Path of a key that the document chose. In a `Secret` that of the mapping: lines of a key that
    /// are indented wrongly may become keys of a mapping.
    fn below(&self, key: &str) -> String {
        if self.is_secret() {
            self.source.field.to_string()
        } else {
            below(&self.source.field, key)
        }
    }

    fn child(&self, field: impl Into<Arc<str>>, node: &'a Node, line: usize) -> Self {
        Self {
            node,
            source: Source {
                field: field.into(),
                line,
                ..self.source.clone()
            },
            sink: self.sink,
        }
    }

    /// A mapping with known fields.
    pub(crate) fn object(&self) -> Option<Object<'a>> {
        let Value::Mapping(entries) = &self.node.value else {
            self.expected("a mapping");
            return None;
        };
        Some(Object {
            field: self.clone(),
            entries,
            known: Vec::new(),
            refused: Vec::new(),
            any_others: false,
        })
    }

    /// A mapping whose keys are data.
    pub(crate) fn entries(&self) -> Vec<(&'a str, Field<'a>)> {
        let Value::Mapping(entries) = &self.node.value else {
            self.expected("a mapping");
            return Vec::new();
        };
        entries
            .iter()
            .map(|entry| {
                let field = self.below(&entry.key);
                (
                    entry.key.as_str(),
                    self.child(field, &entry.value, entry.line),
                )
            })
            .collect()
    }

    /// The items of a list.
    pub(crate) fn list(&self) -> Vec<Field<'a>> {
        let Value::List(items) = &self.node.value else {
            self.expected("a list");
            return Vec::new();
        };
        items
            .iter()
            .enumerate()
            .map(|(index, item)| {
                self.child(format!("{}[{index}]", self.source.field), item, item.line)
            })
            .collect()
    }

    /// The items of a list with one or more.
    pub(crate) fn some_list(&self) -> Vec<Field<'a>> {
        let items = self.list();
        if items.is_empty() && matches!(self.node.value, Value::List(_)) {
            self.mistake("expected at least one item, got an empty list");
        }
        items
    }

    /// The items of a list, at most `limit` of them.
    pub(crate) fn limited_list(&self, limit: usize) -> Vec<Field<'a>> {
        self.limited(self.list(), limit)
    }

    /// The items of a list, one or more, at most `limit` of them.
    pub(crate) fn some_limited_list(&self, limit: usize) -> Vec<Field<'a>> {
        self.limited(self.some_list(), limit)
    }

    fn limited(&self, mut items: Vec<Field<'a>>, limit: usize) -> Vec<Field<'a>> {
        if items.len() > limit {
            self.mistake(format_args!(
                "expected at most {limit} items, got {}",
                items.len()
            ));
            items.truncate(limit);
        }
        items
    }

    /// A text.
    pub(crate) fn string(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::String(text) => Some(text),
            Value::Bool(_) | Value::Integer(_) | Value::Number(_) => {
                self.expected("a text (put quotes around it)");
                None
            }
            _ => {
                self.expected("a text");
                None
            }
        }
    }

    /// A text that is not empty.
    pub(crate) fn some_string(&self) -> Option<&'a str> {
        let text = self.string()?;
        if text.trim().is_empty() {
            self.mistake("expected a text that is not empty");
            return None;
        }
        Some(text)
    }

    /// A text, taken by a function whose error says what was expected.
    pub(crate) fn parse<T, E: fmt::Display>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        match parse(self.string()?) {
            Ok(value) => Some(value),
            Err(_) if self.is_secret() => {
                self.mistake("is not valid; what a `Secret` holds is not shown");
                None
            }
            Err(error) => {
                self.mistake(error);
                None
            }
        }
    }

    pub(crate) fn boolean(&self) -> Option<bool> {
        match self.node.value {
            Value::Bool(value) => Some(value),
            _ => {
                self.expected("`true` or `false`");
                None
            }
        }
    }

    /// A whole number in a range.
    pub(crate) fn integer(&self, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        match self.node.value {
            Value::Integer(value) if range.contains(&value) => Some(value),
            _ => {
                self.expected(format_args!(
                    "a whole number from {} to {}",
                    range.start(),
                    range.end()
                ));
                None
            }
        }
    }

    pub(crate) fn port(&self) -> Option<Port> {
        let port = match self.node.value {
            Value::Integer(value) => u16::try_from(value).ok().and_then(NonZeroU16::new),
            _ => None,
        };
        if port.is_none() {
            let quoted =
                matches!(&self.node.value, Value::String(text) if text.parse::<u16>().is_ok());
            let hint = if quoted { " (without quotes)" } else { "" };
            self.expected(format_args!("a port, 1 to 65535{hint}"));
        }
        port
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let found = match &self.node.value {
            Value::String(text) => choices.iter().find(|(name, _)| name == text),
            _ => None,
        };
        if found.is_none() {
            self.expected(one_of(choices.iter().map(|(name, _)| *name)));
        }
        found.map(|(_, value)| *value)
    }
}

/// `` `a`, `b` or `c` ``.
pub(crate) fn one_of<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    let last = names.len().saturating_sub(1);
    let mut text = String::new();
    for (index, name) in names.enumerate() {
        text.push_str(match index {
            0 => "",
            _ if index == last => " or ",
            _ => ", ",
        });
        text.push('`');
        text.push_str(name);
        text.push('`');
    }
    text
}

/// A mapping with known fields. [`Object::finish`] reports the others.
pub(crate) struct Object<'a> {
    field: Field<'a>,
    entries: &'a [Entry],
    known: Vec<&'static str>,
    /// Fields that were refused by name: nothing more is said about them, nor are they suggested.
    refused: Vec<&'static str>,
    /// Fields that nobody asked for are no mistake.
    any_others: bool,
}

impl<'a> Object<'a> {
    /// The mapping itself, for messages.
    pub(crate) fn field(&self) -> &Field<'a> {
        &self.field
    }

    /// Where a field is or would be.
    pub(crate) fn at(&self, name: &str) -> Source {
        self.field.source.at(below(&self.field.source.field, name))
    }

    pub(crate) fn optional(&mut self, name: &'static str) -> Option<Field<'a>> {
        self.known.push(name);
        self.entries
            .iter()
            .find(|entry| entry.key == name)
            .map(|entry| {
                let path = below(&self.field.source.field, name);
                self.field.child(path, &entry.value, entry.line)
            })
    }

    pub(crate) fn required(&mut self, name: &'static str) -> Option<Field<'a>> {
        let found = self.optional(name);
        if found.is_none() {
            self.field
                .sink
                .mistake(self.at(name), "is missing, and required");
        }
        found
    }

    /// Fields that the kind has, and that are accepted without a meaning here.
    pub(crate) fn ignored(&mut self, names: &[&'static str]) {
        self.known.extend(names);
    }

    /// Everything else that the kind has: it is for others, and checked by them.
    pub(crate) fn any_others(&mut self) {
        self.any_others = true;
    }

    /// Fields that the kind has, and that are not supported: to skip one would change what the
    /// document means.
    pub(crate) fn unsupported(&mut self, names: &[&'static str]) {
        self.refused(names, "is not supported yet");
    }

    /// Fields that are refused for a reason.
    pub(crate) fn refused(&mut self, names: &[&'static str], reason: &str) {
        for entry in self.entries {
            if names.contains(&entry.key.as_str()) {
                let source = Source {
                    line: entry.line,
                    ..self.at(&entry.key)
                };
                self.field.sink.mistake(source, reason);
            }
        }
        self.refused.extend(names);
    }

    /// Items of a list that may be absent.
    pub(crate) fn list(&mut self, name: &'static str) -> Vec<Field<'a>> {
        self.optional(name)
            .map(|field| field.list())
            .unwrap_or_default()
    }

    /// Reports fields that nobody asked for.
    pub(crate) fn finish(self) {
        if self.any_others {
            return;
        }
        for entry in self.entries {
            let key = entry.key.as_str();
            if self.known.contains(&key) || self.refused.contains(&key) {
                continue;
            }
            let source = Source {
                field: self.field.below(key).into(),
                line: entry.line,
                ..self.field.source.clone()
            };
            let near = self
                .known
                .iter()
                .map(|name| (distance(key, name), *name))
                .filter(|(distance, name)| *distance <= 2.max(name.len() / 3))
                .min();
            let message = match near {
                Some((_, name)) => format!("unknown field; did you mean `{name}`?"),
                None => {
                    let mut known = self.known.clone();
                    known.sort_unstable();
                    known.dedup();
                    match known.len() {
                        0 => "unknown field; expected none here".to_owned(),
                        _ => format!("unknown field; expected {}", one_of(known.iter().copied())),
                    }
                }
            };
            self.field.sink.mistake(source, message);
        }
    }
}

/// Edits between two names, upper and lower case alike; names that are too long are far from all.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 64 {
        return usize::MAX;
    }
    let a = a.to_ascii_lowercase();
    let b = b.to_ascii_lowercase();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A text in backticks, short.
pub(crate) fn quoted(text: &str) -> String {
    format!("`{}`", shortened(text))
}

#[cfg(test)]
mod tests {
    use super::{distance, one_of};

    #[test]
    fn near_names_are_near() {
        assert_eq!(distance("prot", "port"), 2);
        assert_eq!(distance("basepath", "basePath"), 0);
        assert_eq!(distance("", "port"), 4);
        assert_eq!(distance("componets", "components"), 1);
    }

    #[test]
    fn choices_read_as_a_sentence() {
        assert_eq!(one_of(["a"].into_iter()), "`a`");
        assert_eq!(one_of(["a", "b", "c"].into_iter()), "`a`, `b` or `c`");
    }
}
