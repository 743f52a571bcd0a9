use serde_json::json;

use super::*;
use crate::{
    fake_api::{self, Answer},
    identity::tests::Approver,
};

const NAME: &str = "serving";

fn request() -> Request<'static> {
    Request { node: "vk1", signer: Signer::KubeletServing, address: Some("10.0.0.5".parse().unwrap()) }
}

#[tokio::test]
async fn a_refused_request_is_not_asked_for_again_with_its_key() {
    let approver = Approver::new(&[3600]);
    approver.state.lock().unwrap().refuse = Some("Denied");
    let (client, _) = fake_api::client({
        let approver = approver.clone();
        move |call| approver.answer(&call)
    });
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    let error = obtain(&client, &store, NAME, &request(), |_| {}).await.unwrap_err();
    assert!(error.to_string().ends_with("was refused: Denied: no"), "{error}");

    approver.state.lock().unwrap().refuse = None;
    obtain(&client, &store, NAME, &request(), |_| {}).await.unwrap();
    let requests = approver.state.lock().unwrap().requests.clone();
    assert_ne!(requests[0]["metadata"]["name"], requests[1]["metadata"]["name"]);
    assert_eq!(requests[1]["spec"]["signerName"], "kubernetes.io/kubelet-serving");
    assert_eq!(requests[1]["spec"]["usages"], json!(["digital signature", "server auth"]));
    assert!(requests[1]["metadata"]["name"].as_str().unwrap().starts_with("vk1-serving-"));
}

#[tokio::test]
async fn a_restart_waits_for_the_request_that_it_made_before() {
    let approver = Approver::new(&[3600]);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    // Created, but the connection broke before the answer came.
    let (client, _) = fake_api::client({
        let approver = approver.clone();
        move |call| {
            let answer = approver.answer(&call);
            if call.method == "POST" { Answer::status(500, "InternalError") } else { answer }
        }
    });
    let error = obtain(&client, &store, NAME, &request(), |_| {}).await.unwrap_err();
    assert!(matches!(error, CsrError::Create { .. }), "{error}");

    let (client, _) = fake_api::client({
        let approver = approver.clone();
        move |call| approver.answer(&call)
    });
    obtain(&client, &store, NAME, &request(), |_| {}).await.unwrap();
    assert_eq!(approver.state.lock().unwrap().requests.len(), 1);
}

#[tokio::test]
async fn a_certificate_for_another_key_is_not_kept() {
    let (first, second) = (Approver::new(&[3600]), tempfile::tempdir().unwrap());
    let other = Approver::new(&[3600]);
    let (other_client, _) = fake_api::client({
        let other = other.clone();
        move |call| other.answer(&call)
    });
    let elsewhere = tempfile::tempdir().unwrap();
    obtain(&other_client, &Store::new(elsewhere.path()), NAME, &request(), |_| {}).await.unwrap();
    let foreign = other.state.lock().unwrap().requests[0]["status"]["certificate"].clone();

    let (client, _) = fake_api::client({
        let first = first.clone();
        move |call| {
            let answer = first.answer(&call);
            for request in &mut first.state.lock().unwrap().requests {
                request["status"]["certificate"] = foreign.clone();
            }
            answer
        }
    });
    let store = Store::new(second.path());
    let error = obtain(&client, &store, NAME, &request(), |_| {}).await.unwrap_err();
    assert!(matches!(error, CsrError::OtherKey(_)), "{error}");
    assert!(store.load(NAME).unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_says_how_to_approve_it() {
    let approver = Approver::new(&[3600]);
    let (client, _) = fake_api::client({
        let approver = approver.clone();
        move |call| {
            if call.query.contains("watch=true") {
                // Never anything.
                let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
                std::mem::forget(sender);
                return Answer::Events(receiver);
            }
            let answer = approver.answer(&call);
            for request in &mut approver.state.lock().unwrap().requests {
                request["status"] = json!({});
            }
            answer
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    let told = std::sync::Mutex::new(Vec::new());
    let request = request();
    let waiting = obtain(&client, &store, NAME, &request, |csr| told.lock().unwrap().push(csr.to_owned()));
    assert!(tokio::time::timeout(Duration::from_hours(1), waiting).await.is_err());
    let name = approver.state.lock().unwrap().requests[0]["metadata"]["name"].clone();
    assert_eq!(told.into_inner().unwrap(), [name.as_str().unwrap()]);
}
