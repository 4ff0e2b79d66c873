//! The example documents: `policies/valid` is taken, every file of `policies/invalid` is refused for
//! the reason that it names.

use std::fs;
use std::path::{Path, PathBuf};

use snapshot::{Snapshot, SourceFile, parse};

fn policies(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../policies")
        .join(folder)
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .expect("folder of examples is there")
        .map(|entry| entry.expect("folder can be listed").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{}", folder.display());
    paths
}

fn read(path: &Path) -> SourceFile {
    SourceFile {
        path: path
            .file_name()
            .expect("listed files have names")
            .to_string_lossy()
            .into_owned(),
        bytes: fs::read(path).expect("example can be read"),
    }
}

fn example(folder: &str) -> Snapshot {
    let files: Vec<_> = sorted(&policies("valid").join(folder))
        .iter()
        .map(|path| read(path))
        .collect();
    parse(&files).unwrap_or_else(|rejections| panic!("{folder}:\n{rejections}"))
}

#[test]
fn valid_examples_are_taken_without_warnings() {
    for folder in sorted(&policies("valid")) {
        if !folder.is_dir() {
            continue;
        }
        let name = folder.file_name().expect("folder has a name");
        let snapshot = example(&name.to_string_lossy());
        let warnings: Vec<_> = snapshot.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings, Vec::<String>::new(), "{}", folder.display());
    }
}

const REFERENCE: &str = include_str!("../../docs/documents.md");

/// Examples in a part of the reference.
fn examples(text: &str) -> Vec<&str> {
    text.split("```yaml\n")
        .skip(1)
        .map(|rest| rest.split_once("```").expect("an example ends").0)
        .collect()
}

/// Kinds that are read, as the message about an unknown one lists them.
fn kinds() -> Vec<String> {
    let file = SourceFile {
        path: "unknown.yaml".to_owned(),
        bytes: b"{ apiVersion: v1, kind: Unknown, metadata: { name: x } }".to_vec(),
    };
    let rejections = parse(&[file]).expect_err("nobody knows this kind");
    let message = &rejections.mistakes[0].message;
    let listed = message
        .split(", got")
        .next()
        .expect("there is a first part");
    listed
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Every kind that is read has a line in the table of kinds, and a section with an example of it.
#[test]
fn the_reference_has_an_example_of_every_kind() {
    let sections: Vec<(&str, &str)> = REFERENCE
        .split("\n## ")
        .skip(1)
        .map(|section| section.split_once('\n').expect("a section has a text"))
        .collect();
    let kinds = kinds();
    assert!(kinds.len() > 10, "{kinds:?}");
    for kind in &kinds {
        let row = |line: &str| line.starts_with("| [") && line.contains(&format!("`{kind}`"));
        assert!(REFERENCE.lines().any(row), "no line for {kind}");
        let (_, text) = sections
            .iter()
            .find(|(heading, _)| heading.split(", ").any(|one| one == kind))
            .unwrap_or_else(|| panic!("no section for {kind}"));
        let shown = examples(text).iter().any(|example| {
            let mut lines = example.lines();
            lines.any(|line| line == format!("kind: {kind}"))
        });
        assert!(shown, "no example of {kind} in its section");
    }
}

/// The examples of the reference are one configuration.
#[test]
fn examples_of_the_reference_are_valid_together() {
    let file = SourceFile {
        path: "documents.yaml".to_owned(),
        bytes: examples(REFERENCE).join("---\n").into_bytes(),
    };
    let snapshot = parse(&[file]).unwrap_or_else(|rejections| panic!("{rejections}"));
    let warnings: Vec<_> = snapshot
        .warnings
        .iter()
        .map(|warning| &*warning.message)
        .collect();
    // The other cell of its `east` call is not in the reference.
    assert_eq!(
        warnings,
        ["grants nothing: there is no cell `acme/bank/prod`"]
    );
}

#[test]
fn invalid_examples_are_refused_for_the_reason_that_they_name() {
    let wrong: Vec<String> = sorted(&policies("invalid"))
        .iter()
        .filter_map(|path| judged(path).err())
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Compares the only mistake of a file with its first line, `# expect: <field>: <part of message>`;
/// the field of a whole document is `<document>`.
fn judged(path: &Path) -> Result<(), String> {
    let file = read(path);
    let text = String::from_utf8_lossy(&file.bytes);
    let (field, part) = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("# expect: "))
        .and_then(|line| line.split_once(": "))
        .ok_or_else(|| format!("{}: no `# expect: <field>: <message>`", path.display()))?;
    let field = field.replace("<document>", "");
    let rejections = match parse(std::slice::from_ref(&file)) {
        Ok(_) => return Err(format!("{} is taken", path.display())),
        Err(rejections) => rejections,
    };
    // With `--nocapture` this is what a user reads.
    println!("{rejections}");
    match &rejections.mistakes[..] {
        [only]
            if *only.source.field == field
                && only.message.contains(part)
                && only.source.line > 0 =>
        {
            Ok(())
        }
        _ => Err(format!("expected {field}: {part}, got\n{rejections}")),
    }
}
