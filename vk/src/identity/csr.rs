//! Certificates by `CertificateSigningRequest`, as a kubelet asks for them. Approving is someone else's right: the controller manager
//! approves client certificates, nothing in Kubernetes approves serving certificates.

use std::{fmt::Write as _, net::IpAddr, time::Duration};

use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    runtime::wait::await_condition,
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData as _, SanType};
use sha2::{Digest as _, Sha256};

use super::store::{Credential, Store, StoreError};

/// A request that is approved by itself is so within this.
const APPROVAL_IS_FAST: Duration = Duration::from_secs(3);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// The key or the request can't be made.
    #[error("can't make a certificate request")]
    Make(#[from] rcgen::Error),
    /// The API server refuses the request, or is away.
    #[error("can't create certificate signing request {name}")]
    Create {
        /// Its name.
        name: String,
        /// The cause.
        source: Box<kube::Error>,
    },
    /// Waiting failed.
    #[error("can't watch certificate signing request {name}")]
    Watch {
        /// Its name.
        name: String,
        /// The cause.
        source: Box<kube::runtime::wait::Error>,
    },
    /// Someone deleted it, or it was pending for too long (a day).
    #[error("certificate signing request {0} was deleted before it had an answer")]
    Deleted(String),
    /// Denied by an approver or failed at the signer.
    #[error("certificate signing request {name} was refused: {message}")]
    Refused {
        /// Its name.
        name: String,
        /// What the condition says.
        message: String,
    },
    /// The certificate is not for our key.
    #[error("the certificate in {0} belongs to another key")]
    OtherKey(String),
    /// The certificate folder fails.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Who shall sign, and so what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    /// Clients' certificates of nodes.
    KubeletClient,
    /// Serving certificates of nodes.
    KubeletServing,
}

impl Signer {
    /// The signer's name in Kubernetes.
    pub fn name(self) -> &'static str {
        match self {
            Self::KubeletClient => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::KubeletServing => "kubernetes.io/kubelet-serving",
        }
    }

    fn usages(self) -> Vec<String> {
        let purpose = match self {
            Self::KubeletClient => "client auth",
            Self::KubeletServing => "server auth",
        };
        vec!["digital signature".to_owned(), purpose.to_owned()]
    }

    fn short(self) -> &'static str {
        match self {
            Self::KubeletClient => "client",
            Self::KubeletServing => "serving",
        }
    }
}

/// What to ask for. The subject is always the node's.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The node.
    pub node: &'a str,
    /// Who shall sign.
    pub signer: Signer,
    /// Serving only: the address beside the node's name.
    pub address: Option<IpAddr>,
}

impl Request<'_> {
    fn pem(&self, key: &KeyPair) -> Result<String, rcgen::Error> {
        let mut parameters = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::OrganizationName, "system:nodes");
        subject.push(DnType::CommonName, format!("system:node:{}", self.node));
        parameters.distinguished_name = subject;
        if self.signer == Signer::KubeletServing {
            parameters.subject_alt_names.push(SanType::DnsName(self.node.try_into()?));
            parameters.subject_alt_names.extend(self.address.map(SanType::IpAddress));
        }
        parameters.serialize_request(key)?.pem()
    }

    /// The same for the same key and content, so that a restarted process finds its own request again.
    fn object_name(&self, key: &KeyPair) -> String {
        let mut digest = Sha256::new();
        digest.update(key.subject_public_key_info());
        digest.update(self.signer.name());
        digest.update(self.node);
        digest.update(self.address.map(|address| address.to_string()).unwrap_or_default());
        let suffix = digest.finalize().iter().take(5).fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        // A node's name may be as long as an object's name may be.
        let node = &self.node[..self.node.len().min(200)];
        format!("{node}-{}-{suffix}", self.signer.short())
    }
}

/// Asks for a certificate and waits, for days if it must be, until it is signed; then keeps it in `store` as `name`. `pending` is told
/// the request's name when it isn't approved at once.
pub async fn obtain(
    client: &Client,
    store: &Store,
    name: &str,
    request: &Request<'_>,
    pending: impl Fn(&str),
) -> Result<Credential, CsrError> {
    let kept = store.pending_key(name)?.and_then(|pem| KeyPair::from_pem(&pem).ok());
    let key = if let Some(kept) = kept {
        kept
    } else {
        let key = KeyPair::generate()?;
        store.save_pending_key(name, &key.serialize_pem())?;
        key
    };
    let csr = request.object_name(&key);
    let result = signed(client, &csr, request, &key, pending).await.and_then(|chain| {
        let credential = Credential::parse(&chain, &key.serialize_pem(), &csr)?;
        if credential.certified_key(&csr).is_err() {
            return Err(CsrError::OtherKey(csr.clone()));
        }
        store.save(name, &chain, &credential.key_pem)?;
        Ok(credential)
    });
    match &result {
        // An answer was given: another request needs another key, or it would find this answer again.
        Ok(_) | Err(CsrError::Refused { .. } | CsrError::OtherKey(_)) => store.forget_pending_key(name),
        Err(_) => {}
    }
    result
}

async fn signed(
    client: &Client,
    name: &str,
    request: &Request<'_>,
    key: &KeyPair,
    pending: impl Fn(&str),
) -> Result<String, CsrError> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let object = CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.pem(key)?.into_bytes()),
            signer_name: request.signer.name().to_owned(),
            usages: Some(request.signer.usages()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => {}
        // Ours, from before a restart.
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(source) => return Err(CsrError::Create { name: name.to_owned(), source: Box::new(source) }),
    }
    let mut answer = std::pin::pin!(await_condition(api, name, has_answer));
    let answered = if let Ok(answered) = tokio::time::timeout(APPROVAL_IS_FAST, &mut answer).await {
        answered
    } else {
        pending(name);
        answer.await
    };
    let answered = answered
        .map_err(|source| CsrError::Watch { name: name.to_owned(), source: Box::new(source) })?
        .ok_or_else(|| CsrError::Deleted(name.to_owned()))?;
    let status = answered.status.unwrap_or_default();
    if let Some(refusal) = status.conditions.iter().flatten().find(|condition| is_refusal(&condition.type_)) {
        return Err(CsrError::Refused {
            name: name.to_owned(),
            message: format!(
                "{}: {}",
                refusal.type_,
                refusal.message.as_deref().unwrap_or("no reason given")
            ),
        });
    }
    let certificate = status.certificate.unwrap_or_default();
    Ok(String::from_utf8_lossy(&certificate.0).into_owned())
}

fn has_answer(request: Option<&CertificateSigningRequest>) -> bool {
    let Some(request) = request else { return true };
    request.status.as_ref().is_some_and(|status| {
        status.certificate.is_some()
            || status.conditions.iter().flatten().any(|condition| is_refusal(&condition.type_))
    })
}

fn is_refusal(condition: &str) -> bool {
    matches!(condition, "Denied" | "Failed")
}

#[cfg(test)]
mod tests;
