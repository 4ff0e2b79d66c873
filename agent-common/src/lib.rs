//! Placeholder head of the crate.
