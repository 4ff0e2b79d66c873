//! Commands of documents, run as they are printed.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::World;

/// The blocks of shell commands below a heading of a Markdown text, each as one script.
///
/// # Errors
/// There is no such heading, or no block below it.
pub fn blocks(text: &str, heading: &str) -> Result<Vec<String>> {
    let mut lines = text.lines().skip_while(|line| *line != heading);
    lines
        .next()
        .with_context(|| format!("there is no heading `{heading}`"))?;
    let level = heading.split(' ').next().unwrap_or_default();
    let mut found = Vec::new();
    let mut block: Option<String> = None;
    for line in lines {
        match &mut block {
            None if line == "```sh" => block = Some(String::new()),
            None if line.starts_with(&format!("{level} ")) => break,
            None => {}
            Some(_) if line == "```" => found.extend(block.take()),
            Some(script) => {
                script.push_str(line);
                script.push('\n');
            }
        }
    }
    ensure!(!found.is_empty(), "no commands are below `{heading}`");
    Ok(found)
}

impl World {
    /// Runs a script outside of the nodes, in a folder, as an administrator types it; what it printed, on both of its outputs. It
    /// ends with the first command that fails.
    ///
    /// # Errors
    /// A command fails; the message has everything that was printed.
    pub fn shell(&self, folder: &Path, script: &str) -> Result<String> {
        let mut shell = self.typed(folder, script)?;
        let output = shell.output().context("failed to start a shell")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{}\n{script}printed:\n{said}",
            output.status
        );
        Ok(said)
    }

    fn typed(&self, folder: &Path, script: &str) -> Result<Command> {
        let tools = self.tools()?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = self.outside("sh");
        shell
            .args(["-euc", script])
            .current_dir(folder)
            .env("PATH", format!("{}:{path}", tools.display()));
        Ok(shell)
    }

    /// A folder with the world's own kubectl.
    fn tools(&self) -> Result<PathBuf> {
        let tools = self.state().join("tools");
        let kubectl = tools.join("kubectl");
        if !kubectl.exists() {
            fs::create_dir_all(&tools)?;
            let program = self.state().join("bin/controlplane");
            fs::write(
                &kubectl,
                format!("#!/bin/sh\nexec {} kubectl \"$@\"\n", program.display()),
            )?;
            fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755))?;
        }
        Ok(tools)
    }
}

#[cfg(test)]
mod tests {
    use super::blocks;

    #[test]
    fn commands_are_those_below_their_heading() {
        let text = "## One\n```sh\na\nb\n```\nwords\n```yaml\nc: d\n```\n### Part\n```sh\ne\n```\n## Two\n```sh\nf\n```\n";
        assert_eq!(blocks(text, "## One").expect("blocks"), ["a\nb\n", "e\n"]);
        assert_eq!(blocks(text, "## Two").expect("blocks"), ["f\n"]);
        assert!(blocks(text, "## Three").is_err());
        assert!(blocks("## One\nwords\n", "## One").is_err());
    }
}
