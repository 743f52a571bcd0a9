//! kubectl, Helm and an API client, as the cluster's administrator uses them.

use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, bail};

use super::{Cluster, STEP};
use crate::components;

impl Cluster {
    /// kubectl as the administrator; give it to the caller unrun.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        self.tool("kubectl", arguments)
    }

    fn tool(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(components::folder().join(program));
        // A proxy or another kubeconfig of the user's must not lead elsewhere.
        command
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            .env("NO_PROXY", "127.0.0.1")
            .env("HOME", self.folder().join("home"))
            .stdin(Stdio::null());
        command
    }

    /// Runs kubectl as the administrator; what it prints on standard output.
    ///
    /// # Errors
    /// When it fails, with what it printed on standard error.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        checked(self.kubectl_command(arguments), "kubectl", arguments)
    }

    /// Runs kubectl where a failure is an answer too.
    ///
    /// # Errors
    /// When it can't be run at all.
    pub fn kubectl_output(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        self.kubectl_command(arguments).output().context("can't run kubectl")
    }

    /// `kubectl apply` of a manifest's text.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        use std::io::Write as _;
        let mut child = self
            .kubectl_command(&["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("can't run kubectl")?;
        let mut stdin = child.stdin.take().context("kubectl has no standard input")?;
        stdin.write_all(manifest.as_bytes()).context("can't write to kubectl")?;
        drop(stdin);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("kubectl apply failed: {}\n{manifest}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Runs Helm as the administrator.
    ///
    /// # Errors
    /// When it fails, with what it printed on standard error.
    pub fn helm(&self, arguments: &[&str]) -> anyhow::Result<String> {
        checked(self.tool("helm", arguments), "helm", arguments)
    }

    /// Installs the chart in `deploy/chart` as a user would, with the stand-ins' folders, and waits until its pods are ready. `set` are
    /// further `--set` values.
    ///
    /// # Errors
    /// When Helm refuses, or the pods don't become ready.
    pub fn install_chart(&self, set: &[&str]) -> anyhow::Result<()> {
        self.say("installing the Helm chart");
        let repository = crate::repository();
        let (chart, values) =
            (repository.join("deploy/chart"), repository.join("tests/cluster/standin-values.yaml"));
        let (chart, values) = (chart.display().to_string(), values.display().to_string());
        let limit = format!("{}s", crate::patience(STEP).as_secs());
        let mut arguments = vec![
            "upgrade",
            "--install",
            "spillway",
            &chart,
            "--namespace",
            "spillway-system",
            "--create-namespace",
            "--values",
            &values,
            // What somebody has set by hand since is the chart's again.
            "--force-conflicts",
            "--wait",
            "--timeout",
            &limit,
        ];
        for value in set {
            arguments.extend(["--set", value]);
        }
        self.helm(&arguments).with_context(|| {
            self.kubectl(&["-n", "spillway-system", "describe", "pods"]).unwrap_or_default()
        })?;
        self.hasten_configuration()
    }

    /// Lets a changed configuration reach the agents' pods now: the kubelet writes a `ConfigMap`'s new files when it looks at a pod, which
    /// is when the pod changes, and else about once a minute.
    ///
    /// # Errors
    /// When the pods can't be changed.
    pub fn hasten_configuration(&self) -> anyhow::Result<()> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mark = format!("spillway.test/changed={}", now.as_nanos());
        let agents = ["pods", "-l", "app.kubernetes.io/component=agent", &mark];
        self.kubectl(&[&["-n", "spillway-system", "annotate", "--overwrite"], &agents[..]].concat()).map(drop)
    }

    /// A client of the API server, as the administrator.
    ///
    /// # Errors
    /// When the kubeconfig can't be read.
    pub async fn client(&self) -> anyhow::Result<kube::Client> {
        let kubeconfig = kube::config::Kubeconfig::read_from(self.kubeconfig())?;
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default())
                .await?;
        Ok(kube::Client::try_from(config)?)
    }
}

fn checked(mut command: Command, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("can't run {program}"))?;
    if !output.status.success() {
        let printed = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {}` failed: {}", arguments.join(" "), printed.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
