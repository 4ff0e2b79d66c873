//! Errors that a user meets, and what they say. Each test runs the real program.

use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

mod handover;
mod logs;
mod place;
mod routing_files;

use place::{AGENT, Place, assert_says, free_port, gateway, text};

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
fn an_unreadable_folder_has_its_own_exit_code() {
    let place = Place::new(&[]);
    let output = place.agent().output().expect("runs");
    assert_says(&output, 2, &["no documents in"]);
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
fn where_documents_come_from_has_to_be_said() {
    let output = Command::new(AGENT).output().expect("runs");
    assert_says(&output, 2, &["<--config <DIR>|--kubernetes>"]);

    let place = Place::new(&[]);
    let missing = place.path("no-such-kubeconfig");
    let output = Command::new(AGENT)
        .args(["--kubernetes", "--node-name", "n", "--datapath", "none"])
        .arg("--state")
        .arg(place.path("state"))
        .arg("--admin")
        .arg(place.path("admin.sock"))
        .env("KUBECONFIG", &missing)
        .env_remove("KUBERNETES_SERVICE_HOST")
        .output()
        .expect("runs");
    assert_says(&output, 1, &["no API server is configured", "KUBECONFIG"]);
    let said = text(&output);
    let told = said.matches("no-such-kubeconfig").count();
    assert_eq!(told, 1, "each cause is told once: {said}");
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
