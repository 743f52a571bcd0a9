//! Signs certificate requests as the controller manager would.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PublicKeyData, SignatureAlgorithm};
use serde_json::Value;
use x509_parser::{
    certification_request::X509CertificationRequest, pem::parse_x509_pem, prelude::FromDer as _,
};

pub(crate) struct Signer(CertifiedIssuer<'static, KeyPair>);

struct PublicKey(Vec<u8>);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl Signer {
    pub(crate) fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    /// The certificate for a request, as its status carries it. It ends `life` seconds from now, and began ten times
    /// that ago: it is due for renewal at once.
    pub(crate) fn sign(&self, request: &Value, life: i64) -> String {
        let pem = STANDARD.decode(request["spec"]["request"].as_str().unwrap()).unwrap();
        let (_, pem) = parse_x509_pem(&pem).unwrap();
        let (_, csr) = X509CertificationRequest::from_der(&pem.contents).unwrap();
        let info = &csr.certification_request_info;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        let text = |mut names: Box<dyn Iterator<Item = String> + '_>| names.next().unwrap();
        let name =
            text(Box::new(info.subject.iter_common_name().map(|name| name.as_str().unwrap().to_owned())));
        let group =
            text(Box::new(info.subject.iter_organization().map(|name| name.as_str().unwrap().to_owned())));
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.distinguished_name.push(DnType::OrganizationName, group);
        let now = jiff::Timestamp::now().as_second();
        let at = |second: i64| {
            rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(second.unsigned_abs())
        };
        let long = life >= 3600;
        parameters.not_before = at(if long { now - 60 } else { now - 10 * life });
        parameters.not_after = at(now + life);
        let key = PublicKey(info.subject_pki.subject_public_key.data.to_vec());
        STANDARD.encode(parameters.signed_by(&key, &self.0).unwrap().pem())
    }
}
