//! The demo's world: who is where, and how they are asked for something.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::row::{Case, Seen, Way};
use crate::{
    agent::{Agent, Event},
    http::{self, Page},
    peer::{Outcome, Running},
    programs::Programs,
    secrets::{Identity, Secrets},
    world::{Addresses, Family, Place, World},
};

const fn addresses(v4: [u8; 4], v6: [u16; 8]) -> Addresses {
    let [a, b, c, d] = v4;
    let [e, f, g, h, i, j, k, l] = v6;
    Addresses {
        v4: Ipv4Addr::new(a, b, c, d),
        v6: Ipv6Addr::new(e, f, g, h, i, j, k, l),
    }
}

// Addresses that `policies/demo` names too.
pub(super) const WEB: Addresses = addresses([10, 80, 1, 10], [0xfd00, 0x80, 0, 0, 0, 0, 1, 0x10]);
pub(super) const ORDERS: Addresses =
    addresses([10, 80, 1, 20], [0xfd00, 0x80, 0, 0, 0, 0, 1, 0x20]);
pub(super) const ORDERS_SERVICE: Addresses =
    addresses([10, 96, 1, 20], [0xfd00, 0x96, 0, 0, 0, 0, 1, 0x20]);
pub(super) const LEDGER: Addresses =
    addresses([10, 80, 2, 10], [0xfd00, 0x80, 0, 0, 0, 0, 2, 0x10]);
const SCANNER: Addresses = addresses([10, 80, 3, 10], [0xfd00, 0x80, 0, 0, 0, 0, 3, 0x10]);
pub(super) const DNS: Addresses = addresses([10, 80, 9, 53], [0xfd00, 0x80, 0, 0, 0, 0, 9, 0x53]);
pub(super) const DNS_SERVICE: Addresses =
    addresses([10, 96, 0, 53], [0xfd00, 0x96, 0, 0, 0, 0, 0, 0x53]);
pub(super) const EXTERNAL: Addresses =
    addresses([198, 18, 0, 80], [0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 0x80]);
pub(super) const INTERNAL: Addresses =
    addresses([10, 96, 0, 80], [0xfd00, 0x96, 0, 0, 0, 0, 0, 0x80]);
const TIERS: Addresses = addresses([100, 64, 0, 10], [0x2001, 0xdb8, 0x64, 0, 0, 0, 0, 0x10]);
const CLIENT: Addresses = addresses([192, 0, 2, 10], [0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10]);
/// The internet's host, with the payment provider.
pub(super) const PAYMENTS: Addresses =
    addresses([198, 51, 100, 10], [0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x10]);
/// Another address there, which no document names.
pub(super) const STRANGER: Addresses =
    addresses([198, 51, 100, 20], [0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x20]);
/// The partner's database, in the declared networks.
pub(super) const PARTNER: Addresses =
    addresses([203, 0, 113, 5], [0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 5]);
/// Where clouds keep the credentials of an instance.
pub(super) const METADATA: Addresses =
    addresses([169, 254, 169, 254], [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]);

/// Hosts that the demo's routes and cells derive.
pub(super) const API_HOST: &str = "prod.apis.example.test";
pub(super) const APP_HOST: &str = "web-prod.apps.example.test";
pub(super) const INTERNAL_HOST: &str = "prod.internal.example.test";
pub(super) const CUSTOMERS_HOST: &str = "customers.apis.example.test";
pub(super) const REWRITES_HOST: &str = "rewrites.apis.example.test";

const ISSUER: &str = "https://idp.example.test";
const AUDIENCE: &str = "acme";

/// Servers and the agent start within this time, or not at all.
const START: Duration = Duration::from_secs(90);
/// How long an answer is waited for that must not come, or a record that nobody asks for.
const IN_VAIN: Duration = Duration::from_secs(1);
/// The same for what must come, however busy the machine is.
const SURELY: Duration = Duration::from_secs(30);

/// How long clients and this program wait, by what is to be expected.
#[derive(Clone, Copy, Debug)]
struct Patience {
    answer: Duration,
    kernel: Duration,
    router: Duration,
}

impl Patience {
    /// What is asked outside a row has an answer.
    const USUAL: Self = Self {
        answer: SURELY,
        kernel: IN_VAIN,
        router: IN_VAIN,
    };

    fn of(case: &Case<'_>) -> Self {
        let dropped = case.expected == "dropped";
        let long = |long| if long { SURELY } else { IN_VAIN };
        Self {
            answer: long(!dropped),
            kernel: long(dropped || case.because.starts_with("kernel")),
            router: long(case.because.starts_with("router")),
        }
    }
}

/// Somebody in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    /// The shop's web application.
    Web,
    /// The shop's service.
    Orders,
    /// The bank's ledger.
    Ledger,
    /// The other organization's task.
    Scanner,
    /// A client on the internet.
    Client,
}

/// The world with everybody in it.
#[derive(Debug)]
pub struct Demo {
    /// The agent under test. It goes before the world does.
    pub agent: Agent,
    servers: Vec<(&'static str, Running)>,
    places: Vec<(Spot, Place, Addresses)>,
    secrets: Secrets,
    programs: Programs,
    config: PathBuf,
    patience: Patience,
    world: World,
}

impl Demo {
    /// Builds the world, starts servers and the agent, and waits until all of them are ready.
    ///
    /// # Errors
    /// Something does not start.
    pub fn set_up(programs: &Programs) -> Result<Self> {
        let world = World::create()?;
        let config = world.dir().join("policies");
        let secrets = Secrets::make(&world.dir().join("secrets"))?;
        documents(&programs.policies.join("demo"), &config, &secrets)?;

        world.node_addresses(&[EXTERNAL, INTERNAL])?;
        let resolvers = [IpAddr::V4(DNS_SERVICE.v4), IpAddr::V6(DNS_SERVICE.v6)];
        let pod = |name, addresses| world.pod(name, addresses, &resolvers);
        let dns = world.pod("dns", DNS, &[])?;
        let web = pod("web", WEB)?;
        let orders = pod("orders", ORDERS)?;
        let ledger = pod("ledger", LEDGER)?;
        let scanner = pod("scanner", SCANNER)?;
        let more = [STRANGER, PARTNER, METADATA]
            .map(|address| Family::BOTH.map(|family| address.of(family)));
        // The stranger lives in the link's own networks, which need no route.
        let internet = world.outside("inet", PAYMENTS, &more[1..].concat())?;
        internet.ip(&format!(
            "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n",
            STRANGER.v4, STRANGER.v6
        ))?;
        let tiers = world.outside("tiers", TIERS, &[])?;
        let client = world.outside("client", CLIENT, &[])?;

        let mut servers = Vec::new();
        let mut serve = |name: &'static str, place: &Place, arguments: &[String]| -> Result<()> {
            let mut command = place.command(&programs.peer);
            command.args(["serve", "--name", name]).args(arguments);
            servers.push((name, Running::start(format!("the server {name}"), command)?));
            Ok(())
        };
        let zone = world.dir().join("zone.json");
        let both = |addresses: Addresses| json!([addresses.v4, addresses.v6]);
        let names = json!({"api.payments.test": both(PAYMENTS), "rates.payments.test": both(PAYMENTS), "stranger.test": both(STRANGER)});
        fs::write(&zone, names.to_string())?;
        serve(
            "dns",
            &dns,
            &[
                at("--dns", DNS, 53),
                vec!["--zone".to_owned(), zone.display().to_string()],
            ]
            .concat(),
        )?;
        serve("web", &web, &any(&[("--http", 8080)]))?;
        serve(
            "orders",
            &orders,
            &any(&[("--http", 8080), ("--http", 8081), ("--tcp", 7000)]),
        )?;
        serve(
            "ledger",
            &ledger,
            &[
                any(&[("--http", 8080), ("--tcp", 7000)]),
                at("--udp", LEDGER, 7001),
            ]
            .concat(),
        )?;
        serve("visa", &tiers, &any(&[("--http", 9001)]))?;
        serve("tier1", &tiers, &any(&[("--http", 9002)]))?;
        serve("tier3", &tiers, &any(&[("--http", 9003)]))?;
        let certificate = secrets.certify("payments", &["api.payments.test"])?;
        serve(
            "payments",
            &internet,
            &[
                at("--https", PAYMENTS, 443),
                at("--http", PAYMENTS, 80),
                shown(&certificate),
            ]
            .concat(),
        )?;
        // It has the same certificate, as a thief of an address would wish: only who answers tells them apart.
        let certificate = secrets.certify("stranger", &["api.payments.test", "stranger.test"])?;
        serve(
            "stranger",
            &internet,
            &[
                at("--https", STRANGER, 443),
                at("--http", STRANGER, 80),
                at("--tcp", STRANGER, 7000),
                shown(&certificate),
            ]
            .concat(),
        )?;
        serve(
            "partner",
            &internet,
            &[
                at("--tcp", PARTNER, 5432),
                at("--tcp", PARTNER, 5433),
                at("--tcp", METADATA, 80),
            ]
            .concat(),
        )?;
        for (_, server) in &mut servers {
            server.wait_for(START, |line| line["event"] == "ready")?;
        }

        let mut agent = Agent::start(&world, &programs.agent, &config)?;
        agent.wait_ready(START)?;
        let places = vec![
            (Spot::Web, web, WEB),
            (Spot::Orders, orders, ORDERS),
            (Spot::Ledger, ledger, LEDGER),
            (Spot::Scanner, scanner, SCANNER),
            (Spot::Client, client, CLIENT),
        ];
        Ok(Self {
            agent,
            servers,
            places,
            secrets,
            programs: programs.clone(),
            config,
            patience: Patience::USUAL,
            world,
        })
    }

    /// The world.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Where somebody is.
    #[must_use]
    pub fn place(&self, spot: Spot) -> &Place {
        &self.entry(spot).1
    }

    /// The addresses of somebody.
    #[must_use]
    pub fn addresses(&self, spot: Spot) -> Addresses {
        self.entry(spot).2
    }

    fn entry(&self, spot: Spot) -> &(Spot, Place, Addresses) {
        self.places
            .iter()
            .find(|(at, ..)| *at == spot)
            .expect("every spot got its place when the world was made")
    }

    /// The authority of the demo's certificates.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.secrets.ca()
    }

    /// A token with these scopes.
    ///
    /// # Errors
    /// No token can be made.
    pub fn token(&self, scopes: &str) -> Result<String> {
        self.secrets.token(ISSUER, AUDIENCE, scopes)
    }

    /// The agent's folder of documents: a copy of `policies/demo` with secrets beside it.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// A new agent in the old one's place.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart_agent(&mut self) -> Result<Duration> {
        self.agent = Agent::start(&self.world, &self.programs.agent, &self.config)?;
        self.agent.wait_ready(START)
    }

    /// An agent beside the one that runs, with further options.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn another_agent(&self, options: &[&str]) -> Result<Agent> {
        Agent::start_as(&self.world, &self.programs.agent, &self.config, options)
    }

    pub(super) fn server(&mut self, name: &str) -> Result<&mut Running> {
        self.servers
            .iter_mut()
            .find(|(at, _)| *at == name)
            .map(|(_, server)| server)
            .with_context(|| format!("there is no server {name}"))
    }

    /// A command of the peer program at a spot.
    pub(super) fn peer(&self, spot: Spot, arguments: &[&str]) -> Command {
        let mut command = self.place(spot).command(&self.programs.peer);
        command.args(arguments);
        command
    }

    /// Waits as long as it needs for what this case expects.
    pub(super) fn expect(&mut self, case: &Case<'_>) {
        self.patience = Patience::of(case);
    }

    /// Runs a client to its end.
    pub(super) fn probe(&self, spot: Spot, arguments: &[&str]) -> Result<Outcome> {
        let timeout = self.patience.answer.as_millis().to_string();
        let mut command = self.peer(spot, arguments);
        if arguments[0] != "raw" && !arguments.contains(&"--timeout-ms") {
            command.args(["--timeout-ms", &timeout]);
        }
        Running::start(format!("peer {}", arguments.join(" ")), command)?.next(START)
    }

    /// Tries a TCP or UDP echo, and finds out what the kernel said to it. `way` is where the packets really go.
    pub(super) fn echo(
        &self,
        spot: Spot,
        transport: &str,
        to: SocketAddr,
        way: Way,
    ) -> Result<Seen> {
        self.watched(way, |demo| {
            demo.probe(spot, &[transport, "--to", &to.to_string()])
        })
    }

    /// Makes an attempt of one client, and finds out what the kernel said to it.
    pub(super) fn watched(
        &self,
        way: Way,
        attempt: impl FnOnce(&Self) -> Result<Outcome>,
    ) -> Result<Seen> {
        let since = self.agent.next_event()?;
        let outcome = attempt(self)?;
        let silent = outcome.outcome == "timeout" || outcome.outcome == "sent";
        let event = self.event(since, way, silent)?;
        Ok(Seen {
            actual: match (silent, &event) {
                (true, Some(event)) if event.verdict == "drop" => "dropped".to_owned(),
                (true, _) => format!("{}, and the kernel tells of no drop", outcome.outcome),
                (false, _) if outcome.answer.is_empty() => outcome.outcome,
                (false, _) => "passed".to_owned(),
            },
            reason: event.as_ref().map_or_else(String::new, Event::said),
            latency_us: outcome.latency_us,
        })
    }

    /// The event of a packet; the kernel's records reach us a little later than its verdicts hold.
    pub(super) fn event(&self, since: u64, way: Way, dropped: bool) -> Result<Option<Event>> {
        let start = Instant::now();
        loop {
            let events = self.agent.events(since)?;
            let fits = |event: &&Event| {
                plain(event.src) == way.from
                    && plain(event.dst) == way.to
                    && event.dport == way.port
            };
            if let Some(event) = events
                .iter()
                .filter(fits)
                .find(|event| (event.verdict == "drop") == dropped)
            {
                return Ok(Some(event.clone()));
            }
            if start.elapsed() > self.patience.kernel {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Fetches a page with curl, whatever comes of it. Hosts of the gateways are told by `--resolve`.
    pub(super) fn curl(&self, spot: Spot, arguments: &[&str]) -> Result<Page> {
        let ca = self.ca().display().to_string();
        let arguments = [&["--cacert", &ca], arguments].concat();
        let within = self.patience.answer * 2;
        http::curl(self.place(spot).command("curl"), within, &arguments)
    }

    /// Fetches a page and finds out what kernel and router said to it. `way` is given where the kernel judges.
    pub(super) fn page(
        &self,
        spot: Spot,
        way: Option<Way>,
        arguments: &[&str],
    ) -> Result<(Page, Seen)> {
        let (events, requests) = (self.agent.next_event()?, self.agent.next_request()?);
        let page = self.curl(spot, arguments)?;
        let timeout = page.failure.as_deref() == Some("timeout");
        let mut reasons = Vec::new();
        let mut actual = page.outcome();
        if let Some(way) = way {
            let event = self.event(events, way, timeout)?;
            if timeout {
                actual = match &event {
                    Some(_) => "dropped".to_owned(),
                    None => "timeout, and the kernel tells of no drop".to_owned(),
                };
            }
            reasons.extend(event.as_ref().map(Event::said));
        }
        if !timeout {
            reasons.extend(
                self.router_reason(requests)?
                    .map(|reason| format!("router {reason}")),
            );
        }
        let seen = Seen {
            actual,
            reason: reasons.join(", "),
            latency_us: page.latency_us,
        };
        Ok((page, seen))
    }

    /// The reason of the first request that the router answered since; nothing if it saw none.
    fn router_reason(&self, since: u64) -> Result<Option<String>> {
        let start = Instant::now();
        loop {
            let requests = self.agent.requests(since)?;
            if let Some(reason) = requests
                .first()
                .and_then(|request| request["reason"].as_str())
            {
                return Ok(Some(reason.to_owned()));
            }
            if start.elapsed() > self.patience.router {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// IPv4 addresses may come as their IPv6 form.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Options for sockets on every address of the place.
fn any(sockets: &[(&str, u16)]) -> Vec<String> {
    sockets
        .iter()
        .flat_map(|(option, port)| [(*option).to_owned(), format!("[::]:{port}")])
        .collect()
}

/// Options for a socket on each of two addresses.
fn at(option: &str, addresses: Addresses, port: u16) -> Vec<String> {
    Family::BOTH
        .iter()
        .flat_map(|&family| {
            [
                option.to_owned(),
                SocketAddr::new(addresses.of(family), port).to_string(),
            ]
        })
        .collect()
}

/// The option that shows a certificate to clients.
fn shown(certificate: &Identity) -> Vec<String> {
    let path = |file: &Path| file.display().to_string();
    vec![
        "--cert".to_owned(),
        path(&certificate.cert),
        "--key".to_owned(),
        path(&certificate.key),
    ]
}

/// Copies the folder of documents, puts the token key into the platform's document, and writes the certificates beside it.
fn documents(from: &Path, to: &Path, secrets: &Secrets) -> Result<()> {
    copy_documents(from, to)?;
    secrets.publish_key(&to.join("platform.yaml"))?;
    for (name, host) in [
        ("apis-tls", "*.apis.example.test"),
        ("apps-tls", "*.apps.example.test"),
    ] {
        let secret: Value = secrets.secret(name, "platform", &[host])?;
        fs::write(to.join(format!("secret-{name}.json")), secret.to_string())?;
    }
    Ok(())
}

/// Copies the files of a folder.
pub(crate) fn copy_documents(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("failed to make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("failed to read {}", from.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))
                .with_context(|| format!("failed to copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use snapshot::SourceFile;

    use super::*;

    #[test]
    fn documents_with_their_secrets_are_valid() -> Result<()> {
        let dir = std::env::temp_dir().join(format!("cardinal-documents-{}", std::process::id()));
        let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
        let secrets = Secrets::make(&dir.join("secrets"))?;
        documents(&policies.join("demo"), &dir.join("demo"), &secrets)?;
        copy_documents(&policies.join("quickstart"), &dir.join("quickstart"))?;
        secrets.publish_key(&dir.join("quickstart/private.yaml"))?;
        for (folder, cells) in [("demo", 3), ("quickstart", 0)] {
            let mut files = Vec::new();
            for entry in fs::read_dir(dir.join(folder))? {
                let entry = entry?;
                files.push(SourceFile {
                    path: entry.file_name().to_string_lossy().into_owned(),
                    bytes: fs::read(entry.path())?,
                });
            }
            let snapshot =
                snapshot::parse(&files).map_err(|rejections| anyhow::anyhow!("{rejections}"))?;
            assert_eq!(snapshot.cells.len(), cells);
            assert!(snapshot.warnings.is_empty(), "{:?}", snapshot.warnings);
        }
        fs::remove_dir_all(dir)?;
        Ok(())
    }
}
