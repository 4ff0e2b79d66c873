//! YAML 1.2 through the events of `saphyr-parser`.

use std::borrow::Cow;
use std::collections::HashSet;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::{Entry, Fault, MAX_DEPTH, Node, Tree, Value, below, one_line};

/// Reads every document of a file. Each is parsed on its own, so that a mistake in one hides no other.
pub(super) fn read(text: &str) -> Vec<Tree> {
    let mut trees = Vec::new();
    for (line, chunk) in documents(text) {
        let mut builder = Builder::new(line);
        builder.run(chunk);
        if builder.root.is_none() && builder.faults.is_empty() {
            continue;
        }
        trees.push(Tree {
            position: trees.len() + 1,
            root: builder.root,
            partial: builder.partial,
            faults: builder.faults,
        });
    }
    trees
}

/// Splits a file before every line that starts with `---` and a blank: nothing inside of a document
/// can look so (YAML 1.2.2, section 9.1.2, `c-forbidden`). Each part comes with the number of lines
/// in front of it.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > start {
            parts.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, number);
        }
        offset += line.len();
    }
    parts.push((start_line, &text[start..]));
    parts
}

/// A list or mapping that is not closed yet.
struct Open {
    node: Node,
    path: String,
    /// Keys seen so far.
    keys: HashSet<String>,
    /// A key that waits for its value.
    key: Option<Key>,
}

struct Key {
    line: usize,
    text: String,
    /// A key that was refused: its value is read and dropped.
    refused: bool,
    /// A list or mapping in the place of a key: what comes first is its own end.
    collection: bool,
}

impl Key {
    /// A key that is no text; its value is still read.
    fn refused(line: usize, collection: bool) -> Self {
        Self {
            line,
            text: String::new(),
            refused: true,
            collection,
        }
    }
}

struct Builder {
    lines_before: usize,
    stack: Vec<Open>,
    root: Option<Node>,
    partial: Option<Node>,
    faults: Vec<Fault>,
}

impl Builder {
    fn new(lines_before: usize) -> Self {
        Self {
            lines_before,
            stack: Vec::new(),
            root: None,
            partial: None,
            faults: Vec::new(),
        }
    }

    fn run(&mut self, text: &str) {
        let mut parser = Parser::new_from_str(text);
        let mut documents = 0;
        while let Some(event) = parser.next_event() {
            let (event, span) = match event {
                Ok(event) => event,
                Err(error) => {
                    let line = self.lines_before + error.marker().line();
                    let path = self.path();
                    self.faults.push(Fault::new(
                        line,
                        path,
                        format!("not valid YAML: {}", one_line(error.info())),
                    ));
                    self.give_up();
                    return;
                }
            };
            let line = self.lines_before + span.start.line();
            match event {
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents > 1 {
                        self.faults.push(Fault::new(
                            line,
                            String::new(),
                            "expected a line `---` in front of the next document",
                        ));
                        return;
                    }
                }
                Event::Scalar(text, style, anchor, tag) => {
                    self.plain(line, anchor, tag.is_some());
                    self.scalar(line, text, style);
                }
                Event::SequenceStart(anchor, tag) => {
                    self.plain(line, anchor, tag.is_some());
                    if !self.open(line, Value::List(Vec::new())) {
                        return;
                    }
                }
                Event::MappingStart(anchor, tag) => {
                    self.plain(line, anchor, tag.is_some());
                    if !self.open(line, Value::Mapping(Vec::new())) {
                        return;
                    }
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    if let Some(open) = self.stack.pop() {
                        self.place(open.node);
                    }
                }
                Event::Alias(_) => {
                    let path = self.path();
                    self.faults.push(Fault::new(
                        line,
                        path,
                        "aliases (`*name`) are not accepted; write the value out",
                    ));
                    if self.at_key() {
                        if let Some(open) = self.stack.last_mut() {
                            open.key = Some(Key::refused(line, false));
                        }
                    } else {
                        self.place(Node {
                            line,
                            value: Value::Null,
                        });
                    }
                }
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            }
        }
        // A document of nothing but comments is no document.
        if self
            .root
            .as_ref()
            .is_some_and(|root| root.value == Value::Null)
        {
            self.root = None;
        }
    }

    /// Whether a key comes next.
    fn at_key(&self) -> bool {
        self.stack
            .last()
            .is_some_and(|open| matches!(open.node.value, Value::Mapping(_)) && open.key.is_none())
    }

    fn give_up(&mut self) {
        self.partial = self.stack.drain(..).next().map(|open| open.node);
        self.root = None;
    }

    /// Path of the value that comes next.
    fn path(&self) -> String {
        let Some(open) = self.stack.last() else {
            return String::new();
        };
        match (&open.node.value, &open.key) {
            (Value::List(items), _) => format!("{}[{}]", open.path, items.len()),
            (_, Some(key)) => below(&open.path, &key.text),
            (_, None) => open.path.clone(),
        }
    }

    fn plain(&mut self, line: usize, anchor: usize, tag: bool) {
        for (found, what) in [(anchor != 0, "anchors (`&name`)"), (tag, "tags (`!name`)")] {
            if found {
                let path = self.path();
                self.faults.push(Fault::new(
                    line,
                    path,
                    format!("{what} are not accepted; write the plain value"),
                ));
            }
        }
    }

    /// Opens a list or mapping; false if the document is too deep to go on.
    fn open(&mut self, line: usize, value: Value) -> bool {
        let path = self.path();
        if self.stack.len() >= MAX_DEPTH {
            self.faults.push(Fault::new(
                line,
                String::new(),
                format!("nested deeper than {MAX_DEPTH} levels"),
            ));
            self.give_up();
            return false;
        }
        // A list or mapping where a key belongs: remember that, and read its value to the end.
        if self.at_key()
            && let Some(open) = self.stack.last_mut()
        {
            open.key = Some(Key::refused(line, true));
            self.faults.push(Fault::new(
                line,
                path.clone(),
                "expected a text as key, got a list or a mapping; put quotes around text that starts with `{` or `[`",
            ));
        }
        self.stack.push(Open {
            node: Node { line, value },
            path,
            keys: HashSet::new(),
            key: None,
        });
        true
    }

    fn scalar(&mut self, line: usize, text: Cow<'_, str>, style: ScalarStyle) {
        if !self.at_key() {
            let value = if style == ScalarStyle::Plain {
                resolved(text)
            } else {
                Value::String(text.into_owned())
            };
            self.place(Node { line, value });
            return;
        }
        let text = text.into_owned();
        let merge = style == ScalarStyle::Plain && text == "<<";
        let Some(open) = self.stack.last_mut() else {
            return;
        };
        let duplicate = !open.keys.insert(text.clone());
        let path = below(&open.path, &text);
        open.key = Some(Key {
            line,
            text,
            refused: merge || duplicate,
            collection: false,
        });
        if merge {
            self.faults.push(Fault::new(
                line,
                path,
                "merge keys (`<<`) are not accepted; write the fields out",
            ));
        } else if duplicate {
            self.faults
                .push(Fault::new(line, path, "key is there twice"));
        }
    }

    fn place(&mut self, node: Node) {
        let Some(open) = self.stack.last_mut() else {
            self.root = Some(node);
            return;
        };
        match &mut open.node.value {
            Value::List(items) => items.push(node),
            Value::Mapping(entries) => {
                let Some(key) = open.key.take() else { return };
                if key.collection {
                    open.key = Some(Key::refused(key.line, false));
                } else if !key.refused {
                    entries.push(Entry {
                        line: key.line,
                        key: key.text,
                        value: node,
                    });
                }
            }
            _ => {}
        }
    }
}

/// A plain scalar by the core schema (YAML 1.2.2, section 10.3.2).
fn resolved(text: Cow<'_, str>) -> Value {
    match &*text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let based = |digits: &str, base: u32| {
        let valid = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(base));
        valid.then(|| {
            i64::from_str_radix(digits, base)
                .map_or_else(|_| Value::Number((*text).to_owned()), Value::Integer)
        })
    };
    let number = text
        .strip_prefix("0o")
        .and_then(|digits| based(digits, 8))
        .or_else(|| text.strip_prefix("0x").and_then(|digits| based(digits, 16)))
        .or_else(|| decimal(&text));
    number.unwrap_or_else(|| Value::String(text.into_owned()))
}

/// `[-+]?[0-9]+`, or a float of the core schema.
fn decimal(text: &str) -> Option<Value> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !unsigned.is_empty() && unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(
            text.parse()
                .map_or_else(|_| Value::Number(text.to_owned()), Value::Integer),
        );
    }
    let special =
        matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN");
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let mantissa = match mantissa.split_once('.') {
        Some((whole, fraction)) => {
            digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty())
        }
        None => digits(mantissa) && !mantissa.is_empty(),
    };
    let exponent = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        digits(exponent) && !exponent.is_empty()
    });
    (special || (mantissa && exponent)).then(|| Value::Number(text.to_owned()))
}
