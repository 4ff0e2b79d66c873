//! A world to play in: network namespaces for a node, its pods and everybody else, real servers and clients in them,
//! and the real agent. Tests and the demo share it, so that what is shown is what is tested.

pub mod agent;
pub mod demo;
pub mod http;
pub mod interrupt;
pub mod kube;
pub mod peer;
pub mod programs;
pub mod quickstart;
pub mod secrets;
pub mod world;
