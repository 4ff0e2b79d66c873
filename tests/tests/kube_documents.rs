//! The objects of a cluster as documents: how they are taken, what their status says, and what goes on when the API server is away
//! or has forgotten everything.

use std::{
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{
    kube::{Setup, World, process::Agent, root},
    world::output,
};

const WAIT: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(200);

/// The kinds of `cardinal.dev`.
fn kinds(world: &World) -> Result<()> {
    world.apply_folder(&root().join("deploy/crds"))
}

fn cell(name: &str, address: &str, mistake: bool) -> String {
    // What only looks like an address is for the agent to see.
    let address = if mistake { "10.1.0.999" } else { address };
    let component = json!({
        "name": "web",
        "workloads": { "addresses": [address] },
        "endpoints": [{ "name": "api", "type": "TCP", "port": 7000 }],
    });
    json!({
        "apiVersion": "cardinal.dev/v1alpha1",
        "kind": "Cell",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "organization": "acme", "project": name, "environment": "prod", "components": [component] },
    })
    .to_string()
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|one| one["type"] == kind)
}

/// Whether a condition has this status and is about the object as it is.
fn has(object: &Value, kind: &str, status: &str) -> bool {
    condition(object, kind).is_some_and(|one| {
        one["status"] == status && one["observedGeneration"] == object["metadata"]["generation"]
    })
}

/// Whether so many of so many nodes go by an object as it is.
fn nodes(object: &Value, activated: usize, known: usize) -> bool {
    object["status"]["nodes"] == json!({ "activated": activated, "known": known })
        && object["status"]["observedGeneration"] == object["metadata"]["generation"]
}

fn cells(status: &Value) -> usize {
    status["cells"].as_array().map_or(0, Vec::len)
}

#[test]
fn kube_objects_are_taken_one_by_one_and_their_status_says_what_became_of_them() -> Result<()> {
    let world = World::up(&Setup {
        roles: false,
        ..Setup::default()
    })?;
    let folder = tempfile::tempdir()?;
    let agent = Agent::start(&world, "node-1", folder.path())?;
    agent.wait(|status| status["agent"]["ready"] == true)?;

    // Kinds that are installed while the agent runs are taken up.
    kinds(&world)?;
    world.apply(&cell("shop", "10.1.0.5", false))?;
    world.apply(&cell("bank", "10.1.0.6", true))?;
    world.wait(WAIT, &["cell", "shop"], |cell| {
        has(cell, "Accepted", "True") && has(cell, "Programmed", "True")
    })?;
    let bank = world.wait(WAIT, &["cell", "bank"], |cell| {
        has(cell, "Accepted", "False")
    })?;
    let message = condition(&bank, "Accepted").and_then(|one| one["message"].as_str());
    ensure!(
        message.is_some_and(
            |message| message.starts_with("spec.components[0].workloads.addresses[0]:")
        ),
        "{bank}"
    );
    let status = agent.wait(|status| cells(status) == 1)?;
    let refused = &status["config"]["cluster"]["refused"][0];
    ensure!(
        refused["object"] == "`Cell` default/bank" && refused["accepted"] == false,
        "{status}"
    );
    world.wait(WAIT, &["events.events.k8s.io"], |events| {
        let events = events["items"].as_array().into_iter().flatten();
        let about = |event: &Value| {
            event["regarding"]["name"] == "bank"
                && event["reason"] == "Refused"
                && event["note"].as_str() == message
        };
        events.into_iter().any(about)
    })?;

    // Mended, it is taken; its conditions are about the new generation.
    world.apply(&cell("bank", "10.1.0.6", false))?;
    world.wait(WAIT, &["cell", "bank"], |cell| {
        has(cell, "Accepted", "True") && has(cell, "Programmed", "True")
    })?;
    agent.wait(|status| cells(status) == 2)?;

    // What somebody writes over our words comes back.
    let mut patch = world.kubectl(&["patch", "cell", "bank", "--subresource", "status"]);
    patch.args([
        "--type",
        "merge",
        "--patch",
        r#"{"status":{"conditions":[]}}"#,
    ]);
    ensure!(patch.stdout(Stdio::null()).status()?.success());
    world.wait(WAIT, &["cell", "bank"], |cell| {
        has(cell, "Accepted", "True")
    })?;

    world.delete(&["cell", "shop"])?;
    agent.wait(|status| cells(status) == 1)?;
    Ok(())
}

fn writes(status: &Value) -> bool {
    status["config"]["cluster"]["writes_status"] == true
}

#[test]
fn kube_one_agent_writes_status_and_another_takes_its_place() -> Result<()> {
    let world = World::up(&Setup {
        nodes: 2,
        roles: false,
        ..Setup::default()
    })?;
    kinds(&world)?;
    let folder = tempfile::tempdir()?;
    let mut first = Agent::start(&world, "node-1", folder.path())?;
    first.wait(writes)?;
    let other = tempfile::tempdir()?;
    let mut second = Agent::start(&world, "node-2", other.path())?;
    second.wait(|status| status["agent"]["ready"] == true)?;
    ensure!(!writes(&second.status()?));
    world.apply(&cell("shop", "10.1.0.5", false))?;
    world.wait(WAIT, &["cell", "shop"], |cell| {
        has(cell, "Programmed", "True")
    })?;

    // One that ends gives the lease back; of one that is killed it runs out.
    first.end()?;
    second.wait(writes)?;
    first.again()?;
    first.wait(|status| status["agent"]["ready"] == true && !writes(status))?;
    second.signal(Signal::SIGKILL)?;
    first.wait(writes)?;
    // The node of the one that was killed does not go by what is new.
    world.apply(&cell("bank", "10.1.0.6", false))?;
    let bank = world.wait(WAIT, &["cell", "bank"], |cell| nodes(cell, 1, 2))?;
    ensure!(has(&bank, "Accepted", "True"), "{bank}");
    second.again()?;
    world.wait(WAIT, &["cell", "bank"], |cell| {
        nodes(cell, 2, 2) && has(cell, "Programmed", "True")
    })?;
    Ok(())
}

#[test]
fn kube_status_says_which_nodes_go_by_a_cell() -> Result<()> {
    let world = World::up(&Setup {
        nodes: 3,
        roles: false,
        ..Setup::default()
    })?;
    kinds(&world)?;
    let folders = [(); 3].map(|()| tempfile::tempdir());
    let mut agents = Vec::new();
    for (at, folder) in folders.iter().enumerate() {
        let folder = folder.as_ref().map_err(|error| anyhow!("{error}"))?;
        let name = ["node-1", "node-2", "node-3"][at];
        let agent = Agent::start(&world, name, folder.path())?;
        agent.wait(|status| status["agent"]["ready"] == true)?;
        agents.push(agent);
    }
    let [writer, slow, third] = &agents[..] else {
        bail!("three agents were started");
    };
    writer.wait(writes)?;
    let programmed =
        |count| move |cell: &Value| nodes(cell, count, count) && has(cell, "Programmed", "True");
    world.apply(&cell("shop", "10.1.0.5", false))?;
    world.apply(&cell("bank", "10.1.0.6", false))?;
    for name in ["shop", "bank"] {
        world.wait(WAIT, &["cell", name], programmed(3))?;
    }

    // Two nodes do not hear of a change: it is in force on one, and the other cell on all.
    slow.stop()?;
    third.stop()?;
    world.apply(&cell("shop", "10.1.0.7", false))?;
    let shop = world.wait(WAIT, &["cell", "shop"], |cell| {
        nodes(cell, 1, 3) && has(cell, "Programmed", "False")
    })?;
    ensure!(has(&shop, "Accepted", "True"), "{shop}");
    let told = condition(&shop, "Programmed").map(|one| &one["message"]);
    ensure!(
        told == Some(&json!("node-2, node-3 have not activated it yet")),
        "{shop}"
    );
    let bank = world.get(&["cell", "bank"])?;
    ensure!(programmed(3)(&bank), "{bank}");
    let glance = output(&mut world.kubectl(&["get", "cells"]))?;
    let row = |name: &str| -> Vec<&str> {
        let mut rows = glance.lines().map(|row| row.split_whitespace());
        let row = rows.find(|row| row.clone().next() == Some(name));
        row.map(Iterator::collect).unwrap_or_default()
    };
    ensure!(
        row("NAME")[4..8] == ["ACCEPTED", "PROGRAMMED", "ACTIVATED", "NODES"],
        "{glance}"
    );
    ensure!(row("shop")[4..8] == ["True", "False", "1", "3"], "{glance}");
    ensure!(row("bank")[4..8] == ["True", "True", "3", "3"], "{glance}");

    // Of one that is refused nothing is said of nodes.
    world.apply(&cell("bank", "10.1.0.6", true))?;
    world.wait(WAIT, &["cell", "bank"], |cell| {
        has(cell, "Accepted", "False") && cell["status"]["nodes"].is_null()
    })?;
    world.apply(&cell("bank", "10.1.0.6", false))?;

    // They hear of it; a node that is no more is not counted.
    slow.go_on()?;
    world.wait(WAIT, &["cell", "shop"], |cell| nodes(cell, 2, 3))?;
    third.go_on()?;
    for name in ["shop", "bank"] {
        world.wait(WAIT, &["cell", name], programmed(3))?;
    }
    drop(agents.pop());
    world.delete(&["node", "node-3"])?;
    world.wait(WAIT, &["cell", "shop"], programmed(2))?;
    Ok(())
}

#[test]
fn kube_what_was_known_goes_on_without_an_api_server() -> Result<()> {
    let world = World::up(&Setup {
        roles: false,
        ..Setup::default()
    })?;
    kinds(&world)?;
    world.apply(&cell("shop", "10.1.0.5", false))?;
    world.apply(&cell("bank", "10.1.0.6", false))?;
    let folder = tempfile::tempdir()?;
    let mut agent = Agent::start(&world, "node-1", folder.path())?;
    agent.wait(|status| cells(status) == 2)?;
    let kept = agent.kept();
    let end = Instant::now() + WAIT;
    while !kept.exists() {
        ensure!(
            Instant::now() < end,
            "nothing is kept in {}",
            kept.display()
        );
        std::thread::sleep(PAUSE);
    }

    // The API server goes while the agent runs.
    world.crash("kube-apiserver")?;
    let status = agent.wait(|status| {
        status["config"]["cluster"]["stale_seconds"]
            .as_u64()
            .is_some_and(|seconds| seconds > 0)
    })?;
    ensure!(
        cells(&status) == 2 && status["agent"]["ready"] == true,
        "{status}"
    );

    // An agent that starts meanwhile serves what was kept.
    agent.end()?;
    agent.again()?;
    let status = agent.wait(|status| cells(status) == 2)?;
    ensure!(status["config"]["cluster"]["complete"] == false, "{status}");

    // It comes back, and so do changes.
    ensure!(
        world.up_again()?.status()?.success(),
        "the world did not come back"
    );
    world.apply(&cell("third", "10.1.0.7", false))?;
    agent.wait(|status| cells(status) == 3)?;
    let heard = |status: &Value| {
        let cluster = &status["config"]["cluster"];
        cluster["complete"] == true && cluster["stale_seconds"] == 0
    };
    agent.wait(heard)?;

    let end = Instant::now() + WAIT;
    while !fs::read_to_string(&kept)?.contains("third") {
        ensure!(Instant::now() < end, "the third cell is not kept");
        std::thread::sleep(PAUSE);
    }

    // A kind that goes on in a version that nobody reads has its objects still, also for an agent that starts meanwhile.
    versions(&world, "v2")?;
    let unread = |status: &Value| {
        let silent = status["config"]["cluster"]["silent"].as_array();
        let mut silent = silent.into_iter().flatten();
        silent.any(|one| {
            let error = one["error"].as_str().unwrap_or_default();
            one["kind"] == "Cell" && error.contains("served as v2")
        })
    };
    let status = agent.wait(unread)?;
    ensure!(cells(&status) == 3, "{status}");
    agent.end()?;
    agent.again()?;
    agent.wait(|status| unread(status) && cells(status) == 3)?;
    versions(&world, "v1alpha1")?;
    agent.wait(|status| heard(status) && cells(status) == 3)?;

    // A kind that is not served any more when an agent starts has no objects, whatever was kept.
    agent.end()?;
    world.delete(&["crd", "cells.cardinal.dev"])?;
    agent.again()?;
    agent.wait(|status| heard(status) && cells(status) == 0)?;
    Ok(())
}

/// Serves cells in one version only, of `v1alpha1` and `v2`.
fn versions(world: &World, served: &str) -> Result<()> {
    let definition = world.get(&["crd", "cells.cardinal.dev"])?;
    let stored = &definition["spec"]["versions"][0];
    let versions = ["v1alpha1", "v2"].map(|name| {
        let mut version = stored.clone();
        version["name"] = name.into();
        version["served"] = (name == served).into();
        version["storage"] = (name == "v1alpha1").into();
        version
    });
    let patch = json!({ "spec": { "versions": versions } }).to_string();
    let mut patched = world.kubectl(&["patch", "crd", "cells.cardinal.dev", "--type", "merge"]);
    patched.args(["--patch", &patch]).stdout(Stdio::null());
    ensure!(
        patched.status()?.success(),
        "the definition was not changed"
    );
    Ok(())
}

#[test]
fn kube_an_api_server_that_has_forgotten_everything_is_asked_twice() -> Result<()> {
    let world = World::up(&Setup {
        roles: false,
        ..Setup::default()
    })?;
    kinds(&world)?;
    for (name, address) in [("shop", "10.1.0.5"), ("bank", "10.1.0.6")] {
        world.apply(&cell(name, address, false))?;
    }
    let folder = tempfile::tempdir()?;
    let agent = Agent::start(&world, "node-1", folder.path())?;
    agent.wait(|status| cells(status) == 2)?;

    world.crash("kube-apiserver")?;
    world.crash("etcd")?;
    fs::remove_dir_all(world.state().join("etcd"))?;
    // It waits for nodes, which do not come back to a cluster that does not know them.
    let mut coming = world.up_again()?.stderr(Stdio::null()).spawn()?;
    let answers = world.wait(WAIT, &["namespaces"], |list| list["items"].is_array());
    answers.and_then(|_| kinds(&world))?;
    // The first list is empty: it is asked for again, while everything goes on.
    let log = agent.log();
    let end = Instant::now() + WAIT;
    while !doubts(&log)? {
        ensure!(Instant::now() < end, "{}", fs::read_to_string(&log)?);
        std::thread::sleep(PAUSE);
    }
    ensure!(cells(&agent.status()?) == 2);
    // The second one is believed.
    agent.wait(|status| cells(status) == 0)?;
    coming.wait()?;
    Ok(())
}

/// Whether a list of cells was doubted.
fn doubts(log: &Path) -> Result<bool> {
    let log = fs::read_to_string(log)?;
    Ok(log.lines().any(|line| {
        serde_json::from_str::<Value>(line).is_ok_and(|line| {
            line["kind"] == "Cell"
                && line["message"]
                    .as_str()
                    .is_some_and(|message| message.starts_with("a list lacks more than half"))
        })
    }))
}
