//! The kubelet API's serving certificate: asked of the cluster, read from files, or made here. It is swapped in place when a new one
//! comes; connections that stand go on.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use spillway_daemon::admin::Readiness;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    IdentityError, chain,
    csr::{self, Request, Signer},
    sleep_until,
    store::{Credential, Store, StoreError},
};
use crate::{backoff::Backoff, config::ServingSource, metrics::Metrics};

/// File name, without extension, of the serving certificate in the certificate folder.
const SERVING: &str = "spillway-vk-serving";
/// The readiness condition that this module sets.
const CONDITION: &str = "serving-certificate";
/// How often certificate files are looked at: projected secrets change within about a minute.
const FILES_POLL: Duration = Duration::from_secs(30);
/// How long a certificate of our own making lives; it is replaced after half of that.
const SELF_SIGNED_DAYS: u64 = 365;
/// In seconds.
const DAY: u64 = 86_400;

/// Gives TLS connections the newest certificate.
#[derive(Debug, Clone)]
pub struct Resolver(watch::Receiver<Option<Arc<CertifiedKey>>>);

impl Resolver {
    /// Waits until there is a certificate; `false` when there will be none.
    pub async fn ready(&mut self) -> bool {
        self.0.wait_for(Option::is_some).await.is_ok()
    }

    /// Always this certificate.
    #[cfg(test)]
    pub(crate) fn fixed(key: CertifiedKey) -> Self {
        Self(watch::channel(Some(Arc::new(key))).1)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().clone()
    }
}

/// The task that keeps the certificate.
pub struct Serving {
    source: ServingSource,
    node: String,
    address: IpAddr,
    store: Store,
    client: Client,
    current: watch::Sender<Option<Arc<CertifiedKey>>>,
    readiness: Readiness,
    metrics: Metrics,
}

impl Serving {
    /// Files that can't be used are an error here, at the start; later they are a warning, and the old certificate stays.
    pub fn new(
        source: ServingSource,
        node: &str,
        address: IpAddr,
        cert_dir: &Path,
        client: Client,
        readiness: Readiness,
        metrics: Metrics,
    ) -> Result<(Self, Resolver), StoreError> {
        let (current, receiver) = watch::channel(None);
        readiness.set(CONDITION, Err("no certificate yet".to_owned()));
        let store = Store::new(cert_dir);
        let serving =
            Self { source, node: node.to_owned(), address, store, client, current, readiness, metrics };
        match &serving.source {
            ServingSource::Csr => {
                if let Some(kept) = serving.store.load(SERVING)?.filter(|kept| serving.fits(kept)) {
                    serving.publish(&kept)?;
                }
            }
            ServingSource::Files { certificate, key } => {
                serving.publish(&load_files(certificate, key)?)?;
            }
            ServingSource::SelfSigned => serving.publish(&self_signed(&serving.node, address)?)?,
        }
        Ok((serving, Resolver(receiver)))
    }

    /// Gets the certificate, and a new one before it ends, until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), IdentityError> {
        let keep = async {
            match &self.source {
                ServingSource::Csr => self.keep_requesting().await,
                ServingSource::Files { certificate, key } => self.keep_reading(certificate, key).await,
                ServingSource::SelfSigned => self.keep_signing().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            result = keep => result,
        }
    }

    async fn keep_requesting(&self) -> Result<(), IdentityError> {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(1));
        let mut kept = self.store.load(SERVING)?.filter(|kept| self.fits(kept));
        loop {
            if let Some(credential) = &kept {
                sleep_until(credential.renewal()).await;
            }
            let request =
                Request { node: &self.node, signer: Signer::KubeletServing, address: Some(self.address) };
            let (pending, mut waiting) = tokio::sync::mpsc::channel(1);
            let obtained = csr::obtain(&self.client, &self.store, SERVING, &request, move |csr| {
                let _ = pending.try_send(csr.to_owned());
            });
            let tell = async {
                if let Some(csr) = waiting.recv().await {
                    self.tell_how_to_approve(&csr, kept.is_some()).await;
                }
                std::future::pending().await
            };
            let obtained = tokio::select! {
                obtained = obtained => obtained,
                never = tell => never,
            };
            match obtained {
                Ok(credential) => {
                    backoff.reset();
                    self.publish(&credential)?;
                    kept = Some(credential);
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(error, "can't get a serving certificate; trying again");
                    if kept.is_none() {
                        self.readiness.set(CONDITION, Err(error));
                    }
                    backoff.sleep().await;
                }
            }
        }
    }

    async fn tell_how_to_approve(&self, csr: &str, have_one: bool) {
        let how = format!("waiting for approval: kubectl certificate approve {csr}");
        if have_one {
            tracing::warn!(csr, "the serving certificate ends soon, and the next one is {how}");
        } else {
            tracing::warn!(csr, "kubectl logs and exec don't work yet: the serving certificate is {how}");
            self.readiness.set(CONDITION, Err(how.clone()));
        }
        let reporter = Reporter { controller: "spillway-vk".to_owned(), instance: Some(self.node.clone()) };
        let node = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(self.node.clone()),
            // Events about nodes carry the name as UID: the kubelet does so, and kubectl describe looks for it.
            uid: Some(self.node.clone()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: "ServingCertificatePending".to_owned(),
            note: Some(format!("The kubelet API's certificate is {how}")),
            action: "RequestCertificate".to_owned(),
            secondary: None,
        };
        if let Err(error) = Recorder::new(self.client.clone(), reporter).publish(&event, &node).await {
            tracing::debug!(error = chain(&error), "can't write the event");
        }
    }

    async fn keep_reading(&self, certificate: &Path, key: &Path) -> Result<(), IdentityError> {
        let mut last =
            load_files(certificate, key).map(|credential| credential.chain_pem).unwrap_or_default();
        loop {
            tokio::time::sleep(FILES_POLL).await;
            match load_files(certificate, key) {
                Ok(credential) if credential.chain_pem != last => {
                    self.publish(&credential)?;
                    last = credential.chain_pem;
                }
                Ok(_) => {}
                // Also when one of the two is replaced and the other isn't yet: next time they will fit.
                Err(error) => tracing::warn!(error = chain(&error), "keeping the old serving certificate"),
            }
        }
    }

    async fn keep_signing(&self) -> Result<(), IdentityError> {
        loop {
            tokio::time::sleep(Duration::from_secs(SELF_SIGNED_DAYS * DAY / 2)).await;
            self.publish(&self_signed(&self.node, self.address)?)?;
        }
    }

    fn publish(&self, credential: &Credential) -> Result<(), StoreError> {
        let key = credential.certified_key("the serving certificate")?;
        self.current.send_replace(Some(Arc::new(key)));
        self.metrics.certificate_expires("serving", credential.not_after);
        self.readiness.set(CONDITION, Ok(()));
        tracing::info!(certificate.expires = %credential.not_after, "serving certificate is in use");
        Ok(())
    }

    fn fits(&self, credential: &Credential) -> bool {
        credential.is_current()
            && credential.common_name == format!("system:node:{}", self.node)
            && credential.addresses.contains(&self.address)
            && credential.dns_names.contains(&self.node)
    }
}

fn load_files(certificate: &Path, key: &Path) -> Result<Credential, StoreError> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|source| StoreError::Read { path: path.to_owned(), source })
    };
    let origin = format!("{} and {}", certificate.display(), key.display());
    let credential = Credential::parse(&read(certificate)?, &read(key)?, &origin)?;
    credential.certified_key(&origin)?;
    Ok(credential)
}

fn self_signed(node: &str, address: IpAddr) -> Result<Credential, StoreError> {
    let make = || {
        let key = rcgen::KeyPair::generate()?;
        let mut parameters = rcgen::CertificateParams::new([node.to_owned(), address.to_string()])?;
        parameters.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{node}"));
        let now = jiff::Timestamp::now().as_second().unsigned_abs();
        let at = |second| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(second);
        // Clocks differ.
        parameters.not_before = at(now.saturating_sub(DAY));
        parameters.not_after = at(now + SELF_SIGNED_DAYS * DAY);
        let certificate = parameters.self_signed(&key)?;
        Ok::<_, rcgen::Error>((certificate.pem(), key.serialize_pem()))
    };
    let (certificate, key) = make().map_err(|error| StoreError::Invalid {
        origin: "the self-signed certificate".to_owned(),
        problem: error.to_string(),
    })?;
    Credential::parse(&certificate, &key, "the self-signed certificate")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::{self, Answer};

    fn pair(node: &str) -> (String, String) {
        let made = self_signed(node, "10.0.0.5".parse().unwrap()).unwrap();
        (made.chain_pem, made.key_pem)
    }

    fn serving(
        source: ServingSource,
        folder: &Path,
        address: &str,
    ) -> Result<(Serving, Resolver), StoreError> {
        let (client, _) = fake_api::client(|_| Answer::status(403, "Forbidden"));
        let address = address.parse().unwrap();
        Serving::new(source, "vk1", address, folder, client, Readiness::default(), Metrics::default())
    }

    fn leaf(resolver: &Resolver) -> Vec<u8> {
        resolver.0.borrow().clone().unwrap().cert[0].to_vec()
    }

    #[tokio::test(start_paused = true)]
    async fn replaced_files_are_served_and_halves_of_a_pair_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let source = ServingSource::Files { certificate: certificate.clone(), key: key.clone() };
        let error = serving(source.clone(), folder.path(), "10.0.0.5").err().unwrap();
        assert_eq!(error.to_string(), format!("can't read {}", certificate.display()));

        let (first, second) = (pair("first"), pair("second"));
        std::fs::write(&certificate, &first.0).unwrap();
        std::fs::write(&key, &second.1).unwrap();
        assert!(serving(source.clone(), folder.path(), "10.0.0.5").is_err(), "a key of another certificate");

        std::fs::write(&key, &first.1).unwrap();
        let (task, resolver) = serving(source, folder.path(), "10.0.0.5").unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { task.run(CancellationToken::new()).await.unwrap() });
        let before = leaf(&resolver);
        std::fs::write(&certificate, &second.0).unwrap();
        tokio::time::sleep(3 * FILES_POLL).await;
        assert_eq!(leaf(&resolver), before, "half of a new pair");
        std::fs::write(&key, &second.1).unwrap();
        tokio::time::sleep(3 * FILES_POLL).await;
        assert_ne!(leaf(&resolver), before);
    }

    #[tokio::test]
    async fn a_kept_certificate_is_served_at_once_if_it_is_for_this_address() {
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = pair("vk1");
        Store::new(folder.path()).save(SERVING, &chain, &key).unwrap();
        let (_, kept) = serving(ServingSource::Csr, folder.path(), "10.0.0.5").unwrap();
        assert!(kept.0.borrow().is_some());
        let (_, moved) = serving(ServingSource::Csr, folder.path(), "10.0.0.6").unwrap();
        assert!(moved.0.borrow().is_none(), "the machine has another address now");
    }
}
