//! The router on loopback: real sockets, real TLS, real tokens.

mod auth;
mod cells;
mod documents;
mod east;
mod filters;
mod hostile;
mod http;
mod matching;
mod mirrors;
mod raw;
mod resilience;
mod sessions;
mod steered;
mod support;
mod swap;
mod tls;
mod vectors;
