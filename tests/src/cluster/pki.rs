//! The cluster's certificates and kubeconfigs. One authority signs all; each component has the identity that Kubernetes expects of it.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// The authority and the folder that holds what it signed.
pub struct Pki {
    folder: PathBuf,
    ca: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Makes an authority: `ca.crt`, `ca.key`, and the service accounts' key pair `sa.key`, `sa.pub`.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn create(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
        let params = authority();
        let key = KeyPair::generate()?;
        write(&folder.join("ca.crt"), &params.self_signed(&key)?.pem())?;
        write(&folder.join("ca.key"), &key.serialize_pem())?;
        let service_accounts = KeyPair::generate()?;
        write(&folder.join("sa.key"), &service_accounts.serialize_pem())?;
        write(&folder.join("sa.pub"), &service_accounts.public_key_pem())?;
        Ok(Self { folder: folder.to_owned(), ca: Issuer::new(params, key) })
    }

    /// The authority of a cluster that runs, from its folder.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let read = |file: &str| {
            let path = folder.join(file);
            fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
        };
        let key = KeyPair::from_pem(&read("ca.key")?)?;
        Ok(Self { folder: folder.to_owned(), ca: Issuer::new(authority(), key) })
    }

    /// Signs `<name>.crt` with `<name>.key` for a user in groups, valid as client and, with names or addresses, as server.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn sign(&self, name: &str, user: &str, groups: &[&str], hosts: &[&str]) -> anyhow::Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !hosts.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        for host in hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*host).try_into()?),
            });
        }
        let key = KeyPair::generate()?;
        let certificate = params
            .signed_by(&key, &self.ca)
            .with_context(|| format!("can't sign a certificate for {user}"))?;
        write(&self.folder.join(format!("{name}.crt")), &certificate.pem())?;
        write(&self.folder.join(format!("{name}.key")), &key.serialize_pem())
    }

    /// The text of a signed file.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(&self, file: &str) -> anyhow::Result<String> {
        let path = self.folder.join(file);
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
    }

    /// A kubeconfig with everything inside, so that it works wherever it is copied.
    ///
    /// # Errors
    /// When the certificate was not signed before.
    pub fn kubeconfig(&self, name: &str, server: &str) -> anyhow::Result<String> {
        let data = |file: String| anyhow::Ok(base64(self.read(&file)?.as_bytes()));
        Ok(kubeconfig(
            server,
            &data("ca.crt".to_owned())?,
            &format!(
                "client-certificate-data: {}, client-key-data: {}",
                data(format!("{name}.crt"))?,
                data(format!("{name}.key"))?
            ),
        ))
    }

    /// A kubeconfig that holds a bootstrap token.
    ///
    /// # Errors
    /// When the authority can't be read.
    pub fn bootstrap_kubeconfig(&self, token: &str, server: &str) -> anyhow::Result<String> {
        bootstrap_kubeconfig(&self.folder, token, server)
    }
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "spillway-test-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

/// The same, of the authority in a folder.
///
/// # Errors
/// When the authority can't be read.
pub fn bootstrap_kubeconfig(folder: &Path, token: &str, server: &str) -> anyhow::Result<String> {
    let path = folder.join("ca.crt");
    let authority = fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
    Ok(kubeconfig(server, &base64(&authority), &format!("token: {token}")))
}

fn kubeconfig(server: &str, ca: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: spillway\n  cluster: {{server: \"{server}\", certificate-authority-data: \
         {ca}}}\nusers:\n- name: spillway\n  user: {{{user}}}\ncontexts:\n- name: spillway\n  context: {{cluster: spillway, user: \
         spillway}}\ncurrent-context: spillway\n"
    )
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("can't create {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("can't write {}", path.display()))
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
