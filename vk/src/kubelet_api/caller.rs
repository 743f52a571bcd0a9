//! Who calls: user and groups, from a client certificate or a token.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
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
    /// From a verified chain, and when its certificate ends. The last CN is the user, as in Go (`FillFromRDNSequence` in
    /// crypto/x509/pkix), each O a group. `None` for a certificate without a CN, which names nobody.
    pub(super) fn from_certificates(chain: &[CertificateDer<'_>]) -> Option<(Self, Timestamp)> {
        let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(chain.first()?).ok()?;
        let user = leaf.subject().iter_common_name().last()?.as_str().ok()?;
        if user.is_empty() {
            return None;
        }
        let groups = leaf.subject().iter_organization().filter_map(|group| group.as_str().ok());
        let groups = groups.chain([AUTHENTICATED]).map(str::to_owned).collect();
        let caller = Self { user: user.to_owned(), uid: None, groups, extra: BTreeMap::new() };
        // RFC 5280's "no end" is a day later than the last that there is here.
        let valid_until =
            Timestamp::from_second(leaf.validity().not_after.timestamp()).unwrap_or(Timestamp::MAX);
        Some((caller, valid_until))
    }

    /// From the answer of a token's review.
    pub(super) fn from_review(info: UserInfo) -> Option<Self> {
        let user = info.username.filter(|user| !user.is_empty())?;
        let groups = info.groups.into_iter().flatten().chain([AUTHENTICATED.to_owned()]).collect();
        Some(Self { user, uid: info.uid, groups, extra: info.extra.unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn named_by(change: impl FnOnce(&mut CertificateParams)) -> Option<(Caller, Timestamp)> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut parameters);
        let certificate = parameters.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Caller::from_certificates(std::slice::from_ref(certificate.der()))
    }

    #[test]
    fn the_last_common_name_is_the_user() {
        let (caller, _) = named_by(|parameters| {
            parameters.distinguished_name.push(DnType::CommonName, "first");
            // Another key of the map, and the same name.
            parameters.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "last");
            parameters.distinguished_name.push(DnType::OrganizationName, "group");
        })
        .unwrap();
        assert_eq!(caller.user, "last");
        assert_eq!(caller.groups, BTreeSet::from(["group".to_owned(), AUTHENTICATED.to_owned()]));
        assert!(named_by(|_| ()).is_none(), "nobody's");
    }

    #[test]
    fn certificates_end() {
        let ends = |year, month, day| {
            let named = named_by(|parameters| {
                parameters.distinguished_name.push(DnType::CommonName, "user");
                parameters.not_after = rcgen::date_time_ymd(year, month, day);
            });
            named.unwrap().1
        };
        assert_eq!(ends(2030, 1, 2), "2030-01-02T00:00:00Z".parse().unwrap());
        assert_eq!(ends(9999, 12, 31), Timestamp::MAX);
    }
}
