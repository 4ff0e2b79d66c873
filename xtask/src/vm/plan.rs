//! Which tests a machine runs. In software a test takes ten times as long, so it is a part of them: those whose outcome
//! depends on the kernel.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, bail};

use super::kernel::Series;
use crate::shell;

/// A test, and what must be true of a kernel for it.
#[derive(Clone, Copy, Debug)]
struct Planned {
    name: &'static str,
    /// The oldest kernel that can have what is tested, and what that is.
    since: Option<((u32, u32), &'static str)>,
}

const fn everywhere(name: &'static str) -> Planned {
    Planned { name, since: None }
}

const fn since(name: &'static str, kernel: (u32, u32), what: &'static str) -> Planned {
    Planned {
        name,
        since: Some((kernel, what)),
    }
}

/// Loading comes first: where the verifier refuses a program, nothing behind it can be expected to work.
const PLAN: [Planned; 3] = [
    everywhere("netns_declared_passes_and_the_rest_is_dropped_by_name"),
    everywhere("netns_every_branch_drops_with_its_own_reason"),
    since(
        "netns_a_program_of_somebody_else_does_not_get_in_front_of_the_gates",
        (6, 6),
        "tcx",
    ),
];

/// A test of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) program: String,
    pub(super) name: String,
}

/// Names of tests, with the program that has them.
#[derive(Debug)]
pub(super) struct Tests(BTreeMap<&'static str, String>);

impl Tests {
    /// Asks the programs for their tests. A planned test that none of them has is an error: it was renamed.
    pub(super) fn find(programs: &[(&str, &Path)]) -> Result<Self> {
        let mut found = BTreeMap::new();
        for (program, path) in programs {
            let listed = shell::output(shell::command(path).args(["--list", "--format", "terse"]))?;
            for name in listed
                .lines()
                .filter_map(|line| line.strip_suffix(": test"))
            {
                if let Some(planned) = PLAN.iter().find(|planned| planned.name == name) {
                    found.insert(planned.name, (*program).to_owned());
                }
            }
        }
        for Planned { name, .. } in PLAN {
            if !found.contains_key(name) {
                bail!("`{name}` is planned for machines, but no program has this test");
            }
        }
        Ok(Self(found))
    }

    /// The programs that have a planned test.
    pub(super) fn programs(&self) -> impl Iterator<Item = &str> {
        self.0.values().map(String::as_str)
    }

    /// What a series runs, and what it cannot run with the reason.
    pub(super) fn of(&self, series: Series) -> (Vec<Test>, Vec<(&'static str, String)>) {
        let mut tests = Vec::new();
        let mut absent = Vec::new();
        for Planned { name, since } in PLAN {
            match since {
                Some((kernel, what)) if series.version() < kernel => {
                    absent.push((name, format!("{what} came with {}.{}", kernel.0, kernel.1)));
                }
                _ => tests.push(Test {
                    program: self.0[name].clone(),
                    name: name.to_owned(),
                }),
            }
        }
        (tests, absent)
    }
}
