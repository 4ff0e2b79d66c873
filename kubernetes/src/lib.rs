//! Documents out of a Kubernetes API server, and what became of them back into it.
//!
//! ```text
//!  definitions ──▶ served ──▶ watch, one per kind ──▶ Store ──▶ Cluster::seen ──▶ the agent
//!                             (list, then events)     (what is known, and        (all objects at one moment)
//!                                                      how much is believed)
//! ```
//!
//! Flows in: lists and watches. Flows out: the objects of the kinds that are documents, each as a document in JSON. What it
//! deliberately does not do: look at what a document means, or serve anything. This is the only crate that knows `kube`.

mod backoff;
mod balancers;
mod cluster;
mod error;
mod events;
mod failures;
#[cfg(test)]
mod fake;
mod keep;
mod kinds;
mod lease;
mod nodes;
mod object;
mod packed;
mod served;
mod status;
mod store;
mod uid;
mod watch;
mod writer;

pub use cluster::{Cluster, Health, Seen, Settings};
pub use error::ClusterError;
pub use keep::kept_files;
pub use kinds::Kind;
pub use object::{Object, ObjectId};
pub use packed::Packed;
pub use status::{CONTROLLER, Outcome};
pub use store::{Objects, SECOND_LOOK, Silence};
pub use uid::Uid;
