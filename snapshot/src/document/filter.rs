//! `HTTPRouteFilter` (Envoy Gateway): rewriting a path by a pattern.

use super::Meta;
use crate::model::{PathRewrite, Pattern};
use crate::reader::{Field, Object};

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, _meta: &Meta) -> Option<PathRewrite> {
    spec.unsupported(&["directResponse", "credentialInjection", "matches"]);
    let mut rewrite = spec.required("urlRewrite")?.object()?;
    rewrite.unsupported(&["hostname"]);
    let path = rewrite.required("path");
    rewrite.finish();
    let mut path = path?.object()?;
    if let Some(field) = path.required("type") {
        field.choice(&[("ReplaceRegexMatch", ())]);
    }
    let replace = path.required("replaceRegexMatch");
    path.finish();
    let mut replace = replace?.object()?;
    let pattern = replace
        .required("pattern")
        .and_then(|field| pattern(&field, Pattern::new));
    let substitution = replace.required("substitution");
    replace.finish();
    let (pattern, substitution) = (pattern?, substitution?);
    let groups = pattern.regex().captures_len();
    let substitution = substitution.parse(|text| expansion(text, groups))?;
    Some(PathRewrite::Regex {
        pattern,
        substitution,
    })
}

/// A regular expression; the message is the engine's, in one line.
pub(crate) fn pattern(
    field: &Field<'_>,
    compile: impl Fn(&str) -> Result<Pattern, regex::Error>,
) -> Option<Pattern> {
    field.parse(|text| {
        compile(text).map_err(|error| {
            let message = error.to_string();
            let last = message.lines().last().unwrap_or_default();
            format!(
                "expected a regular expression (RE2 syntax): {}",
                last.trim_start_matches("error: ")
            )
        })
    })
}

/// A substitution of RE2 (`\0` to `\9`, `\\`) as `regex::Captures::expand` reads it.
fn expansion(text: &str, groups: usize) -> Result<String, String> {
    let mut expansion = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '$' => expansion.push_str("$$"),
            '\\' => match characters.next() {
                Some('\\') => expansion.push('\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    let group = usize::from(digit as u8 - b'0');
                    if group >= groups {
                        return Err(format!(
                            "`\\{group}` stands for a group that the pattern does not have; it has {}",
                            groups - 1
                        ));
                    }
                    expansion.push_str(&format!("${{{group}}}"));
                }
                _ => {
                    return Err("expected `\\0` to `\\9` or `\\\\` behind a backslash".to_owned());
                }
            },
            _ => expansion.push(character),
        }
    }
    Ok(expansion)
}

#[cfg(test)]
mod tests {
    use super::expansion;

    #[test]
    fn substitutions_mean_what_re2_means() {
        let pattern = regex::Regex::new("^/a/([^/]+)/(.*)$").expect("pattern compiles");
        for (given, result) in [
            (r"/\2/\1", "/c/b"),
            (r"/$1/\10", "/$1/b0"),
            (r"\0", "/a/b/c"),
            (r"/\\1", r"/\1"),
            ("/${2}", "/${2}"),
        ] {
            let expansion = expansion(given, pattern.captures_len()).expect(given);
            assert_eq!(
                pattern.replace_all("/a/b/c", &*expansion),
                result,
                "{given}"
            );
        }
        for given in [r"\3", r"\x", "\\"] {
            assert!(expansion(given, pattern.captures_len()).is_err(), "{given}");
        }
    }
}
