//! Paths in documents: base paths, and path templates with parameters.

use crate::model::DocumentPath;
use crate::path::PathError;
use crate::tree::shortened;

/// A path as it was written, and in canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    /// As written, except that bytes are encoded as in canonical paths: what the text of an
    /// operation's pattern is made of, which keeps or lacks slashes as its author did.
    pub(crate) text: String,
    /// With a leading slash; a trailing one stays.
    pub(crate) path: DocumentPath,
}

/// Whether a path may have parameters such as `{id}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parameters {
    Allowed,
    Refused,
    /// What is no parameter stands for itself, as in OpenChoreo: a single brace, `{}`.
    Unchecked,
}

impl Template {
    /// Checks a path. A leading slash may be missing; doubled slashes and dot segments are refused,
    /// as it is not clear what their author expects.
    pub(crate) fn new(text: &str, parameters: Parameters) -> Result<Self, String> {
        let given = shortened(text);
        if text.contains(['?', '#']) {
            return Err(format!(
                "expected a path without query and fragment, got `{given}`"
            ));
        }
        if text.contains("//") {
            return Err(format!("doubled slash in `{given}`"));
        }
        if text.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(format!("`.` or `..` as segment of `{given}`"));
        }
        check_braces(text, parameters)?;
        // Outside of ASCII a path is UTF-8, percent-encoded (RFC 3987, section 3.1).
        let mut encoded = String::with_capacity(text.len() + 1);
        if !text.starts_with('/') {
            encoded.push('/');
        }
        for character in text.chars() {
            if character.is_ascii() && character != ' ' {
                encoded.push(character);
                continue;
            }
            let mut buffer = [0; 4];
            for byte in character.encode_utf8(&mut buffer).bytes() {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        }
        let path = DocumentPath::new(&encoded)
            .map_err(|error: PathError| format!("{error}: `{given}`"))?;
        let text = match text.starts_with('/') {
            true => path.as_str().to_owned(),
            false => path.as_str().trim_start_matches('/').to_owned(),
        };
        Ok(Self { text, path })
    }
}

fn check_braces(text: &str, parameters: Parameters) -> Result<(), String> {
    if parameters == Parameters::Unchecked {
        return Ok(());
    }
    let given = shortened(text);
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        if parameters == Parameters::Refused {
            return Err(format!("expected a path without braces, got `{given}`"));
        }
        let open = rest[at..].strip_prefix('{');
        let name = open.and_then(|open| open.split_once('}'));
        let Some((name, behind)) = name else {
            return Err(format!(
                "expected parameters as `{{name}}`, got a single brace in `{given}`"
            ));
        };
        if name.is_empty() || name.contains(['{', '/', '%']) {
            return Err(format!(
                "expected parameters as `{{name}}`, without `/`, `{{` and `%`, got `{{{}}}` in `{given}`",
                shortened(name)
            ));
        }
        rest = behind;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Parameters, Template};

    #[test]
    fn templates_are_checked_once() {
        for (given, text, path) in [
            ("", "", "/"),
            ("/", "/", "/"),
            ("api", "api", "/api"),
            ("/api/", "/api/", "/api/"),
            ("/books/{id}", "/books/{id}", "/books/{id}"),
            ("/caf\u{e9}/a b", "/caf%C3%A9/a%20b", "/caf%C3%A9/a%20b"),
            ("/%61", "/a", "/a"),
        ] {
            let template = Template::new(given, Parameters::Allowed).expect(given);
            assert_eq!(
                (template.text.as_str(), template.path.as_str()),
                (text, path)
            );
        }
        for given in [
            "//", "/a//b", "/a/../b", "/.", "/a?b", "/a#b", "/{", "/}", "/{}", "/{a{b}}", "/{a/b}",
            "/a%2fb", "/a%", "/a\\b", "/a\0",
        ] {
            assert!(
                Template::new(given, Parameters::Allowed).is_err(),
                "{given}"
            );
        }
        assert!(Template::new("/{id}", Parameters::Refused).is_err());
        for given in ["/{", "/{}", "/{a{b}}", "/{a/b}"] {
            let template = Template::new(given, Parameters::Unchecked).expect(given);
            assert_eq!(template.text, given);
        }
    }
}
