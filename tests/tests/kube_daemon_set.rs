//! The agent runs with what its manifest leaves it, and needs all of that.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::kube::{AGENT_NAMESPACE, Setup, World, root};

const WAIT: Duration = Duration::from_secs(180);

/// A cell without pods: the agent has something to enforce.
const CELL: &str = "apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: { name: shop, namespace: default }
spec:
  organization: acme
  project: shop
  environment: prod
  components: [{ name: web, workloads: { addresses: [192.0.2.7] } }]
";

/// Gives the agents documents that do not come from the cluster, so that nothing but the manifest is judged here.
fn documents_from_a_folder(world: &World) -> Result<()> {
    world.apply(
        &json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": "documents", "namespace": AGENT_NAMESPACE },
            "data": { "cell.yaml": CELL },
        })
        .to_string(),
    )?;
    let container = "/spec/template/spec/containers/0";
    let patch = json!([
        {
            "op": "replace",
            "path": format!("{container}/args"),
            "value": ["--config=/documents", "--admin-listen=127.0.0.1:9901", "--log-format=json", "--take-over"],
        },
        {
            "op": "add",
            "path": format!("{container}/volumeMounts/-"),
            "value": { "name": "documents", "mountPath": "/documents" },
        },
        {
            "op": "add",
            "path": "/spec/template/spec/volumes/-",
            "value": { "name": "documents", "configMap": { "name": "documents" } },
        },
    ]);
    let output = world
        .kubectl(&[
            "patch",
            "daemonset",
            "cardinal-agent",
            "--namespace",
            AGENT_NAMESPACE,
        ])
        .args(["--type", "json", "--patch", &patch.to_string()])
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The pod that the manifest describes, running `preflight` alone, with these capabilities.
fn preflight(template: &Value, name: &str, capabilities: &[Value]) -> Result<String> {
    let mut spec = template["spec"].clone();
    let mut container = spec["initContainers"][0].take();
    container["securityContext"]["capabilities"]["add"] = json!(capabilities);
    spec["containers"] = json!([container]);
    spec["initContainers"] = json!([]);
    spec["restartPolicy"] = json!("Never");
    let metadata = json!({ "name": name, "namespace": AGENT_NAMESPACE });
    Ok(
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
            .to_string(),
    )
}

#[test]
fn kube_the_agent_runs_with_what_its_manifest_leaves_it_and_needs_all_of_that() -> Result<()> {
    let world = World::up(&Setup::default())?;
    world.apply_kustomization(&root().join("deploy"))?;
    documents_from_a_folder(&world)?;
    world.agents_ready(WAIT)?;
    let agents = world.agents()?;
    ensure!(agents.len() == 1, "{agents:?}");
    let log = world.logs(AGENT_NAMESPACE, &agents[0])?;
    ensure!(log.contains("generation active"), "{log}");
    for bad in [r#""level":"ERROR""#, r#""level":"WARN""#, "LACKS", "worse"] {
        ensure!(!log.contains(bad), "{log}");
    }

    let set = world.get(&[
        "daemonset",
        "cardinal-agent",
        "--namespace",
        AGENT_NAMESPACE,
    ])?;
    let template = &set["spec"]["template"];
    let security = |kind: &str| template["spec"][kind][0]["securityContext"].clone();
    assert_eq!(security("initContainers"), security("containers"));
    let capabilities = security("containers")["capabilities"]["add"].clone();
    let capabilities = capabilities
        .as_array()
        .context("the agent has no capabilities")?;
    for left_out in capabilities {
        let word = left_out.as_str().context("a capability is a text")?;
        let name = format!("without-{}", word.to_lowercase().replace('_', "-"));
        let others: Vec<_> = capabilities
            .iter()
            .filter(|one| *one != left_out)
            .cloned()
            .collect();
        world.apply(&preflight(template, &name, &others)?)?;
        let what = ["pod", &name, "--namespace", AGENT_NAMESPACE];
        let ended = |pod: &Value| {
            pod["status"]["phase"] == "Failed" || pod["status"]["phase"] == "Succeeded"
        };
        let pod = world.wait(WAIT, &what, ended)?;
        let log = world.logs(AGENT_NAMESPACE, &name)?;
        let told = log
            .lines()
            .find(|line| line.split_whitespace().nth(1) == Some(&format!("CAP_{word}")))
            .with_context(|| format!("nothing is said of {word}: {log}"))?;
        if told.starts_with("LACKS") {
            assert_eq!(pod["status"]["phase"], "Failed", "{log}");
        } else {
            ensure!(told.starts_with("worse"), "without {word}: {log}");
            assert_eq!(pod["status"]["phase"], "Succeeded", "{log}");
        }
    }
    Ok(())
}
