//! The way of a datagram: header, SA, window, integrity, and only then its meaning.

use std::time::Duration;

use crate::engine::Engine;
use crate::event::{Blame, Refusal};
use crate::exchange::{self, auth, crash, init, mobility, rekey_child, sync};
use crate::io::{Datagram, IkeSaId, TimerKind};
use crate::sa::context::{Ctx, refusal};
use crate::sa::protect::{Protection, Received};
use crate::sa::timers::TimerKey;
use crate::sa::window::Incoming;
use crate::sa::{Path, Phase};
use crate::time::Timestamp;
use crate::wire::{
    ExchangeType, Flags, Frame, Header, Message, Notify, NotifyType, Payloads, WireError,
};

/// Least time between two repeated responses to where an SA's peer was never seen: who replays a
/// request from addresses of others has us send no more.
const STRAY_INTERVAL: Duration = Duration::from_secs(1);

/// Octets of a message at most while its sender has not authenticated, whole or in fragments: room
/// for a chain of large RSA keys, and little enough for thousands of strangers at once.
const MAX_UNPROVEN: usize = 20 * 1024;

pub(crate) fn may_stray(last: &mut Option<Timestamp>, ctx: &Ctx) -> bool {
    let now = ctx.now.mono;
    let may = last.is_none_or(|last| now.since(last) >= STRAY_INTERVAL);
    if may {
        *last = Some(now);
    }
    may
}

impl Engine {
    /// Takes one datagram.
    pub(super) fn datagram(&mut self, datagram: Datagram) {
        self.ctx.stats.datagrams = self.ctx.stats.datagrams.saturating_add(1);
        if datagram.payload.len() > self.ctx.config.limits.max_message {
            return self.dropped();
        }
        let header = match Header::parse(&datagram.payload) {
            Ok(header) => header,
            Err(WireError::MajorVersion { major }) if major > 2 => {
                return self.foreign_version(&datagram);
            }
            Err(_) => return self.dropped(),
        };
        if header.spi_r.is_zero() {
            let fits = header.exchange == ExchangeType::IkeSaInit
                && header.flags.initiator
                && !header.flags.response
                && header.message_id == 0;
            if fits {
                return init::process_request(self, datagram, header);
            }
        }
        // The sender tells which side it is, and so which SPI is ours (RFC 7296 2.6, 3.1).
        let ours = if header.flags.initiator { header.spi_r } else { header.spi_i };
        let Some(id) = self.sas.by_spi(ours) else {
            return crash::unknown(self, &datagram, &header);
        };
        self.route(id, datagram, &header);
    }

    /// RFC 7296 2.5: a higher major version is answered, rarely, and never to an answer.
    fn foreign_version(&mut self, datagram: &Datagram) {
        self.dropped();
        let Ok(header) = Header::peek(&datagram.payload) else {
            return;
        };
        if header.flags.response || !self.may_answer_stranger() {
            return;
        }
        let refused = refusal(
            Blame::Incompatible,
            Some(NotifyType::InvalidMajorVersion),
            "invalid_major_version",
            format!("the peer speaks IKE version {}, here is version 2", header.version.major),
            "let the peer use IKEv2",
        );
        self.ctx.refuse(Refusal { remote: Some(datagram.remote), ..refused });
        let flags = Flags::new(!header.flags.initiator, true);
        let header =
            Header::new(header.spi_i, header.spi_r, header.exchange, flags, header.message_id);
        let mut payloads = Payloads::new();
        payloads.push_notify(Notify::new(NotifyType::InvalidMajorVersion));
        if let Ok(bytes) = (Message { header, payloads }).encode() {
            self.ctx.transmit(Path::of(datagram).datagram(bytes));
        }
    }

    fn route(&mut self, id: IkeSaId, datagram: Datagram, header: &Header) {
        let Some(sa) = self.sas.get_mut(id) else {
            return;
        };
        if header.flags.initiator == sa.is_initiator() {
            return self.dropped();
        }
        if matches!(sa.phase, Phase::InitSent(_)) {
            if header.flags.response
                && header.exchange == ExchangeType::IkeSaInit
                && header.message_id == 0
                && header.spi_i == sa.spi_i
            {
                init::process_response(&mut self.ctx, sa, &datagram);
            } else {
                self.dropped();
            }
            return;
        }
        if (header.spi_i, header.spi_r) != (sa.spi_i, sa.spi_r)
            || header.exchange == ExchangeType::IkeSaInit
        {
            return self.dropped();
        }
        if sa.protection.is_none() {
            if init::expects(sa, header.exchange) && !header.flags.response {
                init::hold(&mut self.ctx, sa, datagram);
                self.deliver_held(id);
            } else {
                self.dropped();
            }
            return;
        }
        self.deliver(id, &datagram);
    }

    /// Delivers what arrived before the keys.
    pub(super) fn deliver_held(&mut self, id: IkeSaId) {
        let Some(sa) = self.sas.get_mut(id) else {
            return;
        };
        for datagram in init::take_held(sa) {
            self.deliver(id, &datagram);
        }
    }

    /// A datagram for an SA that has keys: window, then integrity, then meaning.
    fn deliver(&mut self, id: IkeSaId, datagram: &Datagram) {
        let Ok(frame) = Frame::locate(&datagram.payload) else {
            self.with_sa(id, |ctx, sa| crash::process_unprotected(ctx, sa, datagram));
            return self.dropped();
        };
        let header = *frame.header();
        let Some(sa) = self.sas.get_mut(id) else {
            return;
        };
        let ctx = &mut self.ctx;
        let path = Path::of(datagram);
        if !header.flags.response {
            if sync::may_be(sa, &header) && sync::process_request(ctx, sa, &frame, path) {
                return;
            }
            // Which ids are right is not known yet; the peer says it again.
            if sync::waiting(sa) && !sync::is_unheard(sa) {
                return;
            }
        }
        let Some(protection) = sa.protection.as_deref() else {
            return;
        };
        if !header.flags.response {
            match sa.window.classify(header.message_id) {
                // What has ended only repeats its last answer.
                Incoming::New if matches!(sa.phase, Phase::Lingering) => return,
                Incoming::New => {}
                Incoming::Again => {
                    // Whoever repeats a request must have been able to make it (RFC 7296 2.1);
                    // of fragments, only the first one asks (RFC 7383 2.6.1).
                    let asks = frame.fragment().is_none_or(|(number, _)| number == 1);
                    let earlier = sa.earlier.as_deref();
                    let authentic = |keys: &Protection| keys.open(&frame).is_ok();
                    if asks
                        && (authentic(protection) || earlier.is_some_and(authentic))
                        && let Some(cached) = sa.window.cached()
                        && (path == sa.reply || path == sa.path || may_stray(&mut sa.strayed, ctx))
                    {
                        let packets = cached.packets.clone();
                        ctx.stats.replayed_responses =
                            ctx.stats.replayed_responses.saturating_add(1);
                        exchange::transmit(ctx, path, packets);
                        rekey_child::answer_repeated(ctx, sa);
                    }
                    return;
                }
                Incoming::Busy | Incoming::Outside => return,
            }
        } else if !sa.window.awaits(header.message_id, header.exchange) {
            return;
        }
        let mut limits = ctx.config.limits;
        if !sa.is_initiator() && matches!(sa.phase, Phase::HalfOpen(_) | Phase::Authenticating(_)) {
            limits.max_message = limits.max_message.min(MAX_UNPROVEN);
            if datagram.payload.len() > limits.max_message {
                return;
            }
        }
        match sa.inbox.receive(protection, &frame, &limits) {
            Received::Message(opened) => {
                ctx.timers.cancel(TimerKey::sub(
                    id,
                    TimerKind::Reassembly,
                    header.flags.response.into(),
                ));
                // An old answer is authentic, too: until the ids are agreed on, it is no sign of
                // life and tells nothing of where the peer is.
                if header.flags.response && sync::waiting(sa) && !sync::fits(sa, &opened) {
                    return;
                }
                sa.last_heard = ctx.now.mono;
                // Nor is a request, which an old snapshot may not know as answered already.
                if header.flags.response || !sync::waiting(sa) {
                    mobility::seen(ctx, sa, path);
                }
                if header.flags.response {
                    sa.unfinished = sa.window.answered();
                    sa.inbox.clear(true);
                    ctx.timers.cancel(TimerKey::new(id, TimerKind::Retransmit));
                    exchange::process_response(ctx, sa, &opened);
                    if sa.is_established() {
                        ctx.checkpoint(sa);
                    }
                } else if auth::is_too_early(sa, &opened) {
                    // When it comes again it is put together again.
                    sa.inbox.clear(false);
                } else {
                    init::heard(ctx, sa);
                    sa.reply = path;
                    sa.answering = header.exchange;
                    sa.window.accept();
                    sa.earlier = None;
                    exchange::process_request(ctx, sa, &opened);
                }
            }
            Received::Partial => {
                let key = TimerKey::sub(id, TimerKind::Reassembly, header.flags.response.into());
                if !ctx.timers.is_set(key) {
                    let at = ctx.now.mono + ctx.config.timers.reassembly;
                    ctx.timers.set(key, at);
                }
            }
            Received::Nothing => {}
            Received::Forged => {
                ctx.stats.bad_icv = ctx.stats.bad_icv.saturating_add(1);
                ctx.stats.dropped = ctx.stats.dropped.saturating_add(1);
                if matches!(sa.phase, Phase::HalfOpen(_)) {
                    init::forged(ctx, sa);
                }
            }
        }
    }
}
