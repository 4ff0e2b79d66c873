//! Clients and servers of other implementations, with the agent between them: gRPC's own in C, and libraries of Python for
//! WebSockets, HTTP/2 and HTTP/3. What they do and expect is in `tests/clients`; a class of tests there is a test here.
//!
//! `CARDINAL_PYTHON` names the interpreter; without the variable it is the distribution's, `/usr/bin/python3`, which its packages
//! of libraries are for, or the one of `target/python`, which sees these too and has what the distribution lacks. Without one of
//! them these tests fail, and say what `cargo xtask setup` installs.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use tests::{programs::Programs, secrets::Secrets};

/// Libraries, by the module that is asked for and what has it.
const LIBRARIES: [(&str, &str); 4] = [
    ("grpc", "the Debian package python3-grpcio"),
    ("websockets", "the Debian package python3-websockets"),
    ("h2", "the Debian package python3-h2"),
    ("wsproto", "the Debian package python3-wsproto"),
];

/// The one for HTTP/3, which not every distribution has.
const AIOQUIC: (&str, &str) = ("aioquic", "aioquic into target/python");

#[test]
fn proxy_carries_grpc_of_other_implementations_in_cleartext() -> Result<()> {
    play("grpc_calls.OverCleartext")
}

#[test]
fn proxy_carries_grpc_of_other_implementations_over_tls() -> Result<()> {
    play("grpc_calls.OverTls")
}

#[test]
fn proxy_carries_websockets_of_other_implementations_in_cleartext() -> Result<()> {
    play("websocket_chats.OverCleartext")
}

#[test]
fn proxy_carries_websockets_of_other_implementations_over_tls() -> Result<()> {
    play("websocket_chats.OverTls")
}

#[test]
fn proxy_carries_websockets_of_other_implementations_over_http2() -> Result<()> {
    play("websocket_chats.OverHttp2")
}

#[test]
fn proxy_carries_http3_of_another_implementation() -> Result<()> {
    has(AIOQUIC)?;
    play("http3_requests.OverHttp3")
}

/// The interpreter that has the libraries.
fn python() -> PathBuf {
    if let Some(named) = env::var_os("CARDINAL_PYTHON") {
        return named.into();
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin/python3");
    match own.is_file() {
        true => own,
        false => "/usr/bin/python3".into(),
    }
}

/// Fails where the interpreter lacks a library.
fn has((module, package): (&str, &str)) -> Result<()> {
    let python = python();
    let output = Command::new(&python)
        .args(["-c", &format!("import {module}")])
        .output()
        .with_context(|| {
            format!(
                "{} is not here; `cargo xtask setup` installs the Debian package python3",
                python.display()
            )
        })?;
    ensure!(
        output.status.success(),
        "{} has no module {module}; `cargo xtask setup` installs {package}:\n{}",
        python.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Runs the tests of a class, all of which have to pass.
fn play(class: &str) -> Result<()> {
    for library in LIBRARIES {
        has(library)?;
    }
    let folder = tempfile::tempdir()?;
    let secrets = Secrets::make(folder.path())?;
    secrets.certify("gateway", &["notes.example"])?;
    let output = Command::new(python())
        .args(["-m", "unittest", "-v", class])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("clients"))
        .env("CARDINAL_AGENT", Programs::locate()?.agent)
        .env("CARDINAL_SECRETS", folder.path())
        // A proxy that the machine goes out by is none for loopback.
        .env("no_proxy", "127.0.0.1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{class} ended with {}:\n{said}", output.status);
    }
    let ran = said
        .lines()
        .find_map(|line| line.strip_prefix("Ran ")?.split(' ').next()?.parse().ok());
    ensure!(
        ran.is_some_and(|tests: usize| tests > 0) && said.trim_end().ends_with("\nOK"),
        "{class} did not run all of its tests:\n{said}"
    );
    Ok(())
}
