//! What is said about documents that are wrong, or right but without effect.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::lasting::common;

/// A document: its file, and its place in the file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The file as given to the parser, relative to the configuration folder.
    pub file: Arc<str>,
    /// One-based position of the document in its file.
    pub document: usize,
    /// `Kind namespace/name` of the document where it is known, else empty.
    pub object: Arc<str>,
}

/// Where a value was written: document, and field path. It has what its [`Place`] has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// The document, which all sources in it have in common.
    pub(crate) place: Arc<Place>,
    /// Path of the field, such as `spec.egress.south[1].cidrs[0]`; empty for the whole document.
    pub field: Arc<str>,
    /// One-based line of the value, 0 where it is not known.
    pub line: usize,
}

impl Deref for Source {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Source {
    /// A whole document.
    pub fn new(file: impl Into<Arc<str>>, document: usize, object: impl Into<Arc<str>>) -> Self {
        let place = Place {
            file: file.into(),
            document,
            object: object.into(),
        };
        Self {
            place: Arc::new(place),
            field: common(""),
            line: 0,
        }
    }

    /// The same document, at another field.
    pub fn at(&self, field: impl Into<Arc<str>>) -> Self {
        Self {
            field: field.into(),
            ..self.clone()
        }
    }

    /// The same, to be kept for as long as the document is there.
    pub(crate) fn lasting(&self) -> Self {
        self.at(common(&self.field))
    }

    /// Orders what was found by file, document and line.
    pub(crate) fn position(&self) -> (&str, usize, usize) {
        (&self.file, self.document, self.line)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if self.document > 1 || self.object.is_empty() {
            write!(f, " document {}", self.document)?;
        }
        if !self.object.is_empty() {
            write!(f, " ({})", self.object)?;
        }
        if !self.field.is_empty() {
            write!(f, " {}", self.field)?;
        }
        Ok(())
    }
}

/// One thing that is wrong, and what was expected instead.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Where.
    pub source: Source,
    /// What is wrong and what was expected; lower case, no full stop.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.message)
    }
}

/// Something that is valid but has no effect, or less than its author may think.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// Where.
    pub source: Source,
    /// What has no effect, and why.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.message)
    }
}

/// Every mistake of a set of documents, in file order. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejections {
    /// The mistakes.
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for Rejections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Rejections {}
