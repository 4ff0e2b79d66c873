//! A node of an OpenChoreo data plane (`policies/openchoreo`) with its own network policies, whose cells are known by labels alone,
//! until one document controls the egress of one of them.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tests::{
    agent::Agent,
    http::curl,
    peer::{Outcome, Running},
    programs::Programs,
    world::{Addresses, Family, Place, World},
};

const WAIT: Duration = Duration::from_secs(60);
/// Ports that everybody of the world echoes on.
const PORTS: [u16; 4] = [7, 3000, 5432, 8080];

/// Which controllers made the data plane.
#[derive(Clone, Copy, Debug)]
enum Generation {
    First,
    Release,
}

impl Generation {
    /// Its folder.
    fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Release => "release-1.2",
        }
    }
}

fn addresses(v4: &str, v6: &str) -> Result<Addresses> {
    Ok(Addresses {
        v4: v4.parse()?,
        v6: v6.parse()?,
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Somebody in the world: a place with addresses that echoes.
struct Party {
    name: &'static str,
    place: Place,
    addresses: Addresses,
    _server: Running,
}

/// What is in a world goes before it.
struct Plane {
    agent: Agent,
    parties: Vec<Party>,
    programs: Programs,
    world: World,
}

impl Plane {
    fn start(generation: Generation) -> Result<Self> {
        let programs = Programs::locate()?;
        let world = World::create()?;
        // The platform's pool leads here.
        world
            .node()
            .ip("route add local 198.51.100.0/28 dev lo\n")?;
        let pods = [
            ("list", "10.10.1.5", "fd00:10:1::5"),
            ("web", "10.10.1.6", "fd00:10:1::6"),
            ("ledger", "10.10.2.7", "fd00:10:2::7"),
        ];
        let mut parties = Vec::new();
        for (name, v4, v6) in pods {
            let addresses = addresses(v4, v6)?;
            let place = world.pod(name, addresses, &[])?;
            parties.push(party(&programs, name, place, addresses)?);
        }
        // Network `archive` of the document is there too.
        let far = addresses("203.0.113.7", "2001:db8:100::10")?;
        let place = world.outside("far", far, &[])?;
        parties.push(party(&programs, "far", place, far)?);
        let config = world.dir().join("config");
        copy(
            &programs.policies.join("openchoreo").join(generation.name()),
            &config,
        )?;
        let mut agent = Agent::start(&world, &programs.agent, &config)?;
        agent.wait_ready(WAIT)?;
        let plane = Self {
            agent,
            parties,
            programs,
            world,
        };
        plane
            .agent
            .wait_status(WAIT, "a gate at each pod", |status| {
                let pods = status["pods"].as_array();
                pods.is_some_and(|pods| {
                    let guarded = pods.iter().filter(|pod| pod["enforced"] == true);
                    guarded.count() == 3
                })
            })?;
        Ok(plane)
    }

    /// Adds the document that controls the egress of project `library`.
    fn control(&self, generation: Generation) -> Result<()> {
        let document = self.programs.policies.join("openchoreo/egress");
        fs::copy(
            document.join(format!("{}.yaml", generation.name())),
            self.world.dir().join("config/egress.yaml"),
        )?;
        self.agent
            .wait_status(WAIT, "control of egress", |status| {
                cell(status, "acme/library/dev")
                    .is_some_and(|cell| cell["open"] == Value::from(vec!["ingress"]))
            })?;
        Ok(())
    }

    fn party(&self, name: &str) -> Result<&Party> {
        let mut parties = self.parties.iter();
        let party = parties.find(|party| party.name == name);
        party.with_context(|| format!("nobody is called {name}"))
    }

    /// How a connection from one to another ends.
    fn connection(&self, from: &str, to: &str, port: u16, family: Family) -> Result<String> {
        let to = SocketAddr::new(self.party(to)?.addresses.of(family), port);
        let mut probe = self.party(from)?.place.command(&self.programs.peer);
        probe.args(["tcp", "--timeout-ms", "700", "--to", &to.to_string()]);
        let outcome: Outcome = Running::start("the client", probe)?.next(WAIT)?;
        Ok(match outcome.outcome.as_str() {
            "answer" => "passes".to_owned(),
            "timeout" => "is dropped".to_owned(),
            other => other.to_owned(),
        })
    }

    /// How a request from somebody to a gateway ends that has an answer.
    fn request(&self, from: &str, gateway: &str, url: &str) -> Result<String> {
        self.request_within(Duration::from_secs(30), from, gateway, url)
    }

    fn request_within(
        &self,
        within: Duration,
        from: &str,
        gateway: &str,
        url: &str,
    ) -> Result<String> {
        let status = self.agent.status()?;
        let listeners = status["listeners"].as_array().context("no listeners")?;
        let listener = listeners
            .iter()
            .find(|one| {
                one["gateway"]
                    .as_str()
                    .is_some_and(|name| name.ends_with(gateway))
            })
            .with_context(|| format!("no listener of {gateway}: {status}"))?;
        let at: SocketAddr = listener["addresses"][0]
            .as_str()
            .context("no address")?
            .parse()?;
        let host = url.split('/').nth(2).context("the URL has a host")?;
        let resolved = format!("{host}:80:{}", at.ip());
        let client: Command = self.party(from)?.place.command("curl");
        let page = curl(client, within, &["--resolve", &resolved, url])?;
        Ok(page.outcome())
    }
}

fn cell<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let mut cells = status["cells"].as_array()?.iter();
    cells.find(|cell| cell["cell"] == name)
}

fn party(
    programs: &Programs,
    name: &'static str,
    place: Place,
    addresses: Addresses,
) -> Result<Party> {
    let mut serve = place.command(&programs.peer);
    serve.args(["serve", "--name", name]);
    for port in PORTS {
        // Routes lead to this one.
        let kind = match (name, port) {
            ("ledger", 8080) => "--http",
            _ => "--tcp",
        };
        serve.args([kind, &format!("[::]:{port}")]);
    }
    serve.args(["--tcp", "[::]:9090"]);
    let mut server = Running::start(format!("the server {name}"), serve)?;
    server.wait_for(WAIT, |line| line["event"] == "ready")?;
    Ok(Party {
        name,
        place,
        addresses,
        _server: server,
    })
}

/// What OpenChoreo's own policies say of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    Passes,
    /// Over IPv4 only.
    PassesV4,
    Dropped,
}
use Said::{Dropped, Passes, PassesV4};

/// Sender, receiver, port; what the policies of the first controllers and of release 1.2 say; whether the document declares it, or
/// says nothing of it.
const CONNECTIONS: [(&str, &str, u16, [Said; 2], bool); 15] = [
    // Inside of the cell: all of it, and what components declare.
    ("list", "web", 7, [Passes, Dropped], true),
    ("list", "web", 3000, [Passes, Passes], true),
    ("web", "list", 8080, [Passes, Passes], true),
    ("web", "list", 5432, [Passes, Dropped], true),
    // South, declared and not; the policies of the first controllers know the internet by IPv4.
    ("list", "far", 5432, [PassesV4, Passes], true),
    ("list", "far", 7, [PassesV4, Passes], false),
    ("web", "far", 7, [PassesV4, Passes], false),
    // East, directly: endpoints that release 1.2 shows to other projects.
    ("list", "ledger", 5432, [Dropped, Dropped], false),
    ("web", "ledger", 9090, [Dropped, Passes], false),
    // Another cell is as before, and so is what comes in.
    ("ledger", "far", 7, [PassesV4, Passes], true),
    ("ledger", "list", 7, [Dropped, Dropped], true),
    ("ledger", "list", 8080, [Dropped, Passes], true),
    ("ledger", "web", 3000, [Dropped, Dropped], true),
    ("far", "list", 8080, [Dropped, Dropped], true),
    ("far", "ledger", 9090, [Dropped, Dropped], true),
];

fn check(plane: &Plane, generation: Generation, controlled: bool) -> Result<()> {
    for family in Family::BOTH {
        for (from, to, port, said, stays) in CONNECTIONS {
            let policies = match said[generation as usize] {
                Passes => true,
                PassesV4 => family == Family::V4,
                Dropped => false,
            };
            // Network `archive` is one of IPv4.
            let declared = stays && ((from, to) != ("list", "far") || family == Family::V4);
            let expected = match policies && (!controlled || declared) {
                true => "passes",
                false => "is dropped",
            };
            let ended = plane.connection(from, to, port, family)?;
            ensure!(
                ended == expected,
                "{from} to {to}:{port} over {} {ended}, controlled: {controlled}",
                family.name()
            );
        }
    }
    Ok(())
}

fn one_object_controls_egress(generation: Generation, url: &str) -> Result<()> {
    let plane = Plane::start(generation)?;
    let status = plane.agent.status()?;
    for name in ["acme/library/dev", "acme/audit/dev"] {
        let Some(cell) = cell(&status, name) else {
            bail!("no cell {name}: {status}");
        };
        assert_eq!(cell["open"], Value::from(vec!["ingress", "egress"]));
    }
    let pods = status["pods"].as_array().context("no pods")?;
    let mut components: Vec<&str> = pods
        .iter()
        .filter_map(|pod| pod["component"].as_str())
        // Who is outside of the node has an interface too.
        .filter(|component| !component.is_empty())
        .collect();
    components.sort_unstable();
    assert_eq!(
        components,
        [
            "acme/audit/dev/ledger",
            "acme/library/dev/reading-list",
            "acme/library/dev/web"
        ]
    );
    check(&plane, generation, false)?;
    for from in ["list", "web", "far"] {
        assert_eq!(
            plane.request(from, "/gateway-internal", url)?,
            "200",
            "{from}"
        );
    }
    plane.control(generation)?;
    check(&plane, generation, true)?;
    // East, by the west gate: who declared it may, with the same route that others came by before.
    assert_eq!(plane.request("list", "/gateway-internal", url)?, "200");
    let soon = Duration::from_secs(2);
    let refused = plane.request_within(soon, "web", "/gateway-internal", url)?;
    assert_eq!(
        refused, "timeout",
        "nothing leads a component there that declared nothing"
    );
    assert_eq!(plane.request("far", "/gateway-internal", url)?, "200");
    let dropped: Vec<IpAddr> = plane
        .agent
        .events(0)?
        .into_iter()
        .filter(|event| event.reason == "not_declared")
        .map(|event| event.dst)
        .collect();
    ensure!(
        dropped.contains(&plane.party("far")?.addresses.of(Family::V6)),
        "{dropped:?}"
    );
    let (_, metrics) = plane.agent.ask("/metrics")?;
    let counted = |verdict: &str| {
        metrics.lines().any(|line| {
            line.starts_with("cardinal_datapath_packets_total")
                && line.contains(r#"cell="acme/library/dev""#)
                && line.contains(r#"direction="south""#)
                && line.contains(&format!("verdict=\"{verdict}\""))
        })
    };
    ensure!(counted("pass") && counted("drop"), "{metrics}");
    Ok(())
}

#[test]
fn netns_one_object_controls_the_egress_of_a_cell_of_the_first_controllers() -> Result<()> {
    one_object_controls_egress(
        Generation::First,
        "http://dev.choreoapis.internal/audit/ledger/entries",
    )
}

#[test]
fn netns_one_object_controls_the_egress_of_a_cell_of_release_1_2() -> Result<()> {
    one_object_controls_egress(
        Generation::Release,
        "http://dev-acme.apps.internal/ledger-entries/2026",
    )
}
