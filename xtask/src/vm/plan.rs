//! Which tests a machine runs. In software a test takes several times as long, so it is a part of them: those whose outcome
//! depends on the kernel, from the verifier over hooks and helpers to links. Left out is what only the agent's own code
//! decides, such as how it tells apart generations.

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
const PLAN: [Planned; 14] = [
    everywhere("netns_the_kernel_takes_every_program_and_gates_close_at_the_newest_hook"),
    // Older kernels have clsact only, which is then the newest.
    since(
        "netns_the_kernel_takes_every_program_and_gates_close_at_clsact",
        (6, 6),
        "a choice of hooks, with tcx,",
    ),
    everywhere("netns_declared_passes_and_the_rest_is_dropped_by_name"),
    everywhere("netns_every_branch_drops_with_its_own_reason"),
    everywhere("netns_errors_of_tracked_flows_and_declared_echo_pass"),
    everywhere("netns_packets_between_pods_look_routed_and_the_old_ones_end_at_the_node"),
    everywhere("netns_revocation_reaches_established_connections_and_the_rest_live_on"),
    everywhere("netns_governed_connections_reach_the_router_with_their_destination"),
    everywhere("netns_the_routers_transparent_sockets_are_assigned_however_cores_share_them"),
    everywhere("netns_gateway_addresses_lead_to_the_routers_sockets"),
    everywhere("netns_service_addresses_become_backends_where_a_connection_starts"),
    everywhere("netns_verdicts_outlive_the_agent_and_the_next_one_takes_over"),
    everywhere("netns_what_others_remove_is_put_back"),
    since(
        "netns_a_program_of_somebody_else_does_not_get_in_front_of_the_gates",
        (6, 6),
        "an order of programs at one hook, with tcx,",
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
