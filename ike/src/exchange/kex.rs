//! The key exchanges of one CREATE_CHILD_SA: the first one travels in it, each additional one in an
//! IKE_FOLLOWUP_KE of its own (RFC 9370 2.2.4).

use std::collections::VecDeque;

use crate::crypto::{KeMethod, KexKind, KexRequest, KexResponse, SharedSecret};
use crate::io::Action;
use crate::sa::IkeSa;
use crate::sa::context::{Ctx, Purpose};
use crate::wire::KeyExchange;

/// See the module. `handle` also names the CREATE_CHILD_SA to the actions it waits for.
#[derive(Debug)]
pub(crate) struct Kex {
    pub(crate) handle: u64,
    /// The method under way.
    pub(crate) group: KeMethod,
    /// Our public value.
    pub(crate) public: Vec<u8>,
    /// The peer's, as responder until the secret is asked for.
    peer_public: Option<Vec<u8>>,
    secret: Option<SharedSecret>,
    /// The private half is still held outside.
    held: bool,
    /// Secrets of the methods before.
    earlier: Vec<SharedSecret>,
    /// Methods to come, once a proposal is chosen.
    todo: VecDeque<KeMethod>,
    /// The one under way travels in IKE_FOLLOWUP_KE.
    pub(crate) followup: bool,
    /// Ties the next IKE_FOLLOWUP_KE to this; as responder set while that is awaited.
    pub(crate) link: Option<Vec<u8>>,
}

impl Kex {
    fn new(handle: u64, group: KeMethod, held: bool) -> Self {
        Self {
            handle,
            group,
            public: Vec::new(),
            peer_public: None,
            secret: None,
            held,
            earlier: Vec::new(),
            todo: VecDeque::new(),
            followup: false,
            link: None,
        }
    }

    /// Asks for our key pair, as initiator.
    pub(crate) fn request(ctx: &mut Ctx, sa: &IkeSa, handle: u64, group: KeMethod) -> Self {
        let request = KexRequest::Generate { handle, group };
        ctx.act(sa.id, Purpose::RequestKeyPair(handle), Action::KeyExchange(request));
        Self::new(handle, group, true)
    }

    /// Asks for our key pair, or for a KEM's encapsulation, as responder; `additional` come after.
    /// `None` when the peer's public value cannot be one of the group.
    pub(crate) fn answer(
        ctx: &mut Ctx,
        sa: &IkeSa,
        handle: u64,
        group: KeMethod,
        peer_public: &[u8],
        additional: Vec<KeMethod>,
    ) -> Option<Self> {
        let mut kex = Self::new(handle, group, false);
        kex.todo = additional.into();
        kex.respond(ctx, sa, peer_public).then_some(kex)
    }

    /// The same for the method now under way.
    fn respond(&mut self, ctx: &mut Ctx, sa: &IkeSa, peer_public: &[u8]) -> bool {
        let (handle, group) = (self.handle, self.group);
        let Some(implementation) = ctx.crypto.group(group) else {
            return false;
        };
        if peer_public.len() != implementation.initiator_public_len() {
            return false;
        }
        let peer_public = peer_public.to_vec();
        let request = match implementation.kind() {
            KexKind::DiffieHellman => {
                self.peer_public = Some(peer_public);
                self.held = true;
                KexRequest::Generate { handle, group }
            }
            KexKind::Kem => KexRequest::Encapsulate { handle, group, peer_public },
        };
        ctx.act(sa.id, Purpose::RespondKeyPair(handle), Action::KeyExchange(request));
        true
    }

    /// Asks for the shared secret.
    pub(crate) fn agree(&mut self, ctx: &mut Ctx, sa: &IkeSa, peer_public: Vec<u8>, ours: bool) {
        let handle = self.handle;
        self.held = false;
        if ours {
            // It has been sent; the next one is another.
            self.public.clear();
        }
        let purpose =
            if ours { Purpose::RequestSecret(handle) } else { Purpose::RespondSecret(handle) };
        let request = KexRequest::Agree { handle, peer_public };
        ctx.act(sa.id, purpose, Action::KeyExchange(request));
    }

    /// What was asked for is there.
    pub(crate) fn absorb(&mut self, response: KexResponse) {
        match response {
            KexResponse::Generated { public, .. } => self.public = public,
            KexResponse::Encapsulated { public, secret, .. } => {
                self.public = public;
                self.secret = Some(secret);
            }
            KexResponse::Agreed { secret, .. } => self.secret = Some(secret),
            KexResponse::Dropped { .. } | KexResponse::Failed { .. } => {}
        }
    }

    /// As responder: whether the secret is there; asks for it when it can be computed.
    pub(crate) fn settled(&mut self, ctx: &mut Ctx, sa: &IkeSa) -> bool {
        if self.secret.is_none()
            && !self.public.is_empty()
            && let Some(public) = self.peer_public.take()
        {
            self.agree(ctx, sa, public, false);
        }
        self.is_agreed()
    }

    /// The secret of the method under way is there.
    pub(crate) fn is_agreed(&self) -> bool {
        self.secret.is_some()
    }

    /// Other methods come after this one.
    pub(crate) fn has_more(&self) -> bool {
        !self.todo.is_empty()
    }

    /// The peer has chosen these to come after the first.
    pub(crate) fn chosen(&mut self, additional: Vec<KeMethod>) {
        self.todo = additional.into();
    }

    /// Goes on to the next method, if there is one, as initiator: asks for our key pair.
    pub(crate) fn next_request(&mut self, ctx: &mut Ctx, sa: &IkeSa) -> bool {
        if !self.advance() {
            return false;
        }
        self.held = true;
        let (handle, group) = (self.handle, self.group);
        let request = KexRequest::Generate { handle, group };
        ctx.act(sa.id, Purpose::RequestKeyPair(handle), Action::KeyExchange(request));
        true
    }

    /// The same as responder, with the peer's value. False when the value is not of the method.
    pub(crate) fn next_answer(&mut self, ctx: &mut Ctx, sa: &IkeSa, ke: &KeyExchange) -> bool {
        self.todo.front() == Some(&ke.method) && self.advance() && self.respond(ctx, sa, &ke.data)
    }

    fn advance(&mut self) -> bool {
        let Some(group) = self.todo.pop_front() else {
            return false;
        };
        self.earlier.extend(self.secret.take());
        self.group = group;
        self.public.clear();
        self.followup = true;
        true
    }

    /// Our key exchange payload.
    pub(crate) fn payload(&self) -> KeyExchange {
        KeyExchange::new(self.group, self.public.clone())
    }

    /// All shared secrets, in order.
    pub(crate) fn secrets(&self) -> Vec<&SharedSecret> {
        self.earlier.iter().chain(&self.secret).collect()
    }

    /// Lets go of the private half.
    pub(crate) fn release(&self, ctx: &mut Ctx, sa: &IkeSa) {
        if self.held {
            ctx.drop_key_pair(sa.id, self.handle);
        }
    }
}
