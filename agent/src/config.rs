//! The command line. Every option says what it is, its unit and its default.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::explain::{Family, Gate, Place, Question, Target, from_hex};
use crate::flows::Wanted;
use crate::telemetry::{AccessLog, Collector, TelemetrySettings, Traces};

/// Cells enforced in the kernel and routed in user space, from one folder of documents or a Kubernetes cluster.
#[derive(Debug, Parser)]
#[command(
    name = "cardinal-agent",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "RUST_LOG chooses what is logged, such as `debug` or `warn,cardinal_agent::proxy=debug`; `info` without it.\n\
        Exit codes: 0 success, 1 refused or failed, 2 wrong usage or unreadable input."
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
    /// List every mistake of a folder of documents, without an agent
    Validate(ValidateArgs),
    /// Show what this node lacks for cells to be enforced; exit code 1 if it lacks anything
    Preflight(PreflightArgs),
    /// Show what the agent does: generation, cells, pods, listeners, drops, what is not enforced
    Status(StatusArgs),
    /// Probe: exit with 0 if the agent of this container has the node and is ready
    Ready(ReadyArgs),
    /// Ask the kernel what becomes of a connection or a frame, and by which rule
    Explain(ExplainArgs),
    /// Show the last flows and drops of this node's cells, or with --follow new ones
    Flows(FlowsArgs),
    /// Show what an agent left on this node, or with --yes remove it: then nothing is enforced
    Cleanup(CleanupArgs),
}

/// Options of a running agent.
#[derive(Clone, Debug, Args)]
#[command(group = clap::ArgGroup::new("documents").required(true).args(["config", "kubernetes"]))]
pub struct RunArgs {
    /// Folder of documents (*.yaml, *.yml, *.json, subfolders included); this or --kubernetes is needed
    #[arg(long, value_name = "DIR")]
    pub config: Option<PathBuf>,

    /// Take documents from a cluster: the one that KUBECONFIG names, or that the agent's pod is in
    #[arg(long, requires = "node_name")]
    pub kubernetes: bool,

    /// With --kubernetes, which needs it: the cluster's name for the node that the agent is on
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,

    /// Whether cells are enforced in the kernel
    #[arg(long, value_enum, default_value_t = DatapathMode::Auto)]
    pub datapath: DatapathMode,

    /// Folder of this node's pinned maps, programs and links
    ///
    /// bpffs is mounted there if it is missing.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,

    /// cgroup2 folder whose processes are steered at connect time [default: where cgroup2 is mounted]
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,

    /// Folder of this node's own files; one agent at a time uses it
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
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

    /// Take the place of the agent that has the node, if there is one; no connection is refused
    ///
    /// Everything is loaded first, then that one hands its sockets over, drains and ends. One that cannot hand over is waited for.
    #[arg(long)]
    pub take_over: bool,

    /// After SIGTERM, time to go on until another agent has taken over, in seconds
    ///
    /// The other one is started with --take-over. 0 drains at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub successor: u64,

    /// After SIGTERM or a handover, time for open requests to end, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub drain: u64,

    /// Time that a new interface without addresses is held, in seconds
    ///
    /// All its packets are dropped until it is known whose pod is behind it. With 0 no new interface is held, and a pod of a cell
    /// may send before it is guarded.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub quarantine: u64,

    /// Write a line of JSON for each request to the end of a file, or to standard output (`-`) [default: none]
    #[arg(long, value_name = "FILE", value_parser = access_log)]
    pub access_log: Option<AccessLog>,

    /// Send spans of requests to this OpenTelemetry collector, by OTLP over HTTP [default: none]
    #[arg(long, value_name = "URI")]
    pub otlp_traces: Option<Collector>,

    /// Share of the traces that begin here to record, 0 to 1; what callers record is recorded
    #[arg(long, value_name = "RATIO", default_value_t = 1.0, value_parser = ratio)]
    pub trace_ratio: f64,

    /// Log format [default: pretty on a terminal, JSON otherwise]
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
}

fn access_log(text: &str) -> Result<AccessLog, std::convert::Infallible> {
    Ok(match text {
        "-" => AccessLog::Stdout,
        path => AccessLog::File(path.into()),
    })
}

fn ratio(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|ratio| (0.0..=1.0).contains(ratio))
        .ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

impl RunArgs {
    /// What is told of requests, and to whom.
    pub fn telemetry(&self) -> TelemetrySettings {
        TelemetrySettings {
            access_log: self.access_log.clone(),
            traces: self.otlp_traces.clone().map(|collector| Traces {
                collector,
                ratio: self.trace_ratio,
                linger: LINGER,
            }),
        }
    }
}

/// Until spans are sent that fill no batch.
const LINGER: std::time::Duration = std::time::Duration::from_secs(1);

/// Where the pins are unless `--bpffs` says otherwise.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/cardinal";

/// Where the node's own files are unless `--state` says otherwise.
pub const DEFAULT_STATE: &str = "/var/lib/cardinal";

/// The folder in there that keeps the last objects of a cluster.
pub const KEPT: &str = "kubernetes";

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

/// Options of `preflight`.
#[derive(Debug, Args)]
#[command(
    after_help = "It changes nothing. Run it as the agent will run: in a pod, with the pod's security context and mounts."
)]
pub struct PreflightArgs {
    /// Folder of the node's pins
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,

    /// cgroup2 folder whose processes are steered at connect time [default: where cgroup2 is mounted]
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,

    /// Print the findings as JSON
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

/// Options of `ready`.
#[derive(Debug, Args)]
pub struct ReadyArgs {
    /// Unix socket of the node's admin interface, which may be another container's agent's
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_ADMIN)]
    pub admin: PathBuf,
}

/// Options of `explain`.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("asked").required(true).args(["to", "frame"]),
    after_help = "Run it on the node, in the network namespace of its agent.\n\n\
        cardinal-agent explain --from shop/web --to bank/ledger:7000/tcp\n\
        cardinal-agent explain --from veth12 --to [fd00::7]:53/udp --json\n\
        cardinal-agent explain --from north-gate --to shop/web:8080 --config /etc/cardinal.next\n\
        cardinal-agent explain --interface veth12 --frame 0200000000010200000000020806…"
)]
pub struct ExplainArgs {
    /// Who opens the connection: a component, an address, a pod's host-side interface, or the router
    ///
    /// A component is `shop/web` or `acme/shop/prod/web`, the router `north-gate` or `west-gate`.
    #[arg(long, value_name = "WHO", required_unless_present = "interface")]
    pub from: Option<Place>,

    /// Where to: `WHO:PORT` (TCP), `WHO:PORT/udp`, `WHO/icmp`, or another protocol (`WHO/sctp`, `WHO/ip-99`)
    #[arg(long, value_name = "WHERE", conflicts_with = "frame")]
    pub to: Option<Target>,

    /// A whole frame in hexadecimal digits, instead of `--to`
    #[arg(long, value_name = "HEX")]
    pub frame: Option<String>,

    /// The pod at whose gate the frame is seen, by its host-side interface [default: that of --from]
    #[arg(
        long,
        value_name = "INTERFACE",
        requires = "frame",
        conflicts_with = "from"
    )]
    pub interface: Option<Place>,

    /// The frame is one that the pod gets, not one that it sends
    #[arg(long, requires = "frame")]
    pub received: bool,

    /// The frame that the pod gets is the router's
    #[arg(long, value_name = "GATE", requires = "received", value_parser = gate)]
    pub router: Option<Gate>,

    /// Source port, or identifier of the echo [default: one that no connection has]
    #[arg(long, value_name = "PORT", conflicts_with = "frame", value_parser = clap::value_parser!(u16).range(1..))]
    pub sport: Option<u16>,

    /// Over IPv4 only
    #[arg(short = '4', long, conflicts_with_all = ["ipv6", "frame"])]
    pub ipv4: bool,

    /// Over IPv6 only
    #[arg(short = '6', long, conflicts_with = "frame")]
    pub ipv6: bool,

    /// Ask what these documents would say, too
    ///
    /// The agent writes them beside the active generation, asks, and takes them back. No packet is judged by them.
    #[arg(long, value_name = "DIR")]
    pub config: Option<PathBuf>,

    /// Print the answer as JSON
    #[arg(long)]
    pub json: bool,

    /// Folder of the node's pins [default: the agent's, or /sys/fs/bpf/cardinal]
    #[arg(long, value_name = "DIR")]
    pub bpffs: Option<PathBuf>,

    /// Unix socket of the agent's admin interface
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_ADMIN)]
    pub admin: PathBuf,
}

/// Options of `flows`.
#[derive(Debug, Args)]
#[command(
    after_help = "Each new flow and each drop is an event; of a cell at most 256 a second are told, and the rest is counted.\n\
        Lines that begin with `!` say what was lost."
)]
pub struct FlowsArgs {
    /// Only of this cell, organization/project/environment
    #[arg(long, value_name = "CELL", value_parser = cell)]
    pub cell: Option<String>,

    /// Only with this verdict
    #[arg(long, value_parser = PossibleValuesParser::new(crate::flows::verdicts()))]
    pub verdict: Option<String>,

    /// Only for this reason
    #[arg(long, value_parser = PossibleValuesParser::new(crate::flows::reasons()), hide_possible_values = true)]
    pub reason: Option<String>,

    /// Only at this border
    #[arg(long, value_parser = PossibleValuesParser::new(crate::flows::directions()))]
    pub direction: Option<String>,

    /// How many of the events that the agent keeps to show first, of the last 4096
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub last: usize,

    /// Stay, and show what comes
    #[arg(long, short)]
    pub follow: bool,

    /// Print each event as a line of JSON
    #[arg(long)]
    pub json: bool,

    /// Unix socket of the agent's admin interface
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_ADMIN)]
    pub admin: PathBuf,
}

impl FlowsArgs {
    /// What is asked for.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        Wanted {
            cell: self.cell.clone(),
            verdict: self.verdict.clone(),
            reason: self.reason.clone(),
            direction: self.direction.clone(),
            last: self.last,
            follow: self.follow,
        }
    }
}

fn cell(text: &str) -> Result<String, String> {
    let plain = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    if text.split('/').count() == 3 && text.split('/').all(plain) {
        Ok(text.to_owned())
    } else {
        Err("expected organization/project/environment, such as acme/shop/prod".to_owned())
    }
}

/// Options of `cleanup`.
#[derive(Debug, Args)]
#[command(after_help = "Run it on the node, in the network namespace that the agent ran in.")]
pub struct CleanupArgs {
    /// Remove it; without this it is only shown
    #[arg(long)]
    pub yes: bool,

    /// After that look again, and until SIGTERM let no agent start on the node
    #[arg(long, requires = "yes")]
    pub stay: bool,

    /// Folder of the node's pins
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,

    /// Folder of the agent's own files
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
    pub state: PathBuf,

    /// Unix socket of the agent's admin interface
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_ADMIN)]
    pub admin: PathBuf,
}

impl ExplainArgs {
    /// The question.
    ///
    /// # Errors
    ///
    /// The frame is none.
    pub fn question(&self) -> anyhow::Result<Question> {
        let from = self.from.clone().or_else(|| self.interface.clone());
        // clap has asked for one of each pair.
        let from = from.ok_or_else(|| anyhow::anyhow!("--from is missing"))?;
        if let Some(to) = &self.to {
            return Ok(Question::Connection {
                from,
                to: to.clone(),
                sport: self.sport,
                family: match (self.ipv4, self.ipv6) {
                    (true, _) => Some(Family::V4),
                    (_, true) => Some(Family::V6),
                    _ => None,
                },
            });
        }
        let digits = self.frame.as_deref().unwrap_or_default();
        Ok(Question::Frame {
            bytes: from_hex(digits).map_err(anyhow::Error::msg)?,
            at: from,
            sent: !self.received,
            mark: self.router,
        })
    }
}

fn gate(text: &str) -> Result<Gate, String> {
    match text.parse() {
        Ok(Place::Router(gate)) => Ok(gate),
        _ => Err("expected `north-gate` or `west-gate`".to_owned()),
    }
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
        let cluster = ["cardinal-agent", "--kubernetes", "--node-name", "node-1"];
        assert!(Cli::try_parse_from(cluster).expect("runs").run.kubernetes);
        assert!(Cli::try_parse_from(&cluster[..2]).is_err());
        assert!(Cli::try_parse_from(cluster.iter().chain(&["--config", "policies"])).is_err());
        let status = Cli::try_parse_from(["cardinal-agent", "status", "--json"]).expect("status");
        assert!(matches!(status.command, Some(Command::Status(_))));
    }

    #[test]
    fn a_question_is_a_connection_or_a_frame() {
        let parse = |args: &[&str]| {
            let cli = Cli::try_parse_from(["cardinal-agent", "explain"].iter().chain(args));
            cli.map(|cli| match cli.command {
                Some(Command::Explain(args)) => args,
                _ => panic!("the command is explain"),
            })
        };
        let frame = "020000000001 020000000002 0806";
        for good in [
            &["--from", "shop/web", "--to", "10.0.0.7:443/tcp"][..],
            &["--from", "shop/web", "--to", "10.0.0.7/icmp", "-4"],
            &["--from", "veth1", "--frame", frame],
            &[
                "--interface",
                "veth1",
                "--frame",
                frame,
                "--received",
                "--router",
                "west-gate",
            ],
        ] {
            parse(good).expect("parses").question().expect("a question");
        }
        for bad in [
            &["--from", "shop/web"][..],
            &["--to", "10.0.0.7:443/tcp"],
            &["--from", "a", "--to", "b:1", "--frame", frame],
            &["--from", "a", "--to", "b:1", "-4", "-6"],
            &["--from", "a", "--to", "b"],
            &[
                "--interface",
                "veth1",
                "--frame",
                frame,
                "--router",
                "west-gate",
            ],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        let no_frame = parse(&["--from", "veth1", "--frame", "0xzz"]).expect("parses");
        let error = no_frame.question().expect_err("no digits").to_string();
        assert!(error.contains("hexadecimal"), "{error}");
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
