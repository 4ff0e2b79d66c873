//! The router on loopback: real sockets, real TLS, real tokens.

mod access;
mod auth;
mod backends;
mod cells;
mod documents;
mod east;
mod filters;
mod hostile;
mod http;
mod keys;
mod matching;
mod mirrors;
mod raw;
mod remote_keys;
mod resilience;
mod sessions;
mod steered;
mod support;
mod swap;
mod telemetry;
mod tls;
mod traffic_policy;
mod upstreams;
mod vectors;
mod websockets;
