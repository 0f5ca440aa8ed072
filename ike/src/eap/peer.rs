//! EAP-TLS as the peer of RFC 5216 and RFC 9190, without the TLS: a server's requests are answered
//! until it says Success. Other methods are declined.

use super::stream::{Packet, Stream};
use super::{EapError, MAX_ROUNDS, START};
use crate::wire::{Eap, EapCode, EapType};

/// What a request of the server leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerHeard {
    /// Send this.
    Reply(Eap),
    /// The server's TLS messages are complete; empty at the beginning. Give them to the TLS client,
    /// then [`EapTlsPeer::send`].
    Tls(Vec<u8>),
    /// The server is satisfied.
    Success,
}

/// One conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EapTlsPeer {
    /// What a request for our identity is answered with.
    identity: Vec<u8>,
    /// Of the server's last request.
    identifier: u8,
    rounds: u32,
    started: bool,
    stream: Stream,
}

impl EapTlsPeer {
    /// A conversation that the server is to begin.
    pub fn new(identity: Vec<u8>) -> Self {
        Self { identity, identifier: 0, rounds: 0, started: false, stream: Stream::default() }
    }

    /// The server's next request.
    ///
    /// # Errors
    /// [`EapError`]; the conversation is over.
    pub fn hear(&mut self, request: &Eap) -> Result<PeerHeard, EapError> {
        self.rounds = self.rounds.saturating_add(1);
        if self.rounds > MAX_ROUNDS {
            return Err(EapError::TooManyRounds);
        }
        match request.code {
            EapCode::Request => {}
            EapCode::Success => return Ok(PeerHeard::Success),
            EapCode::Failure => return Err(EapError::Failed),
            code => return Err(EapError::NotARequest(code)),
        }
        self.identifier = request.identifier;
        match request.method {
            Some(EapType::Tls) => self.tls(&request.data),
            // RFC 3748 5.1
            Some(EapType::Identity) if !self.started => {
                let identity = self.identity.clone();
                Ok(PeerHeard::Reply(Eap::response(self.identifier, EapType::Identity, identity)))
            }
            // RFC 3748 5.2: what it says to a user is acknowledged, at any time; here is none.
            Some(EapType::Notification) => Ok(PeerHeard::Reply(Eap::response(
                self.identifier,
                EapType::Notification,
                Vec::new(),
            ))),
            // RFC 3748 5.3.1: we want EAP-TLS. Once it has begun there is no other.
            Some(_) if !self.started => {
                let wanted = vec![EapType::Tls.value()];
                Ok(PeerHeard::Reply(Eap::response(self.identifier, EapType::Nak, wanted)))
            }
            Some(method) => Err(EapError::Method(method)),
            None => Err(EapError::Malformed),
        }
    }

    fn tls(&mut self, data: &[u8]) -> Result<PeerHeard, EapError> {
        let packet = Packet::parse(data)?;
        if packet.flags & START != 0 {
            // RFC 5216 2.1.1: without data, and once.
            if self.started || !packet.is_empty() {
                return Err(EapError::Malformed);
            }
            self.started = true;
            return Ok(PeerHeard::Tls(Vec::new()));
        }
        if !self.started {
            return Err(EapError::OutOfTurn);
        }
        if self.stream.is_sending() {
            // RFC 5216 2.1.5: a fragment is acknowledged by an empty request.
            return if packet.is_empty() {
                Ok(PeerHeard::Reply(self.next()))
            } else {
                Err(EapError::OutOfTurn)
            };
        }
        if packet.is_empty() && self.stream.inbound.is_empty() {
            return Err(EapError::OutOfTurn);
        }
        Ok(match self.stream.collect(packet)? {
            Some(tls) => PeerHeard::Tls(tls),
            None => PeerHeard::Reply(self.response(vec![0])),
        })
    }

    /// What the TLS says next; the response that carries its beginning. With nothing to say it
    /// acknowledges what the server said.
    ///
    /// # Errors
    /// [`EapError::TooLong`].
    pub fn send(&mut self, tls: Vec<u8>) -> Result<Eap, EapError> {
        self.stream.send(tls)?;
        Ok(self.next())
    }

    fn next(&mut self) -> Eap {
        let data = self.stream.next();
        self.response(data)
    }

    fn response(&self, data: Vec<u8>) -> Eap {
        Eap::response(self.identifier, EapType::Tls, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eap::{EapTls, Heard, MAX_TLS};

    fn started() -> EapTlsPeer {
        let mut peer = EapTlsPeer::new(b"me".to_vec());
        let start = Eap::request(7, EapType::Tls, vec![START]);
        assert_eq!(peer.hear(&start), Ok(PeerHeard::Tls(Vec::new())));
        peer
    }

    fn request(identifier: u8, data: &[u8]) -> Eap {
        Eap::request(identifier, EapType::Tls, data.to_vec())
    }

    /// Long messages of both sides, in fragments, through our own server.
    #[test]
    fn both_sides_understand_each_other() {
        let (mut server, start) = EapTls::start(200);
        let mut peer = EapTlsPeer::new(Vec::new());
        assert_eq!(peer.hear(&start), Ok(PeerHeard::Tls(Vec::new())));
        let ours: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let theirs: Vec<u8> = ours.iter().rev().copied().take(4321).collect();

        let mut said = peer.send(ours.clone()).unwrap();
        let heard = loop {
            match server.hear(&said).unwrap() {
                Heard::Reply(ack) => match peer.hear(&ack).unwrap() {
                    PeerHeard::Reply(next) => said = next,
                    other => panic!("{other:?}"),
                },
                Heard::Tls(tls) => break tls,
                Heard::Acknowledged => panic!("too early"),
            }
        };
        assert_eq!(heard, ours);
        let mut said = server.send(theirs.clone()).unwrap();
        let heard = loop {
            match peer.hear(&said).unwrap() {
                PeerHeard::Reply(ack) => match server.hear(&ack).unwrap() {
                    Heard::Reply(next) => said = next,
                    other => panic!("{other:?}"),
                },
                PeerHeard::Tls(tls) => break tls,
                PeerHeard::Success => panic!("too early"),
            }
        };
        assert_eq!(heard, theirs);
        // RFC 9190 2.1.1: nothing more to say.
        let ack = peer.send(Vec::new()).unwrap();
        assert_eq!(server.hear(&ack), Ok(Heard::Acknowledged));
        assert_eq!(peer.hear(&server.success()), Ok(PeerHeard::Success));
    }

    #[test]
    fn our_identity_is_told_and_other_methods_are_declined_before_the_start() {
        let mut peer = EapTlsPeer::new(b"me".to_vec());
        let told = Eap::response(1, EapType::Identity, b"me".to_vec());
        let asked = Eap::request(1, EapType::Identity, Vec::new());
        assert_eq!(peer.hear(&asked), Ok(PeerHeard::Reply(told)));
        // RFC 3748 5.3.1
        let nak = Eap::response(2, EapType::Nak, vec![13]);
        let offered = Eap::request(2, EapType::Peap, vec![0x20]);
        assert_eq!(peer.hear(&offered), Ok(PeerHeard::Reply(nak)));

        let again = Eap::request(8, EapType::Peap, Vec::new());
        assert_eq!(started().hear(&again), Err(EapError::Method(EapType::Peap)));
    }

    #[test]
    fn what_asks_nothing_ends_the_conversation() {
        let over = |eap: Eap| started().hear(&eap).unwrap_err();
        assert_eq!(over(Eap::failure(7)), EapError::Failed);
        let response = Eap::response(8, EapType::Tls, vec![0]);
        assert_eq!(over(response), EapError::NotARequest(EapCode::Response));
        assert_eq!(over(request(8, &[START])), EapError::Malformed);
        assert_eq!(over(request(8, &[0])), EapError::OutOfTurn);
        assert_eq!(over(request(8, &[0x40])), EapError::Malformed);
        assert_eq!(over(request(8, &[0x80, 0, 0, 0, 9, 1])), EapError::Malformed);
        assert_eq!(over(request(8, &[0x80, 0, 0, 0, 0])), EapError::Malformed);
        assert_eq!(over(request(8, &[0x80, 0, 1, 0, 0, 1])), EapError::TooLong);
        let mut fresh = EapTlsPeer::new(Vec::new());
        assert_eq!(fresh.hear(&request(1, &[0, 1])), Err(EapError::OutOfTurn));
        let mut sending = started();
        sending.send(vec![0; 3000]).unwrap();
        assert_eq!(sending.hear(&request(8, &[0, 1])), Err(EapError::OutOfTurn));
    }

    #[test]
    fn what_a_server_can_make_us_hold_is_bounded() {
        let mut peer = started();
        let piece = [&[0x40][..], &[0; 1000]].concat();
        let error = (0..u8::MAX).find_map(|n| peer.hear(&request(n, &piece)).err()).unwrap();
        assert_eq!(error, EapError::TooLong);
        assert!(peer.stream.inbound.len() <= MAX_TLS);

        let mut peer = started();
        let error = (0..u8::MAX).find_map(|n| peer.hear(&request(n, &[0x40, 1])).err()).unwrap();
        assert_eq!(error, EapError::TooManyRounds);
        assert_eq!(peer.send(vec![0; MAX_TLS + 1]), Err(EapError::TooLong));
    }
}
