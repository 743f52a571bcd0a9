//! What the user may ask of the API server: asked first (`SelfSubjectAccessReview`, as `kubectl auth can-i`), so that what is missing is said at once, whole.

use std::fmt;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, Client, Resource, api::PostParams, core::NamespaceResourceScope};

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
    /// Pods.
    pub const PODS: Self = Self {
        verb: "list",
        group: "",
        resource: "pods",
        purpose: "who holds what, and what waits",
        needed: true,
    };
    /// Events.
    pub const EVENTS: Self = Self {
        verb: "list",
        group: "",
        resource: "events",
        purpose: "pods that a quota keeps from being made",
        needed: false,
    };
    /// Quotas.
    pub const QUOTAS: Self = Self {
        verb: "list",
        group: "",
        resource: "resourcequotas",
        purpose: "what is left of a quota that keeps pods from being made",
        needed: false,
    };
    /// Claims of volumes.
    pub const VOLUME_CLAIMS: Self = Self {
        verb: "list",
        group: "",
        resource: "persistentvolumeclaims",
        purpose: "pods that wait for a volume",
        needed: false,
    };
    /// Volumes.
    pub const VOLUMES: Self = Self {
        verb: "get",
        group: "",
        resource: "persistentvolumes",
        purpose: "machines that a pod's volume can't be reached from",
        needed: false,
    };
    /// Kinds of volumes.
    pub const STORAGE_CLASSES: Self = Self {
        verb: "list",
        group: "storage.k8s.io",
        resource: "storageclasses",
        purpose: "who makes the volumes that pods wait for",
        needed: false,
    };
    /// Claims of devices by dynamic resource allocation.
    pub const DEVICE_CLAIMS: Self = Self {
        verb: "list",
        group: "resource.k8s.io",
        resource: "resourceclaims",
        purpose: "pods that wait for a claim of devices",
        needed: false,
    };
    /// Kinds of devices by dynamic resource allocation.
    pub const DEVICE_CLASSES: Self = Self {
        verb: "list",
        group: "resource.k8s.io",
        resource: "deviceclasses",
        purpose: "whether there are devices such as a claim asks for",
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

    /// Labels of namespaces.
    pub const NAMESPACES: Self = Self {
        verb: "list",
        group: "",
        resource: "namespaces",
        purpose: "namespaces that pods' affinities name by their labels",
        needed: false,
    };
    /// Gangs of Volcano.
    pub const VOLCANO_GROUPS: Self = Self {
        verb: "list",
        group: "scheduling.volcano.sh",
        resource: "podgroups",
        purpose: "what Volcano's gangs wait for",
        needed: false,
    };
    /// Gangs of the coscheduling plugin.
    pub const POD_GROUPS: Self = Self {
        verb: "list",
        group: "scheduling.x-k8s.io",
        resource: "podgroups",
        purpose: "what gangs of the coscheduling plugin wait for",
        needed: false,
    };
    /// Gangs of Kueue.
    pub const WORKLOADS: Self = Self {
        verb: "list",
        group: "kueue.x-k8s.io",
        resource: "workloads",
        purpose: "what waits in Kueue's queues, and for what",
        needed: false,
    };
    /// The configuration of kubelets, through the API server. It is no part of the role that is printed: who has it may do much else.
    pub const KUBELETS: Self = Self {
        verb: "get",
        group: "",
        resource: "nodes/proxy",
        purpose: "whether a kubelet refuses pods whose devices are on several NUMA nodes",
        needed: false,
    };

    /// What `--watch` uses besides.
    pub fn of_watch() -> [Self; 2] {
        [Self { verb: "watch", ..Self::NODES }, Self { verb: "watch", ..Self::PODS }]
    }

    /// All that a report uses.
    pub fn of_report() -> [Self; 16] {
        [
            Self::NODES,
            Self::PODS,
            Self::EVENTS,
            Self::QUOTAS,
            Self::VOLUME_CLAIMS,
            Self::VOLUMES,
            Self::STORAGE_CLASSES,
            Self::DEVICE_CLAIMS,
            Self::DEVICE_CLASSES,
            Self::NAMESPACES,
            Self::VOLCANO_GROUPS,
            Self::POD_GROUPS,
            Self::WORKLOADS,
            Self::PROXY,
            Self::KUBELETS,
            Self::METRICS,
        ]
    }

    /// Whether it can be granted in one namespace alone.
    fn is_namespaced(&self) -> bool {
        !matches!(
            self.resource,
            "nodes" | "nodes/proxy" | "namespaces" | "persistentvolumes" | "storageclasses" | "deviceclasses"
        )
    }

    /// Who asks for one namespace needs no more than its pods.
    fn is_needed(&self, namespace: Option<&str>) -> bool {
        self.needed && (namespace.is_none() || self.is_namespaced())
    }

    fn full_name(&self) -> String {
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((self.resource, ""));
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        let subresource = if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
        format!("{resource}{group}{subresource}")
    }

    /// As a rule of a `ClusterRole`.
    pub fn rule(&self) -> String {
        format!(
            "- {{apiGroups: [\"{}\"], resources: [{}], verbs: [{}]}}",
            self.group, self.resource, self.verb
        )
    }
}

/// Where a right holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// In the whole cluster.
    Everywhere,
    /// In the namespace that was asked for.
    Namespace,
}

/// The rights that there are.
#[derive(Debug, Clone, Default)]
pub struct Granted {
    rights: Vec<(Right, Where)>,
    namespace: String,
}

impl Granted {
    /// These, in the whole cluster, without having asked.
    pub fn to(rights: &[Right]) -> Self {
        Self { rights: rights.iter().map(|right| (*right, Where::Everywhere)).collect(), ..Self::default() }
    }

    /// Where this one holds; `None`: nowhere.
    pub fn place(&self, right: &Right) -> Option<Where> {
        self.rights.iter().find(|(granted, _)| granted == right).map(|(_, place)| *place)
    }

    /// The objects that this right opens: those of the namespace where it holds there only; `None` where it holds nowhere.
    pub fn api<K>(&self, client: &Client, right: &Right) -> Option<Api<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Some(match self.place(right)? {
            Where::Everywhere => Api::all(client.clone()),
            Where::Namespace => Api::namespaced(client.clone(), &self.namespace),
        })
    }

    /// That this one is missing, and what would grant it.
    pub fn lacking(&self, right: &Right) -> String {
        format!("{} (--show-rbac prints what grants it)", self.lacking_alone(right))
    }

    /// That this one is missing.
    pub fn lacking_alone(&self, right: &Right) -> String {
        let place = match (right.is_namespaced(), &*self.namespace) {
            (false, _) => String::new(),
            (true, namespace) if namespace.is_empty() || self.place(right).is_some() => {
                " in all namespaces".to_owned()
            }
            (true, namespace) => format!(" in the namespace {namespace}"),
        };
        format!("you may not {} {}{place}", right.verb, right.full_name())
    }

    /// The one namespace in which this right holds, where it does not hold everywhere.
    pub fn only_in(&self, right: &Right) -> Option<&str> {
        (self.place(right) == Some(Where::Namespace)).then_some(&*self.namespace)
    }
}

/// What nothing works without, and what of it is missing.
#[derive(Debug)]
pub struct Missing {
    rights: Vec<(Right, bool)>,
    /// The namespace that was asked for.
    namespace: Option<String>,
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "you lack rights in this cluster:")?;
        let asked = |right: &Right| {
            let place = match &self.namespace {
                _ if !right.is_namespaced() => String::new(),
                Some(namespace) => format!(" -n {namespace}"),
                None => " -A".to_owned(),
            };
            format!("kubectl auth can-i {} {}{place}", right.verb, right.full_name())
        };
        let width = self.rights.iter().map(|(right, _)| asked(right).len()).max().unwrap_or(0);
        for (right, granted) in &self.rights {
            writeln!(
                formatter,
                "  {:width$}   {:3}   {}: {}",
                asked(right),
                if *granted { "yes" } else { "no" },
                if right.is_needed(self.namespace.as_deref()) { "needed" } else { "helps" },
                right.purpose
            )?;
        }
        let place = self.namespace.iter().map(|namespace| format!(" -n {namespace}"));
        write!(
            formatter,
            "an admin grants them with: kubectl spillway report --show-rbac{} | kubectl apply -f -",
            place.collect::<String>()
        )?;
        if self.namespace.is_none() {
            write!(
                formatter,
                "\nif you may list the pods of one namespace, -n NAMESPACE reports what can be seen from there"
            )?;
        }
        Ok(())
    }
}

/// Asks for all of them: in the whole cluster, and where that is not granted in the one namespace that matters, if one does.
///
/// # Errors
/// When one is missing that nothing works without, with all of them.
pub async fn check(client: &Client, rights: &[Right], namespace: Option<&str>) -> Result<Granted, Error> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let place = async |right: Right| -> Result<Option<Where>, Error> {
        if ask(&api, &right, None).await? {
            return Ok(Some(Where::Everywhere));
        }
        match namespace.filter(|_| right.is_namespaced()) {
            Some(namespace) => Ok(ask(&api, &right, Some(namespace)).await?.then_some(Where::Namespace)),
            None => Ok(None),
        }
    };
    let places = futures::future::try_join_all(rights.iter().map(|right| place(*right))).await?;
    let all: Vec<_> = rights.iter().copied().zip(places).collect();
    let lacks = |(right, place): &(Right, Option<Where>)| right.is_needed(namespace) && place.is_none();
    if all.iter().any(lacks) {
        let rights = all.into_iter().map(|(right, place)| (right, place.is_some())).collect();
        return Err(Error::Rights(Missing { rights, namespace: namespace.map(str::to_owned) }));
    }
    let rights = all.into_iter().filter_map(|(right, place)| Some((right, place?))).collect();
    Ok(Granted { rights, namespace: namespace.unwrap_or_default().to_owned() })
}

async fn ask(
    api: &Api<SelfSubjectAccessReview>,
    right: &Right,
    namespace: Option<&str>,
) -> Result<bool, Error> {
    let (resource, subresource) = right.resource.split_once('/').unwrap_or((right.resource, ""));
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(right.verb.to_owned()),
                group: Some(right.group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource: Some(subresource.to_owned()).filter(|text| !text.is_empty()),
                namespace: namespace.map(str::to_owned),
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

/// What grants such rights, for a `ClusterRole` or, where `namespaced`, for a Role.
fn rules(namespaced: bool) -> String {
    let rights = Right::of_report().into_iter().chain(Right::of_watch());
    let rights = rights.filter(|right| *right != Right::KUBELETS && (!namespaced || right.is_namespaced()));
    let lines: Vec<_> = rights.map(|right| format!("{}   # {}", right.rule(), right.purpose)).collect();
    lines.join("\n") + "\n"
}

/// The manifest that grants all of it, or what can be granted in one namespace.
pub fn manifest(namespace: Option<&str>) -> String {
    let (kind, place, about) = match namespace {
        Some(namespace) => (
            "Role",
            format!(", namespace: {namespace}"),
            format!(
                "# What `kubectl spillway report -n {namespace}` reads there. What can't be seen from one namespace, it says.\n"
            ),
        ),
        None => (
            "ClusterRole",
            String::new(),
            format!(
                "# What `kubectl spillway report` reads. Without the first two it can't; without another it says what it could not see. watch is for --watch.\n\
                 # Not granted: get nodes/proxy ({}). It also opens the kubelets' way into every container.\n",
                Right::KUBELETS.purpose
            ),
        ),
    };
    let rules = rules(namespace.is_some());
    format!(
        "{about}# pods/proxy reaches every HTTP port of every pod: leave it out where Prometheus has the metrics, or grant it in the agent's namespace alone.
apiVersion: rbac.authorization.k8s.io/v1
kind: {kind}
metadata: {{name: spillway-report{place}}}
rules:
{rules}---
apiVersion: rbac.authorization.k8s.io/v1
kind: {kind}Binding
metadata: {{name: spillway-report{place}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {kind}, name: spillway-report}}
subjects:
- {{apiGroup: rbac.authorization.k8s.io, kind: Group, name: spillway-planners}}   # whom you want
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_grants_what_is_used() {
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/chart/files/report-rules.yaml");
        assert_eq!(
            std::fs::read_to_string(chart).unwrap(),
            rules(false),
            "put the right-hand side into {chart}"
        );
    }

    #[test]
    fn a_role_of_one_namespace_has_nothing_of_the_whole_cluster() {
        let role = manifest(Some("team"));
        assert!(
            role.contains("kind: RoleBinding\nmetadata: {name: spillway-report, namespace: team}"),
            "{role}"
        );
        assert!(!role.contains("nodes") && !role.contains("persistentvolumes]"), "{role}");
        assert!(manifest(None).contains("resources: [nodes], verbs: [watch]"));
    }

    #[test]
    fn what_is_missing_is_said_of_the_namespace_that_was_asked_for() {
        let granted = |namespace: &str, rights| Granted { rights, namespace: namespace.to_owned() };
        assert!(
            granted("", Vec::new())
                .lacking(&Right::PODS)
                .starts_with("you may not list pods in all namespaces")
        );
        assert!(
            granted("a", Vec::new())
                .lacking(&Right::EVENTS)
                .starts_with("you may not list events in the namespace a")
        );
        assert!(granted("a", Vec::new()).lacking(&Right::NODES).starts_with("you may not list nodes ("));
        let only = granted("a", vec![(Right::PODS, Where::Namespace)]);
        assert!(only.lacking(&Right::PODS).starts_with("you may not list pods in all namespaces"));
        assert_eq!((only.only_in(&Right::PODS), only.only_in(&Right::NODES)), (Some("a"), None));
    }
}
