//! `cardinal-agent preflight`: what a node lacks, before an agent is put on it.

use std::io::{self, Write as _};

use serde_json::json;

use crate::config::PreflightArgs;
use crate::datapath::{Finding, Standing, preflight};

/// Prints how it stands with everything that is needed.
///
/// # Errors
///
/// Something is lacking, or output fails.
pub fn run(args: &PreflightArgs) -> anyhow::Result<()> {
    let findings = preflight(&args.bpffs, args.cgroup.as_deref());
    let mut out = io::stdout().lock();
    if args.json {
        let findings: Vec<_> = findings.iter().map(as_json).collect();
        writeln!(out, "{}", json!({ "findings": findings }))?;
    } else {
        for finding in &findings {
            writeln!(out, "{finding}")?;
        }
    }
    let lacking = findings
        .iter()
        .filter(|finding| matches!(finding.standing, Standing::Lacking(_)))
        .count();
    anyhow::ensure!(
        lacking == 0,
        "this node lacks {lacking} of the {} things above that an agent needs",
        findings.len()
    );
    Ok(())
}

fn as_json(finding: &Finding) -> serde_json::Value {
    let (standing, text) = match &finding.standing {
        Standing::There(text) => ("ok", text),
        Standing::Worse(text) => ("worse", text),
        Standing::Lacking(text) => ("lacks", text),
    };
    json!({ "what": finding.what, "standing": standing, "text": text })
}
