//! Cardinal's node agent.
//!
//! Flows in: a folder of documents. Flows out: verdicts in the kernel and routed requests. The
//! modules are the flow, in order: `source` → `compile` → `activate` → `datapath` and `proxy`.

pub mod compile;
pub mod datapath;
pub mod proxy;
pub mod route;
pub mod upstream;
