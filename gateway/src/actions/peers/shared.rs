//! Peers that have a key in common with the gateway: shared keys and post-quantum preshared keys.

use std::sync::{Arc, PoisonError};

use ike::crypto::SecretBytes;
use ike::event::Refusal;
use ike::io::{Authorise, Grant, OwnProof, PpkRequest, SharedKey, SharedKeyRequest};
use ike::wire::Identification;
use pki::Lease;

use super::context::Context;
use super::proof::{Proof, Terms};
use super::{PeerKeys, Peers, now};

impl Peers {
    /// Replaces the shared keys. Tunnels made with others end with [`Peers::regrant`].
    pub fn replace_keys(&self, keys: PeerKeys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    fn keys(&self) -> Arc<PeerKeys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Finds the key that a peer shares with the gateway (RFC 7296 2.15).
    ///
    /// # Errors
    /// The refusal, explained.
    pub fn shared_key(&self, request: &SharedKeyRequest) -> Result<Box<SharedKey>, Refusal> {
        let context = Context {
            ike: Some(request.ike),
            remote: Some(request.remote),
            identity: request.peer.clone(),
        };
        let generation = self.generation();
        if let Some((key, own)) = request.peer.as_ref().and_then(|peer| self.key_of(peer)) {
            let terms = Terms::SharedKey(key.clone());
            self.remember(request.ike, Proof { generation, terms });
            return Ok(Box::new(SharedKey { key, own }));
        }
        let keys = self.keys();
        if keys.is_empty() {
            return Err(context.refuse(
                "psk_not_offered",
                "the client authenticates with a shared key, which is not offered".to_owned(),
                "let the client authenticate with its certificate (strongSwan: `auth = pubkey`), \
                 or add a [[psk]] section for it"
                    .to_owned(),
            ));
        }
        let claimed = request.peer.as_ref().map(ToString::to_string).unwrap_or_default();
        Err(context.refuse(
            "unknown_identity",
            format!("no [[psk]] section has the id {claimed} that the client claims"),
            "add one with its key, or correct the client's identity (strongSwan: `id` in `local`)"
                .to_owned(),
        ))
    }

    /// The key that the peer of this identity shares with the gateway, a site or a client, and how
    /// the gateway proves itself to it.
    pub(super) fn key_of(&self, peer: &Identification) -> Option<(SecretBytes, OwnProof)> {
        let config = self.config.get();
        if let Some(key) = config.site_of(peer).and_then(|site| site.psk.clone()) {
            return Some((key, OwnProof::SharedKey));
        }
        let keys = self.keys();
        let found = keys.psk(peer)?;
        let shares = found.psk.gateway_shares;
        let own = if shares { OwnProof::SharedKey } else { OwnProof::Certificate };
        Some((found.key.clone(), own))
    }

    /// The lease of a client that proved its shared key.
    pub(super) fn grant_holder(
        &self,
        request: &Authorise,
        context: &Context,
    ) -> Result<Box<Grant>, Refusal> {
        let keys = self.keys();
        // A reload may have taken the key away since it was proven.
        let peer = keys.psk(&request.identity).ok_or_else(|| {
            context.refuse(
                "unknown_identity",
                format!("the [[psk]] section of {} is gone", request.identity),
                "put it back, or stop the client".to_owned(),
            )
        })?;
        let client = Some(request.remote.ip().to_canonical());
        let access = peer.holder(|holder| self.authority.authorise_holder(holder, client, now()));
        self.grant_lease(&access.map_err(|error| context.access(&error))?, context)
    }

    /// Whether the configuration still knows the shared key that a client's lease was opened with.
    pub(super) fn is_still_shared(&self, lease: &Lease) -> bool {
        let keys = self.keys();
        keys.psk_of(lease).is_some_and(|peer| {
            peer.holder(|holder| self.authority.is_lease_of(lease, holder)).unwrap_or(false)
        })
    }

    /// Finds a post-quantum preshared key (RFC 8784).
    ///
    /// # Errors
    /// The refusal, explained.
    pub fn ppk(&self, request: &PpkRequest) -> Result<SecretBytes, Refusal> {
        let keys = self.keys();
        let found = request.peer.as_ref().and_then(|peer| keys.ppk(&request.id, peer));
        found.cloned().ok_or_else(|| {
            let context = Context {
                ike: Some(request.ike),
                remote: Some(request.remote),
                identity: request.peer.clone(),
            };
            let name = String::from_utf8_lossy(&request.id).escape_debug().to_string();
            context.refuse(
                "unknown_ppk",
                format!(
                    "the client insists on the post-quantum preshared key \"{name}\", which is \
                     not known for it here"
                ),
                "add a [[ppk]] section with this id, or correct the client (strongSwan: `ppk_id`)"
                    .to_owned(),
            )
        })
    }

    /// Whether a client used the post-quantum preshared key that it must use.
    pub(super) fn check_ppk(&self, request: &Authorise, context: &Context) -> Result<(), Refusal> {
        let keys = self.keys();
        let Some(ppk) = keys.required_ppk(&request.identity).filter(|_| !request.ppk) else {
            return Ok(());
        };
        Err(context.refuse(
            "ppk_required",
            format!(
                "the client does not use the post-quantum preshared key \"{}\", which is required",
                ppk.id
            ),
            "give the client the key (strongSwan: `ppk_id` and a `ppk` secret), or set \
             `required = false`"
                .to_owned(),
        ))
    }
}
