//! An engine with real cryptography and no data plane around it: the client of load tests, and
//! both ends of the handshake benchmark.
//!
//! Signatures are made and verified for real. Of a certificate only the public key is read: chains
//! are validated by the gateway, not here. Child SAs go into no data plane.

use std::collections::VecDeque;
use std::net::SocketAddr;

use anyhow::{Result, anyhow};
use ike::config::{
    Continuity, Credential, EngineConfig, Limits, LocalAuth, PeerConfig, RemoteAuth, Timers, Volume,
};
use ike::crypto::ring::Pkcs8Signer;
use ike::crypto::{
    CryptoProvider, EspSuite, IkeSuite, KexExecutor, SignatureError, SignatureScheme, Signer,
};
use ike::event::{Blame, Refusal};
use ike::io::{
    Checkpoint, ChildUse, CredentialId, Grant, LeaseId, PeerProof, UniquePolicy, VerifiedPeer,
    VerifyPeer,
};
use ike::snapshot::Snapshot;
use ike::wire::{Identification, NotifyType, TrafficSelector};
use ike::{Action, Completion, Engine, EngineError, Event, Input, Now, Output, Transmit, WallTime};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

use crate::stopwatch::Meter;

/// The only local key's name.
const CREDENTIAL: CredentialId = CredentialId(1);

/// A far end for what these tests never let end.
const FAR: WallTime = WallTime(i64::MAX / 2);

/// A key with the certificates that prove it.
#[derive(Debug)]
pub struct Identity {
    /// What the peer is told.
    pub name: Identification,
    /// The private key.
    pub signer: Box<dyn Signer>,
    /// Certificates, DER, end entity first.
    pub chain: Vec<Vec<u8>>,
}

/// One engine and the world's side of its actions.
pub struct Party {
    /// The engine.
    pub engine: Engine,
    crypto: &'static CryptoProvider,
    kex: KexExecutor,
    signer: Box<dyn Signer>,
    /// Measures key exchanges and signatures, made and checked.
    pub meter: Meter,
    /// What the engine wanted stored while the meter was on.
    pub stored: Vec<Checkpoint>,
    /// Answers Authorise.
    grant: fn(u64) -> Grant,
    grants: u64,
    /// The answer to the next Authorise, made before it is asked for.
    granted: Option<Box<Grant>>,
    /// The last peer's identity, and the same as text.
    named: Option<(Identification, String)>,
    /// Answers for the engine: always empty, but with room.
    inputs: VecDeque<Input>,
    next_spi: u32,
}

/// An engine configuration with short proposals.
pub fn config(identity: &Identity, ike: &[IkeSuite], esp: &[EspSuite]) -> EngineConfig {
    EngineConfig {
        shard: 0,
        identity: identity.name.clone(),
        credentials: vec![Credential {
            id: CREDENTIAL,
            chain: identity.chain.clone(),
            schemes: identity.signer.schemes().to_vec(),
            authorities: Vec::new(),
            ocsp: Vec::new(),
        }],
        trust_anchor_hashes: Vec::new(),
        request_ocsp: false,
        ike_suites: ike.to_vec(),
        esp_suites: esp.to_vec(),
        force_encap: false,
        fragment_size: 1232,
        eap_tls: false,
        eap_only: false,
        ppk: false,
        timers: Timers::default(),
        volume: Volume::default(),
        limits: Limits::default(),
        continuity: Continuity::default(),
    }
}

/// What an initiator with one virtual address asks of a gateway.
pub fn target(
    config: &EngineConfig,
    local: SocketAddr,
    remote: SocketAddr,
    gateway: Identification,
) -> Option<PeerConfig> {
    Some(PeerConfig {
        name: "gateway".to_owned(),
        local,
        remote,
        identity: config.identity.clone(),
        expected: Some(gateway),
        local_auth: LocalAuth::Certificate(CREDENTIAL),
        remote_auth: RemoteAuth::Certificate,
        ppk: None,
        ike_suites: config.ike_suites.clone(),
        esp_suites: config.esp_suites.clone(),
        first_ke: config.ike_suites.first()?.kex,
        request_ipv4: true,
        request_ipv6: false,
        ts_local: Vec::new(),
        ts_remote: vec![TrafficSelector::any_v4()],
        first_child: ike::config::FirstChild::WithIkeAuth,
        transport: false,
        mobike: false,
        initial_contact: false,
        follow_redirects: false,
        redirected_from: None,
    })
}

/// A grant of nothing in particular, without addresses: an initiator gets its own from the peer.
pub fn any_grant(number: u64) -> Grant {
    Grant {
        lease: LeaseId(format!("lease-{number}")),
        role: "test".to_owned(),
        reqid: 1,
        addresses: Vec::new(),
        dns: Vec::new(),
        allowed: Vec::new(),
        networks: Vec::new(),
        transport: false,
        deadline: FAR,
        unique: UniquePolicy::Keep,
    }
}

impl Party {
    /// An engine of this identity; `grant` answers for the lease of each peer, counted from 0.
    ///
    /// # Errors
    /// When the provider lacks what the configuration names.
    pub fn new(
        config: EngineConfig,
        crypto: &'static CryptoProvider,
        signer: Box<dyn Signer>,
        grant: fn(u64) -> Grant,
        seed: [u8; 32],
        now: Now,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            engine: Engine::new(config, crypto, seed, now)?,
            crypto,
            kex: KexExecutor::new(crypto),
            signer,
            meter: Meter::default(),
            stored: Vec::new(),
            grant,
            grants: 0,
            granted: None,
            named: None,
            inputs: VecDeque::new(),
            next_spi: 0xc000_0000,
        })
    }

    /// Forgets everything but these SAs, as after a crash.
    ///
    /// # Errors
    /// When they run with what the provider lacks.
    pub fn restart(
        &mut self,
        config: EngineConfig,
        seed: [u8; 32],
        now: Now,
        snapshots: impl IntoIterator<Item = Snapshot>,
    ) -> Result<(), EngineError> {
        self.engine = Engine::restore(config, self.crypto, seed, now, snapshots)?;
        self.kex = KexExecutor::new(self.crypto);
        Ok(())
    }

    /// Makes the answer to the next Authorise, so that who measures measures the engine.
    pub fn prepare(&mut self) {
        if self.granted.is_none() {
            self.granted = Some(self.next_grant());
        }
    }

    /// Gives the engine an input and executes what it wants done, until it wants nothing more.
    pub fn handle(
        &mut self,
        now: Now,
        input: Input,
        sent: &mut Vec<Transmit>,
        events: &mut Vec<Event>,
    ) {
        let mut inputs = std::mem::take(&mut self.inputs);
        inputs.push_back(input);
        while let Some(input) = inputs.pop_front() {
            self.engine.handle(now, input);
            while let Some(output) = self.engine.poll_output() {
                match output {
                    Output::Transmit(transmit) => sent.push(transmit),
                    Output::Event(event) => events.push(event),
                    Output::Action(token, action) => {
                        let completion = self.execute(action);
                        inputs.push_back(Input::Completion(token, completion));
                    }
                    // Dropping one is no part of what is measured.
                    Output::Checkpoint(checkpoint) if self.meter.on => self.stored.push(checkpoint),
                    Output::Checkpoint(_) => {}
                }
            }
        }
        self.inputs = inputs;
    }

    fn execute(&mut self, action: Action) -> Completion {
        match action {
            Action::KeyExchange(request) => {
                let response = self.meter.measure(|| self.kex.execute(request));
                Completion::KeyExchange(Ok(response))
            }
            Action::Sign { scheme, message, .. } => {
                let signature = self.meter.measure(|| self.signer.sign(scheme, &message));
                Completion::Sign(signature.map_err(|error| error.to_string()))
            }
            Action::VerifyPeer(request) => {
                Completion::VerifyPeer(self.verify(&request).map_err(|error| *error))
            }
            Action::SharedKey(_) => {
                let what = "here are no shared keys".to_owned();
                Completion::SharedKey(Err(refusal("no_shared_key", what)))
            }
            Action::Ppk(_) => {
                let what = "here are no post-quantum preshared keys".to_owned();
                Completion::Ppk(Err(refusal("unknown_ppk", what)))
            }
            Action::EapTls(_) => {
                let what = "here is no EAP-TLS".to_owned();
                Completion::EapTls(Err(refusal("eap_tls", what)))
            }
            Action::Authorise(_) => {
                let grant = self.granted.take().unwrap_or_else(|| self.next_grant());
                Completion::Authorise(Ok(grant))
            }
            Action::AllocSpi => {
                self.next_spi += 1;
                Completion::AllocSpi(Ok(self.next_spi))
            }
            Action::InstallChild(_) => Completion::InstallChild(Ok(())),
            Action::ActivateChild(_) => Completion::ActivateChild(Ok(())),
            Action::UpdateHosts { .. } => Completion::UpdateHosts(Ok(())),
            Action::RemoveChild { .. } => Completion::RemoveChild(Ok(ChildUse::default())),
            Action::SolvePuzzle(puzzle) => Completion::SolvePuzzle(puzzle.solve(self.crypto)),
            Action::QueryUse(_) => Completion::QueryUse(Ok(ChildUse::default())),
        }
    }

    fn verify(&mut self, request: &VerifyPeer) -> Result<Box<VerifiedPeer>, Box<Refusal>> {
        let refuse = |code, what| Box::new(refusal(code, what));
        if request.expected.as_ref().is_some_and(|expected| *expected != request.identity) {
            return Err(refuse("identity_mismatch", request.identity.to_string()));
        }
        let certificate = request.certificates.first().map(Vec::as_slice).unwrap_or_default();
        let key = public_key(certificate)
            .ok_or_else(|| refuse("no_certificate", "no certificate".to_owned()))?;
        self.meter
            .measure(|| {
                self.crypto.verify(request.scheme, key, &request.message, &request.signature)
            })
            .map_err(|error| refuse("bad_signature", error.to_string()))?;
        Ok(Box::new(VerifiedPeer {
            identity: self.name_of(&request.identity),
            proof: PeerProof::Certificate { issuer: Vec::new(), serial: vec![1], not_after: FAR },
        }))
    }
}

impl Party {
    fn next_grant(&mut self) -> Box<Grant> {
        let grant = (self.grant)(self.grants);
        self.grants += 1;
        Box::new(grant)
    }

    /// An identity as text. The same peer comes over and over.
    fn name_of(&mut self, identity: &Identification) -> String {
        match &self.named {
            Some((known, name)) if known == identity => name.clone(),
            _ => {
                let name = identity.to_string();
                self.named = Some((identity.clone(), name.clone()));
                name
            }
        }
    }
}

fn refusal(code: &'static str, what: String) -> Refusal {
    Refusal {
        ike: None,
        remote: None,
        identity: None,
        blame: Blame::Incompatible,
        notify: Some(NotifyType::AuthenticationFailed),
        code,
        what,
        fix: String::new(),
    }
}

/// `[0]`, the version, with which a TBSCertificate begins.
const VERSION: u8 = 0xa0;

/// The SubjectPublicKeyInfo of a certificate (RFC 5280 4.1), or the bytes themselves when they are
/// one already.
pub fn public_key(der: &[u8]) -> Option<&[u8]> {
    let body = element(element(der)?.content)?.content;
    if body.first() != Some(&VERSION) {
        return Some(der);
    }
    // After version, serial number, signature, issuer, validity and subject.
    nth(body, 6)
}

/// The subject of a certificate, DER.
pub fn subject(certificate: &[u8]) -> Option<&[u8]> {
    let body = element(element(certificate)?.content)?.content;
    nth(body, 5)
}

fn nth(mut elements: &[u8], index: usize) -> Option<&[u8]> {
    for _ in 0..index {
        elements = elements.get(element(elements)?.whole.len()..)?;
    }
    Some(element(elements)?.whole)
}

struct Element<'a> {
    whole: &'a [u8],
    content: &'a [u8],
}

fn element(der: &[u8]) -> Option<Element<'_>> {
    let first = usize::from(*der.get(1)?);
    let (header, length) = if first < 0x80 {
        (2, first)
    } else {
        let octets = der.get(2..2 + (first & 0x7f))?;
        let length = octets.iter().try_fold(0_usize, |length, octet| {
            length.checked_mul(256).map(|length| length + usize::from(*octet))
        })?;
        (2 + octets.len(), length)
    };
    let whole = der.get(..header.checked_add(length)?)?;
    Some(Element { whole, content: whole.get(header..)? })
}

/// A DER element.
pub fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let octets: Vec<u8> =
                length.to_be_bytes().into_iter().skip_while(|octet| *octet == 0).collect();
            out.push(0x80 | u8::try_from(octets.len()).unwrap_or(0));
            out.extend(octets);
        }
    }
    out.extend(content);
    out
}

/// A fresh P-256 key and its SubjectPublicKeyInfo.
///
/// # Errors
/// When the system gives no randomness.
pub fn p256_key() -> Result<(Pkcs8Signer, Vec<u8>)> {
    let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
    let unusable = |_| anyhow!("no P-256 key");
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(unusable)?;
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random)
        .map_err(|error| anyhow!("no P-256 key: {error}"))?;
    let public_key = p256_public_key(pair.public_key().as_ref());
    Ok((Pkcs8Signer::from_pkcs8(pkcs8.as_ref())?, public_key))
}

/// SubjectPublicKeyInfo of a P-256 key from its uncompressed point (RFC 5480).
pub fn p256_public_key(point: &[u8]) -> Vec<u8> {
    const ALGORITHM: [u8; 21] = [
        0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
        0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
    ];
    der(0x30, &[&ALGORITHM, der(0x03, &[&[0], point].concat()).as_slice()].concat())
}

/// A PKCS#10 request (RFC 2986) for a P-256 key, with the common name `ci`.
///
/// # Errors
/// When the key is no P-256 key.
pub fn p256_request(
    signer: &dyn Signer,
    public_key: &[u8],
) -> std::result::Result<Vec<u8>, SignatureError> {
    /// `SEQUENCE { ecdsa-with-SHA256 }` (RFC 5758 3.2).
    const ECDSA_SHA256: [u8; 12] =
        [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    /// `2.5.4.3`, commonName.
    const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];
    let name = der(0x30, &[&COMMON_NAME, der(0x0c, b"ci").as_slice()].concat());
    let subject = der(0x30, &der(0x31, &name));
    let info =
        der(0x30, &[der(0x02, &[0]).as_slice(), &subject, public_key, &der(0xa0, &[])].concat());
    let signature = signer.sign(SignatureScheme::EcdsaSha256, &info)?;
    let signature = der(0x03, &[[0].as_slice(), &signature].concat());
    Ok(der(0x30, &[info.as_slice(), &ECDSA_SHA256, &signature].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_found_in_a_certificate_and_a_bare_key_is_itself() {
        let key = p256_public_key(&[4; 65]);
        assert_eq!(public_key(&key), Some(key.as_slice()));

        let filler = der(0x30, &[5; 200]);
        let tbs = der(
            0x30,
            &[
                der(0xa0, &[2, 1, 2]).as_slice(),
                &der(2, &[1]),
                &filler,
                &filler,
                &filler,
                &filler,
                &key,
                &filler,
            ]
            .concat(),
        );
        let certificate = der(0x30, &[tbs.as_slice(), &filler].concat());
        assert_eq!(public_key(&certificate), Some(key.as_slice()));
        assert_eq!(public_key(&certificate[..200]), None);
    }
}
