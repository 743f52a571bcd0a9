//! A pod, from the API server's JSON to what the runtime is sent and the API server told: the node's own code for pods, whole, between an
//! API server and a runtime in memory, on a file system of its own. Either the bytes are a pod's JSON, or they edit one that has everything:
//! two bytes for the place, one for what is put there. Then its containers end with the given codes, and then it is deleted.

mod api;
mod checks;
mod runtime;

use std::{
    fs,
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

use arbitrary::Unstructured;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use spillway_vk::{
    pod::{Pods, Settings},
    provider::Provider,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cell;
use api::Api;
use runtime::Runtime;

const NODE: &str = "vk1";
const ROOT: &str = "/node";
/// In a secret of the pod's namespace, and in its tokens. It must be told to nobody but the pod.
const SECRET: &str = "/../hidden-9f3";
/// How long everything takes that nothing delays, on the pod's own clock.
const SETTLE: Duration = Duration::from_millis(1500);
/// So many bytes of JSON; etcd takes hardly more.
const LARGEST: usize = 1 << 20;
/// A deleted pod is gone by then.
const GONE: Duration = Duration::from_mins(2);
const GRACE_SECONDS: i64 = 3;

static BASES: LazyLock<Vec<Value>> = LazyLock::new(|| {
    [include_str!("pods/everything.json"), include_str!("pods/job.json")]
        .map(|text| serde_json::from_str(text).expect("JSON"))
        .to_vec()
});

/// What is put where such a thing was.
const TEXTS: [&str; 62] = [
    "",
    ".",
    "..",
    "../..",
    "../../etc/passwd",
    "/",
    "/etc",
    "a/b",
    "a/../b",
    "\0",
    "a\0b",
    "a\nb",
    "=",
    "$(PORT)",
    "$(PORT",
    "$$",
    "$(UP)/x",
    "main",
    "data",
    "settings",
    "secret",
    "prepare",
    "-1",
    "0",
    "1",
    "1n",
    "1m",
    "9223372036854775807",
    "-9223372036854775808",
    "99999999E",
    "1e400",
    "1e-400",
    "0.00000000000000000001",
    "Ki",
    "1.1.1",
    "::1",
    "999.1.1.1",
    "UDP",
    "Always",
    "Never",
    "OnFailure",
    "Localhost",
    "Unconfined",
    "Memory",
    "HugePages-2Mi",
    "Bidirectional",
    "NotIn",
    "Directory",
    "metadata.annotations",
    "metadata.labels['",
    "limits.memory",
    "requests.x",
    "../../etc/shadow",
    "raw",
    "password",
    "UP",
    "..x",
    "env",
    "Enabled",
    "Running",
    "9999-12-31T23:59:59Z",
    "ä",
];
const NUMBERS: [i64; 16] = [
    0,
    1,
    -1,
    2,
    42,
    65535,
    65536,
    70000,
    2_147_483_647,
    -2_147_483_648,
    4_294_967_296,
    i64::MAX,
    i64::MIN,
    1 << 53,
    511,
    3600,
];

/// What became of a pod.
struct Life {
    pod: Pod,
    /// Each status that was written.
    statuses: Vec<Value>,
    /// Type, reason and message.
    events: Vec<[String; 3]>,
    runtime: Arc<Runtime>,
}

/// Plays the pod's life, and looks at all that came of it.
pub fn run(bytes: &[u8]) {
    let (pod, codes) = if bytes.first() == Some(&b'{') {
        (serde_json::from_slice(bytes).ok(), vec![1, 0, 137])
    } else {
        let mut rest = Unstructured::new(bytes);
        let codes = (0..rest.int_in_range(0..=6).unwrap_or(0))
            .map(|_| i32::from(rest.arbitrary::<u8>().unwrap_or(0)));
        let codes = codes.collect();
        (serde_json::from_value(edited(&mut rest)).ok(), codes)
    };
    let Some(pod) = pod else { return };
    let pod: Pod = pod;
    // No API server has a pod without them, and one without a name is not even taken notice of.
    let has_containers = pod.spec.as_ref().is_some_and(|spec| !spec.containers.is_empty());
    if !has_containers
        || pod.metadata.uid.is_none()
        || pod.metadata.name.is_none()
        || pod.metadata.namespace.is_none()
    {
        return;
    }
    // Nobody could delete it, and the node need not refuse it.
    if !checks::is_named(&pod) && !checks::leads_away(&pod) {
        return;
    }
    cell::inside(move || play(pod, &codes));
}

fn play(pod: Pod, codes: &[i32]) {
    let clock = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let clock = clock.expect("a runtime");
    // What is made outside of a task already needs it.
    let inside = clock.enter();
    let is_named = checks::is_named(&pod);
    let api = Api::with(serde_json::to_value(&pod).expect("every pod is JSON"));
    let runtime = Arc::new(Runtime::default());
    let settings = Settings {
        cluster_dns: vec![[10, 96, 0, 10].into()],
        root_dir: ROOT.into(),
        resolv_conf: "/resolv.conf".into(),
        ..Settings::new(NODE, vec![[10, 0, 0, 1].into()])
    };
    let provider = Provider::Runtime(Arc::clone(&runtime) as Arc<_>);
    let pods = Arc::new(Pods::new(api.client(), provider, settings));
    let stop = CancellationToken::new();
    let life = clock.block_on(async {
        let mut running = JoinSet::new();
        running.spawn(pods.run(stop.clone()));
        tokio::time::sleep(SETTLE).await;
        for code in codes {
            runtime.exit(*code);
            tokio::time::sleep(SETTLE / 4).await;
        }
        let life =
            Life { pod, statuses: api.statuses(), events: api.events(), runtime: Arc::clone(&runtime) };
        if is_named {
            api.delete(GRACE_SECONDS);
            let deleted = tokio::time::Instant::now();
            while !api.is_gone() {
                let (events, pod) = (api.events(), &life.pod);
                assert!(deleted.elapsed() < GONE, "a deleted pod is still there: {events:?} {pod:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        stop.cancel();
        let ended = running.join_next().await.expect("it runs");
        ended.expect("no part panics").expect("no part ends early");
        life
    });
    drop(inside);
    drop(clock);
    assert!(runtime.is_empty(), "something is left on the runtime");
    checks::all(&life, is_named);
    let left: Vec<_> = fs::read_dir(Path::new(ROOT).join("pods")).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "something is left on the disk: {left:?}");
    let made = cell::sweep();
    assert!(made.is_empty() || checks::may_make(&life.pod), "{made:?} was made on the machine");
}

/// A pod that has everything, with some of it replaced.
fn edited(rest: &mut Unstructured<'_>) -> Value {
    let mut pod = BASES[usize::from(rest.arbitrary::<u8>().unwrap_or(0)) % BASES.len()].clone();
    while !rest.is_empty() {
        let (Ok(place), Ok(what)) = (rest.arbitrary::<u16>(), rest.arbitrary::<u8>()) else { break };
        let mut places = Vec::new();
        pointers(&pod, String::new(), &mut places);
        let place = places[usize::from(place) % places.len()].clone();
        let other = pod.pointer(&places[usize::from(what) * 7 % places.len()]).cloned().unwrap_or_default();
        let Some(found) = pod.pointer_mut(&place) else { continue };
        let what = usize::from(what);
        *found = match found {
            Value::String(_) if what < TEXTS.len() => json!(TEXTS[what]),
            Value::String(text) if what < 72 && text.len() < 1 << 9 => json!(text.repeat(1 << (what % 14))),
            Value::String(text) if what < 140 => json!(format!("{text}{}", TEXTS[what % TEXTS.len()])),
            Value::Number(_) if what < 192 => json!(NUMBERS[what % NUMBERS.len()]),
            Value::Bool(is) if what < 192 => json!(!*is),
            Value::Array(items) if what < 64 => {
                let mut items = items.clone();
                items.extend(items.first().cloned());
                Value::Array(items)
            }
            Value::Array(_) if what < 96 => json!([]),
            Value::Object(_) if what < 64 => json!({}),
            _ if what > 240 => Value::Null,
            _ => other,
        };
        // No API server has a larger one.
        if pod.to_string().len() > LARGEST {
            break;
        }
    }
    pod
}

/// Every place in it.
fn pointers(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                pointers(item, format!("{at}/{n}"), out);
            }
        }
        Value::Object(fields) => {
            for (key, field) in fields {
                pointers(field, format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), out);
            }
        }
        _ => {}
    }
    out.push(at);
}
