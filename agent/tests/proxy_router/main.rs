//! The router on loopback: real sockets, real TLS, real tokens.

mod auth;
mod cells;
mod documents;
mod east;
mod hostile;
mod http;
mod keys;
mod matching;
mod raw;
mod steered;
mod support;
mod swap;
mod tls;
mod vectors;
