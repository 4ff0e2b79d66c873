//! `cardinal-agent explain`: what becomes of a connection or a frame, by whose rule, and what other documents would say.
//!
//! The answer is the kernel's: the pinned programs judge a frame against the maps that judge packets. An agent adds names and
//! tries documents; without one, numbers are shown.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use http::StatusCode;
use serde::Serialize;

use crate::admin::{self, ClientError};
use crate::config::{DEFAULT_BPFFS, ExplainArgs};
use crate::datapath::Explainer;
use crate::source;

mod answer;
mod frame;
mod judge;
mod names;
pub(crate) mod rehearsal;
mod target;
mod text;

pub use answer::{AskError, End, Explanation, Family, GateAnswer, Question};
pub use frame::from_hex;
pub use judge::answer;
pub use names::{Names, PodName, RuleName};
pub use rehearsal::{Document, Refusal, Rehearsal, Rehearsals, Request};
pub use target::{Gate, Place, Protocol, Target};

/// Everything that was found out, as `--json` prints it.
#[derive(Serialize)]
struct Report {
    /// Whether an agent gave the names.
    agent: bool,
    /// Why the folder of documents and the active generation differ.
    waiting: Vec<String>,
    /// What packets are judged by now.
    active: Explanation,
    /// What the documents of `--config` would say.
    next: Option<Explanation>,
}

/// Asks and prints.
///
/// # Errors
///
/// The question makes no sense, nothing is pinned, the documents are refused, or output fails.
pub fn run(args: &ExplainArgs) -> anyhow::Result<()> {
    let question = args.question()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let named = match runtime.block_on(admin::get(&args.admin, "/debug/names")) {
        Ok((StatusCode::OK, body)) => Some(serde_json::from_slice::<Names>(&body)?),
        Ok((code, body)) => bail!(
            "the agent answered {code}: {}",
            String::from_utf8_lossy(&body).trim()
        ),
        Err(ClientError::Connect { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let agent = named.is_some();
    let bpffs = match (&args.bpffs, &named) {
        (Some(folder), _) => folder.clone(),
        (None, Some(names)) => names.bpffs.clone().into(),
        (None, None) => DEFAULT_BPFFS.into(),
    };
    let explainer = Explainer::open(&bpffs).with_context(|| {
        format!(
            "nothing that answers is pinned in {} (does an agent of this version enforce here? --bpffs names its folder)",
            bpffs.display()
        )
    })?;
    let names = match named {
        Some(names) => names,
        None => Names::from_pins(&explainer, &bpffs.display().to_string())?,
    };
    let active = answer(&explainer, &names, 0, &question)?;
    let next = match &args.config {
        Some(_) if !agent => bail!(
            "no agent answers on admin socket `{}`, and only an agent can try documents",
            args.admin.display()
        ),
        Some(folder) => Some(runtime.block_on(rehearse(&args.admin, folder, question))?),
        None => None,
    };
    let report = Report {
        agent,
        waiting: names.waiting,
        active,
        next,
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        print(&mut out, &report)?;
    }
    Ok(())
}

fn print(out: &mut impl std::io::Write, report: &Report) -> std::io::Result<()> {
    if !report.agent {
        writeln!(
            out,
            "no agent answers: the kernel judges without it, and there are numbers instead of names"
        )?;
    }
    for reason in &report.waiting {
        for (index, line) in reason.lines().enumerate() {
            let label = if index == 0 { "WAITING" } else { "" };
            writeln!(out, "{label:<11} {line}")?;
        }
    }
    write!(out, "{}", report.active)?;
    if let Some(next) = &report.next {
        write!(out, "\n{next}")?;
        let same = next.verdict == report.active.verdict;
        let word = if same { "the same" } else { "another verdict" };
        writeln!(
            out,
            "difference  {word}: {} now, {} then",
            report.active.verdict, next.verdict
        )?;
    }
    Ok(())
}

/// Lets the agent try a folder of documents.
async fn rehearse(socket: &Path, folder: &Path, question: Question) -> anyhow::Result<Explanation> {
    let loaded = source::load(folder)?;
    // The agent would say the same; here it costs it nothing.
    snapshot::parse(&loaded.files).map_err(|rejections| {
        anyhow::anyhow!(
            "documents in `{}` are refused:\n{rejections}",
            folder.display()
        )
    })?;
    let documents = loaded
        .files
        .into_iter()
        .map(|file| {
            let text = String::from_utf8(file.bytes)
                .with_context(|| format!("{} is no UTF-8", file.path))?;
            Ok(Document {
                path: file.path,
                text,
            })
        })
        .collect::<anyhow::Result<_>>()?;
    let body = serde_json::to_vec(&Request {
        documents,
        question,
    })?;
    let (code, body) = admin::post(socket, "/debug/explain", body).await?;
    match code {
        StatusCode::OK => Ok(serde_json::from_slice(&body)?),
        StatusCode::UNPROCESSABLE_ENTITY => match serde_json::from_slice(&body)? {
            Refusal::Mistakes(mistakes) => bail!(
                "documents in `{}` are refused:\n{}",
                folder.display(),
                mistakes.join("\n")
            ),
            Refusal::Failed(error) => {
                bail!(
                    "documents in `{}` could not be tried: {error}",
                    folder.display()
                )
            }
        },
        code => bail!(
            "the agent answered {code}: {}",
            String::from_utf8_lossy(&body).trim()
        ),
    }
}
