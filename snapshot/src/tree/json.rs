//! JSON through `serde_json`.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::io;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Entry, Fault, MAX_DEPTH, Node, Tree, Value, below, one_line};

/// Reads the one document of a file; nothing but blanks may follow it.
pub(super) fn read(text: &str) -> Tree {
    let lines = Lines::default();
    let mut faults = Vec::new();
    let mut reader = serde_json::Deserializer::from_reader(Counted {
        rest: text.as_bytes(),
        lines: &lines,
    });
    let seed = Seed {
        lines: &lines,
        faults: &mut faults,
        path: String::new(),
        depth: 0,
    };
    let root = seed
        .deserialize(&mut reader)
        .and_then(|root| reader.end().map(|()| root));
    let root = match root {
        Ok(root) => Some(root),
        Err(error) => {
            let message = error.to_string();
            // The position is a field of its own.
            let message = message.split(" at line ").next().unwrap_or_default();
            faults.push(Fault::new(
                error.line(),
                String::new(),
                format!("not valid JSON: {}", one_line(message)),
            ));
            None
        }
    };
    Tree {
        position: 1,
        root,
        partial: None,
        faults,
    }
}

/// Line of the byte that was read last. A line ends when the byte after its end is read, so that a
/// number, whose end shows only in the byte behind it, still has its own line.
#[derive(Default)]
struct Lines {
    current: Cell<usize>,
    ended: Cell<bool>,
}

impl Lines {
    fn now(&self) -> usize {
        self.current.get() + 1
    }
}

struct Counted<'a> {
    rest: &'a [u8],
    lines: &'a Lines,
}

impl io::Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // One byte at a time, as `serde_json` asks for it; more would count ahead of it.
        let (Some((first, rest)), Some(slot)) = (self.rest.split_first(), buffer.first_mut())
        else {
            return Ok(0);
        };
        if self.lines.ended.get() {
            self.lines.current.set(self.lines.current.get() + 1);
        }
        self.lines.ended.set(*first == b'\n');
        *slot = *first;
        self.rest = rest;
        Ok(1)
    }
}

struct Seed<'a> {
    lines: &'a Lines,
    faults: &'a mut Vec<Fault>,
    path: String,
    depth: usize,
}

impl Seed<'_> {
    fn node(&self, value: Value) -> Node {
        Node {
            line: self.lines.now(),
            value,
        }
    }

    fn deeper<E: serde::de::Error>(&self) -> Result<usize, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(self.depth + 1)
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(self.node(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(self.node(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(self.node(Value::Integer(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        let value =
            i64::try_from(value).map_or_else(|_| Value::Number(value.to_string()), Value::Integer);
        Ok(self.node(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(self.node(Value::Number(value.to_string())))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(self.node(Value::String(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let depth = self.deeper()?;
        let line = self.lines.now();
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(Seed {
            lines: self.lines,
            faults: &mut *self.faults,
            path: format!("{}[{}]", self.path, items.len()),
            depth,
        })? {
            items.push(item);
        }
        Ok(Node {
            line,
            value: Value::List(items),
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let depth = self.deeper()?;
        let start = self.lines.now();
        let mut keys = HashSet::new();
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<String>()? {
            let line = self.lines.now();
            let path = below(&self.path, &key);
            let value = access.next_value_seed(Seed {
                lines: self.lines,
                faults: &mut *self.faults,
                path: path.clone(),
                depth,
            })?;
            if keys.insert(key.clone()) {
                entries.push(Entry { line, key, value });
            } else {
                self.faults
                    .push(Fault::new(line, path, "key is there twice"));
            }
        }
        Ok(Node {
            line: start,
            value: Value::Mapping(entries),
        })
    }
}
