//! The harness itself: a world routes, and goes without a trace.

use std::{net::IpAddr, path::Path, process::Command, time::Duration};

use anyhow::Result;
use tests::{
    peer::{Outcome, Running},
    programs::Programs,
    world::{Addresses, Family, World},
};

const WAIT: Duration = Duration::from_secs(60);

fn addresses(v4: &str, v6: &str) -> Addresses {
    Addresses {
        v4: v4.parse().expect("an IPv4 address"),
        v6: v6.parse().expect("an IPv6 address"),
    }
}

#[test]
fn netns_world_routes_and_leaves_nothing() -> Result<()> {
    let programs = Programs::locate()?;
    let world = World::create()?;
    let a = addresses("10.80.1.1", "fd00:80::1:1");
    let far = addresses("198.51.100.10", "2001:db8:100::10");
    let dns: IpAddr = "198.51.100.10".parse()?;
    let pod = world.pod("a", a, &[dns])?;
    let outside = world.outside("inet", far, &["203.0.113.7".parse()?])?;

    let zone = world.dir().join("zone.json");
    std::fs::write(
        &zone,
        r#"{"api.test": ["203.0.113.7", "2001:db8:100::10"]}"#,
    )?;
    let mut serve = outside.command(&programs.peer);
    serve
        .args([
            "serve",
            "--name",
            "far",
            "--tcp",
            "[::]:7",
            "--udp",
            "198.51.100.10:7",
            "--http",
            "[::]:80",
            "--dns",
            "198.51.100.10:53",
            "--zone",
        ])
        .arg(&zone);
    let mut server = Running::start("the server", serve)?;
    server.wait_for(WAIT, |line| line["event"] == "ready")?;

    for family in Family::BOTH {
        let mut probe = pod.command(&programs.peer);
        probe.args([
            "tcp",
            "--to",
            &format!("{}", std::net::SocketAddr::new(far.of(family), 7)),
        ]);
        let outcome: Outcome = Running::start("the client", probe)?.next(WAIT)?;
        assert_eq!(outcome.outcome, "answer", "{outcome:?}");
    }
    let mut dns = pod.command(&programs.peer);
    dns.args([
        "dns",
        "--server",
        "198.51.100.10:53",
        "--name",
        "api.test",
        "--tcp",
        "--v6",
    ]);
    let outcome: Outcome = Running::start("the client", dns)?.next(WAIT)?;
    assert_eq!(outcome.answer, "2001:db8:100::10", "{outcome:?}");

    // The pod's own resolver file names the server, so a plain name works.
    let page = pod
        .command("curl")
        .args(["-4", "-sS", "--max-time", "5", "http://api.test/x?y=1"])
        .output()?;
    let page: serde_json::Value = serde_json::from_slice(&page.stdout)?;
    assert_eq!(
        (
            &page["path"],
            &page["from"].as_str().map(|from| from.contains("10.80.1.1"))
        ),
        (&"/x".into(), &Some(true)),
        "{page}"
    );

    // A raw packet with a source that is not the pod's gets as far as routing lets it: nobody enforces anything here.
    let mut raw = pod.command(&programs.peer);
    raw.args([
        "raw",
        "--from",
        "10.80.9.9:5000",
        "--to",
        "198.51.100.10:7",
        "--text",
        "spoofed-1",
    ]);
    let outcome: Outcome = Running::start("the client", raw)?.next(WAIT)?;
    assert_eq!(outcome.outcome, "sent", "{outcome:?}");
    server.wait_for(WAIT, |line| line["text"] == "spoofed-1")?;
    let mut raw = pod.command(&programs.peer);
    raw.args([
        "raw",
        "--transport",
        "tcp",
        "--from",
        "[fd00:80::1:1]:5000",
        "--to",
        "[2001:db8:100::10]:7",
    ]);
    let outcome: Outcome = Running::start("the client", raw)?.next(WAIT)?;
    assert_eq!(outcome.outcome, "sent", "{outcome:?}");

    let (id, dir, cgroup) = (
        world.id().to_owned(),
        world.dir().to_owned(),
        world.node_cgroup(),
    );
    drop(world);
    let namespaces =
        String::from_utf8(Command::new("ip").args(["netns", "list"]).output()?.stdout)?;
    assert!(!namespaces.contains(&id), "{namespaces}");
    assert!(!dir.exists() && !Path::new(&cgroup).exists());
    Ok(())
}

/// Namespaces of a world that are there.
fn namespaces(id: &str) -> Result<Vec<String>> {
    let list = String::from_utf8(Command::new("ip").args(["netns", "list"]).output()?.stdout)?;
    let prefix = format!("cdl-{id}-");
    Ok(list
        .lines()
        .filter(|name| name.starts_with(&prefix))
        .map(str::to_owned)
        .collect())
}

#[test]
fn netns_worlds_do_not_meet() -> Result<()> {
    let a = addresses("10.80.1.1", "fd00:80::1:1");
    let (one, two) = (World::create()?, World::create()?);
    let (pod, same) = (one.pod("a", a, &[])?, two.pod("a", a, &[])?);
    assert_ne!(pod.netns(), same.netns());
    drop(one);
    assert_eq!(namespaces(two.id())?.len(), 2);
    same.shell("ip -6 route get fd00:80::1")?;
    Ok(())
}

#[test]
fn netns_what_a_crash_left_is_removed_by_the_next() -> Result<()> {
    const CRASH: &str = "CARDINAL_TEST_CRASH";

    if std::env::var_os(CRASH).is_some() {
        let world = World::create()?;
        let pod = world.pod("a", addresses("10.80.1.1", "fd00:80::1:1"), &[])?;
        let _orphan = Running::start("an orphan", {
            let mut command = pod.command("sleep");
            command.arg("300");
            command
        })?;
        println!("\nworld {}", world.id());
        std::process::abort();
    }
    let crashed = Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "--nocapture",
            "netns_what_a_crash_left_is_removed_by_the_next",
        ])
        .env(CRASH, "1")
        .output()?;
    assert!(!crashed.status.success());
    let said = String::from_utf8(crashed.stdout)?;
    let id = said
        .lines()
        .find_map(|line| line.strip_prefix("world "))
        .expect("the crashed one said its id");
    let _next = World::create()?;
    assert_eq!(namespaces(id)?, Vec::<String>::new());
    assert!(!Path::new("/run/cardinal-world").join(id).exists());
    Ok(())
}
