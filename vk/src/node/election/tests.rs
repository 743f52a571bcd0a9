use std::sync::{Arc, Mutex, OnceLock};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::fake_api::{self, Answer, Call};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/vk1";
const TIMING: LeaderElection = LeaderElection {
    lease_duration: Duration::from_secs(15),
    renew_deadline: Duration::from_secs(10),
    retry_period: Duration::from_secs(2),
};

/// The test's paused clock.
fn clock() -> Duration {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    let start = *START.get_or_init(std::time::Instant::now);
    // Room for a clock that began a moment before this one.
    Instant::now().into_std().duration_since(start) + Duration::from_hours(1)
}

/// One lease, with versions, and whether it can be reached.
#[derive(Default)]
struct Cluster {
    lease: Option<Value>,
    version: u32,
    down: bool,
}

impl Cluster {
    fn answer(&mut self, call: &Call) -> Answer {
        if self.down {
            return Answer::status(500, "InternalError");
        }
        match call.name().as_str() {
            name if name == format!("GET {LEASE}") => match &self.lease {
                Some(lease) => Answer::ok(lease.clone()),
                None => Answer::status(404, "NotFound"),
            },
            name if name == format!("PUT {LEASE}") => match &self.lease {
                Some(lease)
                    if lease["metadata"]["resourceVersion"] == call.body["metadata"]["resourceVersion"] =>
                {
                    self.store(call.body.clone())
                }
                Some(_) => Answer::status(409, "Conflict"),
                None => Answer::status(404, "NotFound"),
            },
            name if name.starts_with("POST ") => match &self.lease {
                Some(_) => Answer::status(409, "AlreadyExists"),
                None => self.store(call.body.clone()),
            },
            other => panic!("unexpected request: {other}"),
        }
    }

    fn store(&mut self, mut lease: Value) -> Answer {
        self.version += 1;
        lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.lease = Some(lease.clone());
        Answer::ok(lease)
    }

    fn holder(&self) -> String {
        self.lease.as_ref().unwrap()["spec"]["holderIdentity"].as_str().unwrap().to_owned()
    }
}

struct Replica {
    election: Election,
    lead: Lead,
    _uid: watch::Sender<Option<String>>,
}

fn replica(cluster: &Arc<Mutex<Cluster>>) -> Replica {
    let (client, _) = fake_api::client({
        let cluster = Arc::clone(cluster);
        move |call| cluster.lock().unwrap().answer(&call)
    });
    let lead = Lead::with_clock("vk1", clock);
    let (uid, seen) = watch::channel(Some("uid-1".to_owned()));
    let election = Election::new(client, "vk1", TIMING, lead.clone(), seen, Metrics::default());
    Replica { election, lead, _uid: uid }
}

#[tokio::test(start_paused = true)]
async fn one_of_two_leads_and_the_other_takes_over_at_once_what_is_given_back() {
    let cluster = Arc::new(Mutex::new(Cluster::default()));
    let (mut first, mut second) = (replica(&cluster), replica(&cluster));
    assert_ne!(first.election.identity(), second.election.identity());
    first.election.win(|_| panic!("nobody holds it")).await;
    assert!(first.lead.check().is_ok());
    {
        let cluster = cluster.lock().unwrap();
        let lease = cluster.lease.as_ref().unwrap();
        assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "uid-1");
        assert_eq!(lease["spec"]["leaseDurationSeconds"], 15);
        assert_eq!(lease["spec"]["leaseTransitions"], 0);
    }
    // For a minute it is renewed, and the other stands by.
    let told = Mutex::new(Vec::new());
    tokio::select! {
        why = first.election.hold() => panic!("lost: {why}"),
        () = second.election.win(|holder| told.lock().unwrap().push(holder.unwrap().to_owned())) => panic!("two lead"),
        () = tokio::time::sleep(Duration::from_mins(1)) => {}
    }
    assert!(told.lock().unwrap().iter().all(|holder| holder == first.election.identity()));
    assert!(first.lead.check().is_ok() && second.lead.check().is_err());

    first.election.release().await;
    assert!(first.lead.check().is_err());
    let before = Instant::now();
    second.election.win(|_| {}).await;
    assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    assert_eq!(cluster.lock().unwrap().lease.as_ref().unwrap()["spec"]["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_stood_still_finds_its_leave_expired_before_it_does_anything() {
    let cluster = Arc::new(Mutex::new(Cluster::default()));
    let (mut first, mut second) = (replica(&cluster), replica(&cluster));
    first.election.win(|_| {}).await;
    // It does not run while the other waits: nobody polls it.
    let since = Instant::now();
    second.election.win(|_| {}).await;
    assert!(since.elapsed() >= TIMING.lease_duration, "taken after {:?}", since.elapsed());
    assert!(first.lead.check().is_err(), "by the clock alone");
    let why = first.election.hold().await;
    assert!(why.contains("could not be renewed"), "{why}");
    assert_eq!(cluster.lock().unwrap().holder(), second.election.identity());
    first.election.release().await;
    assert_eq!(
        cluster.lock().unwrap().holder(),
        second.election.identity(),
        "it gives back nothing that is not its own"
    );
    assert!(second.lead.check().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_is_cut_off_stops_before_others_may_begin() {
    let cluster = Arc::new(Mutex::new(Cluster::default()));
    let mut first = replica(&cluster);
    first.election.win(|_| {}).await;
    cluster.lock().unwrap().down = true;
    let since = Instant::now();
    first.election.hold().await;
    assert!(since.elapsed() <= TIMING.renew_deadline + Duration::from_secs(1), "{:?}", since.elapsed());
    assert!(first.lead.check().is_err());
    cluster.lock().unwrap().down = false;
    // It is still its own: nobody has taken it.
    first.election.win(|_| {}).await;
    assert!(first.lead.check().is_ok());
}

#[tokio::test(start_paused = true)]
async fn another_holder_is_obeyed_at_once_and_a_lost_lease_is_made_anew() {
    let cluster = Arc::new(Mutex::new(Cluster::default()));
    let mut first = replica(&cluster);
    first.election.win(|_| {}).await;
    // Its node was deleted, and the lease with it.
    cluster.lock().unwrap().lease = None;
    tokio::select! {
        why = first.election.hold() => panic!("lost: {why}"),
        () = tokio::time::sleep(Duration::from_secs(30)) => {}
    }
    assert_eq!(cluster.lock().unwrap().holder(), first.election.identity());
    {
        let mut cluster = cluster.lock().unwrap();
        let mut lease = cluster.lease.clone().unwrap();
        lease["spec"]["holderIdentity"] = json!("somebody");
        cluster.store(lease);
    }
    let why = first.election.hold().await;
    assert_eq!(why, "it is held by somebody");
    assert!(first.lead.check().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_not_elected_is_left_alone_for_as_long_as_its_lease_says() {
    let cluster = Arc::new(Mutex::new(Cluster::default()));
    cluster.lock().unwrap().store(json!({
        "kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": { "name": "vk1", "namespace": "kube-node-lease" },
        "spec": { "holderIdentity": "vk1", "leaseDurationSeconds": 40, "renewTime": "2026-01-01T00:00:00.000000Z" },
    }));
    let mut replica = replica(&cluster);
    let since = Instant::now();
    replica.election.win(|holder| assert_eq!(holder, Ok("vk1"))).await;
    assert!(since.elapsed() >= Duration::from_secs(40), "{:?}", since.elapsed());
}
