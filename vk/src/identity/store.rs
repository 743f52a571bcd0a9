//! The certificate folder. A certificate and its key are one file, so that they can't be out of step; files are replaced atomically
//! and readable by their owner alone.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use kube::config::AuthInfo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

use crate::durable;

/// Why the folder or a certificate is of no use.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file can't be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file can't be written.
    #[error("can't write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// PEM or X.509 that can't be understood.
    #[error("no usable certificate and key in {origin}: {problem}")]
    Invalid {
        /// Where they came from.
        origin: String,
        /// What is wrong.
        problem: String,
    },
}

/// A certificate chain with its key, and what the first certificate says.
#[derive(Clone)]
pub struct Credential {
    /// PEM of the chain, leaf first.
    pub chain_pem: String,
    /// PEM of the key.
    pub key_pem: String,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
    /// Subject's CN.
    pub common_name: String,
    /// Names the certificate is for.
    pub dns_names: Vec<String>,
    /// Addresses the certificate is for.
    pub addresses: Vec<IpAddr>,
    /// When to replace it: somewhere from 70 to 90 % of its life.
    renewal: Timestamp,
}

impl std::fmt::Debug for Credential {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("common_name", &self.common_name)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Credential {
    /// Takes PEM texts apart. `origin` names them in errors. The two may be the same text.
    pub fn parse(chain_pem: &str, key_pem: &str, origin: &str) -> Result<Self, StoreError> {
        let invalid = |problem: String| StoreError::Invalid { origin: origin.to_owned(), problem };
        let leaf = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .next()
            .ok_or_else(|| invalid("no PEM block CERTIFICATE".to_owned()))?
            .map_err(|error| invalid(error.to_string()))?;
        let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&leaf)
            .map_err(|error| invalid(format!("the certificate can't be parsed: {error}")))?;
        PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| invalid(format!("the key can't be parsed: {error}")))?;
        let time = |time: x509_parser::time::ASN1Time| {
            Timestamp::from_second(time.timestamp()).map_err(|error| invalid(error.to_string()))
        };
        let (not_before, not_after) = (time(leaf.validity().not_before)?, time(leaf.validity().not_after)?);
        let common_name = leaf.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let mut dns_names = Vec::new();
        let mut addresses = Vec::new();
        for name in
            leaf.subject_alternative_name().ok().flatten().iter().flat_map(|san| &san.value.general_names)
        {
            match name {
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
        Ok(Self {
            chain_pem: chain_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            not_before,
            not_after,
            common_name: common_name.unwrap_or_default().to_owned(),
            dns_names,
            addresses,
            renewal: renewal(not_before, not_after, crate::backoff::random()),
        })
    }

    /// Valid at this moment. A certificate from the future counts: clocks differ.
    pub fn is_current(&self) -> bool {
        Timestamp::now() < self.not_after
    }

    /// When to replace it.
    pub fn renewal(&self) -> Timestamp {
        self.renewal
    }

    /// For a client's configuration.
    pub(super) fn auth_info(&self) -> AuthInfo {
        AuthInfo {
            client_certificate_data: Some(STANDARD.encode(&self.chain_pem)),
            client_key_data: Some(STANDARD.encode(&self.key_pem).into()),
            ..AuthInfo::default()
        }
    }

    /// For a TLS server.
    pub(super) fn certified_key(&self, origin: &str) -> Result<rustls::sign::CertifiedKey, StoreError> {
        let invalid = |problem: String| StoreError::Invalid { origin: origin.to_owned(), problem };
        let chain = CertificateDer::pem_slice_iter(self.chain_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| invalid(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|error| invalid(error.to_string()))?;
        rustls::sign::CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
            .map_err(|error| invalid(error.to_string()))
    }
}

/// Kubelets spread renewals over 70 to 90 % of the certificate's life, so that nodes that came up together don't come back
/// together. `random` is uniform in 0..1.
fn renewal(not_before: Timestamp, not_after: Timestamp, random: f64) -> Timestamp {
    let life = not_after.duration_since(not_before);
    not_before.checked_add(life.mul_f64(0.7 + 0.2 * random)).unwrap_or(not_after)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// The certificate folder.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Of this folder, which need not exist yet.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the credential `name` is kept.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.pem"))
    }

    /// What is kept as `name`, if it can be used. A damaged file is reported and counts as none: it can be had again.
    pub fn load(&self, name: &str) -> Result<Option<Credential>, StoreError> {
        let path = self.path(name);
        let Some(pem) = read_if_there(&path)? else { return Ok(None) };
        match Credential::parse(&pem, &pem, &path.display().to_string()) {
            Ok(credential) => Ok(Some(credential)),
            Err(error) => {
                tracing::warn!(%error, "a new certificate will be asked for");
                Ok(None)
            }
        }
    }

    /// Keeps a chain with its key as `name`.
    pub fn save(&self, name: &str, chain_pem: &str, key_pem: &str) -> Result<(), StoreError> {
        let separator = if chain_pem.ends_with('\n') { "" } else { "\n" };
        write_atomically(&self.path(name), format!("{chain_pem}{separator}{key_pem}").as_bytes())
    }

    /// The key of a request that has no answer yet. Kept, so that a restart waits for the same request instead of making another.
    pub fn pending_key(&self, name: &str) -> Result<Option<String>, StoreError> {
        read_if_there(&self.pending_path(name))
    }

    /// Keeps the key of a request.
    pub fn save_pending_key(&self, name: &str, key_pem: &str) -> Result<(), StoreError> {
        write_atomically(&self.pending_path(name), key_pem.as_bytes())
    }

    /// Forgets the key of a request.
    pub fn forget_pending_key(&self, name: &str) {
        // Left behind, it is replaced by the next request.
        let _ = std::fs::remove_file(self.pending_path(name));
    }

    fn pending_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.pending-key.pem"))
    }
}

/// The file's text, or `None` where there is no file.
pub(super) fn read_if_there(path: &Path) -> Result<Option<String>, StoreError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Read { path: path.to_owned(), source }),
    }
}

/// Replaces the file in one step, readable by its owner alone, and makes its folder.
pub(super) fn write_atomically(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    durable::replace(path, content).map_err(|source| StoreError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(["vk1".to_owned(), "10.0.0.5".to_owned()]).unwrap();
        (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn kept_and_found_again_without_showing_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(&folder.path().join("new/folder"));
        assert!(store.load("x").unwrap().is_none());
        let (chain, key) = pair();
        store.save("x", chain.trim_end(), &key).unwrap();
        let found = store.load("x").unwrap().unwrap();
        assert_eq!((found.dns_names.as_slice(), found.addresses.len()), (["vk1".to_owned()].as_slice(), 1));
        assert!(found.is_current() && found.certified_key("x").is_ok());
        assert!(!format!("{found:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_damaged_file_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let (chain, _) = pair();
        for damaged in
            ["", "nonsense", &chain, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
        {
            std::fs::write(store.path("x"), damaged).unwrap();
            assert!(store.load("x").unwrap().is_none(), "{damaged}");
        }
    }

    #[test]
    fn renewal_comes_from_70_to_90_percent_of_life() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(renewal(at(0), at(1000), 0.0), at(700));
        assert_eq!(renewal(at(0), at(1000), 0.5), at(800));
        assert!(renewal(at(0), at(1000), 0.999) < at(900));
    }
}
