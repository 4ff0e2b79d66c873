//! What the agent writes: its log, and a line for each request where one is asked for.

use std::fs;
use std::io::{Read as _, Write as _};

use crate::place::{Place, assert_says, free_port, gateway};

#[test]
fn logs_are_json_when_nobody_watches() {
    let mut place = Place::new(&[("a.yaml", &gateway(free_port()))]);
    place.start();
    for line in place.log().lines() {
        serde_json::from_str::<serde_json::Value>(line)
            .unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    assert!(
        place.log().contains("NOTHING IS ENFORCED"),
        "{}",
        place.log()
    );
}

#[test]
fn the_last_line_of_a_json_log_is_json_too() {
    let place = Place::new(&[("a.yaml", "apiVersion: v1\nkind: Secert\n")]);
    let output = place.agent().output().expect("runs");
    assert_says(&output, 1, &["got `Secert`"]);
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(line["level"], "ERROR");
    }
    let output = place
        .agent()
        .args(["--log-format", "pretty"])
        .output()
        .expect("runs");
    assert_says(&output, 1, &["error: documents in"]);
}

#[test]
fn a_filter_that_is_none_is_said_and_stops_nobody() {
    let mut place = Place::new(&[("a.yaml", &gateway(free_port()))]);
    let log = fs::File::create(place.path("log")).expect("log");
    let child = place
        .agent()
        .env("RUST_LOG", "=loud=")
        .stderr(log)
        .spawn()
        .expect("agent starts");
    place.agents.push(child);
    place.wait("readiness", || place.get("/readyz").0 == 200);
    assert!(
        place.log().contains("RUST_LOG is no filter"),
        "{}",
        place.log()
    );
}

#[test]
fn requests_are_told_to_a_file_only_if_one_is_named() {
    let port = free_port();
    let ask = || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        let request = "GET /nowhere?token=hidden HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("it is taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    };
    let mut place = Place::new(&[("a.yaml", &gateway(port))]);
    place.start();
    ask();
    place.wait("the record", || {
        place.get("/debug/requests").1.contains("/nowhere")
    });
    assert!(!place.log().contains("/nowhere"), "{}", place.log());
    for agent in &mut place.agents {
        agent.kill().expect("it is killed");
        agent.wait().expect("it ends");
    }

    let lines = place.path("access.jsonl");
    let mut told = place.agent();
    told.arg("--access-log").arg(&lines);
    let log = fs::File::create(place.path("log")).expect("log");
    place
        .agents
        .push(told.stderr(log).spawn().expect("agent starts"));
    place.wait("readiness", || place.get("/readyz").0 == 200);
    ask();
    let read = || fs::read_to_string(&lines).unwrap_or_default();
    place.wait("a line", || read().ends_with('\n'));
    let line: serde_json::Value = serde_json::from_str(read().trim()).expect("it is one object");
    assert_eq!(
        (&line["path"], &line["reason"]),
        (&"/nowhere".into(), &"no_route".into())
    );
    assert_eq!(line["trace_id"].as_str().map(str::len), Some(32), "{line}");
    assert!(!read().contains("hidden"), "{}", read());

    for (flag, value) in [
        ("--trace-ratio", "1.5"),
        ("--otlp-traces", "grpc://127.0.0.1:4317"),
    ] {
        let output = place.agent().args([flag, value]).output().expect("runs");
        assert_says(&output, 2, &[flag, "expected"]);
    }
}
