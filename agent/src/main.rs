//! Cardinal's node agent: the program.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use cardinal_agent::config::{Cli, Command, LogFormat, ReadyArgs, RunArgs, StatusArgs};
use cardinal_agent::source::SourceError;
use cardinal_agent::status::Status;
use cardinal_agent::{admin, app, cleanup, explain, flows, logs, memory, preflight, validate};
use clap::Parser as _;

/// Requests are many small allocations of short life, for which the C library's allocator takes a tenth of the router's
/// time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Validate(args)) => validate::run(&args),
        Some(Command::Preflight(args)) => finish(preflight::run(&args), LogFormat::Pretty),
        Some(Command::Status(args)) => finish(status(&args), LogFormat::Pretty),
        Some(Command::Ready(args)) => finish(ready(&args), LogFormat::Pretty),
        Some(Command::Cleanup(args)) => finish(cleanup::run(&args), LogFormat::Pretty),
        Some(Command::Explain(args)) => finish(explain::run(&args), LogFormat::Pretty),
        Some(Command::Flows(args)) => finish(flows::run(&args), LogFormat::Pretty),
        None => {
            let format = logs::init(cli.run.log_format);
            finish(run(cli.run), format)
        }
    }
}

fn run(args: RunArgs) -> anyhow::Result<()> {
    memory::small_pages();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The router has threads of its own; these serve the admin interface and watch for changes.
        .worker_threads(2)
        .thread_name("cardinal-main")
        .on_thread_park(memory::parked)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(app::run(args));
    // A thread that reads a folder or a namespace may be in the middle of it.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}

fn ready(args: &ReadyArgs) -> anyhow::Result<()> {
    let path = format!("/readyz?container={}", admin::container()?);
    asked(&args.admin, &path).map(drop)
}

/// What the admin interface says of a path.
fn asked(admin: &Path, path: &str) -> anyhow::Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (code, body) = runtime.block_on(admin::get(admin, path))?;
    anyhow::ensure!(
        code == http::StatusCode::OK,
        "the agent answered {code}: {}",
        String::from_utf8_lossy(&body).trim_end()
    );
    Ok(body.into())
}

fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let body = asked(&args.admin, "/debug/status")?;
    let mut out = std::io::stdout().lock();
    if args.json {
        out.write_all(&body)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", serde_json::from_slice::<Status>(&body)?)?;
    }
    Ok(())
}

fn finish(outcome: anyhow::Result<()>, format: LogFormat) -> ExitCode {
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    // `cardinal-agent status | head`: whoever read had enough.
    if error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    {
        return ExitCode::SUCCESS;
    }
    match format {
        LogFormat::Pretty => eprintln!("error: {error:#}"),
        // Whoever reads JSON gets JSON, up to the last line.
        LogFormat::Json => tracing::error!(error = format!("{error:#}"), "the agent failed"),
    }
    if error.is::<SourceError>() {
        ExitCode::from(2)
    } else {
        ExitCode::FAILURE
    }
}
