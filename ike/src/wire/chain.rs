//! Messages and their chains of payloads (RFC 7296 3.2).

use super::{
    Authentication, CertRequest, Certificate, Configuration, Delete, Eap, EncryptedFragment,
    EncryptedPayload, Field, HEADER_LEN, Header, IdPayload, Identification, KeyExchange, Nonce,
    Notify, NotifyType, Part, PayloadType, Reader, SecurityAssociation, TrafficSelectors, VendorId,
    WireError, Writer,
};

/// The most payloads accepted in one chain.
pub const MAX_PAYLOADS: usize = 64;

const CRITICAL: u8 = 0x80;

/// Payloads of most chains at most.
const ITEMS_ROOM: usize = 12;

/// Octets of most chains at most: growing a buffer costs more than what is left over.
const CHAIN_ROOM: usize = 768;

/// A message: header and payloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The header.
    pub header: Header,
    /// The payloads; an Encrypted payload, if any, is last and not opened.
    pub payloads: Payloads,
}

impl Message {
    /// Parses a datagram (without the non-ESP marker).
    ///
    /// # Errors
    /// The first thing wrong with it. Unknown critical payloads are none: see
    /// [`Payloads::check_critical`].
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        let header = Header::parse(datagram)?;
        let chain = datagram.get(HEADER_LEN..).unwrap_or_default();
        let payloads = Payloads::parse_chain(header.next_payload, chain, HEADER_LEN, true)?;
        Ok(Self { header, payloads })
    }

    /// The message's octets; type of the first payload and length are filled in.
    ///
    /// # Errors
    /// When a payload exceeds its limits or contradicts itself.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let mut w = Writer::with_capacity(HEADER_LEN.saturating_add(CHAIN_ROOM));
        let next_payload = self.payloads.first_kind();
        Header { next_payload, length: 0, ..self.header }.write(&mut w);
        self.payloads.encode_chain(true, &mut w)?;
        let length = w.len();
        let limit = usize::try_from(u32::MAX).unwrap_or(usize::MAX);
        let length32 = u32::try_from(length).map_err(|_| WireError::TooLong {
            part: Part::Message,
            length,
            limit,
        })?;
        // The length is the header's last field.
        w.set_u32(HEADER_LEN.saturating_sub(4), length32);
        Ok(w.into_vec())
    }
}

/// One payload's octets within a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawPayload<'a> {
    /// Its type.
    pub kind: PayloadType,
    /// Its critical bit.
    pub critical: bool,
    /// The type its header tells of what follows.
    pub next: PayloadType,
    /// Where its body begins.
    pub at: usize,
    /// Its octets after the generic header.
    pub body: &'a [u8],
}

/// Walks a chain payload by payload, looking into none. Ends at the first error, and after an
/// Encrypted payload, whose header names what is inside it.
#[derive(Debug, Clone)]
pub struct RawChain<'a> {
    next: PayloadType,
    reader: Reader<'a>,
    left: usize,
    done: bool,
}

impl<'a> RawChain<'a> {
    /// A chain that begins with a payload of type `first`, at offset `at` of its message.
    pub fn new(first: PayloadType, chain: &'a [u8], at: usize) -> Self {
        let reader = Reader::new(chain, Part::GenericHeader, at);
        Self { next: first, reader, left: MAX_PAYLOADS, done: false }
    }

    fn step(&mut self) -> Result<Option<RawPayload<'a>>, WireError> {
        let kind = self.next;
        if kind == PayloadType::None {
            self.reader.clone().finish()?;
            return Ok(None);
        }
        let Some(left) = self.left.checked_sub(1) else {
            return Err(WireError::TooMany { part: Part::Message, limit: MAX_PAYLOADS });
        };
        self.left = left;
        let next = PayloadType::from(self.reader.u8()?);
        let critical = self.reader.u8()? & CRITICAL != 0;
        let length = self.reader.u16()?;
        let mut body = self.reader.body(length, 4, Part::Payload(kind))?;
        let at = body.at();
        self.next = next;
        if matches!(kind, PayloadType::Sk | PayloadType::Skf) {
            // RFC 7296 3.14: it must be the last payload, and its header names the first inside.
            self.next = PayloadType::None;
        }
        Ok(Some(RawPayload { kind, critical, next, at, body: body.rest() }))
    }
}

impl<'a> Iterator for RawChain<'a> {
    type Item = Result<RawPayload<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let step = self.step().transpose();
        self.done = !matches!(step, Some(Ok(_)));
        step
    }
}

/// A payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Security Association.
    Sa(SecurityAssociation),
    /// Key Exchange.
    Ke(KeyExchange),
    /// Identification of the initiator.
    IdI(IdPayload),
    /// Identification of the responder.
    IdR(IdPayload),
    /// Certificate.
    Cert(Certificate),
    /// Certificate Request.
    CertReq(CertRequest),
    /// Authentication.
    Auth(Authentication),
    /// Nonce.
    Nonce(Nonce),
    /// Notify.
    Notify(Notify),
    /// Delete.
    Delete(Delete),
    /// Vendor ID.
    VendorId(VendorId),
    /// Traffic selectors of the initiator's side.
    TsI(TrafficSelectors),
    /// Traffic selectors of the responder's side.
    TsR(TrafficSelectors),
    /// Encrypted.
    Encrypted(EncryptedPayload),
    /// Encrypted Fragment.
    Fragment(EncryptedFragment),
    /// Configuration.
    Cp(Configuration),
    /// EAP.
    Eap(Eap),
    /// A payload of a type not understood here.
    Unknown {
        /// Its type.
        kind: PayloadType,
        /// Its octets after the generic header.
        body: Vec<u8>,
    },
}

impl Payload {
    /// An IDi payload.
    pub fn id_i(id: Identification) -> Self {
        Self::IdI(id.into())
    }

    /// An IDr payload.
    pub fn id_r(id: Identification) -> Self {
        Self::IdR(id.into())
    }

    /// The payload's type.
    pub fn kind(&self) -> PayloadType {
        match self {
            Self::Sa(_) => PayloadType::Sa,
            Self::Ke(_) => PayloadType::Ke,
            Self::IdI(_) => PayloadType::IdI,
            Self::IdR(_) => PayloadType::IdR,
            Self::Cert(_) => PayloadType::Cert,
            Self::CertReq(_) => PayloadType::CertReq,
            Self::Auth(_) => PayloadType::Auth,
            Self::Nonce(_) => PayloadType::Nonce,
            Self::Notify(_) => PayloadType::Notify,
            Self::Delete(_) => PayloadType::Delete,
            Self::VendorId(_) => PayloadType::VendorId,
            Self::TsI(_) => PayloadType::TsI,
            Self::TsR(_) => PayloadType::TsR,
            Self::Encrypted(_) => PayloadType::Sk,
            Self::Fragment(_) => PayloadType::Skf,
            Self::Cp(_) => PayloadType::Cp,
            Self::Eap(_) => PayloadType::Eap,
            Self::Unknown { kind, .. } => *kind,
        }
    }

    /// Parses the body of one payload.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(raw: &RawPayload<'_>) -> Result<Self, WireError> {
        let mut r = Reader::new(raw.body, Part::Payload(raw.kind), raw.at);
        Ok(match raw.kind {
            PayloadType::Sa => Self::Sa(SecurityAssociation::parse(r)?),
            PayloadType::Ke => Self::Ke(KeyExchange::parse(r)?),
            PayloadType::IdI => Self::IdI(IdPayload::parse(r)?),
            PayloadType::IdR => Self::IdR(IdPayload::parse(r)?),
            PayloadType::Cert => Self::Cert(Certificate::parse(r)?),
            PayloadType::CertReq => Self::CertReq(CertRequest::parse(r)?),
            PayloadType::Auth => Self::Auth(Authentication::parse(r)?),
            PayloadType::Nonce => Self::Nonce(Nonce::parse(r)?),
            PayloadType::Notify => Self::Notify(Notify::parse(r)?),
            PayloadType::Delete => Self::Delete(Delete::parse(r)?),
            PayloadType::VendorId => Self::VendorId(VendorId::parse(r)),
            PayloadType::TsI => Self::TsI(TrafficSelectors::parse(r)?),
            PayloadType::TsR => Self::TsR(TrafficSelectors::parse(r)?),
            PayloadType::Sk => {
                Self::Encrypted(EncryptedPayload { first_inner: raw.next, body: r.rest().to_vec() })
            }
            PayloadType::Skf => Self::Fragment(EncryptedFragment::parse(r, raw.next)?),
            PayloadType::Cp => Self::Cp(Configuration::parse(r)?),
            PayloadType::Eap => Self::Eap(Eap::parse(r)?),
            kind => Self::Unknown { kind, body: r.rest().to_vec() },
        })
    }

    fn write(&self, w: &mut Writer) -> Result<(), WireError> {
        match self {
            Self::Sa(sa) => sa.write(w)?,
            Self::Ke(ke) => ke.write(w),
            Self::IdI(id) | Self::IdR(id) => id.write(w)?,
            Self::Cert(cert) => cert.write(w)?,
            Self::CertReq(request) => request.write(w)?,
            Self::Auth(auth) => auth.write(w),
            Self::Nonce(nonce) => nonce.write(w),
            Self::Notify(notify) => notify.write(w)?,
            Self::Delete(delete) => delete.write(w)?,
            Self::VendorId(vendor) => vendor.write(w),
            Self::TsI(ts) | Self::TsR(ts) => ts.write(w)?,
            Self::Encrypted(sk) => w.bytes(&sk.body),
            Self::Fragment(skf) => {
                if skf.number == 0 || skf.number > skf.total {
                    let (part, field) = (Part::Payload(PayloadType::Skf), Field::FragmentNumber);
                    return Err(WireError::Invalid { part, field, at: 0 });
                }
                w.u16(skf.number);
                w.u16(skf.total);
                w.bytes(&skf.body);
            }
            Self::Cp(cp) => cp.write(w)?,
            Self::Eap(eap) => eap.write(w)?,
            Self::Unknown { kind, body } => {
                if kind.is_supported() || *kind == PayloadType::None {
                    return Err(WireError::Misplaced { payload: *kind });
                }
                w.bytes(body);
            }
        }
        Ok(())
    }

    fn inner_of_encrypted(&self) -> Option<PayloadType> {
        match self {
            Self::Encrypted(sk) => Some(sk.first_inner),
            Self::Fragment(skf) => Some(skf.first_inner),
            _ => None,
        }
    }
}

/// A payload and its critical bit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The critical bit: zero for payloads RFC 7296 defines, ignored on their receipt.
    pub critical: bool,
    /// The payload.
    pub payload: Payload,
}

/// A set of payload types.
#[derive(Debug, Default)]
struct PayloadTypes([u128; 2]);

impl PayloadTypes {
    /// Adds a type; false when it was there.
    fn insert(&mut self, kind: PayloadType) -> bool {
        let (half, bit) = (usize::from(kind.value() >> 7), kind.value() & 0x7f);
        let Some(half) = self.0.get_mut(half) else { return true };
        let mask = 1_u128 << bit;
        let new = *half & mask == 0;
        *half |= mask;
        new
    }
}

/// A chain of payloads, in order. Those that may occur once do occur at most once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Payloads {
    items: Vec<Item>,
}

/// Accessors of the payloads that may occur once.
macro_rules! single {
    ($($(#[$meta:meta])* $name:ident: $variant:ident -> $type:ty;)*) => {
        impl Payloads {
            $(
                $(#[$meta])*
                pub fn $name(&self) -> Option<&$type> {
                    self.iter().find_map(|payload| match payload {
                        Payload::$variant(content) => Some(content),
                        _ => None,
                    })
                }
            )*
        }
    };
}

single! {
    /// The Security Association payload.
    sa: Sa -> SecurityAssociation;
    /// The Key Exchange payload.
    ke: Ke -> KeyExchange;
    /// The IDi payload.
    id_i: IdI -> IdPayload;
    /// The IDr payload.
    id_r: IdR -> IdPayload;
    /// The Authentication payload.
    auth: Auth -> Authentication;
    /// The Nonce payload.
    nonce: Nonce -> Nonce;
    /// The TSi payload.
    ts_i: TsI -> TrafficSelectors;
    /// The TSr payload.
    ts_r: TsR -> TrafficSelectors;
    /// The Configuration payload.
    cp: Cp -> Configuration;
    /// The EAP payload.
    eap: Eap -> Eap;
    /// The Encrypted payload, not opened.
    encrypted: Encrypted -> EncryptedPayload;
    /// The Encrypted Fragment payload, not opened.
    fragment: Fragment -> EncryptedFragment;
}

impl Payloads {
    /// An empty chain.
    pub fn new() -> Self {
        Self::default()
    }

    /// Parses the chain inside an Encrypted payload, whose first payload has type `first`.
    ///
    /// # Errors
    /// The first thing wrong with it; an Encrypted payload inside another is.
    pub fn parse(first: PayloadType, chain: &[u8]) -> Result<Self, WireError> {
        Self::parse_chain(first, chain, 0, false)
    }

    /// Appends a payload.
    pub fn push(&mut self, payload: Payload) {
        self.push_item(Item { critical: false, payload });
    }

    /// Appends a Notify payload.
    pub fn push_notify(&mut self, notify: Notify) {
        self.push(Payload::Notify(notify));
    }

    /// Appends a payload with its critical bit.
    pub fn push_item(&mut self, item: Item) {
        if self.items.is_empty() {
            self.items.reserve(ITEMS_ROOM);
        }
        self.items.push(item);
    }

    /// Takes the first payload of a type out.
    pub(crate) fn take(&mut self, kind: PayloadType) -> Option<Payload> {
        let at = self.items.iter().position(|item| item.payload.kind() == kind)?;
        Some(self.items.remove(at).payload)
    }

    /// Puts a payload first, as a COOKIE must be (RFC 7296 2.6).
    pub fn push_front(&mut self, payload: Payload) {
        self.items.insert(0, Item { critical: false, payload });
    }

    /// The type of the first payload and the octets of all.
    ///
    /// # Errors
    /// When a payload exceeds its limits, contradicts itself or must not stand there.
    pub fn encode(&self) -> Result<(PayloadType, Vec<u8>), WireError> {
        let mut w = Writer::with_capacity(CHAIN_ROOM);
        self.encode_chain(false, &mut w)?;
        Ok((self.first_kind(), w.into_vec()))
    }

    /// Refuses unknown payloads whose critical bit is set (RFC 7296 2.5).
    ///
    /// # Errors
    /// [`WireError::UnsupportedCritical`] for the first of them.
    pub fn check_critical(&self) -> Result<(), WireError> {
        let unsupported = self
            .items
            .iter()
            .find(|item| item.critical && matches!(item.payload, Payload::Unknown { .. }));
        match unsupported {
            Some(item) => Err(WireError::UnsupportedCritical { payload: item.payload.kind() }),
            None => Ok(()),
        }
    }

    /// How many payloads there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The payloads, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Payload> + '_ {
        self.items.iter().map(|item| &item.payload)
    }

    /// The payloads with their critical bits, in order.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The Notify payloads, in order.
    pub fn notifies(&self) -> impl Iterator<Item = &Notify> + '_ {
        self.iter().filter_map(|payload| match payload {
            Payload::Notify(notify) => Some(notify),
            _ => None,
        })
    }

    /// The first Notify payload of a type.
    pub fn notify(&self, kind: NotifyType) -> Option<&Notify> {
        self.notifies().find(|notify| notify.kind == kind)
    }

    /// Whether there is a Notify payload of a type.
    pub fn has_notify(&self, kind: NotifyType) -> bool {
        self.notify(kind).is_some()
    }

    /// The first Notify payload that reports an error.
    pub fn error_notify(&self) -> Option<&Notify> {
        self.notifies().find(|notify| notify.kind.is_error())
    }

    /// The Certificate payloads, in order.
    pub fn certs(&self) -> impl Iterator<Item = &Certificate> + '_ {
        self.iter().filter_map(|payload| match payload {
            Payload::Cert(cert) => Some(cert),
            _ => None,
        })
    }

    /// The Certificate Request payloads, in order.
    pub fn cert_requests(&self) -> impl Iterator<Item = &CertRequest> + '_ {
        self.iter().filter_map(|payload| match payload {
            Payload::CertReq(request) => Some(request),
            _ => None,
        })
    }

    /// The Delete payloads, in order.
    pub fn deletes(&self) -> impl Iterator<Item = &Delete> + '_ {
        self.iter().filter_map(|payload| match payload {
            Payload::Delete(delete) => Some(delete),
            _ => None,
        })
    }

    /// The Vendor ID payloads, in order.
    pub fn vendor_ids(&self) -> impl Iterator<Item = &VendorId> + '_ {
        self.iter().filter_map(|payload| match payload {
            Payload::VendorId(vendor) => Some(vendor),
            _ => None,
        })
    }

    fn parse_chain(
        first: PayloadType,
        chain: &[u8],
        at: usize,
        outer: bool,
    ) -> Result<Self, WireError> {
        let mut out = Self { items: Vec::with_capacity(ITEMS_ROOM) };
        for raw in RawChain::new(first, chain, at) {
            let raw = raw?;
            if !outer && matches!(raw.kind, PayloadType::Sk | PayloadType::Skf) {
                return Err(WireError::Misplaced { payload: raw.kind });
            }
            let payload = Payload::parse(&raw)?;
            out.check_unique(raw.kind)?;
            out.items.push(Item { critical: raw.critical, payload });
        }
        Ok(out)
    }

    fn check_unique(&self, kind: PayloadType) -> Result<(), WireError> {
        if !kind.may_repeat() && self.iter().any(|payload| payload.kind() == kind) {
            return Err(WireError::Duplicate { payload: kind });
        }
        Ok(())
    }

    /// The type of the first payload.
    fn first_kind(&self) -> PayloadType {
        self.items.first().map_or(PayloadType::None, |item| item.payload.kind())
    }

    fn encode_chain(&self, outer: bool, w: &mut Writer) -> Result<(), WireError> {
        if self.items.len() > MAX_PAYLOADS {
            return Err(WireError::TooMany { part: Part::Message, limit: MAX_PAYLOADS });
        }
        let mut seen = PayloadTypes::default();
        let mut following = self.items.iter().skip(1);
        for item in &self.items {
            let kind = item.payload.kind();
            if !seen.insert(kind) && !kind.may_repeat() {
                return Err(WireError::Duplicate { payload: kind });
            }
            let follower = following.next().map(|item| item.payload.kind());
            let next = match (item.payload.inner_of_encrypted(), follower) {
                (None, follower) => follower.unwrap_or(PayloadType::None),
                (Some(inner), None) if outer => inner,
                (Some(_), _) => return Err(WireError::Misplaced { payload: kind }),
            };
            let start = w.len();
            w.u8(next.value());
            w.u8(if item.critical { CRITICAL } else { 0 });
            let length_at = w.len();
            w.u16(0);
            item.payload.write(w)?;
            w.set_len16(length_at, start, Part::Payload(kind))?;
        }
        Ok(())
    }
}

impl FromIterator<Payload> for Payloads {
    fn from_iter<T: IntoIterator<Item = Payload>>(payloads: T) -> Self {
        let mut out = Self::new();
        payloads.into_iter().for_each(|payload| out.push(payload));
        out
    }
}

impl From<Vec<Payload>> for Payloads {
    fn from(payloads: Vec<Payload>) -> Self {
        payloads.into_iter().collect()
    }
}
