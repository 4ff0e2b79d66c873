//! Hostile documents: whatever the bytes, the answer is a snapshot or mistakes, soon.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use snapshot::{MAX_MISTAKES, SourceFile, parse};

fn file(path: &str, bytes: Vec<u8>) -> SourceFile {
    SourceFile {
        path: path.to_owned(),
        bytes,
    }
}

/// Every example, valid and invalid.
fn examples() -> Vec<(String, Vec<u8>)> {
    let mut examples = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/valid")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("folder of examples is there") {
            let path = entry.expect("folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = fs::read(&path).expect("example can be read");
                examples.push((path.to_string_lossy().into_owned(), bytes));
            }
        }
    }
    examples.sort();
    examples
}

/// Pieces that mean something to a parser.
const PIECES: [&str; 32] = [
    "---\n",
    "...\n",
    "&a ",
    "*a",
    "!!str ",
    "<<: ",
    "? ",
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "\"",
    "'",
    "|\n",
    ">\n",
    "#",
    "\t",
    "\n",
    "\r\n",
    "\u{0}",
    "\u{feff}",
    "null",
    "~",
    "-1",
    "99999999999999999999",
    "0x",
    "\u{1f600}",
    "%",
    "$",
    "\\",
];

#[derive(Clone, Debug)]
enum Change {
    Byte(usize, u8),
    Remove(usize, usize),
    Insert(usize, usize),
    Copy(usize, usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (any::<usize>(), 0..40usize).prop_map(|(at, length)| Change::Remove(at, length)),
        (any::<usize>(), 0..PIECES.len()).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (any::<usize>(), any::<usize>(), 0..200usize)
            .prop_map(|(from, to, length)| Change::Copy(from, to, length)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    let size = bytes.len().max(1);
    match *change {
        Change::Byte(at, byte) => {
            if let Some(slot) = bytes.get_mut(at % size) {
                *slot = byte;
            }
        }
        Change::Remove(at, length) => {
            let start = (at % size).min(bytes.len());
            let end = (start + length).min(bytes.len());
            bytes.drain(start..end);
        }
        Change::Insert(at, piece) => {
            let at = (at % size).min(bytes.len());
            bytes.splice(at..at, PIECES[piece].bytes());
        }
        Change::Copy(from, to, length) => {
            let start = (from % size).min(bytes.len());
            let end = (start + length).min(bytes.len());
            let copy = bytes[start..end].to_vec();
            let at = (to % size).min(bytes.len());
            bytes.splice(at..at, copy);
        }
    }
}

/// What a user may be shown of an outcome.
fn shown(files: &[SourceFile]) -> String {
    match parse(files) {
        Ok(snapshot) => format!("{snapshot:?}"),
        Err(rejections) => {
            assert!(!rejections.mistakes.is_empty());
            assert!(rejections.mistakes.len() <= MAX_MISTAKES + 1);
            for mistake in &rejections.mistakes {
                // Messages go to terminals and logs, a line each.
                let line = mistake.to_string();
                assert!(!line.contains(char::is_control), "{line:?}");
            }
            rejections.to_string()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..400), json in any::<bool>()) {
        shown(&[file(if json { "a.json" } else { "a.yaml" }, bytes)]);
    }

    #[test]
    fn any_pieces_get_an_answer(pieces in proptest::collection::vec(0..PIECES.len(), 0..60)) {
        let text: String = pieces.into_iter().map(|piece| PIECES[piece]).collect();
        shown(&[file("a.yaml", text.into_bytes())]);
    }

    #[test]
    fn changed_examples_get_an_answer_that_shows_no_key(
        pick in any::<usize>(),
        changes in proptest::collection::vec(change(), 1..6),
    ) {
        let examples = examples();
        let (path, bytes) = &examples[pick % examples.len()];
        let mut changed = bytes.clone();
        for change in &changes {
            apply(&mut changed, change);
        }
        let shown = shown(&[file(path, changed)]);
        // A copy may put the key where nobody can know it for one.
        if changes.iter().any(|change| matches!(change, Change::Copy(..))) {
            return Ok(());
        }
        let key = String::from_utf8_lossy(bytes).into_owned();
        let key = key.split("BEGIN PRIVATE KEY-----").nth(1).unwrap_or_default();
        for line in key.split("-----END").next().unwrap_or_default().lines() {
            let line = line.trim();
            prop_assert!(line.len() < 40 || !shown.contains(&line[..20]), "{shown}");
        }
    }

    #[test]
    fn the_order_of_files_says_nothing(swap in any::<bool>(), pick in any::<(usize, usize)>()) {
        let examples = examples();
        let one = &examples[pick.0 % examples.len()];
        let other = &examples[pick.1 % examples.len()];
        let files = [file(&one.0, one.1.clone()), file(&other.0, other.1.clone())];
        let mut turned = files.clone();
        if swap {
            turned.reverse();
        }
        prop_assert_eq!(shown(&files), shown(&turned));
    }
}

#[test]
fn many_mistakes_are_counted() {
    let fields: String = (0..5000).map(|n| format!("  x{n}: 1\n")).collect();
    let text = format!(
        "apiVersion: cardinal.dev/v1alpha1\nkind: Platform\nmetadata: {{ name: a }}\nspec:\n{fields}"
    );
    let rejections = parse(&[file("a.yaml", text.into_bytes())]).expect_err("fields are unknown");
    assert_eq!(rejections.mistakes.len(), MAX_MISTAKES + 1);
    let last = rejections.mistakes.last().expect("there are mistakes");
    assert_eq!(last.message, "and 4800 more mistakes from here on");
}

#[test]
fn large_documents_take_linear_time() {
    let started = Instant::now();
    let cell = |n: usize| {
        let components: String = (0..100)
            .map(|c| {
                format!(
                    "    - name: c{c}\n      workloads: {{ addresses: [10.{}.{}.{}] }}\n      endpoints: [{{ name: a, type: HTTP, port: 80 }}]\n",
                    n / 256, n % 256, c + 1
                )
            })
            .collect();
        format!(
            "---\napiVersion: cardinal.dev/v1alpha1\nkind: Cell\nmetadata: {{ name: c{n} }}\nspec:\n  organization: a\n  project: p{n}\n  environment: e\n  components:\n{components}"
        )
    };
    let files: Vec<SourceFile> = (0..10)
        .map(|part| {
            let text: String = (part * 20..part * 20 + 20).map(cell).collect();
            file(&format!("{part}.yaml"), text.into_bytes())
        })
        .collect();
    let snapshot = parse(&files).expect("cells are valid");
    assert_eq!(snapshot.cells.len(), 200);
    // Twenty thousand components; a debug build takes a few seconds, and hours if anything were quadratic.
    assert!(
        started.elapsed() < Duration::from_secs(600),
        "{:?}",
        started.elapsed()
    );
    println!("{:?}", started.elapsed());
}

/// Each of these would take minutes or gigabytes if its handling were quadratic.
#[test]
fn hostile_shapes_take_linear_time() {
    let list = |count: usize, item: &dyn Fn(usize) -> String| -> String {
        (0..count).map(|n| item(n) + ",").collect()
    };
    let cell = |component: String| {
        format!(
            "apiVersion: cardinal.dev/v1alpha1\nkind: Cell\nmetadata: {{ name: a }}\nspec:\n  organization: a\n  project: b\n  environment: c\n  components:\n    - {{ name: x, workloads: {{ addresses: [10.0.0.1] }}, {component} }}\n"
        )
    };
    let endpoint = |n: usize| {
        format!(
            "{{ name: e{n}, type: HTTP, port: 80, basePath: /{n}, visibility: {{ public: {{}} }} }}"
        )
    };
    let chain = |n: usize| format!("p{n}: {{ url: \"http://a\", fallback: p{} }}", n + 1);
    let pair = |n: usize| format!("p{n}: {{ url: \"http://a\", fallback: p{} }}", n ^ 1);
    let table = |placements: String| {
        format!("version: \"1\"\nplacements: {{ {placements} }}\ndefaultPlacement: p0\n")
    };
    let key = "k".repeat(1 << 20);
    let shapes = [
        (
            "a.json",
            format!("{{\"{key}\": [{}[]]}}", "[],".repeat(500_000)),
        ),
        (
            "a.yaml",
            format!("{}: [{}]\n", &key[..1000], "[],".repeat(200_000)),
        ),
        (
            "a.yaml",
            cell(format!("endpoints: [{}]", list(20_000, &endpoint))),
        ),
        (
            "a.yaml",
            cell(format!(
                "connections: [{}]",
                "{ component: x, endpoint: y },".repeat(20_000)
            )),
        ),
        (
            "a.yaml",
            cell(format!(
                "serviceAddresses: [{}]",
                list(50_000, &|n| format!(
                    "10.{}.{}.{}",
                    n >> 16,
                    (n >> 8) & 255,
                    n & 255
                ))
            )),
        ),
        ("table.yaml", table(list(30_000, &chain))),
        ("table.yaml", table(list(30_000, &pair))),
    ];
    for (path, text) in shapes {
        let started = Instant::now();
        let size = text.len();
        shown(&[file(path, text.into_bytes())]);
        assert!(
            started.elapsed() < Duration::from_secs(600),
            "{path} {size}: {:?}",
            started.elapsed()
        );
        println!("{path} {size}: {:?}", started.elapsed());
    }
}
