//! Encryption of an IKE SA's messages, fragmentation and reassembly (RFC 7296 3.14, RFC 7383).

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::config::Limits;
use crate::crypto::keymat::{self, Nonces};
use crate::crypto::{
    CryptoError, CryptoProvider, IkeKeys, IkeSuite, KeyedCipher, Prf, SecretBytes, SharedSecret,
};
use crate::rng::SaRng;
use crate::wire::{
    CipherError, FragmentLimits, Frame, Header, IkeSpi, Opened, Payloads, Progress, Reassembler,
    SkCipher, WireError, seal_fragments,
};

/// Octets of the non-ESP marker, which count for the path but are not part of the message.
const NON_ESP_MARKER: usize = 4;

/// Datagrams larger than any path: no fragmentation.
const UNLIMITED: usize = u16::MAX as usize;

/// The keys of an IKE SA and the ciphers made of them.
#[derive(Debug)]
pub(crate) struct Protection {
    suite: IkeSuite,
    /// Shared with snapshots, so that they are in one place.
    keys: Arc<IkeKeys>,
    prf: &'static dyn Prf,
    outbound: Box<dyn KeyedCipher>,
    inbound: Box<dyn KeyedCipher>,
}

impl Protection {
    /// Keys of a first IKE SA (RFC 7296 2.14).
    ///
    /// # Errors
    /// When the provider lacks an algorithm, which the choice of the suite excludes.
    pub(crate) fn initial(
        crypto: &CryptoProvider,
        suite: IkeSuite,
        initiator: bool,
        spis: (IkeSpi, IkeSpi),
        nonces: Nonces<'_>,
        shared: &SharedSecret,
    ) -> Result<Self, CryptoError> {
        let prf = find_prf(crypto, &suite)?;
        let skeyseed = keymat::skeyseed(prf, nonces, shared);
        Self::expand(crypto, suite, initiator, spis, nonces, &skeyseed)
    }

    /// Keys after an additional key exchange in IKE_INTERMEDIATE (RFC 9370 2.2.2).
    ///
    /// # Errors
    /// As [`Protection::initial`].
    pub(crate) fn intermediate(
        old: &Self,
        crypto: &CryptoProvider,
        initiator: bool,
        spis: (IkeSpi, IkeSpi),
        nonces: Nonces<'_>,
        shared: &SharedSecret,
    ) -> Result<Self, CryptoError> {
        let skeyseed = keymat::skeyseed_intermediate(old.prf, &old.keys.d, nonces, shared);
        Self::expand(crypto, old.suite.clone(), initiator, spis, nonces, &skeyseed)
    }

    /// Keys of the IKE SA that replaces `old` (RFC 7296 2.18).
    ///
    /// # Errors
    /// As [`Protection::initial`].
    pub(crate) fn rekeyed(
        old: &Self,
        crypto: &CryptoProvider,
        suite: IkeSuite,
        initiator: bool,
        spis: (IkeSpi, IkeSpi),
        nonces: Nonces<'_>,
        shared: &[&SharedSecret],
    ) -> Result<Self, CryptoError> {
        let skeyseed = keymat::skeyseed_rekey(old.prf, &old.keys.d, nonces, shared);
        Self::expand(crypto, suite, initiator, spis, nonces, &skeyseed)
    }

    /// The protection made of known keys.
    ///
    /// # Errors
    /// When the provider lacks an algorithm or a key has another length.
    pub(crate) fn from_keys(
        crypto: &CryptoProvider,
        suite: IkeSuite,
        initiator: bool,
        keys: Arc<IkeKeys>,
    ) -> Result<Self, CryptoError> {
        let prf = find_prf(crypto, &suite)?;
        let to_responder = keyed(crypto, &suite, &keys.ei, &keys.ai)?;
        let to_initiator = keyed(crypto, &suite, &keys.er, &keys.ar)?;
        let (outbound, inbound) =
            if initiator { (to_responder, to_initiator) } else { (to_initiator, to_responder) };
        Ok(Self { suite, keys, prf, outbound, inbound })
    }

    fn expand(
        crypto: &CryptoProvider,
        suite: IkeSuite,
        initiator: bool,
        spis: (IkeSpi, IkeSpi),
        nonces: Nonces<'_>,
        skeyseed: &SecretBytes,
    ) -> Result<Self, CryptoError> {
        let prf = find_prf(crypto, &suite)?;
        let lengths = suite.key_lengths(crypto)?;
        let (spi_i, spi_r) = (spis.0.0.to_be_bytes(), spis.1.0.to_be_bytes());
        let keys = IkeKeys::derive(prf, lengths, skeyseed, nonces, spi_i, spi_r)?;
        Self::from_keys(crypto, suite, initiator, Arc::new(keys))
    }

    /// Mixes a post-quantum preshared key into the keys of AUTH and of what follows; those that
    /// protect messages stay (RFC 8784 3).
    ///
    /// # Errors
    /// As [`IkeKeys::mix_ppk`].
    pub(crate) fn mix_ppk(&mut self, ppk: &SecretBytes) -> Result<(), CryptoError> {
        Arc::make_mut(&mut self.keys).mix_ppk(self.prf, ppk)
    }

    /// Takes [`Protection::mix_ppk`] back.
    pub(crate) fn unmix(&mut self, keys: Arc<IkeKeys>) {
        self.keys = keys;
    }

    pub(crate) fn suite(&self) -> &IkeSuite {
        &self.suite
    }

    pub(crate) fn keys(&self) -> &IkeKeys {
        &self.keys
    }

    /// The keys for who holds them beside this.
    pub(crate) fn shared_keys(&self) -> Arc<IkeKeys> {
        Arc::clone(&self.keys)
    }

    pub(crate) fn prf(&self) -> &'static dyn Prf {
        self.prf
    }

    /// The datagrams of one message; more than one only when the peer reassembles and the message
    /// does not fit `limit` octets of UDP payload.
    ///
    /// # Errors
    /// When the message cannot be encoded: ours is at fault.
    pub(crate) fn seal(
        &self,
        header: Header,
        payloads: &Payloads,
        rng: &mut SaRng,
        framing: Framing,
    ) -> Result<Vec<Vec<u8>>, WireError> {
        let (first, plaintext) = payloads.encode()?;
        let plaintext = Zeroizing::new(plaintext);
        let cipher = Sk(self.outbound.as_ref());
        let limit = match framing.fragment_size {
            Some(size) if framing.encap => size.saturating_sub(NON_ESP_MARKER),
            Some(size) => size,
            None => UNLIMITED,
        };
        // IVs are random: a snapshot that is restored cannot make them repeat.
        seal_fragments(header, first, &plaintext, limit, &cipher, &mut |iv| rng.fill(iv))
    }

    /// Verifies and decrypts one datagram.
    ///
    /// # Errors
    /// [`WireError::Integrity`] and lengths: nothing of it is authentic.
    pub(crate) fn open(&self, frame: &Frame<'_>) -> Result<Opened, WireError> {
        frame.open(&Sk(self.inbound.as_ref()))
    }
}

/// How large datagrams may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Framing {
    /// Octets of UDP payload; `None` when the peer cannot reassemble.
    pub(crate) fragment_size: Option<usize>,
    /// A non-ESP marker is put in front.
    pub(crate) encap: bool,
}

fn find_prf(crypto: &CryptoProvider, suite: &IkeSuite) -> Result<&'static dyn Prf, CryptoError> {
    crypto.prf(suite.prf).ok_or(CryptoError::Unsupported("the pseudorandom function"))
}

fn keyed(
    crypto: &CryptoProvider,
    suite: &IkeSuite,
    encr: &SecretBytes,
    integ: &SecretBytes,
) -> Result<Box<dyn KeyedCipher>, CryptoError> {
    let cipher = crypto
        .cipher(suite.encryption)
        .ok_or(CryptoError::Unsupported("the encryption algorithm"))?;
    let integrity = match suite.integ {
        None => None,
        Some(id) => {
            let algorithm =
                crypto.integ(id).ok_or(CryptoError::Unsupported("the integrity algorithm"))?;
            Some((algorithm, integ))
        }
    };
    cipher.keyed(encr, integrity)
}

/// The provider's cipher as the codec wants it.
struct Sk<'a>(&'a dyn KeyedCipher);

impl SkCipher for Sk<'_> {
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
        buffer: &mut [u8],
        icv: &mut [u8],
    ) -> Result<(), CipherError> {
        let sum = self.0.seal(iv, aad, buffer).map_err(|_| CipherError)?;
        if sum.len() != icv.len() {
            return Err(CipherError);
        }
        icv.copy_from_slice(&sum);
        Ok(())
    }

    fn open(
        &self,
        aad: &[u8],
        iv: &[u8],
        buffer: &mut [u8],
        icv: &[u8],
    ) -> Result<(), CipherError> {
        self.0.open(iv, aad, buffer, icv).map_err(|_| CipherError)
    }
}

/// What a datagram of an SA turned out to be.
#[derive(Debug)]
pub(crate) enum Received {
    /// A whole authentic message.
    Message(Opened),
    /// An authentic fragment; others are missing.
    Partial,
    /// Nothing that changes anything: a repeated fragment, one of an abandoned attempt.
    Nothing,
    /// Not authentic.
    Forged,
}

/// Reassembly, one message in each direction.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    requests: Slot,
    responses: Slot,
}

#[derive(Debug, Default)]
struct Slot {
    message_id: u32,
    reassembler: Option<Box<Reassembler>>,
}

impl Inbox {
    /// Opens a datagram whose message id the window expects.
    pub(crate) fn receive(
        &mut self,
        protection: &Protection,
        frame: &Frame<'_>,
        limits: &Limits,
    ) -> Received {
        let header = frame.header();
        if frame.fragment().is_none() {
            return match protection.open(frame) {
                Ok(opened) => Received::Message(opened),
                Err(_) => Received::Forged,
            };
        }
        let slot = if header.flags.response { &mut self.responses } else { &mut self.requests };
        if slot.message_id != header.message_id {
            *slot = Slot { message_id: header.message_id, reassembler: None };
        }
        let reassembler = slot.reassembler.get_or_insert_with(|| {
            let limits =
                FragmentLimits { fragments: limits.max_fragments, bytes: limits.max_message };
            Box::new(Reassembler::new(limits))
        });
        match reassembler.insert(frame, &Sk(protection.inbound.as_ref())) {
            Ok(Progress::Complete(opened)) => Received::Message(opened),
            Ok(Progress::Stored { .. }) => Received::Partial,
            Ok(Progress::Duplicate { .. } | Progress::Superseded) => Received::Nothing,
            Err(WireError::Integrity) => Received::Forged,
            Err(_) => Received::Nothing,
        }
    }

    /// Gives up what is incomplete and forgets what is complete.
    pub(crate) fn clear(&mut self, responses: bool) {
        let slot = if responses { &mut self.responses } else { &mut self.requests };
        slot.reassembler = None;
    }
}
