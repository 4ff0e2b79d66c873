//! Bytes of a file to trees of values with line numbers.
//!
//! YAML and JSON end in the same [`Node`]. What the two can say beyond plain data (anchors, tags,
//! merge keys, duplicate keys) is refused here, so that the readers behind see plain data only.

use std::fmt;

mod json;
mod yaml;

/// Largest file, in bytes.
pub(crate) const MAX_FILE_BYTES: usize = 4 << 20;
/// Deepest nesting of lists and mappings. Recursion over a tree is bounded by it.
pub(crate) const MAX_DEPTH: usize = 64;

/// A value and the one-based line that it starts on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) value: Value,
}

/// Plain data.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    /// Any other number, as it was written.
    Number(String),
    String(String),
    List(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// One key of a mapping. Keys of one mapping are distinct.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) line: usize,
    pub(crate) key: String,
    pub(crate) value: Node,
}

impl Value {
    /// The entry of a mapping with this key.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match self {
            Self::Mapping(entries) => entries
                .iter()
                .find(|entry| entry.key == key)
                .map(|entry| &entry.value),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        match self {
            Self::Mapping(entries) => entries
                .iter_mut()
                .find(|entry| entry.key == key)
                .map(|entry| &mut entry.value),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }
}

/// What was given, short enough for a message.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "the boolean {value}"),
            Self::Integer(value) => write!(f, "the number {value}"),
            Self::Number(text) => write!(f, "the number {}", shortened(text)),
            Self::String(text) => write!(f, "`{}`", shortened(text)),
            Self::List(_) => f.write_str("a list"),
            Self::Mapping(_) => f.write_str("a mapping"),
        }
    }
}

/// A text for messages: one line, at most 80 characters.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => one_line(&text[..end]) + "…",
        None => one_line(text),
    }
}

/// A text whose control characters are escaped: messages go to terminals and logs.
fn one_line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Something in a file that is no plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// One-based line.
    pub(crate) line: usize,
    /// Path of the field, as in `Source`.
    pub(crate) field: String,
    pub(crate) message: String,
}

impl Fault {
    fn new(line: usize, field: String, message: impl Into<String>) -> Self {
        Self {
            line,
            field,
            message: message.into(),
        }
    }
}

/// One document of a file.
#[derive(Debug)]
pub(crate) struct Tree {
    /// One-based position in its file; documents without content do not count.
    pub(crate) position: usize,
    /// The data; absent if it could not be read at all.
    pub(crate) root: Option<Node>,
    /// What could be read of a root that could not: for naming the object in messages.
    pub(crate) partial: Option<Node>,
    /// What is wrong with its form. The root is as complete as it can be in spite of it.
    pub(crate) faults: Vec<Fault>,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// RFC 8259.
    Json,
    /// YAML 1.2.
    Yaml,
}

impl Form {
    /// Of a file by its name: `.json` is JSON, everything else YAML.
    pub(crate) fn of_name(path: &str) -> Self {
        match path.ends_with(".json") {
            true => Self::Json,
            false => Self::Yaml,
        }
    }

    /// Of an object, which has no file: a brace begins one in JSON.
    pub(crate) fn of_content(bytes: &[u8]) -> Self {
        match bytes.trim_ascii_start().first() {
            Some(b'{') => Self::Json,
            _ => Self::Yaml,
        }
    }
}

/// Reads a file.
pub(crate) fn read(form: Form, bytes: &[u8]) -> Vec<Tree> {
    let whole = |line: usize, message: String| {
        vec![Tree {
            position: 1,
            root: None,
            partial: None,
            faults: vec![Fault::new(line, String::new(), message)],
        }]
    };
    if bytes.len() > MAX_FILE_BYTES {
        return whole(
            0,
            format!(
                "file has {} bytes; expected at most {MAX_FILE_BYTES}",
                bytes.len()
            ),
        );
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            return whole(line, "expected UTF-8, got other bytes".to_owned());
        }
    };
    // A byte order mark is allowed at the start (YAML 1.2, section 5.2) and says nothing.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // What a full disk or an editor in the middle of its work leaves behind. Taken as no document, it would take
    // a policy away.
    if text.trim().is_empty() {
        return whole(
            0,
            "the file is empty; expected a document, or a comment to say that there is none"
                .to_owned(),
        );
    }
    match form {
        Form::Json => vec![json::read(text)],
        Form::Yaml => yaml::read(text),
    }
}

/// Path of a key below a field. Keys that are no plain words, such as host names, are quoted.
pub(crate) fn below(parent: &str, key: &str) -> String {
    // A path is made for every value: a long key must not be in all of them.
    let plain = (1..=80).contains(&key.len())
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    match (parent.is_empty(), plain) {
        (true, true) => key.to_owned(),
        (false, true) => format!("{parent}.{key}"),
        (_, false) => format!("{parent}[\"{}\"]", shortened(key)),
    }
}

#[cfg(test)]
mod tests;
