//! What the user may ask of the API server: asked first (`SelfSubjectAccessReview`, as `kubectl auth can-i`), so that what is missing is said at once, whole.

use std::fmt;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams};

use super::Error;

/// A right that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Right {
    /// `get`, `list`, `watch`.
    pub verb: &'static str,
    /// The resource's group; empty for the core.
    pub group: &'static str,
    /// The resource; with `/subresource` where it is one.
    pub resource: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Whether nothing works without.
    pub needed: bool,
}

impl Right {
    /// Machines.
    pub const NODES: Self = Self {
        verb: "list",
        group: "",
        resource: "nodes",
        purpose: "what machines have and offer",
        needed: true,
    };
    /// Pods of all namespaces.
    pub const PODS: Self = Self {
        verb: "list",
        group: "",
        resource: "pods",
        purpose: "who holds what, and what waits",
        needed: true,
    };
    /// Events of all namespaces.
    pub const EVENTS: Self = Self {
        verb: "list",
        group: "",
        resource: "events",
        purpose: "pods that a quota keeps from being made",
        needed: false,
    };
    /// Metrics of agents and exporters, through the API server.
    pub const PROXY: Self = Self {
        verb: "get",
        group: "",
        resource: "pods/proxy",
        purpose: "what accelerators do: the metrics of spillway-agent or the DCGM exporter",
        needed: false,
    };
    /// metrics-server.
    pub const METRICS: Self = Self {
        verb: "list",
        group: "metrics.k8s.io",
        resource: "pods",
        purpose: "CPU and memory in use: metrics-server",
        needed: false,
    };

    /// What `--watch` uses besides.
    pub fn of_watch() -> [Self; 2] {
        [Self { verb: "watch", ..Self::NODES }, Self { verb: "watch", ..Self::PODS }]
    }

    /// All that a report uses.
    pub fn of_report() -> [Self; 5] {
        [Self::NODES, Self::PODS, Self::EVENTS, Self::PROXY, Self::METRICS]
    }

    fn full_name(&self) -> String {
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((self.resource, ""));
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        let subresource = if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
        format!("{resource}{group}{subresource}")
    }

    /// That it is missing.
    pub fn lacking(&self) -> String {
        format!(
            "you may not {} {} in all namespaces (--show-rbac prints what grants it)",
            self.verb,
            self.full_name()
        )
    }

    /// As a rule of a `ClusterRole`.
    pub fn rule(&self) -> String {
        format!(
            "- {{apiGroups: [\"{}\"], resources: [{}], verbs: [{}]}}",
            self.group, self.resource, self.verb
        )
    }
}

/// The rights that there are.
#[derive(Debug, Clone, Default)]
pub struct Granted(Vec<Right>);

impl Granted {
    /// Whether this one is there.
    pub fn has(&self, right: &Right) -> bool {
        self.0.contains(right)
    }
}

/// What nothing works without, and what of it is missing.
#[derive(Debug)]
pub struct Missing(Vec<(Right, bool)>);

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "you lack rights in this cluster:")?;
        for (right, granted) in &self.0 {
            let need = if right.needed { "needed" } else { "helps" };
            writeln!(
                formatter,
                "  kubectl auth can-i {} {} -A   {:3}   {need}: {}",
                right.verb,
                right.full_name(),
                if *granted { "yes" } else { "no" },
                right.purpose
            )?;
        }
        write!(
            formatter,
            "an admin grants them with: kubectl spillway report --show-rbac | kubectl apply -f -"
        )
    }
}

/// Asks for all of them.
///
/// # Errors
/// When one is missing that nothing works without, with all of them.
pub async fn check(client: &Client, rights: &[Right]) -> Result<Granted, Error> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let asked = rights.iter().map(|right| ask(&api, right));
    let answers = futures::future::try_join_all(asked).await?;
    let all: Vec<_> = rights.iter().copied().zip(answers).collect();
    if all.iter().any(|(right, granted)| right.needed && !granted) {
        return Err(Error::Rights(Missing(all)));
    }
    Ok(Granted(all.into_iter().filter(|(_, granted)| *granted).map(|(right, _)| right).collect()))
}

async fn ask(api: &Api<SelfSubjectAccessReview>, right: &Right) -> Result<bool, Error> {
    let (resource, subresource) = right.resource.split_once('/').unwrap_or((right.resource, ""));
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(right.verb.to_owned()),
                group: Some(right.group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource: Some(subresource.to_owned()).filter(|text| !text.is_empty()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    match api.create(&PostParams::default(), &review).await {
        Ok(answer) => Ok(answer.status.is_some_and(|status| status.allowed)),
        // Who may not even ask may still be allowed: the request itself will tell.
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(true),
        Err(error) => Err(Error::request("ask what you may do")(error)),
    }
}

/// The manifest that grants all of it.
pub fn manifest() -> String {
    let rights = Right::of_report().into_iter().chain(Right::of_watch());
    let rules = rights.map(|right| format!("{}   # {}\n", right.rule(), right.purpose));
    format!(
        "# What `kubectl spillway report` reads. Without the first two it can't; without another it says what it could not see. watch is for --watch.
# pods/proxy reaches every HTTP port of every pod: leave it out where Prometheus has the metrics, or grant it in the agent's namespace alone.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: spillway-report}}
rules:
{}---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: spillway-report}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: spillway-report}}
subjects:
- {{apiGroup: rbac.authorization.k8s.io, kind: Group, name: spillway-planners}}   # whom you want
",
        rules.collect::<String>()
    )
}
