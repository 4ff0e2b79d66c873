//! Logs: pretty on a terminal, one JSON object a line otherwise.

use std::io::{IsTerminal as _, stderr};

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts logging to standard error. `RUST_LOG` chooses what is logged, in the syntax of
/// `tracing_subscriber::EnvFilter`; the default is everything from `info` on, without the client of Kubernetes, whose failures are
/// told by whoever asked it. Gives the format that is used.
pub fn init(format: Option<LogFormat>) -> LogFormat {
    let wanted = EnvFilter::try_from_default_env();
    // A variable that is not set is no mistake; the filter's error does not tell the two apart.
    let mistake = wanted
        .as_ref()
        .err()
        .filter(|_| std::env::var_os(EnvFilter::DEFAULT_ENV).is_some())
        .map(ToString::to_string);
    let filter = wanted.unwrap_or_else(|_| EnvFilter::new("info,kube_client=off"));
    let format = format.unwrap_or(if stderr().is_terminal() {
        LogFormat::Pretty
    } else {
        LogFormat::Json
    });
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr);
    match format {
        LogFormat::Pretty => builder.with_ansi(stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    if let Some(mistake) = mistake {
        tracing::warn!(
            mistake,
            "RUST_LOG is no filter; logging everything from `info` on"
        );
    }
    format
}
