//! `bench l7`: what a request costs in the router, in ratios to a floor and to other proxies.

mod backend;
mod client;
mod documents;
pub(crate) mod floor;
mod floor_tls;
mod measure;
mod peers;
mod poll;
mod scenarios;
mod side;
mod wire;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Pid,
};
use serde_json::Value;
use tests::secrets::Secrets;

use crate::{
    load::pin,
    rows::{self, Report, Row},
};
use measure::{Plan, Sides};
use scenarios::Means;
use side::{Setup, Side, Stage};

/// The host that all requests are for.
pub(crate) const HOST: &str = "bench.example.test";
/// Tokens, so that none of a run comes twice.
const TOKENS: usize = 40_000;
/// Verifications of one look at what they cost.
const VERIFICATIONS: usize = 200;

/// What to measure and how long.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Write the rows to this file as well, as one JSON document.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure only the scenarios whose name contains this text.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Rounds of every comparison.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Three short rounds, to see that everything runs. The figures say little.
    #[arg(long)]
    quick: bool,
    /// The agent's program, built with optimisations.
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
    /// Envoy's program, which is then a peer too.
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
}

impl Options {
    fn plan(&self) -> Plan {
        let (rounds, slices, slice) = match self.quick {
            true => (3, 2, 40),
            false => (usize::from(self.rounds), 4, 60),
        };
        Plan {
            rounds,
            slices,
            slice: Duration::from_millis(slice),
        }
    }
}

/// Measures, shows each row when it is known, and writes the file at the end.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (generator, router) = cores()?;
    // Each of 512 requests under way has two connections.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let folder = Folder::make()?;
    let secrets = Secrets::make(&folder.0.join("secrets"))?;
    let identity = secrets.certify("host", &[HOST])?;
    let mut report = Report {
        machine: format!(
            "{}, {}",
            crate::l4::processor()?,
            peers::versions(options.envoy.as_deref())?
        ),
        rows: Vec::new(),
    };
    println!("{}", report.machine);
    rows::head();
    pin(generator)?;
    let means = means(options, &secrets)?;
    let verify = verifier(&secrets, &means)?;
    let stage = Stage {
        dir: folder.0.clone(),
        backend: backend::start(generator)?,
        core: router,
        agent: options.agent.clone(),
        envoy: options.envoy.clone(),
        secrets,
        identity,
    };
    let mut scenarios = scenarios::all(&means);
    if let Some(only) = &options.only {
        scenarios.retain(|scenario| scenario.name.contains(only));
    }
    ensure!(
        !scenarios.is_empty(),
        "no scenario contains `{}`",
        options.only.as_deref().unwrap_or_default()
    );
    let mut sides = Sides::new();
    for (index, scenario) in scenarios.iter().enumerate() {
        // A side that nobody needs any more ends.
        let later: BTreeSet<Setup> = scenarios[index..]
            .iter()
            .flat_map(|scenario| scenario.probes.iter().map(|probe| probe.setup))
            .collect();
        sides.retain(|setup, _| later.contains(setup));
        for probe in &scenario.probes {
            if let std::collections::btree_map::Entry::Vacant(place) = sides.entry(probe.setup) {
                let side = Side::start(&stage, probe.setup);
                place.insert(
                    side.with_context(|| {
                        format!("failed to start the side {}", probe.setup.name())
                    })?,
                );
            }
        }
        let rows = measure::play(&sides, scenario, &options.plan(), &verify);
        let rows = rows.with_context(|| format!("in `{}`", scenario.name))?;
        for row in rows {
            rows::show(&row);
            report.rows.push(row);
        }
    }
    sides.clear();
    if let Some(file) = &options.json {
        report.write(file)?;
    }
    let missed = report.rows.iter().filter(|row: &&Row| !row.ok).count();
    println!("{} bars held, {missed} missed", report.rows.len() - missed);
    Ok(())
}

/// The first and the last core that this process may use: one for the load and the backend, one for the routers.
fn cores() -> Result<(usize, usize)> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("failed to ask for the cores")?;
    let cores: Vec<usize> = (0..CpuSet::count())
        .filter(|core| set.is_set(*core).unwrap_or(false))
        .collect();
    match cores[..] {
        [first, .., last] => Ok((first, last)),
        _ => bail!("the router and its load need a core each, and this process may use one only"),
    }
}

fn means(options: &Options, secrets: &Secrets) -> Result<Means> {
    let line = |number: usize| -> Result<String> {
        let scope = format!("read:{number}");
        let token = secrets.token(documents::ISSUER, documents::AUDIENCE, &scope)?;
        Ok(format!("authorization: Bearer {token}\r\n"))
    };
    let wanted = options
        .only
        .as_ref()
        .is_none_or(|only| "JWT checked".contains(only.as_str()));
    let count = match (wanted, options.quick) {
        (false, _) => 1,
        (true, true) => TOKENS / 8,
        (true, false) => TOKENS,
    };
    Ok(Means {
        tls: Arc::new(side::tls(secrets)?),
        token: Arc::new(vec![line(0)?]),
        tokens: Arc::new((1..=count).map(line).collect::<Result<_>>()?),
        envoy: options.envoy.is_some(),
    })
}

/// What one verification costs in the library alone, in microseconds.
fn verifier(secrets: &Secrets, means: &Means) -> Result<impl Fn() -> Result<f64> + use<>> {
    let keys: JwkSet = serde_json::from_str(&secrets.jwks())?;
    let key = keys.keys.first().context("the set has no key")?;
    let key = DecodingKey::from_jwk(key)?;
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_audience(&[documents::AUDIENCE]);
    validation.set_issuer(&[documents::ISSUER]);
    let tokens: Vec<String> = means
        .tokens
        .iter()
        .take(VERIFICATIONS)
        .filter_map(|line| Some(line.trim_end().rsplit_once(' ')?.1.to_owned()))
        .collect();
    Ok(move || {
        let start = Instant::now();
        for token in &tokens {
            jsonwebtoken::decode::<Value>(token, &key, &validation)?;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / tokens.len() as f64)
    })
}

/// A folder that goes with its value.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = std::env::temp_dir().join(format!("cardinal-bench-{}", std::process::id()));
        // A folder that is there already may be somebody else's.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("failed to make {}", Path::new(&path).display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("bench: failed to remove {}: {error}", self.0.display());
        }
    }
}
