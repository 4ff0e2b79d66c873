//! The throw-away Kubernetes itself: what the other tests in it take for granted.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::kube::{Setup, World};

const WAIT: Duration = Duration::from_secs(180);

/// A pod of the agent's image on one node, which waits for documents without a cluster.
fn pod(name: &str, node: &str, security: &Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "containers": [{
                "name": "agent",
                "image": "cardinal-agent:test",
                "args": ["--datapath", "none", "--config", "/documents"],
                "securityContext": security,
                "volumeMounts": [
                    { "name": "documents", "mountPath": "/documents" },
                    { "name": "run", "mountPath": "/run/cardinal" },
                    { "name": "state", "mountPath": "/var/lib/cardinal" },
                ],
            }],
            "volumes": [
                { "name": "documents", "configMap": { "name": "documents" } },
                { "name": "run", "emptyDir": {} },
                { "name": "state", "emptyDir": {} },
            ],
        },
    })
    .to_string()
}

fn is_running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running"
}

/// A line of what the kernel says of a pod's process.
fn of_process(pod: &Value, file: &str) -> Result<String> {
    let id = pod["status"]["containerStatuses"][0]["containerID"]
        .as_str()
        .and_then(|id| id.strip_prefix("process://"))
        .context("the pod has no process")?;
    fs::read_to_string(format!("/proc/{id}/{file}"))
        .with_context(|| format!("failed to read {file} of the pod's process"))
}

#[test]
fn kube_pods_are_processes_on_their_node_with_what_their_security_context_leaves_them() -> Result<()>
{
    let world = World::up(&Setup {
        nodes: 2,
        ..Setup::default()
    })?;
    assert_eq!(world.nodes()?, ["node-1", "node-2"]);
    world.apply(
        &json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": "documents", "namespace": "default" },
            // The agent takes no empty folder for an intention.
            "data": { "one.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: one, namespace: default }\ndata: {}\n" },
        })
        .to_string(),
    )?;
    let security = json!({
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN", "BPF"] },
    });
    world.apply(&pod("limited", "node-2", &security))?;
    world.apply(&pod("default", "node-1", &json!({})))?;
    let limited = world.wait(WAIT, &["pod", "limited"], is_running)?;
    let default = world.wait(WAIT, &["pod", "default"], is_running)?;

    // linux/capability.h: NET_ADMIN is 12, BPF is 39.
    let status = of_process(&limited, "status")?;
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        ensure!(
            status.contains(&format!("{set}:\t{:016x}", 1_u64 << 12 | 1 << 39)),
            "{set} is not what the pod asks for: {status}"
        );
    }
    let mounts = |pod: &Value| -> Result<String> {
        let mounts = of_process(pod, "mounts")?;
        let root = mounts.lines().find(|line| line.contains(" / tmpfs "));
        root.map(str::to_owned).context("the pod has no root")
    };
    ensure!(mounts(&limited)?.contains(" ro,"), "{}", mounts(&limited)?);
    ensure!(mounts(&default)?.contains(" rw,"), "{}", mounts(&default)?);

    // The log is the process's own, and both nodes have a network of their own.
    let log = world.logs("default", "limited")?;
    ensure!(log.contains("NOTHING IS ENFORCED"), "{log}");
    let network = |pod: &Value| fs::read_link(format!("/proc/{}/ns/net", id(pod)));
    assert_ne!(network(&limited)?, network(&default)?);

    world.delete(&["pod", "limited"])?;
    ensure!(
        world.get(&["pod", "limited"]).is_err(),
        "a deleted pod is still there"
    );
    ensure!(
        !runs(&id(&limited)),
        "the process of a deleted pod still runs"
    );
    Ok(())
}

/// Whether a process is there and has not ended; its parent may not have asked for its status yet.
fn runs(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(") ")
            .next()
            .unwrap_or_default()
            .starts_with('Z')
    })
}

fn id(pod: &Value) -> String {
    pod["status"]["containerStatuses"][0]["containerID"]
        .as_str()
        .unwrap_or_default()
        .trim_start_matches("process://")
        .to_owned()
}

#[test]
fn kube_a_world_leaves_nothing_behind() -> Result<()> {
    let world = World::up(&Setup::default())?;
    let (name, state) = (world.name().to_owned(), world.state());
    let processes = pids(&state)?;
    ensure!(processes.len() >= 5, "the world has {processes:?} only");
    let namespaces = || -> Result<Vec<String>> {
        let entries = fs::read_dir("/run/netns")?;
        let names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        Ok(names
            .into_iter()
            .filter(|found| found.starts_with(&name))
            .collect())
    };
    ensure!(namespaces()?.len() == 2, "{:?}", namespaces()?);

    drop(world);
    ensure!(namespaces()?.is_empty(), "{:?} are left", namespaces()?);
    ensure!(!state.exists(), "{} is left", state.display());
    for pid in processes {
        ensure!(!runs(&pid), "process {pid} still runs");
    }
    for hierarchy in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let cgroup = Path::new(hierarchy).join(&name);
        ensure!(!cgroup.exists(), "{} is left", cgroup.display());
    }
    Ok(())
}

/// The processes of a world's control plane, which it notes down.
fn pids(state: &Path) -> Result<Vec<String>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir(state)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "pid") {
            let text = fs::read_to_string(&path)?;
            pids.extend(text.split_whitespace().next().map(str::to_owned));
        }
    }
    Ok(pids)
}
