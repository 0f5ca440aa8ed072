//! Quick crash detection (RFC 6290): a token told under protection of an IKE SA, and shown in
//! clear by the same side when it has lost the SA. Who is shown it need not wait for timeouts.
//!
//! Tokens are made of the SA's SPIs and a secret that outlives the process, so that making them
//! again needs no memory. The token of an SA that lives is shown to nobody, whatever he asks:
//! with it, anyone could end the SA.

use crate::crypto::{PrfId, constant_time_eq};
use crate::engine::Engine;
use crate::event::{Blame, CloseReason};
use crate::exchange::{about, send_request};
use crate::io::Datagram;
use crate::policy::limits::Source;
use crate::sa::context::{Ctx, refusal};
use crate::sa::{IkeSa, Path, Phase, lifecycle};
use crate::view::SaRole;
use crate::wire::{ExchangeType, Flags, Header, IkeSpi, Message, Notify, NotifyType, Payloads};

/// Keeps these tokens apart from anything else made with the secret.
const LABEL: &[u8] = b"runnel quick crash detection";

/// Octets of a token kept at most (RFC 6290 4.1 allows 16 to 256).
const MAX_TOKEN: usize = 256;

/// Octets of a token at least.
const MIN_TOKEN: usize = 16;

/// Tokens looked at in one answer.
const MAX_SHOWN: usize = 4;

/// Our token for an IKE SA, when we make tokens.
///
/// Our role is in it: whoever asks says which of the SPIs is ours, and so which of our shards is to
/// answer. The one that does not know the SA, asked about the peer's SPI as if it were ours, makes
/// another token than the one that does (RFC 6290 9.3).
pub(crate) fn token(ctx: &Ctx, spis: (IkeSpi, IkeSpi), role: SaRole) -> Option<Vec<u8>> {
    let secret = ctx.config.continuity.crash_secret.as_ref().filter(|s| !s.is_empty())?;
    let prf = ctx.crypto.prf(PrfId::HmacSha2_256)?;
    let (i, r) = (spis.0.0.to_be_bytes(), spis.1.0.to_be_bytes());
    let role = [u8::from(role == SaRole::Initiator)];
    Some(prf.compute(secret.expose(), &[LABEL, &i, &r, &role]).expose().to_vec())
}

/// Tells our token of an IKE SA.
pub(crate) fn tell(ctx: &Ctx, spis: (IkeSpi, IkeSpi), role: SaRole, payloads: &mut Payloads) {
    if let Some(token) = token(ctx, spis, role) {
        payloads.push_notify(Notify::with_data(NotifyType::QuickCrashDetection, token));
    }
}

/// The token that the peer tells.
pub(crate) fn told(payloads: &Payloads) -> Option<Box<[u8]>> {
    payloads
        .notify(NotifyType::QuickCrashDetection)
        .map(|notify| notify.data.clone().into_boxed_slice())
        .filter(|token| (MIN_TOKEN..=MAX_TOKEN).contains(&token.len()))
}

/// Whether we make tokens: as initiator of a rekey the token needs an exchange of its own
/// (RFC 6290 4.3), since the new SA's second SPI is known only after the rekey.
pub(crate) fn makes(ctx: &Ctx) -> bool {
    ctx.config.continuity.crash_secret.is_some()
}

/// That exchange.
pub(crate) fn build(ctx: &mut Ctx, sa: &mut IkeSa) -> bool {
    let mut payloads = Payloads::new();
    tell(ctx, (sa.spi_i, sa.spi_r), sa.role, &mut payloads);
    send_request(ctx, sa, ExchangeType::Informational, &payloads);
    true
}

/// A message for an SPI nobody has here (RFC 6290 5): whoever sent it may have an SA that we had
/// before a crash.
pub(crate) fn unknown(engine: &mut Engine, datagram: &Datagram, header: &Header) {
    engine.dropped();
    let spis = (header.spi_i, header.spi_r);
    let ours = if header.flags.initiator { header.spi_r } else { header.spi_i };
    let [shard, ..] = ours.0.to_be_bytes();
    if header.flags.response
        || header.exchange == ExchangeType::IkeSaInit
        || spis.0.is_zero()
        || spis.1.is_zero()
        || shard != engine.ctx.config.shard
        // Whatever side the message claims to come from: none of the two is alive.
        || engine.sas.by_spi(spis.0).is_some()
        || engine.sas.by_spi(spis.1).is_some()
    {
        return;
    }
    let mut payloads = Payloads::new();
    payloads.push_notify(Notify::new(NotifyType::InvalidIkeSpi));
    let role = if header.flags.initiator { SaRole::Responder } else { SaRole::Initiator };
    tell(&engine.ctx, spis, role, &mut payloads);
    if payloads.len() < 2 {
        return;
    }
    let flags = Flags::new(!header.flags.initiator, true);
    let header = Header::new(spis.0, spis.1, header.exchange, flags, header.message_id);
    // No more comes back than came: nobody uses us against another.
    if let Ok(bytes) = (Message { header, payloads }).encode()
        && bytes.len() <= datagram.payload.len()
        && engine.may_show_token(Source::from(datagram.remote.ip()))
    {
        engine.ctx.transmit(Path::of(datagram).datagram(bytes));
    }
}

/// Whether a token is among those shown. There may be several: who does not know which of its
/// secrets made the SA's shows what each makes (RFC 6290 4.1).
fn shows(payloads: &Payloads, known: &[u8]) -> bool {
    payloads
        .notifies()
        .filter(|notify| notify.kind == NotifyType::QuickCrashDetection)
        .take(MAX_SHOWN)
        .any(|notify| constant_time_eq(&notify.data, known))
}

/// An unprotected answer: the peer's token in it proves that the peer has lost the SA.
pub(crate) fn process_unprotected(ctx: &mut Ctx, sa: &mut IkeSa, datagram: &Datagram) {
    // What ends already is not ended again, however often the token is shown.
    if !matches!(sa.phase, Phase::Established | Phase::Rekeyed) {
        return;
    }
    let Some(known) = sa.peer_token.as_deref() else {
        return;
    };
    let shown = Message::parse(&datagram.payload)
        .ok()
        .filter(|message| message.header.flags.response)
        .is_some_and(|message| shows(&message.payloads, known));
    if !shown {
        return;
    }
    sa.peer_token = None;
    let refused = refusal(
        Blame::Incompatible,
        Some(NotifyType::InvalidIkeSpi),
        "peer_restarted",
        "the peer has lost this IKE SA, as after a crash, and proved it with its token".to_owned(),
        "nothing: a new connection replaces it",
    );
    ctx.refuse(about(sa, refused));
    lifecycle::close(ctx, sa, CloseReason::PeerDead, lifecycle::Tell::Nobody);
}
