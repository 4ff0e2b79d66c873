//! Commands that this program runs for its user: each is shown before it runs and timed after.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if Path::new(&dir).is_absolute() => PathBuf::from(dir),
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Flags of the compiler with which a program names its sources by the same paths wherever this repository, what is built of it and
/// cargo's crates are. Of two that fit the compiler takes the last.
pub(crate) fn remapped() -> [OsString; 3] {
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo");
    let crates = env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from);
    let folders = [
        (root(), "/cardinal"),
        (target_dir(), "/cardinal/target"),
        (crates, "/cargo"),
    ];
    folders.map(|(from, to)| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flag
    })
}

/// A command that starts in the workspace's folder.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// The command that cargo itself was started with; rustup's proxy where rustup is.
pub(crate) fn cargo() -> Command {
    command("cargo")
}

/// As [`command`], through sudo unless this is root already.
pub(crate) fn as_root(program: &str) -> Result<Command> {
    if is_root() {
        return Ok(command(program));
    }
    if find("sudo").is_none() {
        bail!("`{program}` needs root, and there is no sudo on this machine: run this as root");
    }
    let mut sudo = command("sudo");
    sudo.arg(program);
    Ok(sudo)
}

/// A command with these variables that runs as root: through sudo, which would drop them, unless this is root already.
pub(crate) fn elevated(program: &Path, variables: &[(&str, PathBuf)]) -> Result<Command> {
    if is_root() {
        let mut command = command(program);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        return Ok(command);
    }
    let mut command = as_root("env")?;
    for (name, value) in variables {
        let mut word = OsString::from(name);
        word.push("=");
        word.push(value);
        command.arg(word);
    }
    command.arg(program);
    Ok(command)
}

/// Whether the effective user is root, as the kernel says.
pub(crate) fn is_root() -> bool {
    // The fourth number of the line is the file system's user; the second is the effective one.
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .and_then(|uids| uids.split_whitespace().nth(1))
            .is_some_and(|uid| uid == "0")
    })
}

/// Shows a command, runs it with this terminal, and fails if it fails. Gives the time that it took.
pub(crate) fn run(command: &mut Command) -> Result<Duration> {
    let line = line(command);
    eprintln!("$ {line}");
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("failed to start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(start.elapsed())
}

/// Shows a call of cargo and runs it; fails if it fails. Gives the messages that it printed on standard output, as JSON.
pub(crate) fn messages(cargo: &mut Command) -> Result<Vec<serde_json::Value>> {
    cargo.arg("--message-format=json-render-diagnostics");
    let line = line(cargo);
    eprintln!("$ {line}");
    // What people are to see comes on standard error.
    let output = cargo
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("failed to start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", output.status);
    }
    serde_json::Deserializer::from_slice(&output.stdout)
        .into_iter()
        .collect::<Result<_, _>>()
        .context("cargo printed what is not JSON")
}

/// What a command prints, trimmed; fails if it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start `{line}`"))?;
    if !output.status.success() {
        bail!(
            "`{line}` failed: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Where a program is on `PATH`, or in the folders of the superuser that `PATH` may lack.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// The command as somebody would type it.
pub(crate) fn line(command: &Command) -> String {
    let envs = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), quoted(value?))));
    let words = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(quoted);
    envs.chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy().replace('\u{1f}', " ");
    if word.is_empty() || word.contains([' ', '"', '\'', '*', '$', '(', ';', '&', '|']) {
        format!("'{}'", word.replace('\'', r"'\''"))
    } else {
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_typed() {
        let mut shown = command("cargo");
        shown
            .args(["build", "a b"])
            .env("RUSTFLAGS", "-C\u{1f}x")
            .env_remove("CARGO");
        assert_eq!(line(&shown), "RUSTFLAGS='-C x' cargo build 'a b'");
    }
}
