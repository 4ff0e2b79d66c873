//! An agent takes the place of another: nobody is refused meanwhile.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::place::{AGENT, Place, assert_says, free_port, gateway};

/// Status lines of answers on connections of their own, until told to end: nobody may be refused.
fn asking(port: u16, end: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let end = Arc::clone(end);
    std::thread::spawn(move || {
        let mut answers = 0;
        while !end.load(Ordering::Relaxed) {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("somebody listens");
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                .expect("it is taken");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            // There is no route, and the router says so.
            assert!(answer.starts_with("HTTP/1.1 404"), "{answer:?}");
            answers += 1;
        }
        answers
    })
}

#[test]
fn an_agent_takes_the_place_of_another_and_nobody_is_refused() {
    let port = free_port();
    let mut place = Place::new(&[("a.yaml", &gateway(port))]);
    place.start();
    let end = Arc::default();
    let clients = [0, 1, 2].map(|_| asking(port, &end));
    for _ in 0..3 {
        let log = fs::File::options()
            .append(true)
            .open(place.path("log"))
            .expect("log");
        let next = place.agent().arg("--take-over").stderr(log).spawn();
        let next = next.expect("agent starts");
        let pid = next.id();
        place.agents.push(next);
        place.wait("the next agent", || {
            let status: serde_json::Value =
                serde_json::from_str(&place.get("/debug/status").1).unwrap_or_default();
            status["agent"]["pid"] == pid && status["agent"]["ready"] == true
        });
        // One who would take a place that is not given is told who has it.
        let output = place.agent().output().expect("agent runs");
        assert_says(&output, 1, &["another cardinal-agent", &pid.to_string()]);
    }
    // The probe asks for the agent of its own mount namespace.
    let ready = |command: &mut Command| {
        let command = command.args(["ready", "--admin"]);
        command
            .arg(place.path("admin.sock"))
            .output()
            .expect("runs")
    };
    assert_says(&ready(&mut Command::new(AGENT)), 0, &[]);
    assert_eq!(place.get("/readyz?container=1").0, 503);

    // The first one was not started to be replaced: it ends. The others wait for the end that somebody gives them.
    let first = place.agents[0].wait().expect("it ends");
    assert!(first.success(), "{first}");
    for agent in &mut place.agents[1..3] {
        assert_eq!(agent.try_wait().expect("ours"), None);
        let pid = nix::unistd::Pid::from_raw(agent.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).expect("ours");
        assert!(agent.wait().expect("it ends").success());
    }
    end.store(true, Ordering::Relaxed);
    let answers: u64 = clients
        .into_iter()
        .map(|client| client.join().expect("no request failed"))
        .sum();
    assert!(answers > 100, "{answers} answers prove nothing");
}

#[test]
fn an_agent_that_is_to_end_serves_on_until_the_next_one_has_taken_over() {
    let port = free_port();
    let mut place = Place::new(&[("a.yaml", &gateway(port))]);
    let mut first = place.agent();
    let log = fs::File::create(place.path("log")).expect("log");
    let first = first.args(["--successor", "60"]).stderr(log).spawn();
    place.agents.push(first.expect("agent starts"));
    place.wait("readiness", || place.get("/readyz").0 == 200);
    let end = Arc::default();
    let client = asking(port, &end);
    let pid = nix::unistd::Pid::from_raw(place.agents[0].id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).expect("ours");
    place.wait("its word", || place.log().contains("told to end"));
    let next = place.agent().arg("--take-over").spawn();
    place.agents.push(next.expect("agent starts"));
    let first = place.agents[0].wait().expect("it ends");
    assert!(first.success(), "{first}");
    end.store(true, Ordering::Relaxed);
    assert!(client.join().expect("no request failed") > 0);

    // A second word is no request to wait.
    let pid = nix::unistd::Pid::from_raw(place.agents[1].id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).expect("ours");
    assert!(place.agents[1].wait().expect("it ends").success());
    TcpStream::connect(("127.0.0.1", port)).expect_err("nobody is there");
}
