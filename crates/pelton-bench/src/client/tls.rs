//! TLS to the server: which certificates are trusted.

use std::io;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::connection::Timed;
use crate::BenchError;
use crate::plan::TargetPlan;

/// How connections to one host are secured.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Tls {
    /// Trusts the roots of the system and those of the plan. `protocol` is offered to the server (ALPN): `http/1.1` or `h2`.
    pub fn new(plan: &TargetPlan, host: &str, protocol: &[u8]) -> Result<Self, BenchError> {
        let bad = |reason: String| BenchError::Plan(reason);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| bad(format!("{host:?} is not a name that a certificate can have")))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(format!("TLS cannot be used: {error}")))?;
        let trust = if plan.insecure { Trust::Anyone } else { Trust::given(plan.ca.as_deref(), &provider)? };
        let verifier = Arc::new(Verifier { trust, provider });
        let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// Shakes hands over a fresh connection.
    pub async fn connect(&self, socket: Timed) -> io::Result<TlsStream<Timed>> {
        self.connector.connect(self.name.clone(), socket).await
    }
}

/// Read once: hundreds of files, in some systems.
static SYSTEM_ROOTS: LazyLock<RootCertStore> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    // Systems hold a few certificates that nobody can read any more.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
});

/// Whose certificates are believed.
#[derive(Debug)]
enum Trust {
    /// Everybody's, for servers under test with one that nobody signed.
    Anyone,
    /// Those that a root signed, and the ones that the user gave.
    Roots { usual: Arc<WebPkiServerVerifier>, given: Vec<CertificateDer<'static>> },
}

impl Trust {
    /// The roots of the system, and the certificates of the file.
    fn given(ca: Option<&Path>, provider: &Arc<CryptoProvider>) -> Result<Self, BenchError> {
        let mut roots = SYSTEM_ROOTS.clone();
        let mut given = Vec::new();
        if let Some(path) = ca {
            let bad = |error: String| BenchError::Plan(format!("certificates {}: {error}", path.display()));
            let certificates = CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| bad(error.to_string()))?;
                roots.add(certificate.clone()).map_err(|error| bad(error.to_string()))?;
                given.push(certificate);
            }
            if given.is_empty() {
                return Err(bad("holds none (PEM, -----BEGIN CERTIFICATE-----)".to_owned()));
            }
        }
        if roots.is_empty() {
            return Err(BenchError::Plan("the system has no certificates to trust: name some with --ca".to_owned()));
        }
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
        let usual = usual.map_err(|error| BenchError::Plan(format!("TLS cannot be used: {error}")))?;
        Ok(Trust::Roots { usual, given })
    }
}

/// Checks certificates. That the server holds the key of its own is checked whatever is trusted.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust::Roots { usual, given } = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        match usual.verify_server_cert(certificate, between, name, ocsp, now) {
            // What `openssl req -x509` makes calls itself an authority, which no server's certificate may: one of several faults of form
            // that have no name here. The user gave this very one, so its name is left to check; that it has expired would have been told
            // before, by an error of its own.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))) if given.contains(certificate) => {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
