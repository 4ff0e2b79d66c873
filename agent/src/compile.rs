//! From a snapshot to tables: pure, so that the same input gives the same bytes.

mod filter;
pub mod kernel;
pub mod route;
mod traffic;
