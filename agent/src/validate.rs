//! `cardinal-agent validate DIR`: everything that an agent would refuse, without one.

use std::io::{self, Write as _};
use std::process::ExitCode;

use serde::Serialize;
use snapshot::{Mistake, Source, Warning};

use crate::config::ValidateArgs;
use crate::{compile, source, view};

/// The result, as `--json` prints it.
#[derive(Serialize)]
struct Report {
    valid: bool,
    files: usize,
    mistakes: Vec<Line>,
    warnings: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    file: String,
    document: usize,
    object: String,
    field: String,
    line: usize,
    message: String,
    #[serde(skip)]
    text: String,
}

impl Line {
    fn new(source: &Source, message: &str, text: String) -> Self {
        Self {
            file: source.file.to_string(),
            document: source.document,
            object: source.object.to_string(),
            field: source.field.to_string(),
            line: source.line,
            message: message.to_owned(),
            text,
        }
    }
}

/// Checks a folder and prints what it found. Exit code 0: valid, 1: mistakes, 2: unreadable.
pub fn run(args: &ValidateArgs) -> ExitCode {
    let loaded = match source::load(&args.dir) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("error: {:#}", anyhow::Error::new(error));
            return ExitCode::from(2);
        }
    };
    let report = check(&loaded.files);
    let printed = if args.json {
        print_json(&report)
    } else {
        print_text(&report, &args.dir.display().to_string())
    };
    if let Err(error) = printed
        // `validate | head`: the verdict is the exit code's.
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        eprintln!("error: failed to print the result: {error}");
        return ExitCode::from(2);
    }
    if report.valid {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn check(files: &[snapshot::SourceFile]) -> Report {
    let mistake =
        |mistake: &Mistake| Line::new(&mistake.source, &mistake.message, mistake.to_string());
    let warning =
        |warning: &Warning| Line::new(&warning.source, &warning.message, warning.to_string());
    let count = files.len();
    let refused = |mistakes: &[Mistake]| Report {
        valid: false,
        files: count,
        mistakes: mistakes.iter().map(mistake).collect(),
        warnings: Vec::new(),
    };
    let snapshot = match snapshot::parse(files) {
        Ok(snapshot) => snapshot,
        Err(rejections) => return refused(&rejections.mistakes),
    };
    if let Err(mistakes) = compile::route::compile(&snapshot, 1) {
        return refused(&mistakes);
    }
    let mut warnings: Vec<Line> = snapshot.warnings.iter().map(warning).collect();
    warnings.extend(
        view::expired(&snapshot)
            .into_iter()
            .map(|(source, message)| {
                let text = format!("{source}: {message}");
                Line::new(&source, &message, text)
            }),
    );
    Report {
        valid: true,
        files: count,
        mistakes: Vec::new(),
        warnings,
    }
}

fn print_json(report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, report)?;
    writeln!(out)
}

fn print_text(report: &Report, folder: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for warning in &report.warnings {
        writeln!(out, "warning: {}", warning.text)?;
    }
    for mistake in &report.mistakes {
        writeln!(out, "error: {}", mistake.text)?;
    }
    let files = counted(report.files, "file");
    if report.valid {
        let warnings = counted(report.warnings.len(), "warning");
        writeln!(out, "{folder}: valid ({files}, {warnings})")
    } else {
        let mistakes = counted(report.mistakes.len(), "mistake");
        writeln!(out, "{folder}: refused ({files}, {mistakes})")
    }
}

fn counted(count: usize, noun: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{ending}")
}
