//! The command line. Every option says what it is, its unit and its default.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Cells enforced in the kernel and routed in user space, from one folder of documents.
#[derive(Debug, Parser)]
#[command(
    name = "cardinal-agent",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Exit codes: 0 success, 1 refused or failed, 2 wrong usage or unreadable input."
)]
pub struct Cli {
    /// What to do; without a command the agent runs.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Options of a running agent.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Commands beside running.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check a folder of documents offline and list every mistake
    Validate(ValidateArgs),
    /// Show what a running agent does: generation, cells, pods, listeners, drops, what is not enforced
    Status(StatusArgs),
}

/// Options of a running agent.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Folder of documents (*.yaml, *.yml, *.json, subfolders included)
    #[arg(long, value_name = "DIR", required = true)]
    pub config: Option<PathBuf>,

    /// Whether cells are enforced in the kernel
    #[arg(long, value_enum, default_value_t = DatapathMode::Auto)]
    pub datapath: DatapathMode,

    /// Folder of this node's pinned maps, programs and links; bpffs is mounted there if it is missing
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/cardinal")]
    pub bpffs: PathBuf,

    /// cgroup2 folder whose processes are steered at connect time [default: where cgroup2 is mounted]
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,

    /// Folder of this node's own files; one agent at a time uses it
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cardinal")]
    pub state: PathBuf,

    /// Unix socket of the admin interface
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_ADMIN)]
    pub admin: PathBuf,

    /// Serve the admin interface on this loopback address too
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = loopback)]
    pub admin_listen: Option<SocketAddr>,

    /// Router threads, each pinned to a core with its own sockets and pools [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Time for open requests to end after SIGTERM, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub drain: u64,

    /// Time that a new interface without addresses is held, in seconds: all its packets are dropped until it is known whose pod
    /// is behind it. 0 holds no new interface, and a pod of a cell may send before it is guarded
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub quarantine: u64,

    /// Log format [default: pretty on a terminal, JSON otherwise]
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
}

/// Where the admin socket is unless `--admin` says otherwise.
pub const DEFAULT_ADMIN: &str = "/run/cardinal/admin.sock";

/// Whether cells are enforced. There is no mode in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DatapathMode {
    /// Enforce every cell in the kernel, or refuse to start
    Auto,
    /// Router alone, for laptops and tests: nothing is enforced, and no root is needed
    None,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Pretty,
    /// One JSON object a line
    Json,
}

/// Options of `validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// Folder of documents
    pub dir: PathBuf,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print everything as JSON
    #[arg(long)]
    pub json: bool,

    /// Unix socket of the agent's admin interface
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_ADMIN)]
    pub admin: PathBuf,
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "expected an address and a port, such as 127.0.0.1:9901".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("expected a loopback address: the admin interface has no authentication".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::{Cli, Command};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn running_needs_a_folder_and_commands_do_not() {
        assert!(Cli::try_parse_from(["cardinal-agent"]).is_err());
        let run = Cli::try_parse_from(["cardinal-agent", "--config", "policies"]).expect("runs");
        assert!(run.command.is_none());
        let status = Cli::try_parse_from(["cardinal-agent", "status", "--json"]).expect("status");
        assert!(matches!(status.command, Some(Command::Status(_))));
    }

    #[test]
    fn the_admin_interface_stays_on_loopback() {
        let error = Cli::try_parse_from([
            "cardinal-agent",
            "--config",
            "p",
            "--admin-listen",
            "0.0.0.0:1",
        ])
        .expect_err("refused");
        assert!(
            error.to_string().contains("has no authentication"),
            "{error}"
        );
    }
}
