//! The first file system of a machine: its first process, the tests, `ip` and `tc`, what these link with, and modules.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{cpio::Archive, kernel::Kernel, plan::Test};
use crate::shell;

/// What the tests call.
const TOOLS: [&str; 2] = ["ip", "tc"];

/// Programs without the debug information that makes them five times as large, together with their libraries.
#[derive(Debug, Default)]
pub(super) struct Content {
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Content {
    /// What is the same for every kernel; `programs` are the test programs by name.
    pub(super) fn new(init: &Path, programs: &[(&str, &Path)]) -> Result<Self> {
        let mut content = Self::default();
        let mut libraries = BTreeSet::new();
        let scratch = shell::target_dir().join("vm/stripped");
        let own = programs
            .iter()
            .map(|(name, path)| (Path::new("/vm").join(name), *path));
        for (place, path) in own.chain([(PathBuf::from("/init"), init)]) {
            shell::output(
                shell::command("strip")
                    .arg("--strip-debug")
                    .arg("-o")
                    .arg(&scratch)
                    .arg(path),
            )?;
            content.add(&place, &scratch)?;
            libraries.extend(linked(path)?);
        }
        fs::remove_file(&scratch)?;
        for tool in TOOLS {
            let path =
                shell::find(tool).with_context(|| format!("`{tool}` is not on this machine"))?;
            content.add(&Path::new("/usr/sbin").join(tool), &path)?;
            libraries.extend(linked(&path)?);
        }
        for library in libraries {
            content.add(&library, &library)?;
        }
        Ok(content)
    }

    fn add(&mut self, place: &Path, from: &Path) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("failed to read {}", from.display()))?;
        self.files.push((place.to_owned(), bytes));
        Ok(())
    }

    /// Writes the file system of one kernel and gives its path.
    pub(super) fn write(&self, kernel: &Kernel, tests: &[Test], limit: u64) -> Result<PathBuf> {
        let path = kernel.folder.join("initramfs");
        let file =
            File::create(&path).with_context(|| format!("failed to create {}", path.display()))?;
        let mut archive = Archive::new(BufWriter::new(file));
        // The first process has no other place to write to before it mounted /dev.
        archive.device(Path::new("/dev/console"), 5, 1)?;
        archive.device(Path::new("/dev/null"), 1, 3)?;
        for (place, bytes) in &self.files {
            archive.file(place, bytes)?;
        }
        let mut plan = format!("limit {limit}\n");
        for module in &kernel.modules {
            let name = module.file_name().context("a module has a name")?;
            let place = Path::new("/vm/modules").join(name);
            let bytes =
                fs::read(module).with_context(|| format!("failed to read {}", module.display()))?;
            archive.file(&place, &bytes)?;
            plan.push_str(&format!("module {}\n", place.display()));
        }
        for test in tests {
            plan.push_str(&format!("test {} {}\n", test.program, test.name));
        }
        archive.file(Path::new("/vm/plan"), plan.as_bytes())?;
        archive.finish()?;
        Ok(path)
    }
}

/// The libraries that a program is loaded with, and what loads them.
fn linked(program: &Path) -> Result<Vec<PathBuf>> {
    let text = shell::output(shell::command("ldd").arg(program))?;
    let mut found = Vec::new();
    for line in text.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [_, "=>", "not", "found"] => bail!("{}: {}", program.display(), line.trim()),
            [_, "=>", path, ..] => found.push(path.into()),
            [path, ..] if path.starts_with('/') => found.push(path.into()),
            // The kernel's own page of code.
            _ => {}
        }
    }
    Ok(found)
}
