//! The Helm chart makes what the kustomization makes, and both name the agent of this version.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use tests::kube::{Setup, World, root};

/// What `CARDINAL_HELM` names, or Helm on the path.
fn helm(arguments: &[&str]) -> Result<String> {
    let program = env::var_os("CARDINAL_HELM").map_or_else(|| PathBuf::from("helm"), PathBuf::from);
    let output = Command::new(&program)
        .arg("template")
        .arg("cardinal")
        .arg(root().join("deploy/chart"))
        .args(["--namespace", "cardinal-system", "--include-crds"])
        .args(arguments)
        .output()
        .with_context(|| {
            format!(
                "failed to start {}: `cargo xtask test --kube` builds Helm, or CARDINAL_HELM names it",
                program.display()
            )
        })?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("Helm printed no UTF-8")
}

/// A kustomization's objects, in the one order and spelling that kustomize has for them.
fn built(world: &World, folder: &Path) -> Result<String> {
    let output = world.kubectl(&["kustomize"]).arg(folder).output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).context("kustomize printed no UTF-8")
}

#[test]
fn kube_the_chart_makes_what_the_kustomization_makes() -> Result<()> {
    let world = World::up(&Setup::default())?;
    let folder = world.state().join("chart");
    fs::create_dir(&folder)?;
    fs::write(
        folder.join("kustomization.yaml"),
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [chart.yaml]\n",
    )?;
    let of_chart = |arguments: &[&str]| {
        fs::write(folder.join("chart.yaml"), helm(arguments)?)?;
        built(&world, &folder)
    };
    let ours = built(&world, &root().join("deploy"))?;
    let theirs = of_chart(&["--set", "createNamespace=true"])?;
    for (number, (ours, theirs)) in ours.lines().zip(theirs.lines()).enumerate() {
        assert_eq!(
            ours,
            theirs,
            "line {} of the built kustomization",
            number + 1
        );
    }
    assert_eq!(ours, theirs);
    let image = format!("image: cardinal-agent:{}\n", env!("CARGO_PKG_VERSION"));
    ensure!(ours.contains(&image), "no container has the {image}");
    // A runtime's own profiles keep an agent from pinning, and no world here has them.
    for unconfined in [
        "appArmorProfile:\n          type: Unconfined\n",
        "seLinuxOptions:\n          type: spc_t\n",
    ] {
        ensure!(ours.contains(unconfined), "{unconfined} is missing");
    }

    // What values change, they change there only.
    let changed = of_chart(&[
        "--set",
        "createNamespace=true,agent.adminPort=9902,agent.drainSeconds=60,image.tag=next,apiServer.host=192.0.2.1",
        "--set",
        "agent.extraArgs={--threads=2}",
        "--set",
        "extraCapabilities={SYS_RESOURCE}",
        "--set-json",
        r#"extraEnv=[{"name":"RUST_LOG","value":"debug"}]"#,
        "--set-json",
        r#"extraVolumes=[{"name":"authorities","configMap":{"name":"authorities"}}]"#,
        "--set-json",
        r#"extraVolumeMounts=[{"name":"authorities","mountPath":"/etc/ssl/certs"}]"#,
        "--set-json",
        r#"affinity={"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{}}}"#,
        "--set-json",
        r#"serviceAccount.annotations={"owner":"platform"}"#,
    ])?;
    for expected in [
        "image: cardinal-agent:next\n",
        "--admin-listen=127.0.0.1:9902\n",
        "port: 9902\n",
        "--drain=60\n",
        "--threads=2\n",
        "terminationGracePeriodSeconds: 95\n",
        "name: KUBERNETES_SERVICE_HOST\n          value: 192.0.2.1\n",
        "name: RUST_LOG\n          value: debug\n",
        "- configMap:\n          name: authorities\n        name: authorities\n",
        "- mountPath: /etc/ssl/certs\n          name: authorities\n",
        "affinity:\n        nodeAffinity:\n",
        "annotations:\n    owner: platform\n",
    ] {
        ensure!(
            changed.contains(expected),
            "{expected} is missing in {changed}"
        );
    }
    let raised = "            - SYS_ADMIN\n            - SYS_RESOURCE\n";
    assert_eq!(changed.matches(raised).count(), 2, "{changed}");
    // A quota of a priority is for those that the system keeps to itself.
    let scope = "- system-cluster-critical\n";
    let system = of_chart(&["--set", "priorityClassName=system-cluster-critical"])?;
    ensure!(system.contains(scope), "no quota has the scope {scope}");
    let other = of_chart(&["--set", "priorityClassName=ours"])?;
    ensure!(!other.contains("kind: ResourceQuota"), "{other}");
    for wrong in [
        "image.digest=sha256:0",
        "agent.adminPort=0",
        "unknown=1",
        "extraEnv[0].name=NODE_NAME",
        "extraCapabilities={CAP_SYS_RESOURCE}",
        "extraVolumes[0].name=state",
        "extraVolumeMounts[0].name=run",
    ] {
        let refused = helm(&["--set", wrong]);
        ensure!(refused.is_err(), "the chart takes {wrong}");
    }
    Ok(())
}
