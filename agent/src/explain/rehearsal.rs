//! What documents that are not active would say: a generation that is written, asked and taken back.
//!
//! Flows in, over the admin socket: documents and a question. Flows out: the answer of the kernel's programs for them, or every
//! mistake. No packet is judged by such a generation, no pod gets gates by it, and nothing of it stays.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use snapshot::{Snapshot, SourceFile};
use tokio::sync::{mpsc, oneshot};

use super::answer::{AskError, Explanation, Question};
use super::judge::answer;
use super::names::Names;
use crate::activate::Active;
use crate::compile::{self, kernel::Compiled};
use crate::datapath::{Datapath, Discovery, Explainer};

/// What the admin socket takes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// The documents, all of them.
    pub documents: Vec<Document>,
    /// The question.
    pub question: Question,
}

/// One file.
#[derive(Serialize, Deserialize)]
pub struct Document {
    /// Its path in its folder.
    pub path: String,
    /// Its content.
    pub text: String,
}

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It may hold secrets.
        f.debug_struct("Document")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Why documents got no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The documents are wrong, each mistake with file and field.
    Mistakes(Vec<String>),
    /// They are good, and could not be tried.
    Failed(String),
}

/// A question on its way to the one writer.
#[derive(Debug)]
pub struct Rehearsal {
    /// The documents.
    pub snapshot: Arc<Snapshot>,
    /// The question.
    pub question: Question,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Explanation, Refusal>>,
}

/// The way to the one writer. One question waits, the others wait to wait.
#[derive(Clone, Debug)]
pub struct Rehearsals(mpsc::Sender<Rehearsal>);

impl Rehearsals {
    /// The way, and its end.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Rehearsal>) {
        let (sender, receiver) = mpsc::channel(1);
        (Self(sender), receiver)
    }

    /// Parses the documents and lets the writer try them.
    ///
    /// # Errors
    ///
    /// Whatever keeps documents from being active, or the question from being answered.
    pub async fn ask(&self, request: Request) -> Result<Explanation, Refusal> {
        let files: Vec<_> = request
            .documents
            .into_iter()
            .map(|document| SourceFile {
                path: document.path,
                bytes: document.text.into_bytes(),
            })
            .collect();
        let parsed = tokio::task::spawn_blocking(move || snapshot::parse(&files))
            .await
            .map_err(|error| Refusal::Failed(error.to_string()))?;
        let snapshot = parsed.map_err(|rejections| {
            Refusal::Mistakes(
                rejections
                    .mistakes
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
            )
        })?;
        let (reply, answer) = oneshot::channel();
        let ending = |_| Refusal::Failed("the agent is about to end".to_owned());
        self.0
            .send(Rehearsal {
                snapshot: Arc::new(snapshot),
                question: request.question,
                reply,
            })
            .await
            .map_err(|_| ending(()))?;
        answer.await.map_err(|_| ending(()))?
    }
}

/// Tries a snapshot as `generation`, which must be higher than the active one; `active` is what that one is made of.
pub(crate) fn rehearse(
    datapath: &Datapath,
    active: &Compiled,
    generation: u32,
    snapshot: &Arc<Snapshot>,
    discovery: &Discovery,
    question: &Question,
) -> Result<Explanation, Refusal> {
    if let Err(mistakes) = compile::route::compile(snapshot, generation.into()) {
        return Err(Refusal::Mistakes(
            mistakes.iter().map(ToString::to_string).collect(),
        ));
    }
    let failed =
        |error: &(dyn std::error::Error + 'static)| Refusal::Failed(crate::causes::chain(error));
    let compiled = active.next(snapshot, discovery, generation);
    let tables = compiled.tables();
    let bpffs = &datapath.facts().bpffs;
    let explainer = Explainer::open(bpffs).map_err(|error| failed(&error))?;
    let shadow = Active::new(generation, snapshot, discovery, Some(tables.clone()));
    let names = Names::of(&shadow, &bpffs.display().to_string());
    datapath
        .rehearse(tables, || answer(&explainer, &names, generation, question))
        .map_err(|error| failed(&error))?
        .map_err(|error| match error {
            AskError::Question(message) => Refusal::Failed(message),
            AskError::Kernel(error) => failed(&error),
        })
}
