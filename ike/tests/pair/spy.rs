//! Someone with a side's keys, who can say what that side's engine never would.

use ike::crypto::keymat::{IkeKeys, Nonces, auth_octets, auth_shared_key, skeyseed};
use ike::crypto::ring::PROVIDER;
use ike::crypto::{IkeSuite, KexResponse, KeyedCipher, Prf, SecretBytes};
use ike::io::{Completion, Datagram, Input};
use ike::wire::{
    AuthMethod, Authentication, CipherError, ExchangeType, Flags, Header, IdPayload,
    Identification, IkeSpi, Message, Opened, PayloadType, Payloads, SkCipher, open, seal_plaintext,
};

use crate::harness::{Flight, Pair, Side};

struct Sk(Box<dyn KeyedCipher>);

impl SkCipher for Sk {
    fn iv_len(&self) -> usize {
        self.0.iv_len()
    }

    fn icv_len(&self) -> usize {
        self.0.icv_len()
    }

    fn block_len(&self) -> usize {
        self.0.block_len()
    }

    fn seal(
        &self,
        aad: &[u8],
        iv: &[u8],
        buf: &mut [u8],
        icv: &mut [u8],
    ) -> Result<(), CipherError> {
        icv.copy_from_slice(&self.0.seal(iv, aad, buf).map_err(|_| CipherError)?);
        Ok(())
    }

    fn open(&self, aad: &[u8], iv: &[u8], buf: &mut [u8], icv: &[u8]) -> Result<(), CipherError> {
        self.0.open(iv, aad, buf, icv).map_err(|_| CipherError)
    }
}

/// See the module.
pub struct Spy {
    pub keys: IkeKeys,
    prf: &'static dyn Prf,
    messages: (Vec<u8>, Vec<u8>),
    nonces: (Vec<u8>, Vec<u8>),
    spis: (IkeSpi, IkeSpi),
    from_i: Sk,
    from_r: Sk,
    iv: u64,
}

impl Spy {
    /// Takes the keys of the first IKE SA from what the engines were told. The suite must be an
    /// AEAD.
    pub fn of(pair: &Pair) -> Self {
        let messages = (sa_init(pair, Side::Server), sa_init(pair, Side::Client));
        let request = Message::parse(&messages.0).unwrap();
        let response = Message::parse(&messages.1).unwrap();
        let shared = pair
            .client
            .inputs
            .iter()
            .find_map(|(_, input)| match input {
                Input::Completion(
                    _,
                    Completion::KeyExchange(Ok(KexResponse::Agreed { secret, .. })),
                ) => Some(secret.clone()),
                _ => None,
            })
            .expect("no shared secret yet");
        let suite: IkeSuite =
            pair.client.engine.sas().next().unwrap().suite.unwrap().parse().unwrap();
        let prf = PROVIDER.prf(suite.prf).unwrap();
        let nonces = Nonces {
            i: request.payloads.nonce().unwrap().as_bytes(),
            r: response.payloads.nonce().unwrap().as_bytes(),
        };
        let spis = (response.header.spi_i, response.header.spi_r);
        let keys = IkeKeys::derive(
            prf,
            suite.key_lengths(&PROVIDER).unwrap(),
            &skeyseed(prf, nonces, &shared),
            nonces,
            spis.0.0.to_be_bytes(),
            spis.1.0.to_be_bytes(),
        )
        .unwrap();
        let cipher = PROVIDER.cipher(suite.encryption).unwrap();
        Self {
            prf,
            messages,
            nonces: (nonces.i.to_vec(), nonces.r.to_vec()),
            spis,
            from_i: Sk(cipher.keyed(&keys.ei, None).unwrap()),
            from_r: Sk(cipher.keyed(&keys.er, None).unwrap()),
            iv: 1 << 60,
            keys,
        }
    }

    /// AUTH of a side with this identity, made with a shared key (RFC 7296 2.15).
    pub fn mic(&self, from: Side, id: &Identification, key: &[u8]) -> Authentication {
        let (sk_p, message, nonce) = match from {
            Side::Client => (&self.keys.pi, &self.messages.0, &self.nonces.1),
            Side::Server => (&self.keys.pr, &self.messages.1, &self.nonces.0),
        };
        let body = IdPayload::from(id.clone()).body();
        let octets = auth_octets(self.prf, sk_p, message, nonce, &body, None);
        let mic = auth_shared_key(self.prf, &SecretBytes::copy_from(key), &octets);
        Authentication::new(AuthMethod::SharedKeyMic, mic.expose().to_vec())
    }

    /// A datagram of `from` that says `payloads`.
    pub fn say(
        &mut self,
        pair: &Pair,
        from: Side,
        exchange: ExchangeType,
        response: bool,
        message_id: u32,
        payloads: &Payloads,
    ) -> Flight {
        let (first, octets) = payloads.encode().unwrap();
        self.say_octets(pair, from, (exchange, response, message_id), first, &octets)
    }

    /// The same with octets that need not be payloads.
    pub fn say_octets(
        &mut self,
        pair: &Pair,
        from: Side,
        (exchange, response, message_id): (ExchangeType, bool, u32),
        first: PayloadType,
        octets: &[u8],
    ) -> Flight {
        let flags = Flags::new(from == Side::Client, response);
        let header = Header::new(self.spis.0, self.spis.1, exchange, flags, message_id);
        let cipher = if from == Side::Client { &self.from_i } else { &self.from_r };
        self.iv += 1;
        let iv = self.iv;
        let payload = seal_plaintext(header, first, octets, cipher, &mut |out: &mut [u8]| {
            out.copy_from_slice(&iv.to_be_bytes());
        })
        .unwrap();
        let (local, remote) = match from {
            Side::Client => (pair.target.remote, pair.target.local),
            Side::Server => (pair.target.local, pair.target.remote),
        };
        Flight { to: from.other(), datagram: Datagram { local, remote, encap: false, payload } }
    }

    /// What an unfragmented datagram says.
    pub fn hear(&self, flight: &Flight) -> Opened {
        let cipher = if flight.to == Side::Server { &self.from_i } else { &self.from_r };
        open(&flight.datagram.payload, cipher).unwrap()
    }
}

/// The last IKE_SA_INIT message that `to` was given.
fn sa_init(pair: &Pair, to: Side) -> Vec<u8> {
    let peer = match to {
        Side::Client => &pair.client,
        Side::Server => &pair.server,
    };
    peer.inputs
        .iter()
        .rev()
        .find_map(|(_, input)| match input {
            Input::Datagram(datagram)
                if Header::peek(&datagram.payload)
                    .is_ok_and(|header| header.exchange == ExchangeType::IkeSaInit) =>
            {
                Some(datagram.payload.clone())
            }
            _ => None,
        })
        .expect("no IKE_SA_INIT yet")
}
