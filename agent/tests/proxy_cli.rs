//! Errors that a user meets, and what they say. Each test runs the real program.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

const AGENT: &str = env!("CARGO_BIN_EXE_cardinal-agent");

/// A folder for one agent; the agent ends with it.
struct Place {
    folder: tempfile::TempDir,
    agents: Vec<Child>,
}

impl Place {
    fn new(documents: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        fs::create_dir(folder.path().join("config")).expect("folder");
        let place = Self {
            folder,
            agents: Vec::new(),
        };
        for (name, text) in documents {
            place.write(name, text);
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path("config").join(name), text).expect("document");
    }

    /// An agent without a datapath, all of whose roots are in the folder.
    fn agent(&self) -> Command {
        let mut command = Command::new(AGENT);
        command
            .arg("--config")
            .arg(self.path("config"))
            .args([
                "--datapath",
                "none",
                "--threads",
                "1",
                "--drain",
                "60",
                "--state",
            ])
            .arg(self.path("state"))
            .arg("--admin")
            .arg(self.path("admin.sock"));
        command
    }

    fn start(&mut self) {
        let log = fs::File::create(self.path("log")).expect("log");
        let child = self.agent().stderr(log).spawn().expect("agent starts");
        self.agents.push(child);
        self.wait("readiness", || self.get("/readyz").0 == 200);
    }

    fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(
                Instant::now() < end,
                "{what} did not come; log:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Status and body of an admin path; 0 while nobody answers.
    fn get(&self, path: &str) -> (u16, String) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        match runtime.block_on(cardinal_agent::admin::get(&self.path("admin.sock"), path)) {
            Ok((status, body)) => (status.as_u16(), String::from_utf8_lossy(&body).into_owned()),
            Err(_) => (0, String::new()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            drop(agent.kill());
            drop(agent.wait());
        }
    }
}

fn gateway(port: u16) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{ name: front }}\nspec:\n  gatewayClassName: cardinal\n  \
         addresses: [{{ type: IPAddress, value: 127.0.0.1 }}]\n  listeners: [{{ name: http, port: {port}, protocol: HTTP }}]\n"
    )
}

/// A port that nothing uses. Below the range from which the kernel gives ports to clients, so that no connection of another test
/// takes it before the agent does.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 90).expect("it is small") * 128;
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[track_caller]
fn assert_says(output: &Output, code: i32, parts: &[&str]) {
    let text = text(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing in\n{text}");
    }
}

#[test]
fn without_root_the_datapath_is_refused_and_none_is_offered() {
    let place = Place::new(&[("a.yaml", &gateway(free_port()))]);
    // The program and its folder have to be reachable for somebody else.
    let program = place.path("cardinal-agent");
    fs::copy(AGENT, &program).expect("copied");
    for path in [
        place.folder.path(),
        &place.path("config"),
        &place.path("config/a.yaml"),
        &program,
    ] {
        open_to_all(path);
    }
    let output = Command::new(&program)
        .arg("--config")
        .arg(place.path("config"))
        .arg("--state")
        .arg("/tmp/cardinal-nobody-state")
        .uid(65534)
        .gid(65534)
        .output()
        .expect("agent runs");
    assert_says(&output, 1, &["root", "--datapath none"]);
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
}

#[test]
fn a_bad_document_stops_a_start_and_every_mistake_is_named() {
    let place = Place::new(&[
        ("a.yaml", &gateway(free_port())),
        (
            "b.yaml",
            "apiVersion: cardinal.dev/v1alpha1\nkind: Cell\nmetadata: { name: c }\nspec: { intra: opn, colour: red }\n",
        ),
    ]);
    let output = place.agent().output().expect("agent runs");
    assert_says(
        &output,
        1,
        &[
            "b.yaml:4",
            "spec.intra",
            "open",
            "spec.colour",
            "spec.organization",
        ],
    );
}

#[test]
fn validate_has_exit_codes_and_json() {
    let place = Place::new(&[("a.yaml", &gateway(free_port()))]);
    let validate = |arguments: &[&str]| {
        Command::new(AGENT)
            .arg("validate")
            .args(arguments)
            .output()
            .expect("runs")
    };
    let folder = place.path("config");
    let folder = folder.to_str().expect("utf-8");
    assert_says(&validate(&[folder]), 0, &["valid (1 file"]);
    place.write("b.yaml", "kind: Nothing\n");
    assert_says(&validate(&[folder]), 1, &["refused (2 files", "b.yaml"]);
    let output = validate(&[folder, "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    assert_eq!(report["valid"], false);
    assert_eq!(report["mistakes"][0]["file"], "b.yaml");
    assert_says(&validate(&["/nonexistent"]), 2, &["/nonexistent"]);
    assert_says(&validate(&[]), 2, &["<DIR>"]);
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let place = Place::new(&[("a.yaml", &gateway(port))]);
    let output = place.agent().output().expect("agent runs");
    assert_says(&output, 1, &[&format!("127.0.0.1:{port}"), "in use"]);
}

#[test]
fn a_second_agent_is_refused_and_told_about_the_first() {
    let mut place = Place::new(&[("a.yaml", &gateway(free_port()))]);
    place.start();
    let pid = place.agents[0].id().to_string();
    let output = place.agent().output().expect("agent runs");
    assert_says(&output, 1, &["another cardinal-agent", &pid, "--state"]);
}

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

#[test]
fn a_refused_change_keeps_the_generation_and_a_good_one_is_taken() {
    let mut place = Place::new(&[("a.yaml", &gateway(free_port()))]);
    place.start();
    let config =
        || serde_json::from_str::<serde_json::Value>(&place.get("/debug/config").1).expect("json");
    let first = config();
    assert_eq!(
        (&first["generation"], &first["source"]),
        (&1.into(), &"file".into())
    );
    place.write("b.yaml", "kind: Nothing\n");
    place.wait("refusal", || config()["last_attempt"] == "refused");
    let refused = config();
    assert_eq!(refused["generation"], 1);
    assert_eq!(refused["digest"], first["digest"]);
    assert!(
        refused["mistakes"][0]
            .as_str()
            .is_some_and(|text| text.contains("b.yaml")),
        "{refused}"
    );
    let status = Command::new(AGENT)
        .args(["status", "--admin"])
        .arg(place.path("admin.sock"))
        .output()
        .expect("runs");
    assert_says(
        &status,
        0,
        &["REFUSED", "b.yaml", "NONE: nothing is enforced"],
    );
    let metrics = place.get("/metrics").1;
    for line in [
        "cardinal_config_refused 1",
        "cardinal_config_generation 1",
        "cardinal_datapath_enforcing 0",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
    fs::remove_file(place.path("config/b.yaml")).expect("removed");
    place.write("a.yaml", &gateway(free_port()));
    place.wait("new generation", || config()["generation"] == 2);
    assert!(
        place
            .get("/metrics")
            .1
            .contains("cardinal_config_refused 0")
    );
}

#[test]
fn an_expired_certificate_is_named_and_its_handshakes_are_refused() {
    let port = free_port();
    let mut parameters =
        rcgen::CertificateParams::new(["old.example.test".to_owned()]).expect("names");
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let key = rcgen::KeyPair::generate().expect("key");
    let certificate = parameters.self_signed(&key).expect("certificate");
    let indent = |pem: &str| {
        pem.lines()
            .map(|line| format!("    {line}\n"))
            .collect::<String>()
    };
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{ name: old }}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
        indent(&certificate.pem()),
        indent(&key.serialize_pem())
    );
    let listener = gateway(port).replace(
        "protocol: HTTP }",
        "protocol: HTTPS, tls: { certificateRefs: [{ name: old }] } }",
    );
    let mut place = Place::new(&[("a.yaml", &listener), ("b.yaml", &secret)]);
    let validate = Command::new(AGENT)
        .arg("validate")
        .arg(place.path("config"))
        .output()
        .expect("runs");
    assert_says(
        &validate,
        0,
        &["warning:", "default/old expired at 2021-01-01T00:00:00Z"],
    );
    place.start();
    let status = Command::new(AGENT)
        .args(["status", "--admin"])
        .arg(place.path("admin.sock"))
        .output()
        .expect("runs");
    assert_says(&status, 0, &["default/old expired at 2021-01-01T00:00:00Z"]);
    let curl = Command::new("curl")
        .args([
            "-sk",
            "--resolve",
            &format!("old.example.test:{port}:127.0.0.1"),
            &format!("https://old.example.test:{port}/"),
        ])
        .output()
        .expect("curl runs");
    assert!(
        !curl.status.success(),
        "handshake with an expired certificate succeeded: {}",
        text(&curl)
    );
}

#[test]
fn sigterm_ends_it_cleanly() {
    let mut place = Place::new(&[("a.yaml", &gateway(free_port()))]);
    place.start();
    let pid = nix::unistd::Pid::from_raw(place.agents[0].id().try_into().expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signal");
    let status = place.agents[0].wait().expect("ends");
    assert!(status.success(), "{status}: {}", place.log());
    assert!(!place.path("admin.sock").exists());
}

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
fn an_unreadable_folder_has_its_own_exit_code() {
    let place = Place::new(&[]);
    let output = place.agent().output().expect("runs");
    assert_says(&output, 2, &["no documents in"]);
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
fn a_file_in_the_place_of_the_socket_stays() {
    let place = Place::new(&[("a.yaml", &gateway(free_port()))]);
    fs::write(place.path("admin.sock"), "mine").expect("file");
    let output = place.agent().output().expect("runs");
    assert_says(&output, 1, &["admin.sock` is there and is no socket"]);
    let kept = fs::read_to_string(place.path("admin.sock")).expect("still there");
    assert_eq!(kept, "mine");
}

#[test]
fn a_file_that_is_emptied_takes_nothing_away() {
    let mut place = Place::new(&[("a.yaml", &gateway(free_port())), ("b.yaml", "# nothing\n")]);
    place.start();
    assert!(
        place.log().contains("the file holds no document"),
        "{}",
        place.log()
    );
    place.write("a.yaml", "");
    place.wait("the refusal", || place.log().contains("the file is empty"));
    assert!(
        place.get("/debug/config").1.contains("\"generation\":1"),
        "{}",
        place.get("/debug/config").1
    );
}

#[test]
fn status_without_an_agent_says_so() {
    let mut child = Command::new(AGENT)
        .args(["status", "--admin", "/nonexistent/admin.sock"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut said = String::new();
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut said)
        .expect("reads");
    assert!(!child.wait().expect("ends").success());
    assert!(said.contains("no agent answers on admin socket"), "{said}");
}

#[test]
fn a_port_that_is_taken_for_a_while_is_tried_again() {
    let mut place = Place::new(&[("a.yaml", &gateway(free_port()))]);
    place.start();
    let port = free_port();
    let taken = TcpListener::bind(("127.0.0.1", port)).expect("it is free");
    let config =
        || serde_json::from_str::<serde_json::Value>(&place.get("/debug/config").1).expect("json");
    place.write("a.yaml", &gateway(port));
    place.wait("refusal", || config()["last_attempt"] == "refused");
    assert_eq!(config()["generation"], 1);
    let mistake = config()["mistakes"][0].to_string();
    assert!(mistake.contains(&format!("127.0.0.1:{port}")), "{mistake}");
    drop(taken);
    place.wait("new generation", || config()["generation"] == 2);
    assert_eq!(config()["last_attempt"], "accepted");
}

#[test]
fn a_reader_who_had_enough_is_no_error() {
    let mut place = Place::new(&[("a.yaml", &gateway(free_port()))]);
    place.start();
    let folder = place.path("config");
    for arguments in [
        format!("status --admin {}", place.path("admin.sock").display()),
        format!("validate {}", folder.display()),
    ] {
        // The reader is gone before anything is written.
        let script = format!("{{ sleep 0.2; {AGENT} {arguments}; echo \"exit $?\" >&2; }} | true");
        let output = Command::new("sh")
            .args(["-c", &script])
            .output()
            .expect("sh runs");
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "exit 0\n",
            "{arguments}"
        );
    }
}

#[test]
fn requests_are_told_to_a_file_only_if_one_is_named() {
    use std::io::Write as _;
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

#[test]
fn preflight_names_all_that_a_node_lacks_and_fails_then() {
    let folder = tempfile::tempdir().expect("folder");
    let pins = folder.path().join("pins");
    let preflight = |more: &[&str]| {
        Command::new(AGENT)
            .args(["preflight", "--bpffs"])
            .arg(&pins)
            .arg("--cgroup")
            .arg(folder.path())
            .args(more)
            .output()
            .expect("runs")
    };
    let output = preflight(&["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = answer["findings"].as_array().expect("findings");
    let text = |what: &str| {
        let finding = findings
            .iter()
            .find(|finding| finding["what"] == what)
            .expect(what);
        assert_eq!(finding["standing"], "lacks", "{finding}");
        finding["text"].as_str().expect("text").to_owned()
    };
    assert!(text("bpffs").contains("mount -t bpf"));
    assert!(text("cgroup2").contains("not a folder of a cgroup2"));

    // The same for people: one line each, and how many at the end.
    let output = preflight(&[]);
    assert_eq!(output.status.code(), Some(1));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(shown.lines().count(), findings.len());
    let lacking = shown
        .lines()
        .filter(|line| line.starts_with("LACKS"))
        .count();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        errors.contains(&format!("lacks {lacking} of the {}", findings.len())),
        "{errors}"
    );
    assert!(!pins.exists(), "nothing is made");
}
