//! What a running agent says of itself, for machines as JSON and for people as text.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::keys::ProviderStatus;

mod backends;
mod cluster;
mod placements;
mod rules;

pub use backends::{BackendEndpointStatus, BackendStatus};
pub use cluster::{ClusterStatus, RefusedObject, SilentKind};
pub use placements::{PlacementEndpointStatus, PlacementStatus};
pub use rules::RuleStatus;

/// Everything that `status` shows.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Status {
    /// The process.
    pub agent: AgentStatus,
    /// What is active, where it came from and what was last refused.
    pub config: ConfigStatus,
    /// The kernel side.
    pub datapath: DatapathStatus,
    /// Cells with their components.
    pub cells: Vec<CellStatus>,
    /// Pods of this node.
    pub pods: Vec<PodStatus>,
    /// Listeners of the router.
    pub listeners: Vec<ListenerStatus>,
    /// Key sets of token providers that are fetched.
    pub key_sets: Vec<ProviderStatus>,
    /// Placements of routing tables.
    #[serde(default)]
    pub placements: Vec<PlacementStatus>,
    /// Backends that policies are about.
    #[serde(default)]
    pub backends: Vec<BackendStatus>,
    /// Dropped packets since the tables were made, most first.
    pub drops: Vec<DropStatus>,
    /// Rules of this node's pods, most used first.
    pub rules: Vec<RuleStatus>,
    /// What is declared and not enforced, or without effect. Empty is good.
    pub not_enforced: Vec<String>,
}

/// The process.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct AgentStatus {
    /// Version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// RFC 3339.
    pub started_at: String,
    /// Whether the first generation is active.
    pub ready: bool,
}

/// What is active, where it came from and what was last refused.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct ConfigStatus {
    /// Active generation; 0 before the first.
    pub generation: u64,
    /// `file` or `kubernetes`.
    pub source: String,
    /// The folder, or where the API server is.
    pub path: String,
    /// First 12 digits of the digest: the author gave no version.
    pub version: String,
    /// SHA-256 over the documents.
    pub digest: String,
    /// When the active documents were taken over, RFC 3339.
    pub last_reload_at: String,
    /// When documents were last looked at because they changed, RFC 3339.
    pub last_attempt_at: String,
    /// `accepted` or `refused`.
    pub last_attempt: String,
    /// Why the last attempt was refused; the generation above goes on serving.
    pub mistakes: Vec<String>,
    /// The cluster, if documents come from one.
    #[serde(default)]
    pub cluster: Option<ClusterStatus>,
}

/// The kernel side.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct DatapathStatus {
    /// Whether cells are enforced in the kernel.
    pub enforcing: bool,
    /// Release of the kernel.
    pub kernel: String,
    /// How programs are attached to interfaces: `tcx`, `clsact` or empty.
    pub hook: String,
    /// Where maps, programs and links are pinned; empty when nothing is.
    pub bpffs: String,
    /// The generation that the kernel itself names as active.
    pub generation: u64,
    /// Events that were lost because nobody read them fast enough.
    pub events_lost: u64,
    /// New interfaces of which nobody knows yet whose they are: all their packets are dropped.
    pub quarantine: Vec<QuarantineStatus>,
    /// The programs, as the kernel took them.
    pub programs: Vec<ProgramStatus>,
    /// What the kernel holds against what it was given.
    #[serde(default)]
    pub tables: Vec<TableStatus>,
}

/// A table of the kernel's.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct TableStatus {
    /// Its name.
    pub table: String,
    /// Entries that it should have.
    pub entries: usize,
    /// Entries that were not as written when it was last looked at; 0 is in sync.
    pub drifted: usize,
    /// Entries that were put right since the agent started.
    pub repairs: u64,
    /// When an entry was last found that was not as written, RFC 3339; empty if never.
    pub last_drift_at: String,
    /// Hash over the wanted entries.
    pub hash: String,
}

/// An interface in quarantine.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct QuarantineStatus {
    /// Its name.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Seconds since it came.
    pub seconds: u64,
}

/// A program in the kernel.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct ProgramStatus {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier walked through; absent where the kernel does not tell (before 5.16).
    pub verified_instructions: Option<u32>,
    /// Bytes of machine code.
    pub jited_bytes: u32,
}

/// A cell.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct CellStatus {
    /// organization/project/environment.
    pub cell: String,
    /// Directions in which everything passes its border, since it is known by labels alone: `ingress`, `egress`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<String>,
    /// Its components.
    pub components: Vec<ComponentStatus>,
}

/// A component.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct ComponentStatus {
    /// Its name.
    pub name: String,
    /// Addresses of its workloads, wherever they run.
    pub workloads: usize,
    /// Workloads found on this node.
    pub local_pods: usize,
    /// `name port/protocol visibility…`.
    pub endpoints: Vec<String>,
}

/// A pod of this node.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct PodStatus {
    /// Host-side interface.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Addresses found in the pod.
    pub addresses: Vec<String>,
    /// organization/project/environment/component, or empty when the pod is no cell's.
    pub component: String,
    /// Whether verdict programs are attached.
    pub enforced: bool,
}

/// A listener.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct ListenerStatus {
    /// namespace/name of the gateway.
    pub gateway: String,
    /// The listener's name.
    pub listener: String,
    /// `north`, `west` or empty.
    pub gate: String,
    /// Addresses with port.
    pub addresses: Vec<String>,
    /// `HTTP`, `HTTPS`, `TLS`, `TCP` or `UDP`; with HTTP/3 beside it `HTTPS, HTTP/3`.
    pub protocol: String,
    /// Host pattern, or `*`.
    pub hostname: String,
}

/// Dropped packets of one kind.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct DropStatus {
    /// The cell, or empty where no cell is known.
    pub cell: String,
    /// Direction.
    pub direction: String,
    /// Reason.
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            agent,
            config,
            datapath,
            ..
        } = self;
        let ready = if agent.ready { "ready" } else { "NOT READY" };
        writeln!(
            f,
            "cardinal-agent {} · pid {} · since {} · {ready}",
            agent.version, agent.pid, agent.started_at
        )?;
        writeln!(f)?;
        writeln!(
            f,
            "generation  {} from {} {} (version {}, since {})",
            config.generation, config.source, config.path, config.version, config.last_reload_at
        )?;
        if !config.mistakes.is_empty() {
            writeln!(
                f,
                "            REFUSED at {}; the generation above goes on serving:",
                config.last_attempt_at
            )?;
            for mistake in &config.mistakes {
                for line in mistake.lines() {
                    writeln!(f, "              {line}")?;
                }
            }
        }
        if let Some(cluster) = &config.cluster {
            write!(f, "{cluster}")?;
        }
        if datapath.enforcing {
            writeln!(
                f,
                "datapath    enforcing generation {} through {} on kernel {}, pinned in {}",
                datapath.generation, datapath.hook, datapath.kernel, datapath.bpffs
            )?;
        } else {
            writeln!(f, "datapath    NONE: nothing is enforced in the kernel")?;
        }
        if !datapath.quarantine.is_empty() {
            let all = datapath.quarantine.iter();
            let names: Vec<_> = all
                .map(|held| format!("{} ({} s)", held.interface, held.seconds))
                .collect();
            writeln!(
                f,
                "            QUARANTINE, all packets dropped until it is known whose they are: {}",
                names.join(", ")
            )?;
        }
        self.write_tables(f)?;
        self.write_cells(f)?;
        self.write_pods(f)?;
        self.write_listeners(f)?;
        self.write_key_sets(f)?;
        self.write_placements(f)?;
        self.write_backends(f)?;
        self.write_drops(f)?;
        self.write_rules(f)?;
        section(f, "not enforced", self.not_enforced.len())?;
        for line in &self.not_enforced {
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}

impl Status {
    fn write_tables(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = &self.datapath.tables;
        if tables.is_empty() {
            return Ok(());
        }
        let (sound, drifted): (Vec<_>, Vec<_>) =
            tables.iter().partition(|table| table.drifted == 0);
        writeln!(
            f,
            "tables      {} in sync, {} drifted",
            sound.len(),
            drifted.len()
        )?;
        for table in tables
            .iter()
            .filter(|table| !table.last_drift_at.is_empty())
        {
            let now = match table.drifted {
                0 => "in sync again".to_owned(),
                drifted => format!("DRIFTED: {drifted} of {}", plural(table.entries, "entry")),
            };
            writeln!(
                f,
                "            {} {now}, {} put right, last at {}",
                table.table, table.repairs, table.last_drift_at
            )?;
        }
        Ok(())
    }

    fn write_cells(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        section(f, "cells", self.cells.len())?;
        for cell in &self.cells {
            match cell.open.is_empty() {
                true => writeln!(f, "  {}", cell.cell)?,
                false => writeln!(
                    f,
                    "  {}  (of labels; {} open)",
                    cell.cell,
                    cell.open.join(" and ")
                )?,
            }
            for component in &cell.components {
                let pods = format!(
                    "{} here of {} addresses",
                    plural(component.local_pods, "pod"),
                    component.workloads
                );
                let endpoints = if component.endpoints.is_empty() {
                    "-".to_owned()
                } else {
                    component.endpoints.join(", ")
                };
                writeln!(f, "    {:<20} {pods:<26} {endpoints}", component.name)?;
            }
        }
        Ok(())
    }

    fn write_pods(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        section(f, "pods", self.pods.len())?;
        let rows = self.pods.iter().map(|pod| {
            let component = if pod.component.is_empty() {
                "not a cell's: never touched"
            } else {
                &pod.component
            };
            let enforced = if pod.enforced { "enforced" } else { "-" };
            vec![
                pod.interface.clone(),
                component.to_owned(),
                enforced.to_owned(),
                pod.addresses.join(" "),
            ]
        });
        table(f, rows.collect())
    }

    fn write_listeners(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        section(f, "listeners", self.listeners.len())?;
        let rows = self.listeners.iter().map(|listener| {
            vec![
                format!("{} {}", listener.gateway, listener.listener),
                listener.gate.clone(),
                listener.protocol.clone(),
                listener.hostname.clone(),
                listener.addresses.join(" "),
            ]
        });
        table(f, rows.collect())
    }

    fn write_key_sets(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key_sets.is_empty() {
            return Ok(());
        }
        section(f, "key sets", self.key_sets.len())?;
        for set in &self.key_sets {
            let keys = plural(set.keys, "key");
            writeln!(f, "  {} {}, {keys}", set.uri, set.state)?;
            if !set.last_error.is_empty() {
                let times = plural(set.failures, "failure");
                writeln!(f, "    {times}, last: {}", set.last_error)?;
            }
        }
        Ok(())
    }

    fn write_drops(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        section(f, "drops", self.drops.len())?;
        let rows = self.drops.iter().map(|drop| {
            let cell = if drop.cell.is_empty() {
                "-"
            } else {
                &drop.cell
            };
            vec![
                cell.to_owned(),
                drop.direction.clone(),
                drop.reason.clone(),
                plural(drop.packets, "packet"),
                plural(drop.bytes, "byte"),
            ]
        });
        table(f, rows.collect())
    }
}

fn plural<N: fmt::Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    if count == N::from(1) {
        format!("1 {noun}")
    } else if let Some(stem) = noun.strip_suffix('y') {
        format!("{count} {stem}ies")
    } else {
        format!("{count} {noun}s")
    }
}

fn section(f: &mut fmt::Formatter<'_>, name: &str, count: usize) -> fmt::Result {
    writeln!(f)?;
    if count == 0 {
        writeln!(f, "{name}: none")
    } else {
        writeln!(f, "{name} ({count})")
    }
}

/// Columns as wide as their widest cell; the last one is not padded.
fn table(f: &mut fmt::Formatter<'_>, rows: Vec<Vec<String>>) -> fmt::Result {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        write!(f, " ")?;
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if index + 1 == columns {
                write!(f, " {cell}")?;
            } else {
                write!(f, " {cell:<width$} ")?;
            }
        }
        writeln!(f)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        AgentStatus, BackendEndpointStatus, BackendStatus, CellStatus, ComponentStatus,
        ConfigStatus, DatapathStatus, DropStatus, ListenerStatus, PlacementEndpointStatus,
        PlacementStatus, PodStatus, ProviderStatus, RuleStatus, Status, TableStatus,
        rules::SHOWN_RULES,
    };

    fn status() -> Status {
        Status {
            agent: AgentStatus {
                version: "0.1.0".into(),
                pid: 7,
                started_at: "2026-01-01T00:00:00Z".into(),
                ready: true,
            },
            config: ConfigStatus {
                generation: 3,
                source: "file".into(),
                path: "policies/demo".into(),
                version: "0123456789ab".into(),
                digest: "0123456789abcdef".into(),
                last_reload_at: "2026-01-01T00:00:01Z".into(),
                last_attempt_at: "2026-01-01T00:00:02Z".into(),
                last_attempt: "refused".into(),
                mistakes: vec![
                    "shop.yaml:4 (Cell default/shop) spec.intra: expected `open` or `declared`"
                        .into(),
                ],
                cluster: None,
            },
            datapath: DatapathStatus {
                enforcing: true,
                kernel: "6.18".into(),
                hook: "tcx".into(),
                bpffs: "/sys/fs/bpf/cardinal".into(),
                generation: 3,
                events_lost: 0,
                quarantine: Vec::new(),
                programs: vec![],
                tables: vec![
                    TableStatus {
                        table: "identities".into(),
                        entries: 9,
                        drifted: 0,
                        repairs: 0,
                        last_drift_at: String::new(),
                        hash: "0011".into(),
                    },
                    TableStatus {
                        table: "endpoints".into(),
                        entries: 2,
                        drifted: 1,
                        repairs: 3,
                        last_drift_at: "2026-01-01T00:00:09Z".into(),
                        hash: "0011".into(),
                    },
                ],
            },
            cells: vec![CellStatus {
                cell: "acme/shop/prod".into(),
                open: vec!["ingress".into()],
                components: vec![ComponentStatus {
                    name: "web".into(),
                    workloads: 2,
                    local_pods: 1,
                    endpoints: vec!["http 8080/HTTP public".into()],
                }],
            }],
            pods: vec![PodStatus {
                interface: "veth1".into(),
                ifindex: 4,
                addresses: vec!["10.0.0.1".into()],
                component: String::new(),
                enforced: false,
            }],
            key_sets: vec![ProviderStatus {
                uri: "https://idp.example.com/jwks".into(),
                state: "stale".into(),
                keys: 2,
                fetched_at: 1,
                failures: 3,
                last_error: "no connection".into(),
            }],
            listeners: vec![ListenerStatus {
                gateway: "platform/external".into(),
                listener: "https".into(),
                gate: "north".into(),
                addresses: vec!["192.0.2.1:443".into()],
                protocol: "HTTPS".into(),
                hostname: "*".into(),
            }],
            placements: vec![PlacementStatus {
                table: "default/tenants".into(),
                placement: "visa".into(),
                circuit: "open".into(),
                failures: 5,
                requests: 3,
                concurrency_limit: Some(50),
                endpoints: vec![
                    PlacementEndpointStatus {
                        endpoint: "10.2.0.1:9001".into(),
                        healthy: true,
                    },
                    PlacementEndpointStatus {
                        endpoint: "10.2.0.2:9001".into(),
                        healthy: false,
                    },
                ],
            }],
            backends: vec![BackendStatus {
                backend: "backend default/shop".into(),
                policy: "default/usual".into(),
                requests: 2,
                max_requests: Some(100),
                retries: 1,
                endpoints: vec![
                    BackendEndpointStatus {
                        endpoint: "10.3.0.1:8080".into(),
                        healthy: true,
                        ejected: true,
                        requests: 0,
                    },
                    BackendEndpointStatus {
                        endpoint: "10.3.0.2:8080".into(),
                        healthy: true,
                        ejected: false,
                        requests: 2,
                    },
                ],
            }],
            drops: vec![DropStatus {
                cell: "acme/shop/prod".into(),
                direction: "east".into(),
                reason: "not_declared".into(),
                packets: 2,
                bytes: 120,
            }],
            rules: (0..100)
                .rev()
                .map(|decisions| RuleStatus {
                    rule: format!("public acme/shop/prod/web/site-{decisions}"),
                    document: "shop.yaml:9 (Cell default/shop)".into(),
                    field: "spec.components[0].endpoints[0].visibility.public".into(),
                    decisions,
                })
                .collect(),
            not_enforced: vec![],
        }
    }

    #[test]
    fn people_see_what_matters() {
        let text = status().to_string();
        for part in [
            "generation  3 from file policies/demo",
            "REFUSED at 2026-01-01T00:00:02Z; the generation above goes on serving:",
            "spec.intra: expected `open` or `declared`",
            "enforcing generation 3 through tcx",
            "1 in sync, 1 drifted",
            "endpoints DRIFTED: 1 of 2 entries, 3 put right, last at 2026-01-01T00:00:09Z",
            "1 pod here of 2 addresses",
            "not a cell's: never touched",
            "192.0.2.1:443",
            "default/tenants visa  OPEN after 5 failures  3 of 50 requests  10.2.0.1:9001 healthy, 10.2.0.2:9001 UNHEALTHY",
            "backend default/shop  policy default/usual  2 of 100 requests, 1 retry  10.3.0.1:8080 LEFT OUT 0, 10.3.0.2:8080 healthy 2",
            "not_declared",
            "rules (100)",
            "99 decisions  public acme/shop/prod/web/site-99  shop.yaml:9 (Cell default/shop)  spec.components[0].endpoints[0].visibility.public",
            "and 80 that decided less or nothing",
            "not enforced: none",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn rules_that_decided_nothing_are_counted_and_not_listed() {
        let mut status = status();
        status.rules.drain(..99 - SHOWN_RULES / 2);
        let text = status.to_string();
        assert!(
            text.contains("and 1 that decided less or nothing"),
            "{text}"
        );
        assert!(!text.contains("site-0 "), "{text}");
    }

    #[test]
    fn a_router_alone_says_so_loudly() {
        let mut status = status();
        status.datapath.enforcing = false;
        assert!(
            status.to_string().contains("NONE: nothing is enforced"),
            "{status}"
        );
    }

    #[test]
    fn json_round_trips() {
        let status = status();
        let text = serde_json::to_string(&status).expect("serializes");
        assert_eq!(
            serde_json::from_str::<Status>(&text).expect("parses"),
            status
        );
    }
}
