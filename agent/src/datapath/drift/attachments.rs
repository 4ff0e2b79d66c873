//! Gates, hooks, pins and the policy route.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;

use super::{Digest, Looked, TableState};
use crate::datapath::{Inner, adopt, checks, error::Error, routes, sys};

fn state(table: &'static str, entries: usize, drifted: usize) -> TableState {
    TableState {
        entries,
        drifted,
        ..TableState::sound(table, Digest::default())
    }
}

fn unknown(name: &str) -> impl FnOnce(io::Error) -> Error {
    Error::kernel(format!("ask the kernel for its number of `{name}`"))
}

impl Inner {
    /// The hooks of processes and of listening sockets.
    pub(super) fn check_hooks(&mut self) -> Looked {
        let Self {
            gates,
            ebpf,
            cgroup,
            ..
        } = self;
        let links = gates.links();
        let hooks = links.hooks(cgroup)?;
        let mut drifted = 0;
        for (program, pin) in &hooks {
            if !links.holds(ebpf, program, pin)? {
                drifted += 1;
            }
        }
        let repaired = match drifted {
            0 => Ok(()),
            _ => links.node(ebpf, cgroup),
        };
        Ok((state("hooks", hooks.len(), drifted), repaired))
    }

    /// The policy route of steered packets, if a generation that lives steers any.
    pub(super) fn check_route(&self) -> Looked {
        let (entries, missing) = if self.steers() {
            routes::ensure()?
        } else {
            (0, 0)
        };
        Ok((state("policy_route", entries, missing), Ok(())))
    }

    /// The names under which maps and programs outlive the agent.
    pub(super) fn check_pins(&mut self) -> Looked {
        checks::bpffs(&self.root)?;
        let folder = adopt::own_maps(&self.root);
        fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        let (mut drifted, mut repaired) = (0, Ok(()));
        for (name, map) in &self.maps.held {
            let path = folder.join(name);
            let id = sys::object_id(map.as_fd()).map_err(unknown(name))?;
            let pinned = sys::pinned(&path).and_then(|pin| sys::object_id(pin.as_fd()));
            if pinned.is_ok_and(|pinned| pinned == id) {
                continue;
            }
            drifted += 1;
            repaired = repaired.and(
                adopt::remove(&path)
                    .and_then(|()| sys::pin(map.as_fd(), &path).map_err(Error::file("pin", path))),
            );
        }
        let programs = self.missing_programs()?;
        if programs > 0 {
            repaired = repaired.and(self.pin_programs());
        }
        let entries = self.maps.held.len() + self.ebpf.programs().count();
        Ok((state("pins", entries, drifted + programs), repaired))
    }

    fn missing_programs(&self) -> Result<usize, Error> {
        let folder = self.root.join(adopt::PROGRAMS);
        let mut missing = 0;
        for (name, program) in self.ebpf.programs() {
            let fd = program.fd().map_err(Error::program(name))?;
            let id = sys::object_id(fd.as_fd()).map_err(unknown(name))?;
            let pinned =
                sys::pinned(&folder.join(name)).and_then(|pin| sys::object_id(pin.as_fd()));
            if pinned.ok() != Some(id) {
                missing += 1;
            }
        }
        Ok(missing)
    }
}
