//! Clients and servers of other implementations, with the agent between them: gRPC's own in C, and libraries of Python for
//! WebSockets and HTTP/2. What they do and expect is in `tests/clients`; a class of tests there is a test here.
//!
//! `CARDINAL_PYTHON` names the interpreter; without the variable it is the distribution's, `/usr/bin/python3`, which its packages
//! of libraries are for. Without one of them these tests fail, and say what `cargo xtask setup` installs.

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use tests::{programs::Programs, secrets::Secrets};

/// Libraries, by the module that is asked for and the Debian package that has it.
const LIBRARIES: [(&str, &str); 4] = [
    ("grpc", "python3-grpcio"),
    ("websockets", "python3-websockets"),
    ("h2", "python3-h2"),
    ("wsproto", "python3-wsproto"),
];

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

/// Runs the tests of a class, all of which have to pass.
fn play(class: &str) -> Result<()> {
    let python = env::var_os("CARDINAL_PYTHON").unwrap_or_else(|| "/usr/bin/python3".into());
    for (module, package) in LIBRARIES {
        let output = Command::new(&python)
            .args(["-c", &format!("import {module}")])
            .output()
            .with_context(|| {
                format!(
                    "{} is not here; `cargo xtask setup` installs the Debian package python3",
                    Path::new(&python).display()
                )
            })?;
        ensure!(
            output.status.success(),
            "{} has no module {module}; `cargo xtask setup` installs the Debian package {package}:\n{}",
            Path::new(&python).display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let folder = tempfile::tempdir()?;
    let secrets = Secrets::make(folder.path())?;
    secrets.certify("gateway", &["notes.example"])?;
    let output = Command::new(&python)
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
