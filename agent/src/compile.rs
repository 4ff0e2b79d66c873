//! From a snapshot to tables: pure, so that the same input gives the same bytes.

mod client;
mod filter;
pub mod kernel;
pub mod route;
mod traffic;
