//! The servers and clients of the scenarios, one process each.
//!
//! `serve` prints one JSON line for each thing that it saw, the first of them `{"event":"ready"}`. Every client prints
//! one JSON line, an `Outcome`: a peer that was refused has done its work, so it exits with 0.

mod dns;
mod http3;
mod load;
mod probe;
mod raw;
mod serve;
mod steady;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "peer", about = "Servers and clients of Cardinal's scenarios")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve on all the given sockets until killed.
    Serve(serve::Options),
    /// Connect by TCP, send a line, wait for its echo.
    Tcp(probe::Options),
    /// Send a datagram, wait for its echo.
    Udp(probe::Options),
    /// Connect by TCP, then send each line of standard input and wait for its echo.
    Hold(probe::Options),
    /// Ask a DNS server for the addresses of a name.
    Dns(dns::Options),
    /// Ask once by HTTP/3.
    Http3(http3::Options),
    /// Send one packet with a chosen source address through a raw socket.
    Raw(raw::Options),
    /// Send HTTP requests until standard input ends, and count what did not answer 200.
    Load(load::Options),
    /// Keep many TCP connections talking until standard input ends.
    Steady(steady::SteadyOptions),
    /// Call somebody who may not be reached, until standard input ends, and count what comes back.
    Knock(steady::KnockOptions),
}

fn main() -> ExitCode {
    // Another crate of the workspace may bring another provider; then rustls wants to be told.
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("peer: another cryptography provider is installed already");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("peer: failed to start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match Cli::parse().command {
            Command::Serve(options) => serve::run(options).await,
            Command::Tcp(options) => probe::tcp(options).await,
            Command::Udp(options) => probe::udp(options).await,
            Command::Hold(options) => probe::hold(options).await,
            Command::Dns(options) => dns::ask(options).await,
            Command::Http3(options) => http3::ask(options).await,
            Command::Raw(options) => raw::send(&options),
            Command::Load(options) => load::run(options).await,
            Command::Steady(options) => steady::steady(options).await,
            Command::Knock(options) => steady::knock(options).await,
        }
    });
    // Standard input is read by a thread that nobody can interrupt.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints one line of JSON; several tasks may do so at once.
fn print(value: &serde_json::Value) {
    println!("{value}");
}
