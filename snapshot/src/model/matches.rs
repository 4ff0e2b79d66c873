//! What a request must look like for a rule.

use std::sync::{Arc, LazyLock};

use super::DocumentPath;

/// What a request must look like. All parts must match.
#[derive(Clone, Debug)]
pub struct RequestMatch {
    /// Path.
    pub path: PathMatch,
    /// Method, upper case.
    pub method: Option<String>,
    /// Headers by lower-case name; each name once.
    pub headers: Vec<(String, TextMatch)>,
    /// Parameters of the query by name, percent-decoded; each name once.
    pub query: Vec<(String, TextMatch)>,
}

impl RequestMatch {
    /// Every request with such a path.
    pub fn new(path: PathMatch) -> Self {
        Self {
            path,
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
        }
    }

    /// The matches of a rule that takes every request, which most rules are: one place for all of them.
    pub(crate) fn every() -> Arc<[Self]> {
        static EVERY: LazyLock<Arc<[RequestMatch]>> =
            LazyLock::new(|| [RequestMatch::new(PathMatch::Prefix(DocumentPath::root()))].into());
        Arc::clone(&EVERY)
    }

    /// Whether it takes every request.
    pub(crate) fn is_every(&self) -> bool {
        let any_path = matches!(&self.path, PathMatch::Prefix(path) if path.as_str() == "/");
        any_path && self.method.is_none() && self.headers.is_empty() && self.query.is_empty()
    }
}

/// How the value of a header or query parameter matches.
#[derive(Clone, Debug)]
pub enum TextMatch {
    /// Byte for byte.
    Exact(String),
    /// The whole value, in linear time.
    Regex(Pattern),
}

impl TextMatch {
    /// Whether a value matches. What is no UTF-8 is read with replacement characters by a pattern.
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(expected) => expected.as_bytes() == value,
            Self::Regex(pattern) => pattern.regex().is_match(&String::from_utf8_lossy(value)),
        }
    }
}

/// How a text looks (Envoy Gateway, `StringMatch`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    /// Byte for byte.
    Exact(String),
    /// Its beginning.
    Prefix(String),
    /// Its end.
    Suffix(String),
    /// The whole text, in linear time.
    Regex(Pattern),
}

impl StringMatch {
    /// Whether a text looks so.
    pub fn fits(&self, text: &str) -> bool {
        match self {
            Self::Exact(value) => text == value,
            Self::Prefix(value) => text.starts_with(value.as_str()),
            Self::Suffix(value) => text.ends_with(value.as_str()),
            Self::Regex(pattern) => pattern.regex().is_match(text),
        }
    }
}

/// How a path matches.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// Byte for byte.
    Exact(DocumentPath),
    /// By whole segments; a trailing slash of the prefix says nothing.
    Prefix(DocumentPath),
    /// The whole path, in linear time.
    Regex(Pattern),
    /// A path of two segments that names a call of gRPC.
    Call(CallMatch),
}

/// How a call of gRPC matches, whose path is `/{service}/{method}` (gRPC over HTTP/2, `Path`). What is none
/// is any.
#[derive(Clone, Debug, Default)]
pub struct CallMatch {
    /// Name of the service, with its package.
    pub service: Option<TextMatch>,
    /// Name of the method.
    pub method: Option<TextMatch>,
}

/// A pattern that compiles. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: Arc<str>,
    regex: Arc<regex::Regex>,
}

/// Two are the same if they are written the same and compiled to the same.
impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.regex.as_str() == other.regex.as_str()
    }
}

impl Eq for Pattern {}

impl Pattern {
    /// Compiles a pattern as it stands.
    pub fn new(pattern: &str) -> Result<Self, regex::Error> {
        Ok(Self {
            text: pattern.into(),
            regex: Arc::new(compiled(pattern)?),
        })
    }

    /// Compiles a pattern that must match a whole text.
    pub fn whole(pattern: &str) -> Result<Self, regex::Error> {
        // On its own first: `a)(b` is no pattern, and would become one inside of a group.
        Self::new(pattern)?;
        let regex = compiled(&format!("^(?:{pattern})$"))?;
        Ok(Self {
            text: pattern.into(),
            regex: Arc::new(regex),
        })
    }

    /// Compiles a pattern that must match a whole text, and stands for one that does not compile: it has the precedence of what was
    /// `written`.
    pub(crate) fn in_place_of(written: &str, pattern: &str) -> Result<Self, regex::Error> {
        Ok(Self {
            text: written.into(),
            ..Self::whole(pattern)?
        })
    }

    /// The pattern as it was written; precedence counts its characters.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The compiled pattern.
    pub fn regex(&self) -> &regex::Regex {
        &self.regex
    }
}

/// Compiles a pattern of bounded size: a short one can stand for a machine of many megabytes, and a
/// document has many patterns.
fn compiled(pattern: &str) -> Result<regex::Regex, regex::Error> {
    const MAX_BYTES: usize = 1 << 20;
    regex::RegexBuilder::new(pattern)
        .size_limit(MAX_BYTES)
        .build()
}
