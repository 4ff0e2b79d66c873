//! The router on loopback: real sockets, real TLS, real tokens.

mod access;
mod auth;
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
mod tcp_routes;
mod telemetry;
mod tls;
mod tls_routes;
mod udp_routes;
mod upstreams;
mod vectors;
mod websockets;
