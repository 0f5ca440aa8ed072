//! Keys made here (RFC 7030 4.4), for clients that cannot make one: in the answer, and nowhere else.
//!
//! Such a key is never stored and so never given twice: a lost answer costs a new token.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use super::jwt::Accepted;
use super::open::Grant;
use super::token::{Presented, Presenter, judge};
use super::{Enrolled, Refusal, RefusalCode, shown};
use crate::audit::Actor;
use crate::authority::Authority;
use crate::csr::Csr;
use crate::error::Error;
use crate::signer::{FileSigner, KeyKind, Signer};
use crate::store::Txn;
use crate::time::UnixTime;

/// RSA keys that are made at once: each takes a processor for seconds.
const RSA_AT_ONCE: usize = 2;
/// About so long.
const RSA_TIME: Duration = Duration::from_secs(2);
/// DecryptKeyIdentifier and AsymmetricDecryptKeyIdentifier (RFC 7030 4.4.1.1 and 4.4.1.2).
const DECRYPT_KEY: [&str; 2] = ["1.2.840.113549.1.9.16.2.37", "1.2.840.113549.1.9.16.2.54"];

/// A private key made for a client. Wiped when dropped; its `Debug` shows no secret.
#[derive(Debug)]
pub struct MadeKey {
    signer: FileSigner,
    csr: Csr,
}

impl MadeKey {
    fn new(kind: KeyKind) -> Result<Self, Error> {
        let signer = FileSigner::generate(kind)?;
        let csr = Csr::made_here(signer.public_key_der().to_vec())
            .map_err(|_| Error::Crypto("the key that was made has another form"))?;
        Ok(Self { signer, csr })
    }

    /// The key, PKCS#8 DER without encryption (RFC 5958; version 1, which everything reads).
    pub fn pkcs8(&self) -> Zeroizing<Vec<u8>> {
        /// Up to the seed of an Ed25519 key (RFC 8410 7).
        const ED25519: [u8; 16] = [
            0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22,
            0x04, 0x20,
        ];
        let der = self.signer.pkcs8();
        // What the generator makes has the public key as well, which older readers refuse.
        match der.get(16..48) {
            Some(seed) if self.csr.key.is(KeyKind::Ed25519) => {
                Zeroizing::new([&ED25519, seed].concat())
            }
            _ => der.clone(),
        }
    }

    /// The same, PEM.
    pub fn pem(&self) -> Zeroizing<String> {
        use base64::Engine;
        let text = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(self.pkcs8()));
        let mut pem = Zeroizing::new(String::with_capacity(text.len() + text.len() / 32 + 64));
        pem.push_str("-----BEGIN PRIVATE KEY-----\n");
        let mut rest = text.as_str();
        while let Some((line, after)) = rest.split_at_checked(64) {
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str(rest);
        if !rest.is_empty() {
            pem.push('\n');
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        pem
    }
}

/// Refuses a request that wants its key encrypted beyond TLS: it must not get it otherwise.
///
/// # Errors
/// [`RefusalCode::KeyEncryption`], or that it is no request. Key and signature are not looked at
/// (RFC 7030 4.4.1).
pub(super) fn check_request(der: &[u8]) -> Result<(), Refusal> {
    let (_, request) = X509CertificationRequest::from_der(der).map_err(|_| {
        Refusal::new(
            RefusalCode::MalformedRequest,
            "the request is not a PKCS#10 certification request: send one, its key does not matter",
        )
    })?;
    let asks = request
        .certification_request_info
        .iter_attributes()
        .any(|attribute| DECRYPT_KEY.contains(&attribute.oid.to_id_string().as_str()));
    if !asks {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalCode::KeyEncryption,
        "the request names a key to encrypt the private key with (DecryptKeyIdentifier), which is \
         not offered: leave it out and the key comes inside TLS, or make the key yourself and use \
         simpleenroll",
    ))
}

impl Authority {
    /// Opens a lease for a key that is made here, with a one-time token. `kind` is the one asked for.
    ///
    /// # Errors
    /// As [`enrol_with_token`](Self::enrol_with_token); [`RefusalCode::ServerKeysOff`] where the role
    /// does not allow it and [`RefusalCode::KeyNotRepeated`] when the token got its key before.
    pub fn enrol_with_token_keyed(
        &self,
        role: &str,
        token: &str,
        kind: Option<KeyKind>,
        client: Option<IpAddr>,
        now: UnixTime,
    ) -> Result<(Enrolled, MadeKey), Refusal> {
        let actor = client.map_or(Actor::System, Actor::Peer);
        // Two requests with one token make one key, and the other is told so.
        let _turn = self.token_turn(token);
        let stored = self.find_token(token)?;
        let id = stored.value.id.clone();
        let made = stored.value.spends.iter().rev().find(|spend| spend.made_here).cloned();
        let judged = match &stored.value.bound_spki {
            Some(bound) => Err(Refusal::new(
                RefusalCode::TokenBoundElsewhere,
                format!(
                    "token {id} is bound to key sha256:{bound}, which its client has: send a \
                     request for that key"
                ),
            )),
            None => judge(stored, Presenter { role, spki_sha256: "", address: client, now }),
        };
        let fresh = match judged {
            Ok(Presented::Fresh(fresh)) => fresh,
            // No key is the empty one.
            Ok(_) => return Err(Error::Contended("the enrolment").into()),
            Err(refusal) => {
                let refusal = match (refusal.code, made) {
                    (RefusalCode::TokenSpent, Some(spend)) => {
                        given_before(&format!("token {id}"), &spend.lease_id, spend.at)
                    }
                    _ => refusal,
                };
                self.audit_refusal("token.use", &id, Some(role), None, &actor, &refusal, now)?;
                return Err(refusal);
            }
        };
        let job = fresh.value.job.clone();
        let kind = self.kind_to_make(role, kind, job.as_deref().and_then(Accepted::manual))?;
        let grant = Grant::of_token(fresh, job.as_deref(), None, actor);
        let _place = self.place_to_make(kind)?;
        self.may_make(&grant, &id, now)?;
        let key = MadeKey::new(kind)?;
        let enrolled = self.enrol_in_turn(role, token, &key.csr, client, true, now)?;
        Ok((enrolled, key))
    }

    /// The same with a platform's token that was judged just now.
    ///
    /// # Errors
    /// As [`enrol_with_token_keyed`](Self::enrol_with_token_keyed).
    pub fn enrol_accepted_keyed(
        &self,
        accepted: &Accepted,
        kind: Option<KeyKind>,
        client: Option<IpAddr>,
        now: UnixTime,
    ) -> Result<(Enrolled, MadeKey), Refusal> {
        let actor = client.map_or(Actor::System, Actor::Peer);
        let _turn = self.token_turn(accepted.digest());
        if let Some(spent) = self.jwt_spend(accepted.digest())? {
            if !spent.made_here {
                return Err(self.refuse_spent(accepted, &spent, "", &actor, now)?);
            }
            let refusal =
                given_before(&format!("token {}", accepted.name()), &spent.lease_id, spent.at);
            let (name, role) = (accepted.name(), Some(accepted.role.as_str()));
            self.audit_refusal("token.use", &name, role, None, &actor, &refusal, now)?;
            return Err(refusal);
        }
        self.refuse_older(accepted, "", &actor, now)?;
        let kind = self.kind_to_make(&accepted.role, kind, accepted.manual())?;
        let _place = self.place_to_make(kind)?;
        self.may_make(&Grant::of_job(accepted, None, actor), &accepted.name(), now)?;
        let key = MadeKey::new(kind)?;
        let enrolled = self.enrol_accepted_in_turn(accepted, &key.csr, client, true, now)?;
        Ok((enrolled, key))
    }

    /// Judges what does not depend on the key, before one is made: a key costs more than all else.
    fn may_make(&self, grant: &Grant<'_>, token: &str, now: UnixTime) -> Result<(), Refusal> {
        self.may_certify()?;
        let counted = grant.token.is_some() && grant.jwt.is_some();
        let judged = self
            .refuse_barred(&mut Txn::new(), grant, "")
            .and_then(|()| self.within_limits(grant, counted, now));
        if let Err(refusal) = &judged {
            self.audit_denied(token, Some(&grant.role), None, &grant.actor, refusal, now)?;
        }
        judged
    }

    /// The kind of key to make for a role.
    fn kind_to_make(
        &self,
        role: &str,
        kind: Option<KeyKind>,
        manual: Option<bool>,
    ) -> Result<KeyKind, Refusal> {
        let settings = self.settings();
        let profile = settings.roles.get(role).ok_or_else(|| {
            Refusal::new(
                RefusalCode::UnknownRole,
                format!("role {:?} is not configured: use another", shown(role)),
            )
        })?;
        if !profile.server_keys {
            return Err(Refusal::new(
                RefusalCode::ServerKeysOff,
                format!(
                    "clients of role {role} make their keys themselves: send a certification \
                     request, or set allow_server_keygen = true on the role"
                ),
            ));
        }
        if manual.unwrap_or(profile.manual) {
            return Err(Refusal::new(
                RefusalCode::ServerKeysOff,
                format!(
                    "leases of role {role} wait for an operator, and a key that is made here \
                     cannot: send a certification request"
                ),
            ));
        }
        let kind = kind.or(profile.keys.first().copied()).unwrap_or(KeyKind::EcdsaP256);
        // A kind that the role does not take costs no key.
        profile.check_kind(role, kind)?;
        Ok(kind)
    }

    /// Taken before anything is counted: who is told to come again has lost nothing.
    fn place_to_make(&self, kind: KeyKind) -> Result<Option<Place<'_>>, Refusal> {
        match kind {
            KeyKind::Rsa3072 | KeyKind::Rsa4096 => Place::of(&self.rsa_makers).map(Some),
            KeyKind::EcdsaP256 | KeyKind::EcdsaP384 | KeyKind::Ed25519 => Ok(None),
        }
    }
}

/// One of the few places to make RSA keys at.
#[derive(Debug)]
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    /// Nobody waits for one: whoever did would keep others from their turn.
    fn of(taken: &'a AtomicUsize) -> Result<Self, Refusal> {
        let one_more = |count: usize| (count < RSA_AT_ONCE).then(|| count.saturating_add(1));
        match taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more) {
            Ok(_) => Ok(Self(taken)),
            Err(_) => Err(Refusal::new(
                RefusalCode::Unavailable,
                format!(
                    "{RSA_AT_ONCE} RSA keys are being made already: try again in a moment, or ask \
                     for a key on a curve"
                ),
            )
            .after(RSA_TIME)),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn given_before(token: &str, lease: &str, at: UnixTime) -> Refusal {
    Refusal::new(
        RefusalCode::KeyNotRepeated,
        format!(
            "{token} opened lease {lease} at {at} for a key that was made here and is not kept: if \
             that answer was lost, ask for a new token"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rsa_keys_are_made_at_once() {
        let taken = AtomicUsize::new(0);
        let first = Place::of(&taken).unwrap();
        let _second = Place::of(&taken).unwrap();
        let third = Place::of(&taken).unwrap_err();
        assert_eq!((third.code, third.retry_after()), (RefusalCode::Unavailable, Some(3)));
        drop(first);
        assert!(Place::of(&taken).is_ok());
    }
}
