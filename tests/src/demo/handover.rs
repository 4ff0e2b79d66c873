//! Agents that take each other's place under requests, again and again, and agents that are killed while they do.

use std::{
    io::Read as _,
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, SockAddr, Socket, Type};

use super::scene::{CUSTOMERS_HOST, Demo, EXTERNAL, PAYMENTS, Spot};
use crate::{
    agent::Agent,
    peer::{LoadReport, Running, SteadyReport},
    world::Family,
};

/// How long an agent may take to take over, or to end after that.
const PATIENCE: Duration = Duration::from_secs(120);
/// Requests before, between and after.
const WHILE: Duration = Duration::from_millis(400);
/// What the agents of these tests are started with.
const OPTIONS: [&str; 3] = ["--take-over", "--drain", "20"];
/// At how many moments of a handover somebody is killed, from the start of the next agent to a little after its end.
const MOMENTS: u32 = 14;

/// Clients of the router, which ask without a pause until told to end.
struct Clients(Vec<(String, Running)>);

impl Clients {
    /// From outside by TLS and from a pod to the outside, with a connection for each request and with one that is kept.
    fn start(demo: &Demo) -> Result<Self> {
        let ca = demo.ca().display().to_string();
        let mut clients = Vec::new();
        for family in Family::BOTH {
            let north = SocketAddr::new(EXTERNAL.of(family), 443).to_string();
            let south = SocketAddr::new(PAYMENTS.of(family), 80).to_string();
            for (what, most) in [("new connections", "1"), ("kept connections", "1000000")] {
                let asked = ["load", "--per-connection", most, "--to"];
                let host = [
                    "--host",
                    CUSTOMERS_HOST,
                    "--header",
                    "X-Routing-Key: nobody",
                ];
                let arguments = [&asked[..], &[&*north], &host, &["--ca", &ca]].concat();
                let command = demo.peer(Spot::Client, &arguments);
                let whose = format!("north, {what}, {family:?}");
                clients.push((whose.clone(), Running::start(whose, command)?));
                let arguments =
                    [&asked, &[&*south][..], &["--host", "rates.payments.test"]].concat();
                let command = demo.peer(Spot::Orders, &arguments);
                let whose = format!("south, {what}, {family:?}");
                clients.push((whose.clone(), Running::start(whose, command)?));
            }
        }
        thread::sleep(WHILE);
        Ok(Self(clients))
    }

    fn end(self) -> Result<Vec<(String, LoadReport)>> {
        thread::sleep(WHILE);
        let mut reports = Vec::new();
        for (what, mut client) in self.0 {
            client.finish();
            reports.push((what, client.next(PATIENCE)?));
        }
        Ok(reports)
    }
}

/// No client saw a failure. Prints what they saw.
fn flawless(reports: &[(String, LoadReport)]) -> Result<()> {
    for (what, report) in reports {
        ensure!(report.failed == 0, "{what}: {report:?}");
        ensure!(
            report.requests > 10,
            "{what}: that proves nothing: {report:?}"
        );
    }
    let all = |count: fn(&LoadReport) -> u64| reports.iter().map(move |(_, one)| count(one));
    println!(
        "{} requests of {} clients, {} failed, the slowest took {} ms",
        all(|one| one.requests).sum::<u64>(),
        reports.len(),
        all(|one| one.failed).sum::<u64>(),
        all(|one| one.slowest_us).max().unwrap_or_default() / 1000
    );
    Ok(())
}

/// Starts an agent in the place of the demo's one. Gives the one before, which drains.
fn replace(demo: &mut Demo) -> Result<(Agent, Duration)> {
    let mut next = demo.another_agent(&OPTIONS)?;
    let took = next.wait_serving(PATIENCE)?;
    Ok((std::mem::replace(&mut demo.agent, next), took))
}

/// Replaces the agent so often, while clients ask its router. No request fails; what the router does not serve goes on too.
///
/// # Errors
/// What did not hold.
pub fn handovers(demo: &mut Demo, rounds: u32) -> Result<()> {
    let ledger = SocketAddr::new(super::scene::LEDGER.of(Family::V4), 7000).to_string();
    let arguments = ["steady", "--to", &ledger, "--connections", "20"];
    let mut steady = Running::start("peer steady", demo.peer(Spot::Orders, &arguments))?;
    steady.wait_for(PATIENCE, |line| line["event"] == "ready")?;
    let clients = Clients::start(demo)?;
    let begun = Instant::now();
    let mut leaving: Option<Agent> = None;
    let mut longest = Duration::ZERO;
    for round in 1..=rounds {
        let (before, took) = replace(demo).with_context(|| format!("round {round}"))?;
        longest = longest.max(took);
        if let Some(mut before) = leaving.replace(before) {
            before
                .end(PATIENCE)
                .with_context(|| format!("round {round}"))?;
        }
        // By name: the platform's DNS is a service that is led to a backend when a pod sends.
        let page = demo.curl(Spot::Orders, &["https://api.payments.test/"])?;
        ensure!(page.status == 200, "round {round}: {page:?}");
    }
    println!(
        "{rounds} handovers in {} s, from the start of the program to its service at most {} ms",
        begun.elapsed().as_secs(),
        longest.as_millis()
    );
    flawless(&clients.end()?)?;
    steady.finish();
    let talked: SteadyReport = steady.next(PATIENCE)?;
    ensure!(talked.lost.is_empty() && talked.exchanges > 0, "{talked:?}");
    match leaving {
        Some(mut before) => before.end(PATIENCE),
        None => Ok(()),
    }
}

/// Somebody asks for the place and is gone as soon as it has it; somebody speaks another version. No request fails, and the agent
/// goes on as before: it takes over changes.
///
/// # Errors
/// What did not hold.
pub fn deserted(demo: &mut Demo) -> Result<()> {
    let clients = Clients::start(demo)?;
    let socket = demo.world().dir().join("state/handover.sock");
    for _ in 0..3 {
        let before = generation(demo)?;
        let told = ask(&socket, br#"{"message":"ask","version":2}"#)?;
        ensure!(told.contains("yielded"), "{told}");
        // It opens the kernel's side anew, which makes a new generation, and the admin interface with it.
        let end = Instant::now() + PATIENCE;
        while !demo.agent.serves() || !generation(demo).is_ok_and(|now| now > before) {
            ensure!(
                Instant::now() < end,
                "the agent does not go on after a deserter\n{}",
                demo.agent.log_tail()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
    let told = ask(&socket, br#"{"message":"ask","version":99}"#)?;
    ensure!(
        told.contains("refused") && told.contains("version 2"),
        "{told}"
    );
    super::endurance::changes(demo, 2)?;
    flawless(&clients.end()?)
}

fn generation(demo: &Demo) -> Result<u64> {
    demo.agent.status()?["config"]["generation"]
        .as_u64()
        .context("the status has no generation")
}

/// Asks as another agent would, without taking the descriptors. Gives what was said until that had an end, and hangs up.
fn ask(path: &Path, question: &[u8]) -> Result<String> {
    let kind = Type::from(libc::SOCK_SEQPACKET).cloexec();
    let end = Instant::now() + PATIENCE;
    // An agent that serves again may be asked again a little later.
    let mut socket = loop {
        let socket = Socket::new(Domain::UNIX, kind, None)?;
        match socket.connect(&SockAddr::unix(path)?) {
            Ok(()) => break socket,
            Err(error) => ensure!(Instant::now() < end, "the agent cannot be asked: {error}"),
        }
        thread::sleep(Duration::from_millis(20));
    };
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(question)?;
    let mut told = String::new();
    while !told.contains("yielded") && !told.contains("refused") {
        let mut buffer = [0; 65_536];
        let length = socket.read(&mut buffer)?;
        ensure!(length > 0, "the agent hung up after `{told}`");
        told.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    Ok(told)
}

/// Kills one of two agents while one takes the place of the other, at many moments: the next one first, then the one before.
/// Whatever the moment, the node is served: by the one that is left, or by the next that is started.
///
/// # Errors
/// What did not hold.
pub fn killed_half_way(demo: &mut Demo, rounds: u32) -> Result<()> {
    let (mut before, whole) = replace(demo)?;
    before.end(PATIENCE)?;
    let moments =
        || (0..rounds).flat_map(move |_| (0..MOMENTS).map(move |n| whole * n / (MOMENTS - 2)));
    let (mut went_on, mut had_left) = (0_u32, 0_u32);
    for moment in moments() {
        let mut next = demo.another_agent(&OPTIONS)?;
        thread::sleep(moment);
        next.kill()?;
        let end = Instant::now() + PATIENCE;
        // The one before goes on, or it has left. Whether it was about to leave when the next one was killed, it says itself: until
        // it is in the middle of that, it still answers as if it served.
        let goes_on = loop {
            if demo.agent.says("draining")? > 0 {
                break false;
            }
            let asked = demo
                .agent
                .says("another agent takes the place of this one")?;
            let deserted = demo.agent.says("the other agent does not take the place")?;
            if asked == deserted && demo.agent.serves() {
                break true;
            }
            ensure!(
                Instant::now() < end,
                "after {moment:?}: nobody serves\n{}",
                demo.agent.log_tail()
            );
            thread::sleep(Duration::from_millis(20));
        };
        if goes_on {
            went_on += 1;
        } else {
            had_left += 1;
            let (mut before, _) = replace(demo)?;
            before.end(PATIENCE)?;
        }
        served(demo).with_context(|| format!("the next one was killed after {moment:?}"))?;
    }
    for moment in moments() {
        let mut next = demo.another_agent(&OPTIONS)?;
        thread::sleep(moment);
        demo.agent.kill()?;
        next.wait_serving(PATIENCE)
            .with_context(|| format!("the one before was killed after {moment:?}"))?;
        demo.agent = next;
        served(demo).with_context(|| format!("the one before was killed after {moment:?}"))?;
    }
    let kills = rounds * MOMENTS;
    println!(
        "{kills} kills of the next agent, within {} ms: the one before went on {went_on} times, and had left {had_left} times; {kills} kills of the one before",
        whole.as_millis()
    );
    Ok(())
}

/// Requests of all kinds are answered again, and what is denied is denied.
fn served(demo: &Demo) -> Result<()> {
    for (what, report) in Clients::start(demo)?.end()? {
        ensure!(
            report.failed == 0 && report.requests > 0,
            "{what}: {report:?}\n{}",
            demo.agent.log_tail()
        );
    }
    let to = SocketAddr::new(super::scene::LEDGER.of(Family::V4), 7000).to_string();
    let outcome = demo.probe(Spot::Web, &["tcp", "--to", &to, "--timeout-ms", "300"])?;
    ensure!(outcome.outcome == "timeout", "{outcome:?}");
    Ok(())
}
