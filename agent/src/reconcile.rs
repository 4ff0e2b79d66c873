//! Makes what is wanted the active generation, one change at a time.
//!
//! Flows in: documents that changed, pods that came or went, a tick. Flows out: calls of [`Activator`], which nobody else
//! makes. Documents that are refused are forgotten until they change; what fails for another reason (a taken port, a
//! full table) is tried again at the next tick, and pods never wait for documents.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kubernetes::Cluster;
use snapshot::{Mistake, Rejections, Snapshot, Warning};

use crate::activate::{ActivateError, Activator};
use crate::admin::View as _;
use crate::datapath::Discovery;
use crate::explain::Rehearsal;
use crate::health_checks::HealthChecks;
use crate::metrics::Reload;
use crate::source::cluster::{Found, Taken};
use crate::source::{Loaded, SourceError};
use crate::view::{self, AgentView};

/// How many times as long as the comparison of large tables the agent rests from it: one fiftieth of a core at most. Up to 120,000
/// identities are compared at every tick.
const REST: u32 = 50;

/// Documents that parse.
#[derive(Clone)]
pub struct Documents {
    snapshot: Arc<Snapshot>,
    digest: String,
    /// What they were made of, if somebody waits for an answer.
    found: Option<Arc<Found>>,
}

impl Documents {
    /// Those of a folder.
    #[must_use]
    pub fn of_folder(snapshot: Snapshot, digest: String) -> Self {
        Self {
            snapshot: Arc::new(snapshot),
            digest,
            found: None,
        }
    }

    /// Those of a cluster.
    #[must_use]
    pub fn of_cluster(taken: Taken) -> Self {
        Self {
            digest: taken.snapshot.digest.to_string(),
            snapshot: Arc::new(taken.snapshot),
            found: Some(taken.found),
        }
    }

    /// How many cells they have.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.snapshot.cells.len()
    }
}

/// What is wanted, and what of it is active.
pub struct Reconciler {
    activator: Activator,
    view: Arc<AgentView>,
    /// Who is told what became of its objects.
    cluster: Option<Arc<Cluster>>,
    /// What is active.
    documents: Documents,
    /// What should be, if it is not yet.
    waiting: Option<Documents>,
    discovery: Discovery,
    /// Whether the active generation was made for other pods than `discovery` has.
    stale: bool,
    /// What was said of the active documents: it is not said again with each change of others.
    told: BTreeSet<Warning>,
    /// When the large tables may be compared again.
    rested: Option<Instant>,
    /// How long an interface without addresses stays in quarantine.
    patience: Duration,
    /// What load balancers ask of this node.
    health_checks: HealthChecks,
}

impl Reconciler {
    /// Activates the first generation.
    ///
    /// # Errors
    /// Whatever keeps it from being active: the agent does not start then.
    pub fn start(
        activator: Activator,
        view: Arc<AgentView>,
        documents: Documents,
        cluster: Option<Arc<Cluster>>,
        discovery: Discovery,
        patience: Duration,
    ) -> Result<Self, ActivateError> {
        let asked = Arc::clone(&view);
        let mut reconciler = Self {
            activator,
            health_checks: HealthChecks::new(Arc::new(move || asked.ready())),
            view,
            cluster,
            documents: documents.clone(),
            waiting: None,
            discovery,
            stale: false,
            told: BTreeSet::new(),
            rested: None,
            patience,
        };
        reconciler.activate(&documents, Reload::Start)?;
        reconciler.release();
        Ok(reconciler)
    }

    /// Takes changed documents over, or keeps what is active.
    pub fn documents(&mut self, loaded: Result<Loaded, SourceError>) {
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => return self.refused(&[format!("{:#}", anyhow::Error::new(error))]),
        };
        match snapshot::parse(&loaded.files) {
            Ok(snapshot) => {
                self.waiting = Some(Documents::of_folder(
                    snapshot.sharing(&self.documents.snapshot),
                    loaded.digest,
                ));
                self.reconcile();
            }
            Err(rejections) => {
                self.waiting = None;
                let mistakes: Vec<_> = rejections
                    .mistakes
                    .iter()
                    .map(ToString::to_string)
                    .collect();
                self.refused(&mistakes);
            }
        }
    }

    /// Takes changed objects over, as far as they are right. `without` gives what is left without those of which no tables can be
    /// made, so that one of them does not stop the others.
    pub fn objects(
        &mut self,
        mut taken: Taken,
        mut without: impl FnMut(&Found, &[Mistake]) -> Option<Taken>,
    ) {
        loop {
            let found = Arc::clone(&taken.found);
            let snapshot = taken.snapshot.sharing(&self.documents.snapshot);
            self.waiting = Some(Documents::of_cluster(Taken { snapshot, ..taken }));
            let refused = self.reconcile();
            match refused.and_then(|refused| without(&found, &refused.mistakes)) {
                Some(others) => taken = others,
                None => break,
            }
        }
        // A pod that was waited for may have turned out to be nobody's.
        self.release();
    }

    /// Takes over what pods there are.
    pub fn pods(&mut self, discovery: Discovery) {
        self.discovery = discovery;
        self.stale = true;
        // Those who are nobody's wait for no generation.
        self.release();
        self.reconcile();
    }

    /// Tries again what failed, and puts back what somebody may have removed.
    pub fn repair(&mut self) {
        self.reconcile();
        self.release();
        self.health_checks.open(Instant::now());
        let large = self.rested.is_none_or(|rested| Instant::now() >= rested);
        let care = tokio::task::block_in_place(|| self.activator.look_after(large));
        if let Some(took) = care.large_took {
            self.rested = Some(Instant::now() + took * REST);
        }
        for table in care.tables.iter().filter(|table| table.drifted > 0) {
            tracing::error!(
                table = table.table,
                drifted = table.drifted,
                entries = table.entries,
                repaired = table.repaired,
                "the kernel does not hold what it was given; somebody else may write there"
            );
        }
        for error in &care.failed {
            tracing::error!(
                error = error as &dyn std::error::Error,
                "failed to look after the kernel's side; a table, a gate or the policy route may be missing"
            );
        }
        self.view.looked_after(&care);
    }

    /// Answers what other documents would say. What is active and what is wanted stay as they are.
    pub fn rehearse(&self, rehearsal: Rehearsal) {
        let answer = tokio::task::block_in_place(|| {
            self.activator
                .rehearse(&rehearsal.snapshot, &self.discovery, &rehearsal.question)
        });
        tracing::info!(
            answered = answer.is_ok(),
            "documents were tried beside the active generation"
        );
        if rehearsal.reply.send(answer).is_err() {
            tracing::debug!("whoever asked about documents did not wait for the answer");
        }
    }

    /// The agent is about to end.
    pub fn drain(&self) {
        self.view.drain();
    }

    /// Ends without a change: what is active, and what should be if it is not yet.
    pub fn end(self) -> (Documents, Option<Documents>) {
        (self.documents, self.waiting)
    }

    /// What should be active at the next occasion.
    pub fn want(&mut self, documents: Option<Documents>) {
        self.waiting = documents;
    }

    fn release(&self) {
        let waiting = self.waiting.iter().map(|documents| &*documents.snapshot);
        let snapshots: Vec<_> = waiting.chain([&*self.documents.snapshot]).collect();
        let node = self.cluster.as_deref().map(Cluster::node);
        tokio::task::block_in_place(|| {
            self.activator
                .release(&self.discovery, self.patience, &snapshots, node);
        });
    }

    /// Makes active what is wanted; gives what is wrong with documents that are refused.
    fn reconcile(&mut self) -> Option<Rejections> {
        let mut refused = None;
        if let Some(documents) = self.waiting.clone() {
            match self.activate(&documents, Reload::Documents) {
                Ok(()) => {
                    self.documents = documents;
                    self.waiting = None;
                    return None;
                }
                Err(error) => {
                    if let ActivateError::Refused(rejections) = &error {
                        self.waiting = None;
                        refused = Some(rejections.clone());
                    }
                    let error = format!("{:#}", anyhow::Error::new(error));
                    self.answer(&documents, Err(error.clone()));
                    self.refused(&[error]);
                }
            }
        }
        if self.stale {
            let documents = self.documents.clone();
            if let Err(error) = self.activate(&documents, Reload::Pods) {
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::error!(
                    error,
                    "pods changed, and their generation could not be activated; it is tried again"
                );
                self.view.pods_failed(error);
            }
        }
        refused
    }

    fn activate(&mut self, documents: &Documents, reason: Reload) -> Result<(), ActivateError> {
        // Map updates are system calls; the runtime moves its other tasks away meanwhile.
        let active = tokio::task::block_in_place(|| {
            self.activator
                .activate(&documents.snapshot, &self.discovery)
        })?;
        self.stale = false;
        tracing::info!(
            generation = active.generation,
            reason = reason.as_str(),
            digest = %documents.digest,
            cells = active.snapshot.cells.len(),
            pods = active.discovery.pods.len(),
            "generation active"
        );
        if reason != Reload::Pods {
            let warnings: BTreeSet<Warning> = active.snapshot.warnings.iter().cloned().collect();
            for warning in warnings.difference(&self.told) {
                tracing::warn!(source = %warning.source, "{}", warning.message);
            }
            self.told = warnings;
            for (source, message) in view::expired(&active.snapshot) {
                tracing::error!(%source, "{message}");
            }
        }
        if reason != Reload::Pods {
            self.answer(documents, Ok(active.generation));
        }
        let gateways = active.snapshot.gateways.values();
        self.health_checks.follow(gateways, Instant::now());
        let found = documents.found.as_deref();
        self.view.activated(
            active,
            reason,
            &documents.digest,
            found.map(|found| &*found.report),
        );
        Ok(())
    }

    /// Tells the cluster what became of its objects.
    fn answer(&self, documents: &Documents, active: Result<u32, String>) {
        if let (Some(cluster), Some(found)) = (&self.cluster, &documents.found) {
            cluster.answer(found.outcome(active));
        }
    }

    fn refused(&self, mistakes: &[String]) {
        for mistake in mistakes {
            tracing::error!(
                mistake,
                "documents refused; the active generation goes on serving"
            );
        }
        self.view.refused(mistakes);
    }
}
