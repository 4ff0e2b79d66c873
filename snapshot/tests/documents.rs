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
        let warnings: Vec<_> = snapshot
            .warnings
            .iter()
            .map(ToString::to_string)
            .filter(|warning| !warning.ends_with("not enforced yet"))
            .collect();
        assert_eq!(warnings, Vec::<String>::new(), "{}", folder.display());
    }
}

#[test]
fn invalid_examples_are_refused_for_the_reason_that_they_name() {
    for path in sorted(&policies("invalid")) {
        let file = read(&path);
        // Files that are no text name their reason in their name.
        let text = String::from_utf8_lossy(&file.bytes).into_owned();
        let expected = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# expect: "))
            .unwrap_or_else(|| panic!("{}: first line is no `# expect: `", path.display()));
        let (field, part) = expected
            .split_once(": ")
            .unwrap_or_else(|| panic!("{}: `# expect: <field>: <message>`", path.display()));
        let rejections = match parse(std::slice::from_ref(&file)) {
            Ok(_) => panic!("{} is taken", path.display()),
            Err(rejections) => rejections,
        };
        println!("{rejections}");
        assert!(
            rejections.mistakes.iter().any(|mistake| {
                mistake.source.field == field.replace("<document>", "")
                    && mistake.message.contains(part)
                    && mistake.source.line > 0
            }),
            "{}: expected `{expected}`, got\n{rejections}",
            path.display()
        );
        assert_eq!(
            rejections.mistakes.len(),
            1,
            "{}: one file, one mistake\n{rejections}",
            path.display()
        );
    }
}
