//! Answers to actions, or their absence, on the way to who asked.

use crate::engine::Engine;
use crate::event::CloseReason;
use crate::exchange::{self, advance, auth, create_child, dpd, init, intermediate};
use crate::io::{Completion, Token};
use crate::sa::child;
use crate::sa::context::{Ctx, Pending, Purpose};
use crate::sa::{IkeSa, Phase};

impl Engine {
    /// Takes one answer. One that nobody waits for is ignored.
    pub(super) fn completion(&mut self, token: Token, completion: Completion) {
        let Some(pending) = self.ctx.take_pending(token) else {
            return;
        };
        self.complete(pending, Some(completion));
    }

    /// An action was not answered in time.
    pub(super) fn lost(&mut self, token: Token) {
        if let Some(pending) = self.ctx.take_pending(token) {
            self.complete(pending, None);
        }
    }

    fn complete(&mut self, pending: Pending, completion: Option<Completion>) {
        let Pending { sa: id, purpose } = pending;
        if let Purpose::Remove { child, lease, reason } = purpose {
            let usage = match completion {
                Some(Completion::RemoveChild(Ok(usage))) => Some(usage),
                _ => None,
            };
            child::down(&mut self.ctx, id, child, lease, reason, usage);
            self.ctx.removed(id);
            return;
        }
        self.with_sa(id, |ctx, sa| dispatch(ctx, sa, purpose, completion));
        // Keys may have come: what waited for them is delivered.
        self.deliver_held(id);
    }
}

/// Gives an answer, or its absence, to who asked.
fn dispatch(ctx: &mut Ctx, sa: &mut IkeSa, purpose: Purpose, completion: Option<Completion>) {
    macro_rules! answer {
        ($kind:ident) => {
            match completion {
                Some(Completion::$kind(answer)) => answer,
                Some(_) => Err("an answer of another kind".to_owned()),
                None => Err("no answer in time".to_owned()),
            }
        };
    }
    match purpose {
        Purpose::InitKeyPair => init::key_pair(ctx, sa, answer!(KeyExchange)),
        Purpose::InitSecret => init::secret(ctx, sa, answer!(KeyExchange)),
        Purpose::IntermediateKeyPair => intermediate::key_pair(ctx, sa, answer!(KeyExchange)),
        Purpose::IntermediateSecret => intermediate::secret(ctx, sa, answer!(KeyExchange)),
        Purpose::Sign => auth::signed(ctx, sa, answer!(Sign)),
        Purpose::Verify => {
            let answer = match completion {
                Some(Completion::VerifyPeer(answer)) => answer,
                _ => Err(auth::unanswered("the check of the peer's certificate")),
            };
            auth::verified(ctx, sa, answer);
        }
        Purpose::SharedKey => {
            let answer = match completion {
                Some(Completion::SharedKey(answer)) => answer,
                _ => Err(auth::unanswered("the search for the peer's shared key")),
            };
            auth::shared_key(ctx, sa, answer);
        }
        Purpose::Ppk => {
            let answer = match completion {
                Some(Completion::Ppk(answer)) => answer,
                _ => Err(auth::unanswered("the search for the post-quantum preshared key")),
            };
            auth::ppk(ctx, sa, answer);
        }
        Purpose::SignWithoutPpk => auth::signed_without_ppk(ctx, sa, answer!(Sign)),
        Purpose::EapTls => {
            let answer = match completion {
                Some(Completion::EapTls(answer)) => answer,
                _ => Err(auth::unanswered("the TLS of the peer's EAP-TLS")),
            };
            auth::eap_tls(ctx, sa, answer);
        }
        Purpose::Authorise => {
            let answer = match completion {
                Some(Completion::Authorise(answer)) => answer,
                _ => Err(auth::unanswered("the decision about the peer's lease")),
            };
            auth::authorised(ctx, sa, answer);
        }
        Purpose::AuthSpi => auth::spi(ctx, sa, answer!(AllocSpi)),
        Purpose::RespondSpi(_) | Purpose::RequestSpi(_) => {
            create_child::spi(ctx, sa, &purpose, answer!(AllocSpi));
        }
        Purpose::RespondKeyPair(_)
        | Purpose::RespondSecret(_)
        | Purpose::RequestKeyPair(_)
        | Purpose::RequestSecret(_) => {
            create_child::key_exchange(ctx, sa, &purpose, answer!(KeyExchange));
        }
        Purpose::Install(child) => {
            let answer = answer!(InstallChild);
            if matches!(sa.phase, Phase::Authenticating(_)) {
                auth::installed(ctx, sa, child, answer);
            } else {
                create_child::installed(ctx, sa, child, answer);
            }
        }
        Purpose::Reinstall(child) => {
            if answer!(InstallChild).is_err() {
                exchange::delete::close_child(
                    ctx,
                    sa,
                    child,
                    CloseReason::Failed("the data plane did not take it back".to_owned()),
                );
                advance(ctx, sa);
            }
        }
        Purpose::Puzzle(number) => init::solved(ctx, sa, number, answer!(SolvePuzzle)),
        Purpose::Use(_) => dpd::used(ctx, sa, answer!(QueryUse)),
        // The data plane cannot take it there; a new child begins where the IKE SA is.
        Purpose::Move(child) => {
            if answer!(UpdateHosts).is_err() {
                sa.enqueue(exchange::Task::RekeyChild(child));
                advance(ctx, sa);
            }
        }
        Purpose::Activate(_) | Purpose::Nothing | Purpose::Remove { .. } => {}
    }
}
