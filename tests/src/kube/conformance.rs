//! The conformance suite of the Gateway API, run by `tests/kube/run-suite`, and what came of it by profile and level.
//!
//! A test belongs to the profiles that know all features it needs; it is core in a profile where all of these are, and extended
//! otherwise. A test of a feature that the class does not declare is skipped, and a skipped test says nothing: what ran is
//! counted, and a run in which nothing did has not passed.

mod record;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

pub use self::record::{Run, record};
use super::{World, script, state};
use crate::{interrupt, world::output};

/// A conformance profile for gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Profile {
    /// `HTTPRoute`.
    #[value(name = "GATEWAY-HTTP")]
    Http,
    /// `GRPCRoute`.
    #[value(name = "GATEWAY-GRPC")]
    Grpc,
    /// `TLSRoute`.
    #[value(name = "GATEWAY-TLS")]
    Tls,
    /// `TCPRoute`.
    #[value(name = "GATEWAY-TCP")]
    Tcp,
    /// `UDPRoute`.
    #[value(name = "GATEWAY-UDP")]
    Udp,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Http, Self::Grpc, Self::Tls, Self::Tcp, Self::Udp];

    /// Its name in the suite.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "GATEWAY-HTTP",
            Self::Grpc => "GATEWAY-GRPC",
            Self::Tls => "GATEWAY-TLS",
            Self::Tcp => "GATEWAY-TCP",
            Self::Udp => "GATEWAY-UDP",
        }
    }
}

/// How much an implementation has to have of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Core,
    Extended,
}

/// Who made what is tested, as a report has it.
const IDENTITY: [&str; 10] = [
    "--organization",
    "cardinal",
    "--project",
    "cardinal",
    "--url",
    "https://cardinal.dev",
    "--version",
    env!("CARGO_PKG_VERSION"),
    "--contact",
    "https://cardinal.dev",
];

/// What to run.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Profiles; at least one.
    pub profiles: Vec<Profile>,
    /// Only the test of this name, whether its features are declared or not.
    pub test: Option<String>,
    /// The implementation's `GatewayClass`.
    pub class: String,
    /// Run what the class does not declare as well: for implementations that declare nothing.
    pub undeclared: bool,
    /// Folder for `report.yaml`, `suite.log`, `results.tsv` and, from a world, logs.
    pub out: PathBuf,
    /// Name the product in the report, which is to be kept.
    pub signed: bool,
}

/// Where the implementation runs.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// In a world.
    World(&'a World),
    /// In the cluster of a kubeconfig, which the suite reaches from here.
    Cluster(&'a Path),
}

/// A test of the suite.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Test {
    name: String,
    memberships: Vec<(Profile, Level)>,
    features: Vec<String>,
}

impl Test {
    /// What it counts for when these profiles are wanted.
    fn rows(&self, profiles: &[Profile]) -> Vec<Row> {
        let for_gateways = self.features.iter().any(|feature| feature == "Gateway");
        let all = Profile::ALL.iter().all(|one| profiles.contains(one));
        if self.memberships.is_empty() && for_gateways && all {
            return vec![Row::Beside];
        }
        let wanted = self.memberships.iter();
        let wanted = wanted.filter(|(profile, _)| profiles.contains(profile));
        wanted
            .map(|(profile, level)| Row::Of(*profile, *level))
            .collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// Tests of one profile and level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// The suite ended before their turn.
    missing: usize,
}

/// What a test counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    /// A profile that knows all of its features.
    Of(Profile, Level),
    /// Gateways, but no profile: its features are of several, or of none. It runs when all profiles are wanted.
    Beside,
}

impl Row {
    fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Of(profile, Level::Core) => (profile.name(), "core"),
            Self::Of(profile, Level::Extended) => (profile.name(), "extended"),
            Self::Beside => ("no profile", ""),
        }
    }
}

/// What came of a run; it shows itself as a table.
#[derive(Debug)]
pub struct Report {
    rows: BTreeMap<Row, Count>,
    /// Each test once, however many profiles it belongs to.
    total: Count,
    /// Whether the suite itself was content.
    content: bool,
}

impl Report {
    /// Whether the suite was content, something ran, and nothing failed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.content && self.total.passed > 0 && self.total.failed == 0 && self.total.missing == 0
    }

    /// How many tests ran.
    #[must_use]
    pub fn ran(&self) -> usize {
        self.total.ran()
    }

    fn count(&self, row: Row) -> Count {
        self.rows.get(&row).copied().unwrap_or_default()
    }
}

impl Count {
    fn ran(&self) -> usize {
        self.passed + self.failed
    }

    fn add(&mut self, outcome: Option<Outcome>) {
        *match outcome {
            Some(Outcome::Passed) => &mut self.passed,
            Some(Outcome::Failed) => &mut self.failed,
            Some(Outcome::Skipped) => &mut self.skipped,
            None => &mut self.missing,
        } += 1;
    }
}

/// Finds the tests that are wanted, without a world.
///
/// # Errors
/// There are none of that name in these profiles, or the suite cannot be built.
pub fn check(wanted: &Wanted) -> Result<()> {
    chosen(&tests()?, wanted).map(drop)
}

/// Runs the suite, which prints a line per test that ran.
///
/// # Errors
/// No such test, the suite cannot be started, or a signal came.
pub fn run(target: Target<'_>, wanted: &Wanted) -> Result<Report> {
    let all = tests()?;
    let chosen = chosen(&all, wanted)?;
    fs::create_dir_all(&wanted.out)
        .with_context(|| format!("failed to make {}", wanted.out.display()))?;
    // What is left of an earlier run must not be taken for this one's.
    for file in ["report.yaml", "suite.log", "results.tsv"] {
        match fs::remove_file(wanted.out.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("failed to remove an old {file}"));
            }
            _ => {}
        }
    }
    let mut suite = match target {
        Target::World(world) => world.script("run-suite"),
        Target::Cluster(kubeconfig) => {
            let mut suite = outside();
            suite.arg("--kubeconfig").arg(kubeconfig);
            suite
        }
    };
    let profiles: Vec<_> = wanted
        .profiles
        .iter()
        .map(|profile| profile.name())
        .collect();
    suite
        .arg("--out")
        .arg(&wanted.out)
        .args(["--gateway-class", &wanted.class])
        .args(["--conformance-profiles", &profiles.join(",")])
        .stdin(Stdio::null());
    if wanted.signed {
        suite.args(IDENTITY);
    }
    if wanted.undeclared {
        // Not the suite's --all-features: those include service meshes, whose pods do not become ready without one.
        let features: BTreeSet<_> = chosen.iter().flat_map(|test| &test.features).collect();
        let features: Vec<_> = features.into_iter().map(String::as_str).collect();
        suite.args(["--supported-features", &features.join(",")]);
    }
    if let Some(test) = &wanted.test {
        suite.args(["--run-test", test]);
    } else {
        // The suite runs what the class declares, whatever the profiles: these only add their core features.
        let others: Vec<_> = all
            .iter()
            .filter(|test| !chosen.contains(test))
            .map(|test| test.name.as_str())
            .collect();
        suite.args(["--skip-tests", &others.join(",")]);
    }
    let status = suite.status().context("failed to start the suite")?;
    if let Target::World(world) = target {
        keep_logs(world, &wanted.out)?;
    }
    interrupt::check()?;
    let results = wanted.out.join("results.tsv");
    let text = fs::read_to_string(&results)
        .with_context(|| format!("the suite did not run ({status}): no {}", results.display()))?;
    let profiles = &wanted.profiles;
    Ok(report(
        &chosen,
        profiles,
        &outcomes(&text)?,
        status.success(),
    ))
}

/// `run-suite` without a world.
fn outside() -> Command {
    script("run-suite", "no-world")
}

/// All tests of the suite that belong to a profile for gateways.
fn tests() -> Result<Vec<Test>> {
    let listing = output(outside().arg("--list-tests"))?;
    listing.lines().map(test).collect()
}

/// A line of the listing: name, memberships, features, whether it is provisional.
fn test(line: &str) -> Result<Test> {
    let mut columns = line.split('\t');
    let (Some(name), Some(memberships), Some(features)) =
        (columns.next(), columns.next(), columns.next())
    else {
        bail!("the suite's listing has the line `{line}`");
    };
    let memberships = memberships.split(',').filter_map(|membership| {
        let (profile, level) = membership.split_once(':')?;
        let profile = Profile::ALL
            .into_iter()
            .find(|known| known.name() == profile)?;
        let level = match level {
            "core" => Level::Core,
            _ => Level::Extended,
        };
        Some((profile, level))
    });
    Ok(Test {
        name: name.to_owned(),
        memberships: memberships.collect(),
        features: features
            .split(',')
            .filter(|feature| *feature != "-")
            .map(str::to_owned)
            .collect(),
    })
}

/// The tests of the wanted profiles and name.
fn chosen<'a>(all: &'a [Test], wanted: &Wanted) -> Result<Vec<&'a Test>> {
    let named: Vec<_> = all
        .iter()
        .filter(|test| wanted.test.as_ref().is_none_or(|name| *name == test.name))
        .collect();
    if let (Some(name), true) = (&wanted.test, named.is_empty()) {
        bail!("the suite has no test `{name}`");
    }
    let chosen: Vec<_> = named
        .into_iter()
        .filter(|test| !test.rows(&wanted.profiles).is_empty())
        .collect();
    if chosen.is_empty() {
        bail!("no test is in both: the wanted profiles, and the wanted name");
    }
    Ok(chosen)
}

/// The lines of `results.tsv`.
fn outcomes(text: &str) -> Result<BTreeMap<&str, Outcome>> {
    text.lines()
        .map(|line| {
            let columns: Vec<_> = line.split('\t').collect();
            let outcome = match columns.first() {
                Some(&"PASS") => Outcome::Passed,
                Some(&"FAIL") => Outcome::Failed,
                Some(&"SKIP") => Outcome::Skipped,
                _ => bail!("results.tsv has the line `{line}`"),
            };
            match columns.get(2) {
                Some(name) => Ok((*name, outcome)),
                None => bail!("results.tsv has the line `{line}`"),
            }
        })
        .collect()
}

fn report(
    chosen: &[&Test],
    profiles: &[Profile],
    outcomes: &BTreeMap<&str, Outcome>,
    content: bool,
) -> Report {
    let mut report = Report {
        rows: BTreeMap::new(),
        total: Count::default(),
        content,
    };
    for test in chosen {
        let outcome = outcomes.get(test.name.as_str()).copied();
        report.total.add(outcome);
        for row in test.rows(profiles) {
            report.rows.entry(row).or_default().add(outcome);
        }
    }
    report
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<14}{:<10}{:>6}{:>8}{:>8}{:>9}",
            "profile", "level", "ran", "passed", "failed", "skipped"
        )?;
        let rows = self.rows.iter().map(|(row, count)| (row.name(), count));
        for ((profile, level), count) in rows.chain([(("all, once", ""), &self.total)]) {
            writeln!(
                f,
                "{profile:<14}{level:<10}{:>6}{:>8}{:>8}{:>9}",
                count.ran(),
                count.passed,
                count.failed,
                count.skipped
            )?;
        }
        if self.total.missing > 0 {
            writeln!(
                f,
                "{} tests have no result: the suite ended early",
                self.total.missing
            )?;
        }
        if self.ran() == 0 {
            writeln!(f, "nothing ran: the class declares none of the features")?;
        }
        Ok(())
    }
}

/// Keeps the logs of the control plane and of the agents, which go with the world.
fn keep_logs(world: &World, out: &Path) -> Result<()> {
    let folder = out.join("logs");
    fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
    let state = state(world.name());
    copy_logs(&state, &folder, "")?;
    let nodes = state.join("nodes");
    for node in entries(&nodes)? {
        for pod in entries(&node.join("pods"))? {
            let name = pod.file_name().unwrap_or_default().to_string_lossy();
            // The folder is called after namespace, name and uid.
            if let Some(name) = name.strip_prefix(&format!("{}_", super::AGENT_NAMESPACE)) {
                let node = node.file_name().unwrap_or_default().to_string_lossy();
                let pod_name = name.split('_').next().unwrap_or(name);
                copy_logs(&pod, &folder, &format!("{node}-{pod_name}-"))?;
            }
        }
    }
    Ok(())
}

fn copy_logs(from: &Path, to: &Path, prefix: &str) -> Result<()> {
    for file in entries(from)? {
        if let (Some("log"), Some(name)) = (
            file.extension().and_then(|extension| extension.to_str()),
            file.file_name().and_then(|name| name.to_str()),
        ) {
            fs::copy(&file, to.join(format!("{prefix}{name}")))
                .with_context(|| format!("failed to keep {}", file.display()))?;
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("failed to read {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "A\tGATEWAY-HTTP:core,GATEWAY-TLS:core\tGateway\t\n\
                           B\tGATEWAY-HTTP:extended\tGateway,HTTPRoute,X\tprovisional\n\
                           C\tGATEWAY-TLS:core\tTLSRoute\t\n\
                           D\tMESH-HTTP:core\tMesh\t\n\
                           E\t-\tGateway,Y\t";

    fn wanted(profiles: &[Profile], test: Option<&str>) -> Wanted {
        Wanted {
            profiles: profiles.to_vec(),
            test: test.map(str::to_owned),
            class: "cardinal".to_owned(),
            undeclared: false,
            out: PathBuf::new(),
            signed: false,
        }
    }

    fn listed() -> Vec<Test> {
        LISTING
            .lines()
            .map(|line| test(line).expect("a line of the listing"))
            .collect()
    }

    #[test]
    fn a_line_of_the_listing_is_read() {
        let read = test("B\tGATEWAY-HTTP:extended,MESH-HTTP:core\tGateway,X\tprovisional");
        let read = read.expect("a line of the listing");
        assert_eq!(read.memberships, [(Profile::Http, Level::Extended)]);
        assert_eq!(read.features, ["Gateway", "X"]);
        assert!(test("B").is_err());
    }

    #[test]
    fn only_tests_of_the_wanted_profiles_are_chosen() {
        let all = listed();
        let names = |wanted: &Wanted| -> Vec<String> {
            let chosen = chosen(&all, wanted).expect("some are chosen");
            chosen.iter().map(|test| test.name.clone()).collect()
        };
        assert_eq!(names(&wanted(&Profile::ALL, None)), ["A", "B", "C", "E"]);
        assert_eq!(names(&wanted(&[Profile::Tls], None)), ["A", "C"]);
        assert_eq!(names(&wanted(&Profile::ALL, Some("B"))), ["B"]);
        for (profiles, test) in [
            (&Profile::ALL[..], "F"),
            (&[Profile::Tls], "B"),
            (&Profile::ALL, "D"),
        ] {
            assert!(chosen(&all, &wanted(profiles, Some(test))).is_err());
        }
    }

    #[test]
    fn what_ran_is_counted_by_profile_and_level() {
        let all = listed();
        let chosen = chosen(&all, &wanted(&Profile::ALL, None)).expect("some are chosen");
        let outcomes =
            outcomes("PASS\t1.00\tA\nFAIL\t2.00\tB\nSKIP\t0.00\tC\nSKIP\t0.00\tD\nPASS\t1.00\tE")
                .expect("results");
        let report = report(&chosen, &Profile::ALL, &outcomes, false);
        let shown = report.to_string();
        let rows: Vec<_> = shown
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            rows,
            [
                "profile level ran passed failed skipped",
                "GATEWAY-HTTP core 1 1 0 0",
                "GATEWAY-HTTP extended 1 0 1 0",
                "GATEWAY-TLS core 1 1 0 1",
                "no profile 1 1 0 0",
                "all, once 3 2 1 1",
            ]
        );
        assert_eq!(report.ran(), 3);
        assert!(!report.passed());
    }

    #[test]
    fn a_run_passes_only_if_something_ran_and_all_of_it_passed() {
        let all = listed();
        let chosen = chosen(&all, &wanted(&[Profile::Tls], None)).expect("some are chosen");
        assert!(
            !report(&chosen, &[Profile::Tls], &BTreeMap::new(), true)
                .to_string()
                .contains("HTTP")
        );
        for (results, content, passed) in [
            ("PASS\t1.00\tA\nPASS\t1.00\tC", true, true),
            ("PASS\t1.00\tA\nSKIP\t0.00\tC", true, true),
            // The suite may fail beside its tests.
            ("PASS\t1.00\tA\nPASS\t1.00\tC", false, false),
            ("PASS\t1.00\tA\nFAIL\t1.00\tC", true, false),
            ("SKIP\t0.00\tA\nSKIP\t0.00\tC", true, false),
            // The suite crashed before it came to C.
            ("PASS\t1.00\tA", true, false),
            ("", true, false),
        ] {
            let outcomes = outcomes(results).expect("results");
            assert_eq!(
                report(&chosen, &[Profile::Tls], &outcomes, content).passed(),
                passed,
                "{results:?}"
            );
        }
        assert!(outcomes("ok").is_err());
    }
}
