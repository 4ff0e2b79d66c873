//! Patterns of operations. Their text decides which of two is asked first, so it is OpenChoreo's to the letter.

use crate::document::cell::Strictness;

/// Collapses slashes, resolves dot segments by text, drops a trailing slash.
pub(crate) fn clean(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            _ => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

/// The pattern of an operation from its base path and target as written, and the whole path with
/// parameters in braces. The group is what OpenChoreo sends upstream; here it only keeps the text,
/// and with it the precedence, the same.
pub(crate) fn operation_pattern(
    base_path: &str,
    target: &str,
    full: &str,
    strictness: Strictness,
) -> String {
    let wanted = one_slash_at_the_ends(&format!("{base_path}{target}"));
    match full.find(&wanted).filter(|_| !wanted.is_empty()) {
        None => format!("^{}$", expand(full, strictness)),
        Some(at) => {
            let (before, rest) = full.split_at(at);
            format!("^{}({})$", escape(before), expand(rest, strictness))
        }
    }
}

fn one_slash_at_the_ends(path: &str) -> String {
    let front = path.trim_start_matches('/');
    let middle = front.trim_end_matches('/');
    let start = if front.len() < path.len() { "/" } else { "" };
    let end = if middle.len() < front.len() { "/" } else { "" };
    format!("{start}{middle}{end}")
}

/// One segment that is not empty.
const PARAMETER: &str = "[^/]+";

/// Parameters become one segment that is not empty, the rest stands for itself. OpenChoreo takes two texts for parameters
/// as well: the pattern of one, and the mark that it puts in their place while it escapes the rest.
pub(crate) fn expand(path: &str, strictness: Strictness) -> String {
    let literal = |text: &str| {
        let escaped = escape(text);
        match strictness {
            Strictness::Strict => escaped,
            Strictness::Compat => escaped
                .replace(&escape(PARAMETER), PARAMETER)
                .replace("REGEX_PATTERN_PLACEHOLDER", PARAMETER),
        }
    };
    let mut pattern = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(open) = rest.find('{') {
        let (text, behind) = rest.split_at(open);
        pattern.push_str(&literal(text));
        match behind[1..].find('}') {
            Some(length) if length > 0 => {
                pattern.push_str(PARAMETER);
                rest = &behind[length + 2..];
            }
            _ => {
                pattern.push_str("\\{");
                rest = &behind[1..];
            }
        }
    }
    pattern.push_str(&literal(rest));
    pattern
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if "\\.+*?()|[]{}^$".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}
