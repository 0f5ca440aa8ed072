//! EAP-TLS as the server of RFC 5216 and RFC 9190, without the TLS: requests, answers, fragments
//! and their bounds; as the peer in `peer`. What the TLS says comes from outside and goes there.
//!
//! Everything here is read from a peer that proved nothing but a key exchange: one conversation
//! holds at most [`MAX_TLS`] octets in each direction and ends after [`MAX_ROUNDS`] answers.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

mod peer;
mod stream;

pub use peer::{EapTlsPeer, PeerHeard};

use crate::wire::{Eap, EapCode, EapType};

use stream::{Packet, Stream};

/// Octets of one direction's TLS messages at most. A chain of eight RSA-4096 certificates fits.
pub const MAX_TLS: usize = 32 * 1024;

/// Answers of the peer at most. A peer that sends [`MAX_TLS`] in fragments of 512 octets needs 64.
pub const MAX_ROUNDS: u32 = 160;

/// TLS octets in one of our requests. IKE fragments what does not fit a datagram (RFC 7383); peers
/// take EAP packets of 1020 octets at least (RFC 3748 3.1).
const FRAGMENT: usize = 1000;

// RFC 5216 3.1
const LENGTH: u8 = 0x80;
const MORE: u8 = 0x40;
const START: u8 = 0x20;

/// Why a conversation ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EapError {
    /// Not a response.
    #[error("an EAP packet with {0} instead of a response")]
    NotAResponse(EapCode),
    /// The answer to another request.
    #[error("an EAP response with identifier {found} to request {expected}")]
    Identifier {
        /// Of our request.
        expected: u8,
        /// Of the response.
        found: u8,
    },
    /// The peer wants another method.
    #[error("the client wants the EAP method {0} instead of EAP-TLS")]
    OtherMethod(EapType),
    /// A response of another method.
    #[error("an EAP response of method {0} to EAP-TLS")]
    Method(EapType),
    /// Flags or length that cannot be.
    #[error("a malformed EAP-TLS response")]
    Malformed,
    /// Data where the acknowledgement of a fragment belongs, or the other way round.
    #[error("an EAP-TLS response out of turn")]
    OutOfTurn,
    /// More than [`MAX_TLS`].
    #[error("EAP-TLS messages of more than {MAX_TLS} octets")]
    TooLong,
    /// More than [`MAX_ROUNDS`].
    #[error("more than {MAX_ROUNDS} EAP responses")]
    TooManyRounds,
    /// As peer: not a request, nor an end.
    #[error("an EAP packet with {0} instead of a request")]
    NotARequest(EapCode),
    /// As peer: the server is not satisfied.
    #[error("the EAP server answered with a failure")]
    Failed,
}

/// What an answer of the peer leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Send this next.
    Reply(Eap),
    /// The peer's TLS messages are complete: give them to the TLS, then [`EapTls::send`].
    Tls(Vec<u8>),
    /// The peer has everything we sent and says nothing itself.
    Acknowledged,
}

/// One conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EapTls {
    identifier: u8,
    rounds: u32,
    stream: Stream,
}

impl EapTls {
    /// A conversation and its first request (RFC 5216 2.1.1).
    pub fn start(identifier: u8) -> (Self, Eap) {
        let conversation = Self { identifier, rounds: 0, stream: Stream::default() };
        (conversation, Eap::request(identifier, EapType::Tls, vec![START]))
    }

    /// The peer's answer to our last request.
    ///
    /// # Errors
    /// [`EapError`]; the conversation is over.
    pub fn hear(&mut self, answer: &Eap) -> Result<Heard, EapError> {
        self.rounds = self.rounds.saturating_add(1);
        if self.rounds > MAX_ROUNDS {
            return Err(EapError::TooManyRounds);
        }
        if answer.code != EapCode::Response {
            return Err(EapError::NotAResponse(answer.code));
        }
        if answer.identifier != self.identifier {
            let (expected, found) = (self.identifier, answer.identifier);
            return Err(EapError::Identifier { expected, found });
        }
        match answer.method {
            Some(EapType::Tls) => {}
            // RFC 3748 5.3.1
            Some(EapType::Nak) => {
                let wanted = answer.data.first().copied().unwrap_or_default();
                return Err(EapError::OtherMethod(EapType::from(wanted)));
            }
            Some(method) => return Err(EapError::Method(method)),
            None => return Err(EapError::Malformed),
        }
        let packet = Packet::parse(&answer.data)?;
        if packet.flags & START != 0 {
            return Err(EapError::Malformed);
        }
        if self.stream.is_sending() {
            // RFC 5216 2.1.5: a fragment is acknowledged by an empty response.
            return if packet.is_empty() {
                Ok(Heard::Reply(self.next()))
            } else {
                Err(EapError::OutOfTurn)
            };
        }
        if packet.is_empty() && self.stream.inbound.is_empty() {
            return Ok(Heard::Acknowledged);
        }
        Ok(match self.stream.collect(packet)? {
            Some(tls) => Heard::Tls(tls),
            None => Heard::Reply(self.request(vec![0])),
        })
    }

    /// What the TLS says next; the request that carries its beginning.
    ///
    /// # Errors
    /// [`EapError::TooLong`].
    pub fn send(&mut self, tls: Vec<u8>) -> Result<Eap, EapError> {
        self.stream.send(tls)?;
        Ok(self.next())
    }

    /// The end, when both sides are satisfied. It has the identifier of the answer it follows.
    pub fn success(&self) -> Eap {
        Eap::success(self.identifier)
    }

    /// The end, when they are not.
    pub fn failure(&self) -> Eap {
        Eap::failure(self.identifier)
    }

    /// The next fragment.
    fn next(&mut self) -> Eap {
        let data = self.stream.next();
        self.request(data)
    }

    fn request(&mut self, data: Vec<u8>) -> Eap {
        self.identifier = self.identifier.wrapping_add(1);
        Eap::request(self.identifier, EapType::Tls, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(identifier: u8, data: &[u8]) -> Eap {
        Eap::response(identifier, EapType::Tls, data.to_vec())
    }

    fn started() -> EapTls {
        let (conversation, request) = EapTls::start(7);
        assert_eq!(request, Eap::request(7, EapType::Tls, vec![0x20]));
        conversation
    }

    #[test]
    fn a_message_in_one_piece_goes_to_the_tls() {
        // RFC 5216 3.2: with and without the length.
        for data in [&[0x80, 0, 0, 0, 2, 0x16, 0x03][..], &[0, 0x16, 0x03]] {
            assert_eq!(started().hear(&answer(7, data)), Ok(Heard::Tls(vec![0x16, 0x03])));
        }
    }

    #[test]
    fn fragments_are_acknowledged_and_put_together() {
        // RFC 5216 2.1.5
        let mut eap = started();
        let first = [&[0xc0, 0, 0, 0, 6][..], b"abc"].concat();

        let heard = eap.hear(&answer(7, &first)).unwrap();
        assert_eq!(heard, Heard::Reply(Eap::request(8, EapType::Tls, vec![0])));
        let heard = eap.hear(&answer(8, &[&[0][..], b"def"].concat())).unwrap();

        assert_eq!(heard, Heard::Tls(b"abcdef".to_vec()));
    }

    #[test]
    fn ours_are_sent_one_by_one_as_the_peer_acknowledges() {
        let mut eap = started();
        let tls: Vec<u8> = (0..=255).cycle().take(2500).collect();
        let mut got = Vec::new();

        let first = eap.send(tls.clone()).unwrap();
        assert_eq!(first.data[..5], [0xc0, 0, 0, 0x09, 0xc4]);
        got.extend_from_slice(&first.data[5..]);
        let mut identifier = first.identifier;
        // RFC 5216 3.2: an acknowledgement has no data; some leave the flags out too.
        for ack in [&[][..], &[0]] {
            let Heard::Reply(next) = eap.hear(&answer(identifier, ack)).unwrap() else {
                panic!("no fragment");
            };
            assert_ne!(next.identifier, identifier);
            identifier = next.identifier;
            got.extend_from_slice(&next.data[1..]);
        }

        assert_eq!(got, tls);
        assert_eq!(eap.hear(&answer(identifier, &[0])), Ok(Heard::Acknowledged));
    }

    #[test]
    fn what_does_not_answer_ends_the_conversation() {
        let over = |change: &dyn Fn(&mut Eap)| {
            let mut eap = answer(7, &[0, 1]);
            change(&mut eap);
            started().hear(&eap).unwrap_err()
        };
        assert_eq!(
            over(&|eap| eap.code = EapCode::Request),
            EapError::NotAResponse(EapCode::Request)
        );
        let wrong = EapError::Identifier { expected: 7, found: 8 };
        assert_eq!(over(&|eap| eap.identifier = 8), wrong);
        let peap = EapType::Peap;
        let nak = |eap: &mut Eap| {
            eap.method = Some(EapType::Nak);
            eap.data = vec![25];
        };
        assert_eq!(over(&nak), EapError::OtherMethod(peap));
        assert_eq!(over(&|eap| eap.method = Some(peap)), EapError::Method(peap));
        assert_eq!(over(&|eap| eap.data = vec![0x20]), EapError::Malformed);
        assert_eq!(over(&|eap| eap.data = vec![0x80, 0, 0]), EapError::Malformed);
        assert_eq!(over(&|eap| eap.data = vec![0x40]), EapError::Malformed);
        assert_eq!(over(&|eap| eap.data = vec![0x80, 0, 0, 0, 1, 1, 2]), EapError::Malformed);
        assert_eq!(over(&|eap| eap.data = vec![0x80, 0, 0, 0, 9, 1, 2]), EapError::Malformed);
        assert_eq!(over(&|eap| eap.data = vec![0x80, 0, 0, 0, 0]), EapError::Malformed);
        assert_eq!(over(&|eap| eap.data = vec![0x80, 0, 0, 0x80, 1, 1]), EapError::TooLong);
    }

    #[test]
    fn data_instead_of_an_acknowledgement_is_out_of_turn() {
        let mut eap = started();
        let first = eap.send(vec![0; 2 * FRAGMENT]).unwrap();

        assert_eq!(eap.hear(&answer(first.identifier, &[0, 1])), Err(EapError::OutOfTurn));
    }

    #[test]
    fn what_a_peer_can_make_us_hold_is_bounded() {
        let mut eap = started();
        let mut identifier = 7;
        let piece = [&[0x40][..], &[0; 1000]].concat();
        let error = loop {
            match eap.hear(&answer(identifier, &piece)) {
                Ok(Heard::Reply(request)) => identifier = request.identifier,
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
            assert!(eap.stream.inbound.len() <= MAX_TLS);
        };
        assert_eq!(error, EapError::TooLong);

        let mut eap = started();
        let mut identifier = 7;
        let mut rounds = 0;
        let error = loop {
            match eap.hear(&answer(identifier, &[0x40, 1])) {
                Ok(Heard::Reply(request)) => identifier = request.identifier,
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
            rounds += 1;
        };
        assert_eq!((error, rounds), (EapError::TooManyRounds, MAX_ROUNDS));
        assert_eq!(eap.send(vec![0; MAX_TLS + 1]), Err(EapError::TooLong));
    }
}
