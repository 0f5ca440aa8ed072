//! External CAs: whose certificates are accepted beside our own, and which role they get.

use ike::EngineConfig;
use ike::crypto::{HashFunction, default_provider};
use pki::validate::{self, PeerError};
use pki::{IkeId, UnixTime, VerifiedPeer};
use x509_parser::pem::Pem;

use crate::config::{Config, ExternalCa, MatchRule, Revocation};
use crate::revocation::{ListPlace, Sources};

/// Certificates in one CA's file at most.
const MAX_CERTIFICATES: usize = 64;

/// The external CAs of the configuration with their certificates.
#[derive(Debug, Default)]
pub struct Externals {
    cas: Vec<Loaded>,
    /// Role and rule, in the configuration's order: the first that fits decides.
    rules: Vec<(String, MatchRule)>,
}

#[derive(Debug)]
struct Loaded {
    name: String,
    anchors: Vec<Vec<u8>>,
    /// Sub-CAs from the same file, for peers that send less than their chain.
    intermediates: Vec<Vec<u8>>,
    sources: Sources,
}

/// A peer whose chain leads to an external CA.
#[derive(Debug, Clone)]
pub struct ExternalPeer {
    /// The CA's name in the configuration.
    pub ca: String,
    /// The role its certificate matches, if any.
    pub role: Option<String>,
    /// The peer.
    pub peer: VerifiedPeer,
    /// Where the standing of its certificates is told.
    pub sources: Sources,
}

impl Externals {
    /// Reads the CAs' files.
    ///
    /// # Errors
    /// One sentence for each file that cannot be used.
    pub fn load(config: &Config) -> Result<Self, Vec<String>> {
        let (mut cas, mut errors) = (Vec::new(), Vec::new());
        for ca in &config.cas {
            match load(ca) {
                Ok(loaded) => cas.push(loaded),
                Err(why) => {
                    errors.push(format!("ca \"{}\": {}: {why}", ca.name, ca.certificate.display()));
                }
            }
        }
        let rules = config
            .roles
            .iter()
            .flat_map(|role| role.matches.iter().map(|rule| (role.name.clone(), rule.clone())))
            .collect();
        if errors.is_empty() { Ok(Self { cas, rules }) } else { Err(errors) }
    }

    /// Adds to an engine's configuration what peers shall know of these CAs.
    pub fn asked_for(&self, mut engine: EngineConfig) -> EngineConfig {
        engine.trust_anchor_hashes.extend(self.anchor_hashes());
        engine.request_ocsp = self.want_ocsp();
        engine
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.cas.is_empty()
    }

    /// Whether peers should bring OCSP answers along (RFC 4806).
    fn want_ocsp(&self) -> bool {
        self.cas.iter().any(|ca| ca.sources.mode != Revocation::Off)
    }

    /// The anchors as CERTREQ names them: SHA-1 over the SubjectPublicKeyInfo (RFC 7296 3.7).
    fn anchor_hashes(&self) -> Vec<[u8; 20]> {
        let anchors = self.cas.iter().flat_map(|ca| &ca.anchors);
        anchors.filter_map(|der| spki_sha1(der)).collect()
    }

    /// Validates a chain up to one of the external CAs.
    ///
    /// # Errors
    /// What differed and what to do.
    pub fn verify(
        &self,
        chain: &[Vec<u8>],
        id: IkeId<'_>,
        now: UnixTime,
    ) -> Result<ExternalPeer, PeerError> {
        let anchors: Vec<Vec<u8>> =
            self.cas.iter().flat_map(|ca| ca.anchors.iter().cloned()).collect();
        let mut chain = chain.to_vec();
        for known in self.cas.iter().flat_map(|ca| &ca.intermediates) {
            // What the peer left out, as far as it sent less than is looked at.
            if (1..validate::MAX_CHAIN).contains(&chain.len()) && !chain.contains(known) {
                chain.push(known.clone());
            }
        }
        let peer = validate::verify_peer(&chain, &anchors, Some(id), now)?;
        let anchor = peer.path.last();
        let ca = self.cas.iter().find(|ca| ca.anchors.iter().any(|der| Some(der) == anchor));
        let Some(ca) = ca else {
            // The search ends at one of these anchors or fails.
            return Err(PeerError::UnknownIssuer {
                subject: peer.subject,
                issuer: peer.issuer,
                trusted: "none".to_owned(),
            });
        };
        let role = self.role(&ca.name, &peer.certificate);
        Ok(ExternalPeer { ca: ca.name.clone(), role, peer, sources: ca.sources.clone() })
    }

    /// Whether this CA still has this anchor.
    pub fn knows(&self, ca: &str, anchor: Option<&Vec<u8>>) -> bool {
        let ca = self.cas.iter().find(|known| known.name == ca);
        ca.is_some_and(|ca| ca.anchors.iter().any(|der| Some(der) == anchor))
    }

    /// The role of a certificate of this CA.
    pub fn role(&self, ca: &str, certificate: &[u8]) -> Option<String> {
        let fits = |rule: &MatchRule| {
            rule.ca == ca
                && rule.subject.as_ref().is_none_or(|subject| subject.matches(certificate))
                && rule.san.as_ref().is_none_or(|san| san.matches(certificate))
        };
        self.rules.iter().find(|(_, rule)| fits(rule)).map(|(role, _)| role.clone())
    }
}

fn load(ca: &ExternalCa) -> Result<Loaded, String> {
    let text = std::fs::read(&ca.certificate).map_err(|error| error.to_string())?;
    let mut ders: Vec<Vec<u8>> = Vec::new();
    if text.starts_with(&[0x30]) {
        ders.push(text);
    } else {
        for pem in Pem::iter_from_buffer(&text) {
            let pem = pem.map_err(|error| format!("the PEM does not parse ({error})"))?;
            if pem.label == "CERTIFICATE" {
                ders.push(pem.contents);
            }
        }
    }
    if ders.is_empty() || ders.len() > MAX_CERTIFICATES {
        return Err(format!(
            "it holds {} certificates; write 1 to {MAX_CERTIFICATES}, PEM",
            ders.len()
        ));
    }
    let (mut roots, mut others) = (Vec::new(), Vec::new());
    for der in ders {
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)
            .map_err(|error| format!("a certificate does not parse ({error})"))?;
        if validate::same_dn(parsed.subject().as_raw(), parsed.issuer().as_raw()) {
            roots.push(der);
        } else {
            others.push(der);
        }
    }
    // A file without a root makes what it holds the anchors.
    let (anchors, intermediates) =
        if roots.is_empty() { (others, Vec::new()) } else { (roots, others) };
    let place = |place: &String| match place.contains("://") {
        true => ListPlace::Url(place.clone()),
        false => ListPlace::File(place.into()),
    };
    Ok(Loaded {
        name: ca.name.clone(),
        anchors,
        intermediates,
        sources: Sources {
            mode: ca.revocation,
            ocsp: ca.ocsp.clone(),
            lists: ca.crl.iter().map(place).collect(),
            timeout: ca.timeout,
            refresh: ca.refresh,
        },
    })
}

/// SHA-1 over a certificate's SubjectPublicKeyInfo.
pub fn spki_sha1(certificate: &[u8]) -> Option<[u8; 20]> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let spki = certificate.public_key().raw;
    default_provider().digest(HashFunction::Sha1, &[spki]).try_into().ok()
}
