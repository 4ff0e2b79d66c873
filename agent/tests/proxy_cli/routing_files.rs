//! Files of routing tables: when they are loaded, and what the debug endpoint tells of them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;

use crate::place::{AGENT, Place, assert_says, free_port, gateway};

fn vectors() -> serde_json::Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/vectors/cell-routing.json"
    );
    let text = fs::read_to_string(path).expect("the vectors are in the tree");
    serde_json::from_str(&text).expect("the vectors are JSON")
}

fn rows<'a>(file: &'a serde_json::Value, group: &str) -> &'a [serde_json::Value] {
    let rows = file[group].as_array().expect("a group is a list");
    assert_eq!(file["counts"][group], rows.len(), "{group} is complete");
    rows
}

/// A cell that answers 200 to everything, until the test ends.
fn cell() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut buffer = [0; 4096];
            if stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                // A client that left has nothing to hear.
                let _left = stream.write_all(answer);
            }
        }
    });
    port
}

/// Sends a request and reads its answer to the end; empty while nobody listens.
fn told<S: std::io::Read + std::io::Write>(stream: std::io::Result<S>, request: &str) -> String {
    let Ok(mut stream) = stream else {
        return String::new();
    };
    let mut answer = String::new();
    match stream.write_all(request.as_bytes()) {
        Ok(()) => stream.read_to_string(&mut answer).map(|_| answer),
        Err(error) => Err(error),
    }
    .unwrap_or_default()
}

#[test]
fn routing_files_are_loaded_as_the_contract_says() {
    let file = vectors();
    // LD06: a refused file is said once per change here, not once per poll. LD07 needs cells by name
    // and runs with the router.
    let left_out = ["LD06", "LD07"];
    let mut ran = 0;
    for row in rows(&file, "loader") {
        let id = row["id"].as_str().expect("an id");
        if left_out.contains(&id) {
            continue;
        }
        ran += 1;
        let port = free_port();
        let route = format!(
            "{}---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: r }}\nspec:\n  parentRefs: [{{ name: front }}]\n  \
             rules: [{{ backendRefs: [{{ group: cardinal.dev, kind: RoutingTable, name: routing }}] }}]\n",
            gateway(port)
        );
        if !row["initial"]["$path"].is_null() {
            // A route to a table whose file is not there.
            let place = Place::new(&[("a.yaml", &route)]);
            let output = place.agent().output().expect("runs");
            assert_eq!(row["expect"]["start"], "fails", "{id}");
            assert_says(&output, 1, &["RoutingTable", "routing"]);
            continue;
        }
        let real = |document: &serde_json::Value| {
            let mut document = document.clone();
            let cells = document["cellEndpoints"].as_object_mut().expect("cells");
            for url in cells.values_mut() {
                *url = format!("http://127.0.0.1:{}", cell()).into();
            }
            document.to_string()
        };
        let mut place = Place::new(&[("a.yaml", &route), ("routing.json", &real(&row["initial"]))]);
        place.start();
        let served = |key: &str| {
            let request = format!(
                "GET / HTTP/1.1\r\nhost: x\r\nx-routing-key: {key}\r\nconnection: close\r\n\r\n"
            );
            let answer = told(std::net::TcpStream::connect(("127.0.0.1", port)), &request);
            let name = answer
                .lines()
                .find_map(|line| line.strip_prefix("x-routed-to: "));
            name.unwrap_or_default().to_owned()
        };
        assert_eq!(served("acme"), "tier1", "{id}");
        place.write("routing.json", &real(&row["then_write"]));
        let taken = row["expect"]["active"] == row["then_write"]["version"];
        let config = || {
            serde_json::from_str::<serde_json::Value>(&place.get("/debug/config").1).expect("json")
        };
        let generation = if taken { 2 } else { 1 };
        let attempt = if taken { "accepted" } else { "refused" };
        place.wait(id, || {
            let config = config();
            config["generation"] == generation && config["last_attempt"] == attempt
        });
        assert_eq!(served("acme"), "tier1", "{id}");
        if let Some(placement) = row["expect"]["routingTable.globex"].as_str() {
            assert_eq!(served("globex"), placement, "{id}");
        }
        // What the router remembers is told.
        let status = Command::new(AGENT)
            .args(["status", "--admin"])
            .arg(place.path("admin.sock"))
            .output()
            .expect("runs");
        assert_says(&status, 0, &["default/routing tier1", "closed", "healthy"]);
        // A request is over a little after its answer.
        place.wait("the slot of the last request", || {
            place.get("/metrics").1.contains(
                "cardinal_proxy_placement_requests{table=\"default/routing\",placement=\"tier1\"} 0",
            )
        });
        let metrics = place.get("/metrics").1;
        for line in [
            "cardinal_proxy_placement_circuit_state{table=\"default/routing\",placement=\"tier1\"} 0",
            "cardinal_proxy_placement_failures{table=\"default/routing\",placement=\"tier1\"} 0",
        ] {
            assert!(
                metrics.contains(line),
                "{id}: {line} is missing in\n{metrics}"
            );
        }
        let healthy = metrics.lines().find(|line| {
            line.starts_with("cardinal_proxy_placement_endpoint_healthy{") && line.contains("tier1")
        });
        assert!(
            healthy.is_some_and(|line| line.ends_with(" 1")),
            "{id}: {healthy:?}"
        );
    }
    assert_eq!(ran + left_out.len(), rows(&file, "loader").len());
}

#[test]
fn the_debug_endpoint_is_that_of_the_contract() {
    let mut place = Place::new(&[("a.yaml", &gateway(free_port()))]);
    place.start();
    let ask = |method: &str, path: &str| {
        let stream = std::os::unix::net::UnixStream::connect(place.path("admin.sock"));
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        told(stream, &request)
    };
    let file = vectors();
    for row in rows(&file, "debug_endpoint") {
        let id = row["id"].as_str().expect("an id");
        let path = row["request"]["path"].as_str().expect("a path");
        if row["class"] == "quirk" {
            // DB02: the row itself suggests 405.
            for method in row["request"]["methods"].as_array().expect("methods") {
                let answer = ask(method.as_str().expect("text"), path);
                assert!(answer.starts_with("HTTP/1.1 405"), "{id}: {answer}");
            }
            continue;
        }
        let answer = ask(row["request"]["method"].as_str().expect("text"), path);
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let expect = &row["expect"];
        assert!(
            head.starts_with(&format!("HTTP/1.1 {}", expect["status"])),
            "{id}: {head}"
        );
        for (name, value) in expect["headers"].as_object().expect("headers") {
            let line = format!("{}: {}", name.to_lowercase(), value.as_str().expect("text"));
            assert!(head.to_lowercase().contains(&line), "{id}: {head}");
        }
        let json: serde_json::Value = serde_json::from_str(body).expect("json");
        for key in expect["json_keys_at_least"].as_array().expect("keys") {
            assert!(
                json.get(key.as_str().expect("text")).is_some(),
                "{id}: {json}"
            );
        }
        let sources = expect["source_one_of"].as_array().expect("sources");
        assert!(sources.contains(&json["source"]), "{id}: {json}");
        let time = json["last_reload_at"].as_str().expect("text");
        assert!(
            time.len() == "2026-01-01T00:00:00Z".len() && time.ends_with('Z'),
            "{id}: {time}"
        );
    }
}
