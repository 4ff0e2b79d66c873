//! Where the programs are that a scenario starts.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

/// The programs and the folder of documents.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `cardinal-agent`.
    pub agent: PathBuf,
    /// `peer`.
    pub peer: PathBuf,
    /// `policies/`.
    pub policies: PathBuf,
}

impl Programs {
    /// What `CARDINAL_AGENT`, `CARDINAL_PEER` and `CARDINAL_POLICIES` name; else what cargo built beside this program.
    ///
    /// # Errors
    /// A program is not there.
    pub fn locate() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .map_or_else(PathBuf::new, Path::to_path_buf);
        Ok(Self {
            agent: Self::agent()?,
            peer: program("CARDINAL_PEER", "peer")?,
            policies: env::var_os("CARDINAL_POLICIES")
                .map_or_else(|| root.join("policies"), PathBuf::from),
        })
    }

    /// Finds the agent alone.
    ///
    /// # Errors
    /// It is not built.
    pub fn agent() -> Result<PathBuf> {
        program("CARDINAL_AGENT", "cardinal-agent")
    }
}

fn program(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Ok(path.into());
    }
    let this = env::current_exe()?;
    // Test programs are one folder below the others.
    match this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
    {
        Some(file) => Ok(file),
        None => bail!(
            "{name} is not built: `cargo xtask test` and `cargo xtask demo` build it, or {variable} names it"
        ),
    }
}
