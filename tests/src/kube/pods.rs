//! Programs in pods, as `kubectl exec` would start them.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::World;

/// Where the unified hierarchy is; beside one of version 1 it is the second.
pub(super) const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Where the first container of a pod runs.
#[derive(Clone, Debug)]
pub struct Inside {
    process: String,
    /// The file that moves a process into its cgroup.
    group: PathBuf,
}

impl Inside {
    /// A program in the network namespace and the cgroup of the container: what steers a pod's sockets steers its. It sees the files
    /// of this machine.
    #[must_use]
    pub fn run(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ >\"$1\" && shift && exec \"$@\"", "sh"])
            .arg(&self.group)
            .args([
                "nsenter",
                &format!("--net=/proc/{}/ns/net", self.process),
                "--",
            ])
            .arg(program);
        command
    }
}

impl World {
    /// The inside of a pod that runs.
    ///
    /// # Errors
    /// The pod is not there or does not run.
    pub fn inside(&self, namespace: &str, pod: &str) -> Result<Inside> {
        let object = self.get(&["pod", pod, "--namespace", namespace])?;
        let container = &object["status"]["containerStatuses"][0]["containerID"];
        let process = container
            .as_str()
            .and_then(|id| id.strip_prefix("process://"));
        let process = process.with_context(|| format!("pod {namespace}/{pod} runs no process"))?;
        let groups = fs::read_to_string(format!("/proc/{process}/cgroup"))?;
        let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
        let group = group.with_context(|| format!("pod {namespace}/{pod} is in no cgroup"))?;
        let files = HIERARCHIES.map(|one| Path::new(one).join(group).join("cgroup.procs"));
        let group = files.into_iter().find(|file| file.exists());
        Ok(Inside {
            process: process.to_owned(),
            group: group.context("no unified hierarchy has the pod's cgroup")?,
        })
    }
}

/// A pod that serves with `peer serve`, whose answers carry its name. `ports` are names of ports of its container.
#[must_use]
pub fn serving(
    name: &str,
    node: &str,
    app: &str,
    ports: &[(&str, u16)],
    arguments: &[&str],
) -> Value {
    let mut all = vec!["serve", "--name", name];
    all.extend(arguments);
    let ports = ports.iter();
    let ports = ports.map(|(name, port)| json!({ "name": name, "containerPort": port }));
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": { "app": app } },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "peer", "image": "peer", "args": all, "ports": ports.collect::<Vec<_>>() }],
        },
    })
}

/// Whether a pod is ready.
#[must_use]
pub fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
}
