//! The API server as the benchmark uses it: many calls with few bytes, so that what asks does not become what is measured.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    time::Duration,
};

use anyhow::{Context as _, bail};
use futures::{AsyncBufReadExt as _, Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde_json::Value;
use tonic::codegen::http::{Request, request::Builder};

/// Calls under way at a time.
const IN_FLIGHT: usize = 8;
/// How long the pods of a benchmark may take to get somewhere.
const LIMIT: Duration = Duration::from_mins(10);
/// After the API server has ended a watch.
const REOPEN: Duration = Duration::from_millis(200);
/// Only the columns that kubectl prints.
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

/// The API server.
#[derive(Clone)]
pub(super) struct Server(Client);

impl Server {
    pub(super) fn new(client: Client) -> Self {
        Self(client)
    }

    async fn call(&self, request: Builder, body: Vec<u8>) -> anyhow::Result<()> {
        let request = request.body(body).context("a request can't be made")?;
        self.0.request_text(request).await?;
        Ok(())
    }

    /// Creates pods.
    pub(super) async fn create(
        &self,
        namespace: &str,
        pods: impl Iterator<Item = Pod>,
    ) -> anyhow::Result<()> {
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        let calls = pods.map(|pod| {
            let request = Request::post(&path).header("content-type", "application/json");
            async move { self.call(request, serde_json::to_vec(&pod)?).await.context("can't create a pod") }
        });
        futures::stream::iter(calls).buffer_unordered(IN_FLIGHT).try_collect().await
    }

    /// Deletes pods by their names, with the grace period that they ask for.
    pub(super) async fn delete(
        &self,
        namespace: &str,
        names: impl Iterator<Item = String>,
    ) -> anyhow::Result<()> {
        let calls = names.map(|name| {
            let request = Request::delete(format!("/api/v1/namespaces/{namespace}/pods/{name}"));
            async move { self.call(request, Vec::new()).await.context("can't delete a pod") }
        });
        futures::stream::iter(calls).buffer_unordered(IN_FLIGHT).try_collect().await
    }

    /// Patches the status of each of these pods, so many at a time.
    pub(super) async fn patch_status(
        &self,
        namespace: &str,
        names: impl Iterator<Item = String>,
        status: &Value,
        in_flight: usize,
    ) -> anyhow::Result<()> {
        let body = serde_json::to_vec(status)?;
        let calls = names.map(|name| {
            let request = Request::patch(format!("/api/v1/namespaces/{namespace}/pods/{name}/status"))
                .header("content-type", "application/strategic-merge-patch+json");
            let body = body.clone();
            async move { self.call(request, body).await.context("can't patch a pod's status") }
        });
        futures::stream::iter(calls).buffer_unordered(in_flight).try_collect().await
    }

    /// Follows the pods of a namespace.
    pub(super) async fn watch(&self, namespace: &str) -> anyhow::Result<Watch> {
        let path = format!("/api/v1/namespaces/{namespace}/pods?watch=true&includeObject=None");
        let lines = self.open(&path).await?;
        Ok(Watch { server: self.clone(), path, lines, seen: Seen::default() })
    }

    async fn open(&self, path: &str) -> anyhow::Result<Lines> {
        let request = Request::get(path).header("accept", TABLE).body(Vec::new())?;
        Ok(Box::pin(self.0.request_stream(request).await?.lines()))
    }

    /// Waits until the pods of a namespace are so.
    pub(super) async fn until(
        &self,
        namespace: &str,
        what: &str,
        holds: impl Fn(&Seen) -> bool,
    ) -> anyhow::Result<()> {
        self.watch(namespace).await?.until(what, holds).await
    }

    /// How many requests it has answered.
    pub(super) async fn requests(&self) -> anyhow::Result<Requests> {
        let text = self.0.request_text(Request::get("/metrics").body(Vec::new())?).await?;
        Ok(Requests::parse(&text))
    }
}

/// A watch of pods that is open.
pub(super) struct Watch {
    server: Server,
    path: String,
    lines: Lines,
    seen: Seen,
}

type Lines = Pin<Box<dyn Stream<Item = std::io::Result<String>> + Send>>;

impl Watch {
    /// Waits until the pods are so.
    pub(super) async fn until(&mut self, what: &str, holds: impl Fn(&Seen) -> bool) -> anyhow::Result<()> {
        let limit = crate::patience(LIMIT);
        let waiting = async {
            // With no pods there is no event either.
            let mut quiet = tokio::time::interval(Duration::from_secs(1));
            quiet.tick().await;
            while !holds(&self.seen) || !self.seen.begun {
                tokio::select! {
                    line = self.lines.next() => if let Some(line) = line {
                        self.seen.take(&line?)?;
                    } else {
                        // It begins again with what there is.
                        eprintln!("the API server ended the watch of pods after {} lines", self.seen.lines);
                        tokio::time::sleep(REOPEN).await;
                        self.lines = self.server.open(&self.path).await?;
                        self.seen = Seen::default();
                    },
                    _ = quiet.tick() => self.seen.begun = true,
                }
            }
            Ok(())
        };
        let waited = tokio::time::timeout(limit, waiting).await;
        let (total, running) = (self.seen.total(), self.seen.running());
        waited.with_context(|| {
            format!("gave up waiting for {what} after {} s: {running} of {total} pods run", limit.as_secs())
        })?
    }
}

/// What the pods are called, and what kubectl prints as their status.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pods: HashMap<String, String>,
    by_status: HashMap<String, usize>,
    begun: bool,
    lines: usize,
}

impl Seen {
    pub(super) fn total(&self) -> usize {
        self.pods.len()
    }

    pub(super) fn running(&self) -> usize {
        self.with_status("Running")
    }

    pub(super) fn with_status(&self, status: &str) -> usize {
        self.by_status.get(status).copied().unwrap_or(0)
    }

    /// One line of a watch of tables.
    fn take(&mut self, line: &str) -> anyhow::Result<()> {
        let event: Value = serde_json::from_str(line).with_context(|| format!("no event: {line}"))?;
        self.begun = true;
        self.lines += 1;
        if event["type"] == "ERROR" || event["kind"] == "Status" {
            bail!("the watch of pods failed: {line}");
        }
        for row in event["object"]["rows"].as_array().into_iter().flatten() {
            let cell = |index: usize| row["cells"][index].as_str().unwrap_or_default().to_owned();
            let (name, status) = (cell(0), cell(2));
            let before = if event["type"] == "DELETED" {
                self.pods.remove(&name)
            } else {
                *self.by_status.entry(status.clone()).or_default() += 1;
                self.pods.insert(name, status)
            };
            if let Some(count) = before.and_then(|before| self.by_status.get_mut(&before)) {
                *count -= 1;
            }
        }
        Ok(())
    }
}

/// Requests by verb and what they are about, as `apiserver_request_total` counts them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Requests(BTreeMap<String, f64>);

/// What a node may ask for because of a pod. Its own lease and status are no pod's doing.
const ABOUT_PODS: [&str; 6] = ["pods", "events", "configmaps", "secrets", "serviceaccounts", "services"];

impl Requests {
    fn parse(text: &str) -> Self {
        let mut requests = BTreeMap::new();
        for line in text.lines() {
            let Some(rest) = line.strip_prefix("apiserver_request_total{") else { continue };
            let Some((labels, value)) = rest.rsplit_once("} ") else { continue };
            let label = |name: &str| {
                let all = labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\""));
                all.map(|value| value.trim_end_matches('"')).unwrap_or_default()
            };
            let (verb, resource, part) = (label("verb"), label("resource"), label("subresource"));
            if !ABOUT_PODS.contains(&resource) || matches!(verb, "WATCH" | "CONNECT") {
                continue;
            }
            let key = if part.is_empty() {
                format!("{verb} {resource}")
            } else {
                format!("{verb} {resource}/{part}")
            };
            *requests.entry(key).or_insert(0.0) += value.parse().unwrap_or(0.0);
        }
        Self(requests)
    }

    /// What has come since, without what the benchmark itself has asked for.
    pub(super) fn since(&self, before: &Self, own: &[(&str, f64)]) -> Self {
        let mut since = self.0.clone();
        for (key, count) in &mut since {
            *count -= before.0.get(key).copied().unwrap_or(0.0);
            *count -= own.iter().find(|(of, _)| of == key).map_or(0.0, |(_, count)| *count);
        }
        since.retain(|_, count| *count != 0.0);
        Self(since)
    }

    pub(super) fn total(&self) -> f64 {
        self.0.values().sum()
    }

    /// For people, per pod; what is rare is left out.
    pub(super) fn per_pod(&self, pods: f64) -> String {
        let common = self.0.iter().filter(|(_, count)| **count / pods >= 0.01);
        common.map(|(key, count)| format!("{key} {:.2}", count / pods)).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, name: &str, status: &str) -> String {
        format!(
            r#"{{"type":"{kind}","object":{{"kind":"Table","rows":[{{"cells":["{name}","1/1","{status}",0]}}]}}}}"#
        )
    }

    #[test]
    fn pods_are_counted_by_what_kubectl_prints() {
        let mut seen = Seen::default();
        for (kind, name, status) in [
            ("ADDED", "a", "Pending"),
            ("ADDED", "b", "Running"),
            ("MODIFIED", "a", "Running"),
            ("MODIFIED", "b", "Terminating"),
            ("DELETED", "b", "Terminating"),
        ] {
            seen.take(&event(kind, name, status)).unwrap();
        }
        assert_eq!((seen.total(), seen.running(), seen.with_status("Terminating")), (1, 1, 0));
        assert!(seen.take(r#"{"type":"ERROR","object":{"code":410}}"#).is_err());
        assert!(seen.take("{").is_err());
    }

    #[test]
    fn calls_are_those_of_others_about_pods() {
        let before = Requests::parse(
            "apiserver_request_total{code=\"200\",resource=\"pods\",subresource=\"status\",verb=\"PATCH\"} 5\n",
        );
        let after = Requests::parse(
            "# HELP apiserver_request_total x\n\
             apiserver_request_total{code=\"200\",resource=\"pods\",subresource=\"status\",verb=\"PATCH\"} 12\n\
             apiserver_request_total{code=\"409\",resource=\"pods\",subresource=\"status\",verb=\"PATCH\"} 1\n\
             apiserver_request_total{code=\"201\",resource=\"pods\",subresource=\"\",verb=\"POST\"} 4\n\
             apiserver_request_total{code=\"200\",resource=\"pods\",subresource=\"\",verb=\"WATCH\"} 4\n\
             apiserver_request_total{code=\"200\",resource=\"leases\",subresource=\"\",verb=\"PUT\"} 9\n",
        );
        let since = after.since(&before, &[("POST pods", 4.0)]);
        assert_eq!(since.0, BTreeMap::from([("PATCH pods/status".to_owned(), 8.0)]));
        assert_eq!(since.per_pod(4.0), "PATCH pods/status 2.00");
    }
}
