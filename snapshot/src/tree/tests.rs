use super::{Fault, Form, Node, Tree, Value};

fn faults(trees: &[Tree]) -> Vec<(usize, &str, &str)> {
    trees
        .iter()
        .flat_map(|tree| &tree.faults)
        .map(
            |Fault {
                 line,
                 field,
                 message,
             }| (*line, field.as_str(), message.as_str()),
        )
        .collect()
}

fn read(name: &str, bytes: &[u8]) -> Vec<Tree> {
    super::read(Form::of_name(name), bytes)
}

fn value(text: &str) -> Value {
    let mut trees = read("a.yaml", text.as_bytes());
    assert_eq!(faults(&trees), [], "{text}");
    trees.remove(0).root.expect("document has a root").value
}

#[test]
fn plain_scalars_follow_the_core_schema() {
    let integer = Value::Integer;
    let text = |text: &str| Value::String(text.to_owned());
    let number = |text: &str| Value::Number(text.to_owned());
    for (given, expected) in [
        ("80", integer(80)),
        ("-1", integer(-1)),
        ("+1", integer(1)),
        ("0o17", integer(15)),
        ("0x1F", integer(31)),
        ("017", integer(17)),
        ("99999999999999999999", number("99999999999999999999")),
        ("1.5", number("1.5")),
        ("1e3", number("1e3")),
        ("-.5", number("-.5")),
        (".inf", number(".inf")),
        ("\"80\"", text("80")),
        ("'80'", text("80")),
        ("yes", text("yes")),
        ("on", text("on")),
        ("true", Value::Bool(true)),
        ("False", Value::Bool(false)),
        ("0x", text("0x")),
        ("1.2.3", text("1.2.3")),
        ("e3", text("e3")),
        (".", text(".")),
        (
            "-",
            Value::List(vec![Node {
                line: 1,
                value: Value::Null,
            }]),
        ),
        ("10.0.0.1", text("10.0.0.1")),
    ] {
        assert_eq!(
            value(&format!("a: {given}\n").replace("a: -\n", "-\n")),
            match given {
                "-" => expected,
                _ => Value::Mapping(vec![super::Entry {
                    line: 1,
                    key: "a".to_owned(),
                    value: Node {
                        line: 1,
                        value: expected
                    },
                }]),
            },
            "{given}"
        );
    }
}

#[test]
fn a_fault_in_one_document_hides_no_other() {
    let trees = read(
        "a.yaml",
        b"# nothing\n---\na: 1\na: 2\n---\nb: [\n---\nc: &x 1\nd: *x\n---\ne: |\n  text\n  --- no marker\n",
    );
    let lines: Vec<_> = faults(&trees)
        .into_iter()
        .map(|(line, field, message)| {
            (
                line,
                field,
                message
                    .split(['(', ':', ';'])
                    .next()
                    .unwrap_or_default()
                    .trim(),
            )
        })
        .collect();
    assert_eq!(trees.len(), 4);
    assert_eq!(
        lines,
        [
            (4, "a", "key is there twice"),
            (7, "b[0]", "not valid YAML"),
            (8, "c", "anchors"),
            (9, "d", "aliases"),
        ]
    );
}

#[test]
fn what_is_no_plain_data_is_refused() {
    for (given, part) in [
        (&b"a: !!str 1\n"[..], "tags"),
        (b"a: {<<: {b: 1}}\n", "merge keys"),
        (b"? [a]\n: b\n", "as key"),
        (b"a: \xff\n", "UTF-8"),
        (b"a: 1\n...\nb: 2\n", "`---`"),
        (b"a: \"b\n", "not valid YAML"),
        (b"%YAML 1.2\n---\na: 1\n", "not valid YAML"),
    ] {
        let trees = read("a.yaml", given);
        let faults = faults(&trees);
        assert!(
            faults.iter().any(|(_, _, message)| message.contains(part)),
            "{:?} {faults:?}",
            String::from_utf8_lossy(given)
        );
    }
}

#[test]
fn an_emptied_file_is_refused_and_one_of_comments_is_not() {
    for (name, given) in [
        ("a.yaml", ""),
        ("a.yaml", "\u{feff}\n \r\n"),
        ("a.json", "\n"),
    ] {
        let trees = read(name, given.as_bytes());
        let faults = faults(&trees);
        assert!(faults[0].2.contains("the file is empty"), "{faults:?}");
    }
    for given in ["# nothing\n", "---\n# nothing\n---\n"] {
        assert!(read("a.yaml", given.as_bytes()).is_empty(), "{given:?}");
    }
}

#[test]
fn what_is_no_text_is_refused_at_its_line() {
    let trees = read("a.yaml", b"a: 1\nb: 2\nc: \xe9\n");
    assert_eq!(faults(&trees), [(3, "", "expected UTF-8, got other bytes")]);
}

#[test]
fn what_follows_a_refused_key_is_read() {
    for key in [
        "? [a, {b: c}]\n: {d: e}",
        "? {a: b}\n: [c]",
        "<<: {a: b}",
        "? *x\n: {y: z}",
    ] {
        let text = format!("x0: &x 1\n{key}\nafter: 1\n");
        let trees = read("a.yaml", text.as_bytes());
        assert!(!trees[0].faults.is_empty(), "{text}");
        let root = trees[0].root.as_ref().expect("document has a root");
        let Value::Mapping(entries) = &root.value else {
            panic!("{root:?}");
        };
        let keys: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(keys, ["x0", "after"], "{text}");
    }
}

#[test]
fn nesting_is_limited() {
    for name in ["a.yaml", "a.json"] {
        for depth in [65, 100, 200_000] {
            let trees = read(name, "[".repeat(depth).as_bytes());
            assert!(trees[0].root.is_none());
            assert!(!trees[0].faults.is_empty());
        }
        let nested = format!("{}1{}", "[".repeat(64), "]".repeat(64));
        assert_eq!(faults(&read(name, nested.as_bytes())), []);
    }
}

#[test]
fn json_is_strict_and_has_lines() {
    let trees = read("a.json", b"{\n \"a\": [\n 1,\n \"x\"],\n \"b\": 2\n}\n");
    let root = trees[0].root.as_ref().expect("valid JSON has a root");
    let Some(Node {
        line: 2,
        value: Value::List(items),
    }) = root.value.get("a")
    else {
        panic!("{root:?}");
    };
    assert_eq!((items[0].line, items[1].line), (3, 4));
    assert_eq!(root.value.get("b").map(|node| node.line), Some(5));
    for (given, line, part) in [
        (&b"{\"a\":1}\nx"[..], 2, "trailing"),
        (b"{\"a\":1,\n\"a\":2}", 2, "twice"),
        (b"{a: 1}", 1, "key must be a string"),
        (b"{", 1, "EOF"),
        (b"[1,]", 1, "trailing comma"),
    ] {
        let trees = read("a.json", given);
        let faults = faults(&trees);
        assert!(
            faults
                .iter()
                .any(|(at, _, message)| *at == line && message.contains(part)),
            "{:?} {faults:?}",
            String::from_utf8_lossy(given)
        );
    }
}

#[test]
fn hostile_shapes_take_linear_time() {
    // Each would take an hour if anything behind were quadratic.
    let started = std::time::Instant::now();
    let megabyte = 1 << 20;
    for shape in [
        "- ",
        "a: ",
        "? ",
        "{a: ",
        "---\n",
        "'",
        "a\n",
        "#\n",
        "&a ",
        "- a\n",
        "[a, b],\n",
        "\t",
        "|\n ",
    ] {
        read("a.yaml", shape.repeat(megabyte / shape.len()).as_bytes());
    }
    let keys: String = (0..60_000).map(|key| format!("k{key}: 1\n")).collect();
    read("a.yaml", keys.as_bytes());
    assert!(started.elapsed().as_secs() < 600, "{:?}", started.elapsed());
}
