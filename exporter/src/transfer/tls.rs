//! Whom a connection may trust: certificate authorities, one certificate by its thumbprint, or,
//! only if it was asked for, anybody. TLS 1.2 and 1.3.
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use sha2::Digest;

use crate::error::{Error, ErrorKind, Result};

/// The hash of a certificate, as administrators compare it: SHA-256, or SHA-1 as older tools show.
#[derive(Clone, PartialEq, Eq)]
pub struct Thumbprint(Vec<u8>);

impl Thumbprint {
    fn is_of(&self, certificate: &[u8]) -> bool {
        match self.0.len() {
            20 => sha1::Sha1::digest(certificate).as_slice() == self.0,
            _ => sha2::Sha256::digest(certificate).as_slice() == self.0,
        }
    }

    pub fn sha256(certificate: &[u8]) -> Self {
        Self(sha2::Sha256::digest(certificate).to_vec())
    }
}

impl FromStr for Thumbprint {
    type Err = Error;

    /// 40 or 64 hexadecimal digits, with or without colons.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::invalid(format!("{text:?} is not a certificate's thumbprint")).with_remedy(
                "give the certificate's SHA-256 (or SHA-1) hash in hexadecimal, as openssl x509 \
                 -noout -fingerprint -sha256 prints it",
            )
        };
        let digits: Vec<u8> = text
            .trim()
            .bytes()
            .filter(|byte| !matches!(byte, b':' | b' '))
            .collect();
        let value = |digit: u8| char::from(digit).to_digit(16).ok_or_else(bad);
        let bytes = digits
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => u8::try_from(value(*high)? * 16 + value(*low)?).map_err(|_| bad()),
                _ => Err(bad()),
            })
            .collect::<Result<Vec<u8>>>()?;
        match bytes.len() {
            20 | 32 => Ok(Self(bytes)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let colon = if index > 0 { ":" } else { "" };
            write!(f, "{colon}{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Without any of it: the host's certificate authorities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// PEM; instead of the host's own.
    pub ca_file: Option<PathBuf>,
    /// Of the server's certificate, which then needs no authority and no right name.
    pub thumbprint: Option<Thumbprint>,
    /// Whoever answers is believed.
    pub insecure: bool,
}

/// Certificates of other hosts that the trusted server has vouched for, by host name or address.
#[derive(Debug, Clone, Default)]
pub struct Vouched(Arc<Mutex<HashMap<String, Thumbprint>>>);

impl Vouched {
    pub fn insert(&self, host: &str, thumbprint: Thumbprint) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(plain(host), thumbprint);
    }

    fn get(&self, host: &str) -> Option<Thumbprint> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&plain(host)).cloned()
    }
}

/// As certificates are asked for: an IPv6 address without its brackets.
fn plain(host: &str) -> String {
    host.trim_matches(['[', ']']).to_ascii_lowercase()
}

impl Trust {
    /// `host` is the server that `thumbprint` is of; others need an authority or a voucher.
    pub fn config(&self, host: &str, vouched: &Vouched) -> Result<ClientConfig> {
        let provider = Arc::new(ring::default_provider());
        let verifier = Verifier {
            roots: self.roots(&provider)?,
            trust: self.clone(),
            host: plain(host),
            vouched: vouched.clone(),
            provider: Arc::clone(&provider),
        };
        let failed =
            |error: rustls::Error| Error::new(ErrorKind::Internal, "set TLS up").with_source(error);
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(config)
    }

    /// `None` if there is no authority at all.
    fn roots(&self, provider: &Arc<CryptoProvider>) -> Result<Option<Arc<WebPkiServerVerifier>>> {
        let mut roots = RootCertStore::empty();
        match &self.ca_file {
            Some(path) => {
                for certificate in read_pem(path)? {
                    roots
                        .add(certificate)
                        .map_err(|error| bad_pem(path, error))?;
                }
                if roots.is_empty() {
                    return Err(bad_pem(path, "it holds no certificate"));
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
            }
        }
        if roots.is_empty() {
            return Ok(None);
        }
        let built =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
                .build();
        let verifier = built.map_err(|error| {
            Error::new(ErrorKind::Internal, "set the certificate authorities up").with_source(error)
        })?;
        Ok(Some(verifier))
    }
}

fn read_pem(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
    CertificateDer::pem_slice_iter(&bytes)
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| bad_pem(path, error))
}

fn bad_pem(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::invalid(format!("{} is not a list of certificates", path.display()))
        .with_remedy("give certificate authorities in PEM form")
        .with_source(source)
}

#[derive(Debug)]
struct Verifier {
    roots: Option<Arc<WebPkiServerVerifier>>,
    trust: Trust,
    host: String,
    vouched: Vouched,
    provider: Arc<CryptoProvider>,
}

/// Why a certificate was refused, with what an administrator compares.
#[derive(Debug)]
pub struct Distrust {
    pub thumbprint: Thumbprint,
    pub cause: String,
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}; its SHA-256 thumbprint is {}",
            self.cause, self.thumbprint
        )
    }
}

impl std::error::Error for Distrust {}

impl Verifier {
    fn refuse(certificate: &[u8], cause: impl Into<String>) -> rustls::Error {
        let distrust = Distrust {
            thumbprint: Thumbprint::sha256(certificate),
            cause: cause.into(),
        };
        CertificateError::Other(OtherError(Arc::new(distrust))).into()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let verified = Ok(ServerCertVerified::assertion());
        if self.trust.insecure {
            return verified;
        }
        let name = server_name.to_str();
        let wanted = match &self.trust.thumbprint {
            Some(thumbprint) if plain(&name) == self.host => Some(thumbprint.clone()),
            _ => self.vouched.get(&name),
        };
        if let Some(wanted) = wanted {
            if wanted.is_of(end_entity) {
                return verified;
            }
            return Err(Self::refuse(
                end_entity,
                format!("the certificate is not {wanted}"),
            ));
        }
        let Some(roots) = &self.roots else {
            let cause = "this host has no certificate authorities";
            return Err(Self::refuse(end_entity, cause));
        };
        let checked =
            roots.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        checked.map_err(|error| {
            let cause = match &error {
                rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
                    format!("no authority vouches for it ({})", other.0)
                }
                error => error.to_string(),
            };
            Self::refuse(end_entity, cause)
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The refused certificate below an error, wherever it is.
pub fn distrust<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Distrust> {
    if let Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) =
        error.downcast_ref::<rustls::Error>()
    {
        return other.0.downcast_ref::<Distrust>();
    }
    // An I/O error does not show what it wraps as its source.
    let wrapped = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    match wrapped {
        Some(wrapped) => distrust(wrapped),
        None => distrust(error.source()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbprints_are_read_as_tools_print_them() {
        let sha1 = "AB:cd:00:01:02:03:04:05:06:07:08:09:0A:0B:0C:0D:0E:0F:10:11";
        let bare = sha1.replace(':', "");
        let read = |text: &str| text.parse::<Thumbprint>();
        assert_eq!(read(sha1).unwrap(), read(&bare).unwrap());
        assert_eq!(read(&bare).unwrap().to_string(), sha1.to_uppercase());
        let sha256 = Thumbprint::sha256(b"x");
        assert_eq!(read(&sha256.to_string()).unwrap(), sha256);
        assert!(sha256.is_of(b"x") && !sha256.is_of(b"y"));
        for wrong in [
            "",
            "AB:CD",
            "zz",
            &bare[1..],
            &format!("{bare}0"),
            &"é".repeat(20),
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_of_authorities_must_be_one() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ca.pem");
        std::fs::write(&path, "no certificates here").unwrap();
        let trust = Trust {
            ca_file: Some(path),
            ..Trust::default()
        };
        let error = trust.config("vc", &Vouched::default()).unwrap_err();
        assert!(error.to_line().contains("PEM"), "{}", error.to_line());
    }
}
