//! `StringMatch` (Envoy Gateway): how a text looks, alike wherever policies ask for one.

use crate::model::{Pattern, StringMatch};
use crate::reader::Field;

#[derive(Clone, Copy)]
enum Kind {
    Exact,
    Prefix,
    Suffix,
    Regex,
}

/// Reads one.
pub(crate) fn string_match(field: &Field<'_>) -> Option<StringMatch> {
    read(field, str::to_owned)
}

/// The same for texts that have no upper case: what is written is taken in lower case, but for patterns.
pub(crate) fn lower_case_match(field: &Field<'_>) -> Option<StringMatch> {
    read(field, str::to_ascii_lowercase)
}

fn read(field: &Field<'_>, written: fn(&str) -> String) -> Option<StringMatch> {
    let mut object = field.object()?;
    let kind = match object.optional("type") {
        Some(field) => field.choice(&[
            ("Exact", Kind::Exact),
            ("Prefix", Kind::Prefix),
            ("Suffix", Kind::Suffix),
            ("RegularExpression", Kind::Regex),
        ]),
        None => Some(Kind::Exact),
    };
    let value = object.required("value");
    object.finish();
    let (kind, value) = (kind?, value?);
    let text = written(value.some_string()?);
    Some(match kind {
        Kind::Exact => StringMatch::Exact(text),
        Kind::Prefix => StringMatch::Prefix(text),
        Kind::Suffix => StringMatch::Suffix(text),
        Kind::Regex => StringMatch::Regex(value.parse(Pattern::whole)?),
    })
}
