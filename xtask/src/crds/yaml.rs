//! JSON as the YAML that people read: block style, keys in the order of the alphabet, long texts folded.

use std::fmt::Write as _;

use serde_json::Value;

/// Columns after which a text is folded.
const WIDTH: usize = 110;

/// A document.
pub(super) fn document(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

/// The lines of a mapping or a list at a depth.
fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            for (key, value) in entries {
                let _infallible = write!(text, "{indent}{}:", scalar(key));
                after(value, depth, text);
            }
        }
        Value::Array(items) => {
            for item in items {
                let mut inner = String::new();
                if is_block(item) {
                    block(item, depth + 1, &mut inner);
                    // The dash takes the place of the first line's indentation.
                    let rest = inner.trim_start_matches(' ');
                    let _infallible = write!(text, "{indent}- {rest}");
                } else {
                    let _infallible = write!(text, "{indent}-");
                    after(item, depth, text);
                }
            }
        }
        other => {
            let _infallible = writeln!(text, "{indent}{}", plain(other));
        }
    }
}

/// What follows a key or a dash: on its line, or below it.
fn after(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::String(long) if is_foldable(long) => {
            let indent = "  ".repeat(depth + 1);
            text.push_str(" >-\n");
            let mut line = String::new();
            for word in long.split(' ') {
                if !line.is_empty() && indent.len() + line.len() + 1 + word.len() > WIDTH {
                    let _infallible = writeln!(text, "{indent}{line}");
                    line.clear();
                }
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
            let _infallible = writeln!(text, "{indent}{line}");
        }
        _ if is_block(value) => {
            text.push('\n');
            block(value, depth + 1, text);
        }
        _ => {
            let _infallible = writeln!(text, " {}", plain(value));
        }
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// Folding keeps a text only if single blanks are all the space that it has.
fn is_foldable(text: &str) -> bool {
    text.len() > WIDTH
        && !text.contains("  ")
        && !text.contains(['\n', '\t'])
        && text.trim() == text
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        // Empty mappings and lists, numbers and truth values are the same in JSON.
        other => other.to_string(),
    }
}

/// A text without quotes where nothing else could be read out of it, else as JSON, which YAML includes.
fn scalar(text: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || "-_./$".contains(c);
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '$' || c == '.');
    let taken = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
        .contains(&text.to_ascii_lowercase().as_str());
    let sentence = text.chars().all(|c| word(c) || " ,;()".contains(c)) && text.trim() == text;
    if starts && !taken && sentence && !text.ends_with('.') {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::document;

    #[test]
    fn what_could_be_read_as_something_else_is_quoted() {
        let text = document(&json!({
            "b": ["True", "on", "1", "a: b", "- a", "plain words", "#x", ""],
            "a": { "list": [{ "name": "x", "more": [1, true] }, []], "none": {}, "text": "a\nb" },
        }));
        assert_eq!(
            text,
            "a:\n  list:\n    - more:\n        - 1\n        - true\n      name: x\n    - []\n  none: {}\n  text: \"a\\nb\"\n\
             b:\n  - \"True\"\n  - \"on\"\n  - \"1\"\n  - \"a: b\"\n  - \"- a\"\n  - plain words\n  - \"#x\"\n  - \"\"\n"
        );
    }

    #[test]
    fn a_long_text_is_folded_between_words() {
        let long = vec!["word"; 40].join(" ");
        let text = document(&json!({ "description": long }));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "description: >-");
        assert!(lines.iter().all(|line| line.len() <= super::WIDTH));
        let folded: Vec<_> = lines[1..].iter().map(|line| line.trim()).collect();
        assert_eq!(folded.join(" "), long);
    }
}
