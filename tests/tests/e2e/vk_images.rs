//! Images from a real registry, on a kubelet and on the virtual node beside it: who gets them, what is said when not, and when they go.

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use spillway_tests::{
    cluster::image_registry::{OPEN, PASSWORD, PRIVATE, Registry, USER},
    image,
};

use crate::{
    Test,
    beside::{NODES, events, on_both, wait_both},
    harness::{DEDICATED, Namespace, ON_VIRTUAL, Pool, VIRTUAL, wait},
};

pub(crate) const TESTS: &[Test] = &[
    ("vk_images::images_are_pulled_as_on_a_real_node", images_are_pulled_as_on_a_real_node),
    ("vk_images::unused_images_go", unused_images_go),
];

const WRONG: &str = "not-this-one";
const CONFIGURATION: &str = "/etc/spillway/vk.yaml";
const WAITING: &str = ".status.containerStatuses[0].state.waiting['reason','message']";
const IMAGE: &str = ".status.containerStatuses[0]['image','imageID']";

/// Starts the registry with images that no machine has.
fn registry(pool: &Pool, names: &[&str]) -> anyhow::Result<Registry> {
    let out = spillway_tests::target().join("images");
    let images: Vec<_> =
        names.iter().map(|name| Ok((*name, image::variant(name, &out)?))).collect::<anyhow::Result<_>>()?;
    let images: Vec<_> = images.iter().map(|(name, image)| (*name, image)).collect();
    Registry::start(&pool.cluster, &[DEDICATED, VIRTUAL], &images)
}

fn spec(image: &str, policy: &str, secret: Option<&str>) -> String {
    let secret = secret.map(|name| format!("  imagePullSecrets: [{{name: {name}}}]\n")).unwrap_or_default();
    format!(
        "{secret}  terminationGracePeriodSeconds: 0
  containers: [{{name: main, image: \"{image}\", imagePullPolicy: {policy}, command: [sleep, '100000']}}]
"
    )
}

fn ready(namespace: &Namespace<'_>, pod: &str) -> anyhow::Result<()> {
    NODES.iter().try_for_each(|(kind, _)| namespace.wait_ready(&format!("{pod}-{kind}")))
}

/// Waits until both pods say the same there, and something that is expected.
fn alike(
    namespace: &Namespace<'_>,
    pod: &str,
    path: &str,
    expected: impl Fn(&str) -> bool,
) -> anyhow::Result<String> {
    let look = |kind: &str| namespace.field("pod", &format!("{pod}-{kind}"), path);
    let what = format!("both pods {pod} to say the same at {path}");
    let [said, _] = wait_both(&what, look, |real, virtual_one| real == virtual_one && expected(real))?;
    eprintln!("    {pod}: {said}");
    Ok(said)
}

/// Waits until both pods have the same events about their images, this one among them.
fn events_alike(namespace: &Namespace<'_>, pod: &str, reason: &str) -> anyhow::Result<()> {
    let told = |kind: &str| {
        events(namespace, &format!("{pod}-{kind}"), |event| {
            let (reason, message) = (event["reason"].as_str()?, event["message"].as_str()?);
            let of_image = ["Pull", "Image", "BackOff", "Inspect", "Failed"];
            // How long it took.
            let message = message.split_once(" in ").map_or(message, |(before, _)| before);
            let is_meant = reason != "FailedMount" && of_image.iter().any(|part| reason.contains(part));
            is_meant.then(|| format!("{reason}: {message}"))
        })
    };
    let what = format!("both pods {pod} to have the same events about images");
    let fits = |real: &Vec<String>, virtual_one: &Vec<String>| {
        real == virtual_one && real.iter().any(|event| event.starts_with(&format!("{reason}: ")))
    };
    wait_both(&what, told, fits).map(drop)
}

fn docker_secret(namespace: &Namespace<'_>, name: &str, password: &str) -> anyhow::Result<()> {
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{password}"));
    namespace.apply(&format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: kubernetes.io/dockerconfigjson\nstringData:\n  \
         .dockerconfigjson: '{{\"auths\": {{\"{PRIVATE}\": {{\"auth\": \"{auth}\"}}}}}}'\n"
    ))
}

fn images_are_pulled_as_on_a_real_node(pool: &Pool) -> anyhow::Result<()> {
    let registry = registry(pool, &["app", "account"])?;
    let namespace = pool.namespace("vk-images")?;
    docker_secret(&namespace, "pull", PASSWORD)?;
    docker_secret(&namespace, "wrong", WRONG)?;
    secrets_open_images(pool, &namespace, &registry)?;
    // Who may use what is known to the next process, too.
    pool.cluster.kill(VIRTUAL, "spillway-vk")?;
    pool.cluster.start(VIRTUAL, "spillway-vk")?;
    nobody_else_gets_them(&namespace)?;
    what_is_not_there_is_told_alike(&namespace)?;
    // The user mends what was wrong.
    docker_secret(&namespace, "wrong", PASSWORD)?;
    ready(&namespace, "wrong")?;
    no_secret_is_told(pool)
}

/// How often each node asked the registry for this image.
fn asked(registry: &Registry, image: &str) -> anyhow::Result<[usize; 2]> {
    let requests = registry.requests()?;
    let of = |address: &str| {
        let of_image = |line: &&String| line.contains(address) && line.contains(&format!("/v2/{image}/"));
        requests.iter().filter(of_image).count()
    };
    Ok(["10.201.0.11 ", "10.201.0.12 "].map(of))
}

fn secrets_open_images(pool: &Pool, namespace: &Namespace<'_>, registry: &Registry) -> anyhow::Result<()> {
    let app = format!("{PRIVATE}/app:1");
    on_both(namespace, "opened", &spec(&app, "IfNotPresent", Some("pull")))?;
    ready(namespace, "opened")?;
    let id = alike(namespace, "opened", IMAGE, |said| said.contains("@sha256:"))?;
    events_alike(namespace, "opened", "Pulled")?;
    let before = asked(registry, "app")?;
    ensure!(before.iter().all(|count| *count > 0), "{before:?}: {:#?}", registry.requests()?);

    // It is there, and the secret is known to open it.
    on_both(namespace, "again", &spec(&app, "IfNotPresent", Some("pull")))?;
    on_both(namespace, "own", &spec(&app, "Never", Some("pull")))?;
    for pod in ["again", "own"] {
        ready(namespace, pod)?;
        events_alike(namespace, pod, "Pulled")?;
    }
    let after = asked(registry, "app")?;
    ensure!(after == before, "the registry was asked again: {before:?}, {after:?}");
    on_both(namespace, "always", &spec(&app, "Always", Some("pull")))?;
    ready(namespace, "always")?;
    events_alike(namespace, "always", "Pulled")?;
    let asked_again = asked(registry, "app")?;
    ensure!(asked_again.iter().zip(after).all(|(now, then)| *now > then), "{after:?}, {asked_again:?}");

    let digest = id.split_once(' ').context("an image and its ID")?.1;
    on_both(namespace, "digest", &spec(digest, "IfNotPresent", Some("pull")))?;
    ready(namespace, "digest")?;
    let same = alike(namespace, "digest", IMAGE, |said| said.contains("@sha256:"))?;
    ensure!(same.ends_with(digest), "{same:?} is not {digest:?}");

    namespace.kubectl(&["create", "serviceaccount", "puller"])?;
    let patch = r#"{"imagePullSecrets": [{"name": "pull"}]}"#;
    namespace.kubectl(&["patch", "serviceaccount", "puller", "-p", patch])?;
    let of_account = spec(&format!("{PRIVATE}/account:1"), "IfNotPresent", None);
    on_both(namespace, "account", &format!("  serviceAccountName: puller\n{of_account}"))?;
    ready(namespace, "account")?;
    let record = pool.on(VIRTUAL, "cat /var/lib/spillway-vk/images.json")?;
    ensure!(record.contains("10.201.0.1:5000/account"), "{record}");
    Ok(())
}

fn nobody_else_gets_them(namespace: &Namespace<'_>) -> anyhow::Result<()> {
    let app = format!("{PRIVATE}/app:1");
    on_both(namespace, "without", &spec(&app, "IfNotPresent", Some("none")))?;
    on_both(namespace, "wrong", &spec(&app, "IfNotPresent", Some("wrong")))?;
    on_both(namespace, "never", &spec(&app, "Never", None))?;
    for pod in ["without", "wrong"] {
        alike(namespace, pod, WAITING, |said| said.starts_with("ImagePullBackOff "))?;
        events_alike(namespace, pod, "BackOff")?;
    }
    alike(namespace, "never", WAITING, |said| said.starts_with("ErrImageNeverPull "))?;
    events_alike(namespace, "never", "ErrImageNeverPull")?;
    events_alike(namespace, "without", "FailedToRetrieveImagePullSecret")
}

fn what_is_not_there_is_told_alike(namespace: &Namespace<'_>) -> anyhow::Result<()> {
    on_both(namespace, "missing", &spec(&format!("{OPEN}/none:1"), "IfNotPresent", None))?;
    on_both(namespace, "nameless", &spec("Upper/Case:1", "IfNotPresent", None))?;
    alike(namespace, "missing", WAITING, |said| said.starts_with("ImagePullBackOff "))?;
    alike(namespace, "nameless", WAITING, |said| said.starts_with("InvalidImageName "))?;
    events_alike(namespace, "missing", "BackOff")?;
    events_alike(namespace, "nameless", "InspectFailed")
}

/// Neither passwords nor what they are encoded as.
fn no_secret_is_told(pool: &Pool) -> anyhow::Result<()> {
    let log = pool.cluster.process(VIRTUAL, "spillway-vk")?.log;
    let mut text = std::fs::read_to_string(&log).with_context(|| format!("can't read {}", log.display()))?;
    text += &pool.on(VIRTUAL, "cat /var/lib/spillway-vk/images.json")?;
    text += &pool.cluster.kubectl(&["get", "events,pods", "-A", "-o", "json"])?;
    for password in [PASSWORD, WRONG] {
        let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{password}"));
        ensure!(!text.contains(password) && !text.contains(&encoded), "a password is told");
    }
    Ok(())
}

/// The names of the images that the virtual node's runtime has.
fn stored(pool: &Pool) -> anyhow::Result<String> {
    pool.on(VIRTUAL, "ctr -n k8s.io images ls -q")
}

fn unused_images_go(pool: &Pool) -> anyhow::Result<()> {
    let _registry = registry(pool, &["used", "unused", "mounted", "foreign"])?;
    let namespace = pool.namespace("vk-image-gc")?;
    let at = |name: &str| format!("{OPEN}/{name}:1");
    let path = pool.cluster.machine(VIRTUAL)?.path(CONFIGURATION);
    let usual = std::fs::read_to_string(&path)?;
    // Any disk is fuller than this.
    let full = usual.replace("imageGCHighThresholdPercent: 100", "imageGCHighThresholdPercent: 1");
    ensure!(full != usual, "the configuration is another than expected:\n{usual}");
    std::fs::write(&path, format!("{full}imageGCLowThresholdPercent: 0\nimageMinimumGCAge: 1s\n"))?;
    for name in ["used", "unused"] {
        namespace.pod(name, &format!("{ON_VIRTUAL}{}", spec(&at(name), "IfNotPresent", None)))?;
    }
    let mounted = at("mounted");
    let with_image = spec(&at("used"), "IfNotPresent", None)
        .replace("command:", "volumeMounts: [{name: v, mountPath: /v}], command:");
    let volume = format!("  volumes: [{{name: v, image: {{reference: \"{mounted}\"}}}}]\n");
    namespace.pod("mounted", &format!("{ON_VIRTUAL}{with_image}{volume}"))?;
    for name in ["used", "unused", "mounted"] {
        namespace.wait_ready(name)?;
    }
    let foreign = at("foreign");
    pool.on(VIRTUAL, &format!("ctr -n k8s.io images pull --plain-http {foreign}"))?;
    namespace.kubectl(&["delete", "pod", "unused", "--wait=true"])?;
    let all = stored(pool)?;
    ensure!(["used", "unused", "mounted", "foreign"].iter().all(|name| all.contains(&at(name))), "{all}");

    pool.cluster.restart(VIRTUAL, "spillway-vk")?;
    wait("the unused image to go", || Ok((!stored(pool)?.contains(&at("unused"))).then_some(())))?;
    let event = "reason=FreeDiskSpaceFailed,involvedObject.name=virtual-1";
    wait("an event that it was not enough", || {
        let told = pool.cluster.kubectl(&[
            "get",
            "events",
            "-n",
            "default",
            "--field-selector",
            event,
            "-o",
            "name",
        ])?;
        Ok((!told.is_empty()).then_some(()))
    })?;
    let left = stored(pool)?;
    let kept = ["used", "mounted", "foreign"].map(at);
    for name in
        kept.iter().map(String::as_str).chain(["spillway.test/pause:dev", "spillway.test/busybox:dev"])
    {
        ensure!(left.contains(name), "{name} is gone, left are:\n{left}");
    }
    // What went is pulled again.
    namespace.pod("back", &format!("{ON_VIRTUAL}{}", spec(&at("unused"), "IfNotPresent", None)))?;
    namespace.wait_ready("back")?;

    std::fs::write(&path, usual)?;
    pool.cluster.restart(VIRTUAL, "spillway-vk")?;
    pool.on(VIRTUAL, &format!("ctr -n k8s.io images rm {foreign}")).map(drop)
}
