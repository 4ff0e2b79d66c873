//! What is kept of runs of the suite: its own reports, and a table in the README beside them.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{Count, Level, Profile, Report, Row};

/// A run of all profiles that passed.
#[derive(Debug)]
pub struct Run<'a> {
    /// Nodes of its world.
    pub nodes: u8,
    /// What came of it.
    pub report: &'a Report,
    /// The suite's own report.
    pub file: &'a Path,
    /// From the first test to the last, without the world.
    pub took: Duration,
}

const BEGIN: &str = "<!-- results -->\n";
const END: &str = "<!-- end of results -->\n";

/// Writes `nodes-<N>.yaml` of each run into a folder, and their table into its `README.md`, between two marks.
///
/// # Errors
/// A run did not pass, the README has no marks, or a file cannot be read or written.
pub fn record(folder: &Path, runs: &[Run<'_>]) -> Result<()> {
    for run in runs {
        ensure!(
            run.report.passed(),
            "the run on {} node(s) did not pass, so nothing is recorded",
            run.nodes
        );
    }
    let readme = folder.join("README.md");
    let text = fs::read_to_string(&readme)
        .with_context(|| format!("failed to read {}", readme.display()))?;
    let text = with_table(&text, &table(runs))
        .with_context(|| format!("{} has no place for results", readme.display()))?;
    for run in runs {
        let to = folder.join(format!("nodes-{}.yaml", run.nodes));
        // Its mode is that of a secret, which it is not.
        let report =
            fs::read(run.file).with_context(|| format!("failed to read {}", run.file.display()))?;
        fs::write(&to, report).with_context(|| format!("failed to write {}", to.display()))?;
    }
    fs::write(&readme, text).with_context(|| format!("failed to write {}", readme.display()))
}

/// The text with another table between its marks.
fn with_table(text: &str, table: &str) -> Result<String> {
    let (before, rest) = text
        .split_once(BEGIN)
        .with_context(|| format!("no line `{}`", BEGIN.trim_end()))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("no line `{}` after it", END.trim_end()))?;
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

fn table(runs: &[Run<'_>]) -> String {
    let mut table = "\n| profile | nodes | core: ran | passed | extended: ran | passed |\n\
                     | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for profile in Profile::ALL {
        for run in runs {
            let count = |level| run.report.count(Row::Of(profile, level));
            let cells = [count(Level::Core), count(Level::Extended)].map(ran_and_passed);
            let (name, [core, extended]) = (profile.name(), cells);
            line(
                &mut table,
                &format!("{name} | {} | {core} | {extended}", run.nodes),
            );
        }
    }
    table.push_str("\n| each test once | ran | passed | without a profile | time |\n| --- | --- | --- | --- | --- |\n");
    for run in runs {
        let beside = run.report.count(Row::Beside);
        let all = ran_and_passed(run.report.total);
        line(
            &mut table,
            &format!(
                "on {} node(s) | {all} | {} of {} | {} s",
                run.nodes,
                beside.passed,
                beside.ran(),
                run.took.as_secs()
            ),
        );
    }
    table.push('\n');
    table
}

fn ran_and_passed(count: Count) -> String {
    format!("{} | {}", count.ran(), count.passed)
}

fn line(table: &mut String, cells: &str) {
    writeln!(table, "| {cells} |").expect("a string takes all there is memory for");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn report(failed: usize) -> Report {
        let count = Count {
            passed: 3,
            failed,
            ..Count::default()
        };
        Report {
            rows: BTreeMap::from([
                (Row::Of(Profile::Http, Level::Core), count),
                (Row::Beside, count),
            ]),
            total: count,
            content: failed == 0,
        }
    }

    #[test]
    fn runs_are_kept_with_their_table() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("report.yaml");
        fs::write(&file, "kind: ConformanceReport\n").expect("it is written");
        let readme = folder.path().join("README.md");
        fs::write(&readme, format!("before\n{BEGIN}old\n{END}after\n")).expect("it is written");
        let kept = |failed| {
            let report = report(failed);
            let run = Run {
                nodes: 3,
                report: &report,
                file: &file,
                took: Duration::from_millis(61_900),
            };
            record(folder.path(), &[run])
        };
        kept(0).expect("it is recorded");
        let text = fs::read_to_string(&readme).expect("it is there");
        assert!(
            text.starts_with("before\n") && text.ends_with("after\n"),
            "{text}"
        );
        assert!(!text.contains("old"), "{text}");
        assert!(
            text.contains("\n| GATEWAY-HTTP | 3 | 3 | 3 | 0 | 0 |\n"),
            "{text}"
        );
        assert!(
            text.contains("\n| on 3 node(s) | 3 | 3 | 3 of 3 | 61 s |\n"),
            "{text}"
        );
        let report = fs::read_to_string(folder.path().join("nodes-3.yaml"));
        assert_eq!(report.expect("it is there"), "kind: ConformanceReport\n");

        let refused = kept(1).expect_err("a run that failed").to_string();
        assert!(refused.contains("did not pass"), "{refused}");
        fs::write(&readme, "no marks\n").expect("it is written");
        let refused = format!("{:#}", kept(0).expect_err("no place"));
        assert!(refused.contains("`<!-- results -->`"), "{refused}");
    }
}
