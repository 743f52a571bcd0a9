//! The same pods on a kubelet and on the virtual node beside it: whatever a user sees of them has to be alike.

use std::fmt::Debug;

use anyhow::Context as _;
use serde_json::Value;

use crate::harness::{DEDICATED, Namespace, VIRTUAL, wait};

/// What the pods' names end in, and the node of each.
pub(crate) const NODES: [(&str, &str); 2] = [("real", DEDICATED), ("virtual", VIRTUAL)];

/// Applies a pod on both nodes from its spec's YAML, in which `KIND` is the end of its name.
pub(crate) fn on_both(namespace: &Namespace<'_>, pod: &str, spec: &str) -> anyhow::Result<()> {
    for (kind, node) in NODES {
        let spec = format!("  nodeName: {node}\n{}", spec.replace("KIND", kind));
        namespace.pod(&format!("{pod}-{kind}"), &spec)?;
    }
    Ok(())
}

/// What there is to say of both pods, by the ends of their names; the real one's first.
pub(crate) fn both<T>(of: impl FnMut(&str) -> anyhow::Result<T>) -> anyhow::Result<[T; 2]> {
    let [real, virtual_one] = NODES.map(|(kind, _)| kind).map(of);
    Ok([real?, virtual_one?])
}

/// Waits until what there is to say of the real pod and of the virtual one fits, and returns it.
pub(crate) fn wait_both<T: Debug>(
    what: &str,
    mut of: impl FnMut(&str) -> anyhow::Result<T>,
    fits: impl Fn(&T, &T) -> bool,
) -> anyhow::Result<[T; 2]> {
    let mut last = None;
    wait(what, || {
        let now = both(&mut of)?;
        let fits = fits(&now[0], &now[1]);
        last = Some(now);
        Ok(if fits { last.take() } else { None })
    })
    .with_context(|| format!("real and virtual: {last:#?}"))
}

/// The events about a pod, of those that `told` makes a text of: each text once, in order.
pub(crate) fn events(
    namespace: &Namespace<'_>,
    pod: &str,
    told: impl Fn(&Value) -> Option<String>,
) -> anyhow::Result<Vec<String>> {
    let about = format!("involvedObject.name={pod}");
    let text = namespace.kubectl(&["get", "events", "--field-selector", &about, "-o", "json"])?;
    let events: Value = serde_json::from_str(&text).context("kubectl gives events")?;
    let mut texts: Vec<_> = events["items"].as_array().into_iter().flatten().filter_map(told).collect();
    texts.sort();
    texts.dedup();
    Ok(texts)
}
