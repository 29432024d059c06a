//! The certificate authority of the sandbox, and certificates of servers, made as they are needed.
//!
//! All certificates have one key, which lives as long as the process. They are valid from 30 days
//! ago for 60 days, and made again a week before their end: neither a guest's slow clock nor a
//! sandbox that runs for months sees a date error.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::{Timestamp, ToSpan, tz::TimeZone};
use libmsb::net::name::HostName;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::limits::CERTIFICATES_MAX;

/// Days that a certificate is valid before and after its creation.
const CERTIFICATE_DAYS: i64 = 30;
/// Time after which a certificate is made again.
const CERTIFICATE_AGE_MAX: Duration = Duration::from_secs(23 * 24 * 3600);
/// Days that the authority is valid.
const AUTHORITY_DAYS: i64 = 20 * 365;

/// A configuration for a server name and protocol, with the time of its certificate.
type KnownServer = (Instant, Arc<ServerConfig>);

/// The authority of a sandbox.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    leaf_key: KeyPair,
    known: Mutex<HashMap<(HostName, Vec<u8>), KnownServer>>,
}

impl Authority {
    /// Opens the authority in a PEM text, or creates one. Returns also the text of a new one.
    pub(crate) fn open(text: Option<&str>) -> anyhow::Result<(Authority, Option<String>)> {
        match text {
            Some(text) => Ok((Authority::parse(text)?, None)),
            None => {
                let text = create()?;
                Ok((Authority::parse(&text)?, Some(text)))
            }
        }
    }

    fn parse(text: &str) -> anyhow::Result<Authority> {
        let certificate = CertificateDer::from_pem_slice(text.as_bytes())
            .context("the file of the certificate authority has no certificate")?;
        let key = KeyPair::from_pem(key_section(text))
            .context("the file of the certificate authority has no private key")?;
        let params = authority_params(&key)?;
        Ok(Authority {
            certificate_pem: certificate_section(text).to_owned(),
            issuer: Issuer::new(params, key),
            certificate,
            leaf_key: KeyPair::generate().context("cannot create a key")?,
            known: Mutex::new(HashMap::new()),
        })
    }

    /// Returns the certificate of the authority, PEM.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Returns the configuration of a server with this name and ALPN protocol, if any.
    pub(crate) fn server(
        &self,
        name: &HostName,
        protocol: Option<&[u8]>,
    ) -> anyhow::Result<Arc<ServerConfig>> {
        let key = (name.clone(), protocol.unwrap_or_default().to_vec());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, config)) = known.get(&key)
            && made.elapsed() < CERTIFICATE_AGE_MAX
        {
            return Ok(config.clone());
        }
        if known.len() >= CERTIFICATES_MAX {
            known.clear();
        }
        let mut config = self.make_server(name)?;
        config.alpn_protocols.extend(protocol.map(<[u8]>::to_vec));
        let config = Arc::new(config);
        known.insert(key, (Instant::now(), config.clone()));
        Ok(config)
    }

    /// Makes a certificate for a name. It has no common name, which could not hold a long name.
    fn make_certificate(&self, name: &HostName) -> anyhow::Result<CertificateDer<'static>> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(name.as_str().try_into()?)];
        params.distinguished_name = DistinguishedName::new();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, -CERTIFICATE_DAYS, CERTIFICATE_DAYS)?;
        Ok(params.signed_by(&self.leaf_key, &self.issuer)?.der().clone())
    }

    fn make_server(&self, name: &HostName) -> anyhow::Result<ServerConfig> {
        let chain = vec![self.make_certificate(name)?, self.certificate.clone()];
        let key = PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from(key))?;
        Ok(config)
    }
}

/// Creates an authority: its certificate and private key, PEM.
fn create() -> anyhow::Result<String> {
    let key = KeyPair::generate().context("cannot create a key")?;
    let certificate = authority_params(&key)?.self_signed(&key)?;
    Ok(format!("{}{}", certificate.pem(), key.serialize_pem()))
}

/// Returns the fields of the authority's certificate. The subject depends on the key only, so that
/// the same fields are found when the authority is opened again.
fn authority_params(key: &KeyPair) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let number: String =
        key.public_key_raw().iter().rev().take(8).map(|byte| format!("{byte:02x}")).collect();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, format!("msb sandbox {number}"));
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, -CERTIFICATE_DAYS, AUTHORITY_DAYS)?;
    Ok(params)
}

/// Sets the days on which a certificate begins and ends to be valid, counted from today.
fn set_validity(params: &mut CertificateParams, from: i64, to: i64) -> anyhow::Result<()> {
    let day = |from_now: i64| {
        let date = Timestamp::now().to_zoned(TimeZone::UTC).date();
        let date = date.checked_add(from_now.days()).context("cannot read the clock")?;
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        anyhow::Ok((i32::from(date.year()), month, day))
    };
    let ((year, month, first), (end_year, end_month, last)) = (day(from)?, day(to)?);
    params.not_before = date_time_ymd(year, month, first);
    params.not_after = date_time_ymd(end_year, end_month, last);
    Ok(())
}

const KEY_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";

fn key_section(text: &str) -> &str {
    text.find(KEY_BEGIN).map_or("", |start| &text[start..])
}

fn certificate_section(text: &str) -> &str {
    text.find(KEY_BEGIN).map_or(text, |start| &text[..start])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_the_same_when_it_is_opened_again() {
        let (first, created) = Authority::open(None).unwrap();
        let created = created.unwrap();
        let (again, none) = Authority::open(Some(&created)).unwrap();
        assert!(none.is_none());
        assert_eq!(first.certificate_pem(), again.certificate_pem());
        assert!(!again.certificate_pem().contains("PRIVATE"));
        for wrong in ["", "x", again.certificate_pem(), key_section(&created)] {
            assert!(Authority::open(Some(wrong)).is_err());
        }
    }

    #[test]
    fn certificates_are_verified_for_their_name_up_to_the_longest() {
        use rustls::client::WebPkiServerVerifier;
        use rustls::client::danger::ServerCertVerifier;
        use rustls::pki_types::{ServerName, UnixTime};
        let (authority, created) = Authority::open(None).unwrap();
        let (authority_again, _) = Authority::open(created.as_deref()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().unwrap();
        let label = "a".repeat(61);
        let long: HostName = format!("{label}.{label}.{label}.{label}.abc").parse().unwrap();
        let days = |count: u64| Duration::from_secs(count * 24 * 3600);
        let now = UnixTime::now().as_secs();
        for name in [&"a.test".parse().unwrap(), &long] {
            let leaf = authority_again.make_certificate(name).unwrap();
            let server = ServerName::try_from(name.as_str().to_owned()).unwrap();
            for time in [now - days(28).as_secs(), now, now + days(28).as_secs()] {
                let time = UnixTime::since_unix_epoch(Duration::from_secs(time));
                verifier.verify_server_cert(&leaf, &[], &server, &[], time).unwrap();
            }
            authority.server(name, Some(b"h2")).unwrap();
        }
        let config = authority.server(&long, None).unwrap();
        assert!(Arc::ptr_eq(&config, &authority.server(&long, None).unwrap()));
    }
}
