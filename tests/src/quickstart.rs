//! The quickstart: the router alone in front of two small backends on loopback, and commands to try.
//!
//! What is printed is what `--check` runs: the very lines, through a shell.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    agent::Agent, demo::copy_documents, interrupt, peer::Running, programs::Programs,
    secrets::Secrets,
};

const ROUTER: &str = "http://127.0.0.1:18080";
const ISSUER: &str = "https://idp.example.test";
const AUDIENCE: &str = "quickstart";
const START: Duration = Duration::from_secs(60);
/// How long a changed file may take to be taken over.
const CHANGE: Duration = Duration::from_secs(60);

/// A line to type, and what its output must contain.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it shows.
    pub title: &'static str,
    /// The line.
    pub line: String,
    /// All of these are in the output, upper and lower case alike.
    pub expected: Vec<&'static str>,
}

/// The running quickstart; dropping it ends everything and removes its folder.
#[derive(Debug)]
pub struct Quickstart {
    _agent: Agent,
    _backends: [Running; 2],
    folder: Folder,
    token: String,
}

/// A folder that goes with its value.
#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("failed to remove {}: {error}", self.0.display());
        }
    }
}

impl Quickstart {
    /// Starts backends and router, and waits until they are ready.
    ///
    /// # Errors
    /// One of them does not start; a port that is taken is the likely cause, and named.
    pub fn start(programs: &Programs) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("cardinal-quickstart-{}", std::process::id()));
        // A folder that is there already may be somebody else's.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("failed to make {}", path.display()))?;
        let folder = Folder(path);
        let config = folder.0.join("policies");
        copy_documents(&programs.policies.join("quickstart"), &config)?;
        let secrets = Secrets::make(&folder.0.join("secrets"))?;
        secrets.publish_key(&config.join("private.yaml"))?;

        let backend = |name: &str, address: &str| -> Result<Running> {
            let mut command = Command::new(&programs.peer);
            command.args(["serve", "--name", name, "--http", address]);
            let mut backend = Running::start(format!("the backend {name}"), command)?;
            backend
                .wait_for(START, |line| line["event"] == "ready")
                .with_context(|| {
                    format!("the quickstart needs {address}; does another one run?")
                })?;
            Ok(backend)
        };
        let backends = [
            backend("alpha", "127.0.0.1:19001")?,
            backend("beta", "127.0.0.1:19002")?,
        ];
        let mut agent = Agent::start_unenforced(&programs.agent, &config, &folder.0)?;
        agent.wait_ready(START)?;
        let token = secrets.token(ISSUER, AUDIENCE, "read:books")?;
        Ok(Self {
            _agent: agent,
            _backends: backends,
            folder,
            token,
        })
    }

    /// The folder of documents, to be changed at will.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.0.join("policies")
    }

    /// What to try, in this order: the last two belong together.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let step = |title, line, expected: &[&'static str]| Step {
            title,
            line,
            expected: expected.to_vec(),
        };
        let routing = self.config().join("routing.yaml");
        vec![
            step(
                "a routing key with a placement of its own",
                format!("curl -sSi -H 'X-Routing-Key: visa' {ROUTER}/customers"),
                &[
                    "http/1.1 200",
                    "x-routed-to: beta",
                    "x-route-reason: dedicated",
                    r#""name":"beta""#,
                ],
            ),
            step(
                "an unknown routing key goes to the default placement",
                format!("curl -sSi -H 'X-Routing-Key: somebody' {ROUTER}/customers"),
                &[
                    "http/1.1 200",
                    "x-routed-to: alpha",
                    "x-route-reason: default",
                ],
            ),
            step(
                "no routing key is a mistake",
                format!("curl -sSi {ROUTER}/customers"),
                &["http/1.1 400"],
            ),
            step(
                "the backend sees /new/a?b=1",
                format!("curl -sSi '{ROUTER}/old/a?b=1'"),
                &["http/1.1 200", r#""path":"/new/a""#, r#""query":"b=1""#],
            ),
            step(
                "without a token",
                format!("curl -sSi {ROUTER}/private"),
                &["http/1.1 401", "www-authenticate: bearer"],
            ),
            step(
                "with a token of the right scope",
                format!(
                    "curl -sSi -H 'Authorization: Bearer {}' {ROUTER}/private",
                    self.token
                ),
                &["http/1.1 200"],
            ),
            step(
                "change the default placement while it runs",
                format!(
                    "sed -i 's/defaultPlacement: alpha/defaultPlacement: beta/' {}",
                    routing.display()
                ),
                &[],
            ),
            step(
                "and ask again",
                format!("curl -sSi -H 'X-Routing-Key: somebody' {ROUTER}/customers"),
                &[
                    "http/1.1 200",
                    "x-routed-to: beta",
                    "x-route-reason: default",
                ],
            ),
        ]
    }

    /// Runs a step's line until its output is as expected; a changed file is allowed some time.
    ///
    /// # Errors
    /// It stays otherwise.
    pub fn check(step: &Step) -> Result<String> {
        let start = Instant::now();
        loop {
            interrupt::check()?;
            let output = Command::new("sh")
                .args(["-c", &step.line])
                .output()
                .context("failed to start sh")?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let lower = text.to_ascii_lowercase();
            let missing: Vec<_> = step
                .expected
                .iter()
                .filter(|expected| !lower.contains(**expected))
                .collect();
            if output.status.success() && missing.is_empty() {
                return Ok(text);
            }
            if start.elapsed() > CHANGE {
                bail!(
                    "{}: `{}` ended with {}, lacks {missing:?} and says\n{text}{}",
                    step.title,
                    step.line,
                    output.status,
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Where the agent writes its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.0.join("agent.log")
    }

    /// The folder of this run.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder.0
    }
}
