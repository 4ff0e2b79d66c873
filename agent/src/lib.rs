//! Cardinal's node agent.
//!
//! Flows in: a folder of documents. Flows out: verdicts in the kernel and routed requests. The
//! modules are the flow, in order: `source` → `compile` → `activate` → `datapath` and `proxy`.

pub mod activate;
pub mod admin;
pub mod app;
mod causes;
pub mod cleanup;
pub mod clock;
pub mod compile;
pub mod config;
pub mod datapath;
pub mod explain;
pub mod flows;
pub mod handover;
mod health_checks;
mod http1;
mod http3;
pub mod keys;
pub mod lock;
pub mod logs;
pub mod memory;
pub mod metrics;
pub mod packets;
pub mod pods;
pub mod preflight;
pub mod proxy;
pub mod recent;
pub mod reconcile;
pub mod resilience;
pub mod route;
pub mod source;
pub mod status;
pub mod telemetry;
pub mod upstream;
pub mod validate;
pub mod view;
