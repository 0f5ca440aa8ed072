//! Notify payload (RFC 7296 3.10) and the data of the notifications that carry some.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::writer::fit8;
use super::{
    ChildSpi, Field, HashAlgorithm, IkeSpi, KeMethod, NotifyType, Part, PayloadType, ProtocolId,
    Reader, WireError, Writer,
};

/// A notification. `Debug` prints the data's length only: it may be a cookie or a ticket.
#[derive(Clone, PartialEq, Eq)]
pub struct Notify {
    /// The protocol of the SA it is about; [`ProtocolId::None`] when it is about none.
    pub protocol: ProtocolId,
    /// The SPI of that SA, or nothing.
    pub spi: Vec<u8>,
    /// What it says.
    pub kind: NotifyType,
    /// Its data.
    pub data: Vec<u8>,
}

/// The message IDs a peer continues with after a failover (RFC 6311 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageIdSync {
    /// Echoed in the answer.
    pub nonce: u32,
    /// The ID of the sender's next request.
    pub next_send: u32,
    /// The ID of the next request the sender expects.
    pub next_receive: u32,
}

/// The gateway a REDIRECT names (RFC 5685 7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectGateway {
    /// By address.
    Address(IpAddr),
    /// By host name.
    Fqdn(Vec<u8>),
}

/// What a MOBIKE peer says about its further addresses (RFC 4555 3.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdditionalAddresses {
    /// The message says nothing about them.
    Unstated,
    /// There are no others.
    None,
    /// These.
    List(Vec<IpAddr>),
}

impl Notify {
    /// A notification without SA and data.
    pub fn new(kind: NotifyType) -> Self {
        Self::with_data(kind, Vec::new())
    }

    /// A notification with data.
    pub fn with_data(kind: NotifyType, data: Vec<u8>) -> Self {
        Self { protocol: ProtocolId::None, spi: Vec::new(), kind, data }
    }

    /// A notification about an ESP or AH SA.
    pub fn about(kind: NotifyType, protocol: ProtocolId, spi: ChildSpi) -> Self {
        let spi = spi.0.to_be_bytes().to_vec();
        Self { protocol, spi, kind, data: Vec::new() }
    }

    /// INVALID_KE_PAYLOAD with the method to use (RFC 7296 1.2).
    pub fn invalid_ke(method: KeMethod) -> Self {
        Self::with_data(NotifyType::InvalidKePayload, method.value().to_be_bytes().to_vec())
    }

    /// UNSUPPORTED_CRITICAL_PAYLOAD with the payload's type (RFC 7296 2.5).
    pub fn unsupported_critical(payload: PayloadType) -> Self {
        Self::with_data(NotifyType::UnsupportedCriticalPayload, vec![payload.value()])
    }

    /// COOKIE of 1 to 64 octets (RFC 7296 2.6).
    pub fn cookie(cookie: Vec<u8>) -> Self {
        Self::with_data(NotifyType::Cookie, cookie)
    }

    /// SET_WINDOW_SIZE in messages (RFC 7296 2.3).
    pub fn window_size(messages: u32) -> Self {
        Self::with_data(NotifyType::SetWindowSize, messages.to_be_bytes().to_vec())
    }

    /// AUTH_LIFETIME in seconds (RFC 4478).
    pub fn auth_lifetime(seconds: u32) -> Self {
        Self::with_data(NotifyType::AuthLifetime, seconds.to_be_bytes().to_vec())
    }

    /// SIGNATURE_HASH_ALGORITHMS (RFC 7427 4).
    pub fn signature_hashes(hashes: &[HashAlgorithm]) -> Self {
        let data = hashes.iter().flat_map(|hash| hash.value().to_be_bytes()).collect();
        Self::with_data(NotifyType::SignatureHashAlgorithms, data)
    }

    /// ADDITIONAL_IP4_ADDRESS or ADDITIONAL_IP6_ADDRESS (RFC 4555 3.6).
    pub fn additional_address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => {
                Self::with_data(NotifyType::AdditionalIp4Address, v4.octets().to_vec())
            }
            IpAddr::V6(v6) => {
                Self::with_data(NotifyType::AdditionalIp6Address, v6.octets().to_vec())
            }
        }
    }

    /// IKEV2_MESSAGE_ID_SYNC (RFC 6311 5.1).
    pub fn message_id_sync(sync: MessageIdSync) -> Self {
        let words = [sync.nonce, sync.next_send, sync.next_receive];
        let data = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        Self::with_data(NotifyType::MessageIdSync, data)
    }

    /// REDIRECT; in an IKE_SA_INIT response with the initiator's nonce (RFC 5685 5 and 7.2).
    ///
    /// # Errors
    /// [`WireError::TooLong`] when the gateway's name exceeds 255 octets.
    pub fn redirect(gateway: &RedirectGateway, nonce: &[u8]) -> Result<Self, WireError> {
        let mut w = Writer::new();
        gateway.write(&mut w)?;
        w.bytes(nonce);
        Ok(Self::with_data(NotifyType::Redirect, w.into_vec()))
    }

    /// REDIRECTED_FROM with the gateway that redirected (RFC 5685 7.3).
    ///
    /// # Errors
    /// [`WireError::TooLong`] when the gateway's name exceeds 255 octets.
    pub fn redirected_from(gateway: &RedirectGateway) -> Result<Self, WireError> {
        let mut w = Writer::new();
        gateway.write(&mut w)?;
        Ok(Self::with_data(NotifyType::RedirectedFrom, w.into_vec()))
    }

    /// The SPI of the ESP or AH SA it is about.
    pub fn child_spi(&self) -> Option<ChildSpi> {
        <[u8; 4]>::try_from(self.spi.as_slice()).ok().map(|spi| ChildSpi(u32::from_be_bytes(spi)))
    }

    /// The method INVALID_KE_PAYLOAD asks for.
    ///
    /// # Errors
    /// When the data is not two octets.
    pub fn ke_method(&self) -> Result<KeMethod, WireError> {
        self.fixed(Reader::u16).map(KeMethod::from)
    }

    /// The payload UNSUPPORTED_CRITICAL_PAYLOAD is about.
    ///
    /// # Errors
    /// When the data is not one octet.
    pub fn critical_payload(&self) -> Result<PayloadType, WireError> {
        self.fixed(Reader::u8).map(PayloadType::from)
    }

    /// The 32-bit number of SET_WINDOW_SIZE (messages) or AUTH_LIFETIME (seconds).
    ///
    /// # Errors
    /// When the data is not four octets.
    pub fn number(&self) -> Result<u32, WireError> {
        self.fixed(Reader::u32)
    }

    /// The algorithms of SIGNATURE_HASH_ALGORITHMS, in order.
    ///
    /// # Errors
    /// When the data is no list of 16-bit numbers.
    pub fn hash_algorithms(&self) -> Result<Vec<HashAlgorithm>, WireError> {
        let (numbers, rest) = self.data.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.reader().invalid(Field::List));
        }
        Ok(numbers.iter().map(|number| u16::from_be_bytes(*number).into()).collect())
    }

    /// The address of ADDITIONAL_IP4_ADDRESS or ADDITIONAL_IP6_ADDRESS.
    ///
    /// # Errors
    /// When the data is no address of the type's family.
    pub fn address(&self) -> Result<IpAddr, WireError> {
        match self.kind {
            NotifyType::AdditionalIp4Address => {
                self.fixed(Reader::u32).map(|address| Ipv4Addr::from(address).into())
            }
            _ => self.fixed(Reader::array::<16>).map(|address| Ipv6Addr::from(address).into()),
        }
    }

    /// The content of IKEV2_MESSAGE_ID_SYNC.
    ///
    /// # Errors
    /// When the data is not twelve octets.
    pub fn as_message_id_sync(&self) -> Result<MessageIdSync, WireError> {
        self.fixed(|r| {
            Ok(MessageIdSync { nonce: r.u32()?, next_send: r.u32()?, next_receive: r.u32()? })
        })
    }

    /// The gateway of REDIRECT or REDIRECTED_FROM, and the nonce after it.
    ///
    /// # Errors
    /// When the gateway's type, length or address is malformed.
    pub fn as_redirect(&self) -> Result<(RedirectGateway, &[u8]), WireError> {
        let mut r = self.reader();
        let kind = r.u8()?;
        let length = usize::from(r.u8()?);
        let wrong =
            r.invalid(if (1..=3).contains(&kind) { Field::Address } else { Field::GatewayType });
        let name = r.take(length)?;
        let gateway = match kind {
            1 => <[u8; 4]>::try_from(name).ok().map(|a| RedirectGateway::Address(a.into())),
            2 => <[u8; 16]>::try_from(name).ok().map(|a| RedirectGateway::Address(a.into())),
            3 => Some(RedirectGateway::Fqdn(name.to_vec())),
            _ => None,
        };
        Ok((gateway.ok_or(wrong)?, r.rest()))
    }

    pub(super) fn parse(mut r: Reader<'_>) -> Result<Self, WireError> {
        let protocol = r.u8()?.into();
        let spi_size = r.u8()?;
        let kind = r.u16()?.into();
        let spi = r.take(usize::from(spi_size))?.to_vec();
        Ok(Self { protocol, spi, kind, data: r.rest().to_vec() })
    }

    pub(super) fn write(&self, w: &mut Writer) -> Result<(), WireError> {
        w.u8(self.protocol.value());
        w.u8(fit8(self.spi.len(), Part::Payload(PayloadType::Notify))?);
        w.u16(self.kind.value());
        w.bytes(&self.spi);
        w.bytes(&self.data);
        Ok(())
    }

    fn reader(&self) -> Reader<'_> {
        Reader::new(&self.data, Part::Notify(self.kind), 0)
    }

    /// Reads data of a fixed length.
    fn fixed<'a, T>(
        &'a self,
        read: impl FnOnce(&mut Reader<'a>) -> Result<T, WireError>,
    ) -> Result<T, WireError> {
        let mut r = self.reader();
        let value = read(&mut r)?;
        r.finish()?;
        Ok(value)
    }
}

impl std::fmt::Debug for Notify {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notify")
            .field("kind", &self.kind)
            .field("protocol", &self.protocol)
            .field("spi", &self.spi)
            .field("octets", &self.data.len())
            .finish()
    }
}

impl RedirectGateway {
    fn write(&self, w: &mut Writer) -> Result<(), WireError> {
        let (kind, name) = match self {
            Self::Address(IpAddr::V4(v4)) => (1, v4.octets().to_vec()),
            Self::Address(IpAddr::V6(v6)) => (2, v6.octets().to_vec()),
            Self::Fqdn(name) => (3, name.clone()),
        };
        w.u8(kind);
        w.u8(fit8(name.len(), Part::Notify(NotifyType::Redirect))?);
        w.bytes(&name);
        Ok(())
    }
}

impl AdditionalAddresses {
    /// Gathers what a message's notifications say.
    ///
    /// # Errors
    /// When an address is malformed.
    pub fn gather<'a>(notifies: impl Iterator<Item = &'a Notify>) -> Result<Self, WireError> {
        let mut out = Self::Unstated;
        for notify in notifies {
            match (notify.kind, &mut out) {
                (NotifyType::NoAdditionalAddresses, Self::Unstated) => out = Self::None,
                (
                    NotifyType::AdditionalIp4Address | NotifyType::AdditionalIp6Address,
                    Self::List(list),
                ) => list.push(notify.address()?),
                (NotifyType::AdditionalIp4Address | NotifyType::AdditionalIp6Address, _) => {
                    out = Self::List(vec![notify.address()?]);
                }
                _ => {}
            }
        }
        Ok(out)
    }
}

/// The octets whose SHA-1 is the data of NAT_DETECTION_SOURCE_IP and
/// NAT_DETECTION_DESTINATION_IP: SPIs, address and port (RFC 7296 2.23).
pub fn nat_detection_input(spi_i: IkeSpi, spi_r: IkeSpi, address: IpAddr, port: u16) -> Vec<u8> {
    // Two SPIs, the longer kind of address, the port.
    let mut w = Writer::with_capacity(34);
    w.u64(spi_i.0);
    w.u64(spi_r.0);
    match address {
        IpAddr::V4(v4) => w.bytes(&v4.octets()),
        IpAddr::V6(v6) => w.bytes(&v6.octets()),
    }
    w.u16(port);
    w.into_vec()
}

#[cfg(test)]
#[path = "notify_tests.rs"]
mod tests;
