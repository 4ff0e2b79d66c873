//! HTTP by the real curl, from any place.

use std::{net::IpAddr, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// How curl ended, and what it got.
#[derive(Clone, Debug)]
pub struct Page {
    /// The status; 0 without an answer.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
    /// From the start to the end of the exchange.
    pub latency_us: u64,
    /// Why there is no answer: `timeout`, `refused`, `tls-refused`, `certificate-refused`, `reset`, `no-such-name` or
    /// curl's own words.
    pub failure: Option<String>,
}

impl Page {
    /// The first header of a name (lower case), or nothing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    /// The body as JSON, `null` if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// The status, or why there is none: what a row shows.
    #[must_use]
    pub fn outcome(&self) -> String {
        self.failure
            .clone()
            .unwrap_or_else(|| self.status.to_string())
    }
}

/// `--resolve host:port:address`, with which a host that has no DNS name here is asked for by name.
#[must_use]
pub fn resolve(host: &str, port: u16, address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("{host}:{port}:{v4}"),
        IpAddr::V6(v6) => format!("{host}:{port}:[{v6}]"),
    }
}

/// Runs a curl command that has its place and program already, and needs only arguments.
///
/// # Errors
/// curl cannot be started.
pub fn curl(mut command: Command, timeout: Duration, arguments: &[&str]) -> Result<Page> {
    const MARK: &str = "\n--curl--";
    let output = command
        .args([
            "--silent",
            "--show-error",
            "--include",
            "--noproxy",
            "*",
            "--max-time",
        ])
        .arg(format!("{}", timeout.as_secs_f32()))
        .args([
            "--write-out",
            &format!("{MARK}%{{http_code}} %{{time_total}}"),
        ])
        .args(arguments)
        .output()
        .context("failed to start curl")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (answer, facts) = text.rsplit_once(MARK).with_context(|| {
        format!(
            "curl said `{}`",
            String::from_utf8_lossy(&output.stderr).trim()
        )
    })?;
    let (status, seconds) = facts
        .split_once(' ')
        .context("curl's facts are incomplete")?;
    let seconds: f64 = seconds.parse().context("curl's time is no number")?;
    let failure = match output.status.code() {
        Some(0) => None,
        Some(6) => Some("no-such-name".to_owned()),
        Some(7) => Some("refused".to_owned()),
        Some(28) => Some("timeout".to_owned()),
        Some(35) => Some("tls-refused".to_owned()),
        Some(60) => Some("certificate-refused".to_owned()),
        Some(52 | 56) => Some("reset".to_owned()),
        _ => Some(
            String::from_utf8_lossy(&output.stderr)
                .lines()
                .next()
                .unwrap_or("no answer")
                .to_owned(),
        ),
    };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let headers = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok(Page {
        status: status.parse().context("curl's status is no number")?,
        headers,
        body: body.to_owned(),
        latency_us: Duration::try_from_secs_f64(seconds)?
            .as_micros()
            .try_into()
            .unwrap_or(u64::MAX),
        failure,
    })
}
