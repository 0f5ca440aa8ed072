//! What a peer claims to be, and how it proves it.

use crate::crypto::SecretBytes;
use crate::event::{Blame, Refusal};
use crate::exchange::about;
use crate::exchange::auth::{Exchanged, Own, ppk, shared};
use crate::exchange::certs;
use crate::exchange::config::Wanted;
use crate::io::{
    Action, OwnProof, PeerProof, PpkRequest, SharedKey, SharedKeyRequest, VerifiedPeer, VerifyPeer,
};
use crate::sa::IkeSa;
use crate::sa::context::{Ctx, Purpose, refusal};
use crate::view::SaRole;
use crate::wire::{
    AuthMethod, Authentication, HashAlgorithm, NotifyType, Payload, PayloadType, Payloads,
};

use super::eap::{self, EapTask};
use super::first_child::{self, ChildOutcome};
use super::{Responder, fail, responder, responder_in, verified};

/// How the peer proves its identity, until that is checked.
#[derive(Debug)]
pub(super) struct Claim {
    /// Its AUTH.
    auth: Authentication,
    /// What its AUTH would be without the post-quantum preshared key (RFC 8784).
    without_ppk: Option<Vec<u8>>,
}

impl Claim {
    pub(super) fn method(&self) -> AuthMethod {
        self.auth.method
    }

    pub(super) fn data(&self) -> &[u8] {
        &self.auth.data
    }
}

/// Reads the first request, and takes what is kept of it.
pub(super) fn examine(
    ctx: &Ctx,
    sa: &IkeSa,
    exchanged: Exchanged,
    payloads: &mut Payloads,
) -> Result<Responder, Box<Refusal>> {
    let Some(Payload::IdI(id_i)) = payloads.take(PayloadType::IdI) else {
        let what = "IKE_AUTH without an IDi payload";
        let notify = Some(NotifyType::InvalidSyntax);
        let refused = refusal(Blame::Malformed, notify, "no_identity", what, "check the client");
        return Err(Box::new(about(sa, refused)));
    };
    let refuse = |blame, code, what: String, fix: &str| {
        let refused = refusal(blame, Some(NotifyType::AuthenticationFailed), code, what, fix);
        Box::new(about(sa, Refusal { identity: Some(id_i.id.clone()), ..refused }))
    };
    let auth = match payloads.take(PayloadType::Auth) {
        Some(Payload::Auth(auth)) => Some(auth),
        _ => None,
    };
    let claim = claim(auth, payloads);
    if claim.is_none() && !ctx.config.eap_tls {
        let what = "the client wants to authenticate with EAP, which is not offered".to_owned();
        let fix = "let the client authenticate with its certificate (strongSwan: `auth = pubkey`), \
                   or set `eap_tls = true` in [ike]";
        return Err(refuse(Blame::Incompatible, "eap_not_offered", what, fix));
    }
    let certificates = certs::received(payloads);
    let max = ctx.config.limits.max_certificates;
    if certificates.len() > max {
        let what = format!("the client sent {} certificates, at most {max}", certificates.len());
        let fix = "let the client send its own chain only";
        return Err(refuse(Blame::Misbehaved, "too_many_certificates", what, fix));
    }
    let only = ctx.config.eap_only && payloads.has_notify(NotifyType::EapOnlyAuthentication);
    Ok(Responder {
        exchanged,
        eap: claim.is_none().then(|| EapTask::new(only)),
        claim,
        id_i,
        id_r: ctx.config.identity.clone(),
        authorities: certs::requested(payloads),
        wants_ocsp: certs::wants_ocsp(payloads),
        ocsp: certs::received_ocsp(payloads, max),
        certificates,
        own: None,
        shared: SecretBytes::default(),
        ppk: false,
        wanted: Wanted::of(payloads.cp()),
        initial_contact: payloads.has_notify(NotifyType::InitialContact),
        mobike: payloads.has_notify(NotifyType::MobikeSupported),
        offer: first_child::offer(payloads),
        verified: None,
        auth: None,
        child: ChildOutcome::Undecided,
        killed: Default::default(),
    })
}

fn claim(auth: Option<Authentication>, payloads: &Payloads) -> Option<Claim> {
    let without_ppk = payloads.notify(NotifyType::NoPpkAuth).map(|notify| notify.data.clone());
    Some(Claim { auth: auth?, without_ppk })
}

/// The last request of EAP (RFC 7296 2.16); false when it has no AUTH.
pub(super) fn after_eap(responder: &mut Responder, payloads: &Payloads) -> bool {
    responder.claim = claim(payloads.auth().cloned(), payloads);
    responder.claim.is_some()
}

/// Asks for the post-quantum preshared key first, when the peer used one (RFC 8784 3).
pub(super) fn begin(ctx: &mut Ctx, sa: &mut IkeSa, payloads: &Payloads) {
    let named = ppk::named(payloads).filter(|_| sa.traits.ppk);
    let (ike, remote) = (sa.id, sa.path.remote);
    let Some(responder) = responder(sa).filter(|responder| responder.claim.is_some()) else {
        return eap::begin(ctx, sa);
    };
    match named {
        Some(id) => {
            let peer = Some(responder.id_i.id.clone());
            let request = PpkRequest { ike, remote, role: SaRole::Responder, peer, id };
            ctx.act(ike, Purpose::Ppk, Action::Ppk(Box::new(request)));
        }
        None => prove(ctx, sa),
    }
}

/// The post-quantum preshared key; without it the peer may have sent AUTH for a gateway that has
/// none.
pub(in crate::exchange::auth) fn ppk_found(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    answer: Result<SecretBytes, Refusal>,
) {
    let (Some(protection), Some(responder)) = (&mut sa.protection, responder_in(&mut sa.phase))
    else {
        return;
    };
    let identity = responder.id_i.id.clone();
    let Some(claim) = &mut responder.claim else {
        return;
    };
    match (answer, claim.without_ppk.take()) {
        (Ok(key), _) => match protection.mix_ppk(&key) {
            Ok(()) => responder.ppk = true,
            Err(error) => {
                let refused = refusal(
                    Blame::Internal,
                    Some(NotifyType::AuthenticationFailed),
                    "internal",
                    error.to_string(),
                    "report this as a defect",
                );
                return fail(ctx, sa, refused);
            }
        },
        (Err(_), Some(data)) => claim.auth = Authentication::new(claim.auth.method, data),
        (Err(refused), None) => {
            return fail(ctx, sa, Refusal { identity: Some(identity), ..refused });
        }
    }
    prove(ctx, sa);
}

/// Has the peer's AUTH checked.
fn prove(ctx: &mut Ctx, sa: &mut IkeSa) {
    let Some(responder) = responder(sa) else {
        return;
    };
    let method = responder.claim.as_ref().map(|claim| claim.auth.method);
    if responder.eap.is_some() {
        return eap::check_auth(ctx, sa);
    }
    if method == Some(AuthMethod::SharedKeyMic) {
        let request = SharedKeyRequest {
            role: SaRole::Responder,
            local: responder.id_r.clone(),
            peer: Some(responder.id_i.id.clone()),
            ike: sa.id,
            remote: sa.path.remote,
        };
        ctx.act(sa.id, Purpose::SharedKey, Action::SharedKey(Box::new(request)));
        return;
    }
    match signature(ctx, sa) {
        Ok(verify) => {
            ctx.act(sa.id, Purpose::Verify, Action::VerifyPeer(Box::new(verify)));
        }
        Err(refused) => fail(ctx, sa, *refused),
    }
}

/// A proof by certificate.
fn signature(ctx: &Ctx, sa: &mut IkeSa) -> Result<VerifyPeer, Box<Refusal>> {
    let (ike, remote) = (sa.id, sa.path.remote);
    let (Some(protection), Some(responder)) = (&sa.protection, responder_in(&mut sa.phase)) else {
        return Err(Box::new(internal()));
    };
    let identity = responder.id_i.id.clone();
    let refuse = |code, what: String, fix: &str| {
        let failed = Some(NotifyType::AuthenticationFailed);
        let refused = refusal(Blame::Incompatible, failed, code, what, fix);
        Box::new(Refusal { identity: Some(identity.clone()), ..refused })
    };
    let Some(claim) = responder.claim.take() else {
        return Err(Box::new(internal()));
    };
    if responder.certificates.is_empty() {
        let what = "the client sent no X.509 certificate".to_owned();
        let fix = "let the client send it (strongSwan: `send_cert = always` and `certs = ...`)";
        return Err(refuse("no_certificate", what, fix));
    }
    let proof = certs::peer_signature(&claim.auth).map_err(|error| {
        let fix = "let the client sign with ECDSA, Ed25519 or RSA and SHA2-256 or better \
                   (strongSwan: `auth = pubkey`, `signature_authentication = yes`)";
        refuse("auth_method", error.to_string(), fix)
    })?;
    let own = own_certificate(ctx, &responder.authorities, &sa.traits.hashes, responder.wants_ocsp);
    responder.own =
        Some(own.map_err(|refused| {
            Box::new(Refusal { identity: Some(identity.clone()), ..*refused })
        })?);
    Ok(VerifyPeer {
        ike,
        remote,
        identity: identity.clone(),
        certificates: std::mem::take(&mut responder.certificates),
        scheme: proof.scheme,
        rsa_classic: proof.rsa_classic,
        message: responder.peer_octets(protection),
        signature: proof.signature,
        expected: None,
        connection: None,
        ocsp: std::mem::take(&mut responder.ocsp),
    })
}

fn internal() -> Refusal {
    refusal(
        Blame::Internal,
        Some(NotifyType::AuthenticationFailed),
        "internal",
        "no keys",
        "report this as a defect",
    )
}

/// The certificate we authenticate with.
pub(super) fn own_certificate(
    ctx: &Ctx,
    authorities: &[[u8; 20]],
    hashes: &[HashAlgorithm],
    wants_ocsp: bool,
) -> Result<Own, Box<Refusal>> {
    match certs::choose(ctx.config.credentials.iter(), authorities, hashes) {
        Some((credential, how)) => {
            let ocsp = if wants_ocsp { credential.ocsp.clone() } else { Vec::new() };
            let (credential, chain) = (credential.id, credential.chain.clone());
            Ok(Own::Certificate { credential, how, chain, ocsp })
        }
        None => Err(Box::new(refusal(
            Blame::Incompatible,
            Some(NotifyType::AuthenticationFailed),
            "no_credential",
            "no credential of ours can sign in a way the client verifies",
            "give the gateway a certificate of another key type, or let the client announce more \
             hash algorithms",
        ))),
    }
}

/// The key that the peer claims to share with us (RFC 7296 2.15).
pub(in crate::exchange::auth) fn shared_key(
    ctx: &mut Ctx,
    sa: &mut IkeSa,
    answer: Result<Box<SharedKey>, Refusal>,
) {
    let (Some(protection), Some(responder)) = (&sa.protection, responder_in(&mut sa.phase)) else {
        return;
    };
    let Some(claim) = responder.claim.take() else {
        return;
    };
    let identity = responder.id_i.id.clone();
    let octets = responder.peer_octets(protection);
    // An unknown peer costs the time of a wrong key: it cannot find out whom we know.
    let key = answer.as_ref().map(|shared| shared.key.clone()).unwrap_or_default();
    let right = shared::is_right(protection, &key, &octets, &claim.auth.data);
    let refused = match answer {
        Err(refused) => Refusal { identity: Some(identity), ..refused },
        Ok(_) if key.is_empty() => shared::empty_key(Some(&identity)),
        Ok(_) if !right => shared::wrong_key(&identity),
        Ok(found) => {
            responder.shared = key;
            let own = match found.own {
                OwnProof::SharedKey => Ok(Own::SharedKey),
                OwnProof::Certificate => {
                    let (authorities, hashes) = (&responder.authorities, &sa.traits.hashes);
                    own_certificate(ctx, authorities, hashes, responder.wants_ocsp)
                }
            };
            match own {
                Ok(own) => {
                    responder.own = Some(own);
                    let name = identity.to_string();
                    let peer = VerifiedPeer { identity: name, proof: PeerProof::SharedKey };
                    return verified(ctx, sa, Ok(Box::new(peer)));
                }
                Err(refused) => Refusal { identity: Some(identity), ..*refused },
            }
        }
    };
    fail(ctx, sa, refused);
}
