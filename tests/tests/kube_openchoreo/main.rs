//! A data plane of OpenChoreo in a cluster (`policies/openchoreo`): what its controllers made is served by the agents since the gateway
//! class is theirs, its labels make cells, its network policies restrict them, and one object more controls the egress of one of them.
//! The pods of each cell are on a node of their own, so that what passes between cells passes two nodes.

mod plane;

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use plane::{AUDIT, From, Generation, LEDGER, LIBRARY, LIST, OUTSIDE, Plane, WAIT, WEB, holds};
use serde_json::{Value, json};
use tests::{kube::AGENT_NAMESPACE, secrets::Secrets};

/// No agent had to say of anything that it failed.
fn quiet(plane: &Plane) -> Result<()> {
    let agents = plane.world.agents()?;
    ensure!(agents.len() == 2, "{agents:?}");
    for agent in &agents {
        let log = plane.world.logs(AGENT_NAMESPACE, agent)?;
        ensure!(!log.contains(r#""level":"ERROR""#), "{log}");
    }
    Ok(())
}

#[test]
fn kube_a_data_plane_of_openchoreo_works_when_its_gateway_class_is_ours() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let secrets = Secrets::make(folder.path())?;
    let plane = Plane::start(Generation::First, &secrets)?;
    let books = "http://dev.choreoapis.localhost/library/reading-list/api/v1/books";
    let inside = "http://dev.choreoapis.internal/library/reading-list/api/v1/books/7";
    let ledger = "http://dev.choreoapis.internal/audit/ledger/entries";
    let reader = secrets.token("any", "any", "read:books:all")?;
    let writer = secrets.token("any", "any", "write:books")?;

    // North: visibility, rewrites, scopes, the wildcard.
    let page = format!("{books}/7");
    let listed = "reading-list /api/v1/books";
    plane.expect(From::Outside, books, Some(&reader), listed)?;
    plane.expect(From::Outside, books, None, "401")?;
    plane.expect(From::Outside, &page, Some(&reader), "403")?;
    plane.expect_method(From::Outside, books, Some(&writer), "POST", listed)?;
    let one = "reading-list /api/v1/books/7";
    plane.expect_method(From::Outside, &page, None, "DELETE", one)?;
    let (direct, list) = (plane.page(LEDGER, 8080)?, plane.page(LIST, 8080)?);
    let web = plane.page(WEB, 3000)?;
    plane.hold(&[
        (
            From::Outside,
            "http://web-dev.choreoapps.localhost/a",
            "web /a",
        ),
        (
            From::Outside,
            "http://dev.choreoapis.localhost/audit/ledger",
            "404",
        ),
        (From::Outside, &list, "timeout"),
        // West: from another cell, and what that one has.
        (LEDGER, inside, one),
        (LIST, ledger, "ledger /entries"),
        (WEB, ledger, "ledger /entries"),
        (LEDGER, &list, "timeout"),
        // Inside of a cell.
        (LIST, &web, "web /x"),
        // East, directly, and south: the control plane's policies.
        (WEB, &direct, "timeout"),
        (LIST, &direct, "timeout"),
        (LIST, OUTSIDE, "200"),
        (WEB, OUTSIDE, "200"),
        (LEDGER, OUTSIDE, "200"),
        // No pod reaches the external gateway.
        (LIST, "http://web-dev.choreoapps.localhost/a", "timeout"),
    ])?;
    policies_say_whether_they_are_valid(&plane)?;

    // One object more.
    plane.control()?;
    plane.hold(&[
        (LIST, ledger, "ledger /entries"),
        (WEB, ledger, "timeout"),
        // What the policies close stays closed.
        (LIST, &direct, "timeout"),
        (LIST, OUTSIDE, "200"),
        (WEB, OUTSIDE, "timeout"),
        // What comes in, and what other cells do, is as before.
        (LIST, &web, "web /x"),
        (LEDGER, inside, one),
        (LEDGER, OUTSIDE, "200"),
    ])?;
    plane.expect(From::Outside, books, Some(&reader), listed)?;
    quiet(&plane)
}

/// The condition that users of Cilium look at.
fn policies_say_whether_they_are_valid(plane: &Plane) -> Result<()> {
    let valid = |policy: &Value| holds(policy, "Valid");
    for namespace in [LIBRARY, AUDIT] {
        let policy = [
            "ciliumnetworkpolicy",
            "default-policy",
            "--namespace",
            namespace,
        ];
        plane.world.wait(WAIT, &policy, valid)?;
    }
    let world = ["ciliumclusterwidenetworkpolicy", "allow-world"];
    plane.world.wait(WAIT, &world, valid)?;

    // One that says what is not read here, in a namespace where it closes nobody's ports.
    let policy = |spec: Value| {
        let metadata = json!({ "name": "denials", "namespace": "default" });
        let policy = json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec,
        });
        plane.world.apply(&policy.to_string())
    };
    let denials = ["ciliumnetworkpolicy", "denials", "--namespace", "default"];
    policy(json!({ "endpointSelector": {}, "ingressDeny": [{ "fromEntities": ["world"] }] }))?;
    let condition = |policy: &Value| {
        let conditions = policy["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        conditions.find(|one| one["type"] == "Valid").cloned()
    };
    let told = plane.world.wait(WAIT, &denials, |policy| {
        condition(policy).is_some_and(|one| one["status"] == "False" && one["reason"] == "Invalid")
    })?;
    let told = condition(&told).context("it was there")?;
    let message = told["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with("spec.ingressDeny: "), "{told}");

    // What Cilium says, without a reason, is left to it.
    let theirs = json!({ "status": { "conditions": [
        { "type": "Valid", "status": "True", "message": "Policy validation succeeded" },
    ] } });
    let mut patch = plane
        .world
        .kubectl(&["patch", "--subresource", "status", "--type", "merge"]);
    patch.args(denials).args(["--patch", &theirs.to_string()]);
    ensure!(patch.stdout(Stdio::null()).status()?.success());
    // A later policy is answered: the agents have been here since.
    plane.world.apply(
        &json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
            "metadata": { "name": "later", "namespace": "default" },
            "spec": { "endpointSelector": { "matchLabels": { "app": "none" } }, "ingress": [{}] },
        })
        .to_string(),
    )?;
    let later = ["ciliumnetworkpolicy", "later", "--namespace", "default"];
    plane.world.wait(WAIT, &later, valid)?;
    let told = plane.world.get(&denials)?;
    let told = condition(&told).context("it was there")?;
    ensure!(told["message"] == "Policy validation succeeded", "{told}");
    Ok(())
}

#[test]
fn kube_a_data_plane_of_release_1_2_works_in_all_directions_between_cells_of_two_nodes()
-> Result<()> {
    let folder = tempfile::tempdir()?;
    let secrets = Secrets::make(folder.path())?;
    let plane = Plane::start(Generation::Release, &secrets)?;
    let books = "http://dev-acme.apps.example.com/reading-list-api/books";
    let page = "http://web-dev-acme.apps.example.com/a";
    let entries = "http://dev-acme.apps.internal/ledger-entries/2026";
    let (ledger, list) = (plane.page(LEDGER, 8080)?, plane.page(LIST, 8080)?);
    let web = plane.page(WEB, 3000)?;
    let (listed, entered) = ("reading-list /api/v1/books", "ledger /2026");
    let north_and_west = [
        // North: what the external gateway leads to, and nothing besides.
        (From::Outside, books, listed),
        (From::Outside, page, "web /a"),
        (
            From::Outside,
            "http://dev-acme.apps.example.com/ledger-entries/2026",
            "404",
        ),
        (From::Outside, list.as_str(), "timeout"),
        (From::Outside, ledger.as_str(), "timeout"),
        // West: by the internal gateway, and directly to what other projects may call.
        (LEDGER, entries, entered),
        (
            LEDGER,
            "http://dev-acme.apps.internal/reading-list-api/books",
            "404",
        ),
        (LEDGER, list.as_str(), "reading-list /x"),
        (LEDGER, web.as_str(), "timeout"),
    ];
    plane.hold(&north_and_west)?;
    plane.hold(&[
        // Inside of a cell.
        (LIST, web.as_str(), "web /x"),
        // East: by the internal gateway, and directly, which the ledger's policy closes.
        (LIST, entries, entered),
        (WEB, entries, entered),
        (LIST, ledger.as_str(), "timeout"),
        // South: nothing restricts it.
        (LIST, OUTSIDE, "200"),
        (WEB, OUTSIDE, "200"),
        (LEDGER, OUTSIDE, "200"),
    ])?;

    // One object more.
    plane.control()?;
    plane.hold(&[
        (LIST, web.as_str(), "web /x"),
        (LIST, entries, entered),
        (WEB, entries, "timeout"),
        (LIST, ledger.as_str(), "timeout"),
        (LIST, OUTSIDE, "200"),
        (WEB, OUTSIDE, "timeout"),
        (LEDGER, OUTSIDE, "200"),
    ])?;
    plane.hold(&north_and_west)?;
    // It is the policy that closes a component to the world.
    let policy = [
        "networkpolicy",
        "openchoreo-reading-list",
        "--namespace",
        LIBRARY,
    ];
    plane.world.delete(&policy)?;
    plane.expect(From::Outside, &list, None, "reading-list /x")?;
    quiet(&plane)
}
