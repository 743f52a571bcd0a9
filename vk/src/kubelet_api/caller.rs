//! Who calls: user and groups, from a client certificate or a token.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::authentication::v1::UserInfo;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::FromDer as _;

/// The group of everyone who proved who they are.
const AUTHENTICATED: &str = "system:authenticated";

/// A user as Kubernetes knows them. Ordered, to be the key of a cache.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Caller {
    pub(super) user: String,
    pub(super) uid: Option<String>,
    pub(super) groups: BTreeSet<String>,
    pub(super) extra: BTreeMap<String, Vec<String>>,
}

impl Caller {
    /// From a verified chain: the last CN is the user, as in Go (`FillFromRDNSequence` in crypto/x509/pkix), and each O a group. `None` for a certificate without a CN, which names nobody.
    pub(super) fn from_certificates(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(chain.first()?).ok()?;
        let user = leaf.subject().iter_common_name().last()?.as_str().ok()?;
        if user.is_empty() {
            return None;
        }
        let groups = leaf.subject().iter_organization().filter_map(|group| group.as_str().ok());
        let groups = groups.chain([AUTHENTICATED]).map(str::to_owned).collect();
        Some(Self { user: user.to_owned(), uid: None, groups, extra: BTreeMap::new() })
    }

    /// From the answer of a token's review.
    pub(super) fn from_review(info: UserInfo) -> Option<Self> {
        let user = info.username.filter(|user| !user.is_empty())?;
        let groups = info.groups.into_iter().flatten().chain([AUTHENTICATED.to_owned()]).collect();
        Some(Self { user, uid: info.uid, groups, extra: info.extra.unwrap_or_default() })
    }
}
