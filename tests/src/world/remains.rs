//! Removing a world by its id alone, so that a world whose maker crashed can be removed as well.

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{HOME, PREFIX, cgroup2, run};

/// How long killed processes may take to be gone.
const DEATH_WAIT: Duration = Duration::from_secs(60);

/// Held while worlds are looked for or begun: then a folder without a held lock is nobody's.
pub(super) fn one_maker() -> Result<File> {
    fs::create_dir_all(HOME).with_context(|| format!("failed to make {HOME}"))?;
    let lock = File::create(Path::new(HOME).join(".makers"))
        .context("failed to make the lock of worlds")?;
    lock.lock().context("failed to lock the making of worlds")?;
    Ok(lock)
}

/// Removes every world that nobody holds the lock of. The caller is the [`one_maker`].
pub(super) fn remove_stale() -> Result<()> {
    for entry in fs::read_dir(HOME).with_context(|| format!("failed to read {HOME}"))? {
        let entry = entry?;
        let Ok(id) = entry.file_name().into_string() else {
            continue;
        };
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let lock = match File::open(entry.path().join("lock")) {
            Ok(lock) => Some(lock),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("failed to open the lock of the world {id}"));
            }
        };
        match lock.as_ref().map_or(Ok(()), File::try_lock) {
            Ok(()) => remove(&id)
                .with_context(|| format!("failed to remove what the crashed world {id} left"))?,
            Err(fs::TryLockError::WouldBlock) => {}
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).context("failed to try a world's lock");
            }
        }
    }
    Ok(())
}

/// Kills the world's processes (all of them are in its cgroup), then removes namespaces, mounts, cgroups and the folder.
pub(super) fn remove(id: &str) -> Result<()> {
    let cgroup = cgroup2()?.join(format!("{PREFIX}{id}"));
    if cgroup.is_dir() {
        kill(&cgroup)?;
    }
    for netns in namespaces(&format!("{PREFIX}{id}-"))? {
        run(Command::new("ip").args(["netns", "del", &netns]))?;
    }
    let dir = Path::new(HOME).join(id);
    let bpffs = dir.join("bpf");
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("failed to read /proc/self/mounts")?;
    if mounts.lines().any(|line| {
        line.split(' ')
            .nth(1)
            .is_some_and(|mount| Path::new(mount) == bpffs)
    }) {
        run(Command::new("umount").arg(&bpffs))?;
    }
    if cgroup.is_dir() {
        remove_cgroup(&cgroup)?;
    }
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Namespaces whose names start so.
fn namespaces(prefix: &str) -> Result<Vec<String>> {
    let entries = match fs::read_dir("/run/netns") {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("failed to read /run/netns"),
    };
    let names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    Ok(names
        .into_iter()
        .filter(|name| name.starts_with(prefix))
        .collect())
}

fn kill(cgroup: &Path) -> Result<()> {
    let deadline = Instant::now() + DEATH_WAIT;
    loop {
        let events = fs::read_to_string(cgroup.join("cgroup.events"))
            .context("failed to read cgroup.events")?;
        if events.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("processes of {} do not die", cgroup.display());
        }
        // cgroup.kill came with Linux 5.14; before that, one by one until nobody is left.
        if fs::write(cgroup.join("cgroup.kill"), "1").is_err() {
            for pid in processes(cgroup)? {
                // One that is gone already is what we want.
                let _gone = Command::new("kill").args(["-KILL", &pid]).output()?;
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn processes(cgroup: &Path) -> Result<Vec<String>> {
    let mut pids: Vec<String> = fs::read_to_string(cgroup.join("cgroup.procs"))?
        .lines()
        .map(str::to_owned)
        .collect();
    for child in children(cgroup)? {
        pids.extend(processes(&child)?);
    }
    Ok(pids)
}

fn children(cgroup: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut children = Vec::new();
    for entry in
        fs::read_dir(cgroup).with_context(|| format!("failed to read {}", cgroup.display()))?
    {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(children)
}

fn remove_cgroup(cgroup: &Path) -> Result<()> {
    for child in children(cgroup)? {
        remove_cgroup(&child)?;
    }
    let deadline = Instant::now() + DEATH_WAIT;
    loop {
        match fs::remove_dir(cgroup) {
            Ok(()) => return Ok(()),
            // The last process has been killed but not reaped yet.
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("failed to remove the cgroup {}", cgroup.display()));
            }
        }
    }
}
