//! Messages as text for operators: what a packet printer shows. Never prints keys, nonces,
//! signatures, EAP data or anything else that is longer than what it says.

use std::fmt::{Display, Formatter, Result};

use super::{CfgAttr, Delete, Header, Message, Notify, NotifyType, Payload, Payloads, ProtocolId};

/// Prints a message in one line:
/// `IKE_SA_INIT request 0 [ SA KE(CURVE25519) Nonce N(COOKIE) ] 0011223344556677 -> 0`.
#[derive(Debug, Clone, Copy)]
pub struct OneLine<'a> {
    /// The message's header.
    pub header: &'a Header,
    /// Its payloads, or those inside its Encrypted payload.
    pub payloads: &'a Payloads,
}

/// Prints a message in several lines: the header, then one for each payload and substructure.
#[derive(Debug, Clone, Copy)]
pub struct Detailed<'a> {
    /// The message's header.
    pub header: &'a Header,
    /// Its payloads, or those inside its Encrypted payload.
    pub payloads: &'a Payloads,
}

impl Message {
    /// For printing it in one line.
    pub fn one_line(&self) -> OneLine<'_> {
        OneLine { header: &self.header, payloads: &self.payloads }
    }

    /// For printing it in several lines.
    pub fn detailed(&self) -> Detailed<'_> {
        Detailed { header: &self.header, payloads: &self.payloads }
    }
}

impl Display for OneLine<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write_header(f, self.header)?;
        f.write_str(" [")?;
        for payload in self.payloads.iter() {
            f.write_str(" ")?;
            write_brief(f, payload)?;
        }
        write!(f, " ] {} -> {}", self.header.spi_i, self.header.spi_r)
    }
}

impl Display for Detailed<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write_header(f, self.header)?;
        let sender = if self.header.flags.initiator { "initiator" } else { "responder" };
        write!(f, ", from {sender}, {} octets", self.header.length)?;
        write!(f, "\n  SPIs {} {}", self.header.spi_i, self.header.spi_r)?;
        for item in self.payloads.items() {
            write!(f, "\n  {}", item.payload.kind())?;
            f.write_str(if item.critical { "! " } else { " " })?;
            write_details(f, &item.payload)?;
        }
        Ok(())
    }
}

fn write_header(f: &mut Formatter<'_>, header: &Header) -> Result {
    let direction = if header.flags.response { "response" } else { "request" };
    write!(f, "{} {direction} {}", header.exchange, header.message_id)
}

fn write_brief(f: &mut Formatter<'_>, payload: &Payload) -> Result {
    let kind = payload.kind();
    match payload {
        Payload::Ke(ke) => write!(f, "KE({})", ke.method),
        Payload::IdI(id) | Payload::IdR(id) => write!(f, "{kind}({})", id.id),
        Payload::Notify(notify) => write!(f, "N({})", notify.kind),
        Payload::Auth(auth) => write!(f, "AUTH({})", auth.method),
        Payload::Cp(cp) => write!(f, "{}", cp.cfg_type),
        Payload::Eap(eap) => match eap.method {
            Some(method) => write!(f, "EAP({}/{method})", eap.code),
            None => write!(f, "EAP({})", eap.code),
        },
        Payload::Delete(Delete::Ike) => f.write_str("D(IKE)"),
        Payload::Delete(Delete::Child { protocol, spis }) => {
            write!(f, "D({protocol}")?;
            spis.iter().take(4).try_for_each(|spi| write!(f, " {spi}"))?;
            f.write_str(if spis.len() > 4 { " ...)" } else { ")" })
        }
        Payload::Encrypted(sk) => write!(f, "SK({} octets)", sk.body.len()),
        Payload::Fragment(skf) => write!(f, "SKF({}/{})", skf.number, skf.total),
        _ => write!(f, "{kind}"),
    }
}

fn write_details(f: &mut Formatter<'_>, payload: &Payload) -> Result {
    match payload {
        Payload::Sa(sa) => {
            write!(f, "{} proposals", sa.proposals.len())?;
            for proposal in &sa.proposals {
                write!(f, "\n    {} {proposal}", proposal.number)?;
                if !proposal.spi.is_empty() {
                    f.write_str(" SPI ")?;
                    write_hex(f, &proposal.spi)?;
                }
            }
            Ok(())
        }
        Payload::Ke(ke) => write!(f, "{}, {} octets", ke.method, ke.data.len()),
        Payload::IdI(id) | Payload::IdR(id) => write!(f, "{} {}", id.id.id_type, id.id),
        Payload::Cert(cert) => write!(f, "{}, {} octets", cert.encoding, cert.data.len()),
        Payload::CertReq(request) => {
            write!(f, "{}, {} authorities", request.encoding, request.hashes().count())?;
            request.hashes().take(8).try_for_each(|hash| {
                f.write_str("\n    ")?;
                write_hex(f, &hash)
            })
        }
        Payload::Auth(auth) => write!(f, "{}, {} octets", auth.method, auth.data.len()),
        Payload::Nonce(nonce) => write!(f, "{} octets", nonce.as_bytes().len()),
        Payload::Notify(notify) => write_notify(f, notify),
        Payload::Delete(Delete::Ike) => f.write_str("IKE SA"),
        Payload::Delete(Delete::Child { protocol, spis }) => {
            write!(f, "{protocol}")?;
            spis.iter().take(32).try_for_each(|spi| write!(f, " {spi}"))?;
            f.write_str(if spis.len() > 32 { " ..." } else { "" })
        }
        Payload::VendorId(vendor) => write_text_or_hex(f, &vendor.0),
        Payload::TsI(ts) | Payload::TsR(ts) => {
            write!(f, "{} selectors", ts.selectors.len())?;
            ts.selectors.iter().try_for_each(|selector| write!(f, "\n    {selector}"))?;
            ts.unknown.iter().try_for_each(|selector| write!(f, "\n    {}", selector.ts_type))
        }
        Payload::Encrypted(sk) => {
            write!(f, "{} octets, first inside {}", sk.body.len(), sk.first_inner)
        }
        Payload::Fragment(skf) => {
            write!(f, "{} of {}, {} octets", skf.number, skf.total, skf.body.len())
        }
        Payload::Cp(cp) => {
            write!(f, "{}", cp.cfg_type)?;
            cp.attributes.iter().try_for_each(|attribute| {
                write!(f, "\n    {}", attribute.kind())?;
                write_attribute(f, attribute)
            })
        }
        Payload::Eap(eap) => {
            write!(f, "{} {}", eap.code, eap.identifier)?;
            match eap.method {
                Some(method) => write!(f, " {method}, {} octets", eap.data.len()),
                None => Ok(()),
            }
        }
        Payload::Unknown { body, .. } => write!(f, "{} octets", body.len()),
    }
}

fn write_notify(f: &mut Formatter<'_>, notify: &Notify) -> Result {
    write!(f, "{}", notify.kind)?;
    if notify.protocol != ProtocolId::None {
        write!(f, " {}", notify.protocol)?;
    }
    if !notify.spi.is_empty() {
        f.write_str(" SPI ")?;
        write_hex(f, &notify.spi)?;
    }
    match notify.kind {
        NotifyType::InvalidKePayload => match notify.ke_method() {
            Ok(method) => write!(f, " {method}"),
            Err(_) => f.write_str(" malformed"),
        },
        NotifyType::AuthLifetime => match notify.number() {
            Ok(seconds) => write!(f, " {seconds} s"),
            Err(_) => f.write_str(" malformed"),
        },
        NotifyType::SignatureHashAlgorithms => match notify.hash_algorithms() {
            Ok(hashes) => hashes.iter().try_for_each(|hash| write!(f, " {hash}")),
            Err(_) => f.write_str(" malformed"),
        },
        NotifyType::AdditionalIp4Address | NotifyType::AdditionalIp6Address => {
            match notify.address() {
                Ok(address) => write!(f, " {address}"),
                Err(_) => f.write_str(" malformed"),
            }
        }
        _ if notify.data.is_empty() => Ok(()),
        _ => write!(f, ", {} octets", notify.data.len()),
    }
}

fn write_attribute(f: &mut Formatter<'_>, attribute: &CfgAttr) -> Result {
    match attribute {
        CfgAttr::Ip4Address(Some(a))
        | CfgAttr::Ip4Netmask(Some(a))
        | CfgAttr::Ip4Dns(Some(a))
        | CfgAttr::Ip4Nbns(Some(a))
        | CfgAttr::Ip4Dhcp(Some(a)) => write!(f, " {a}"),
        CfgAttr::Ip4Subnet(Some((a, mask))) => write!(f, " {a}/{mask}"),
        CfgAttr::Ip6Address(Some((a, prefix))) | CfgAttr::Ip6Subnet(Some((a, prefix))) => {
            write!(f, " {a}/{prefix}")
        }
        CfgAttr::Ip6Dns(Some(a)) | CfgAttr::Ip6Dhcp(Some(a)) => write!(f, " {a}"),
        CfgAttr::ApplicationVersion(text) | CfgAttr::DnsDomain(text) => {
            f.write_str(" ")?;
            write_text_or_hex(f, text)
        }
        CfgAttr::Supported(kinds) => kinds.iter().try_for_each(|kind| write!(f, " {kind}")),
        CfgAttr::Other { value, .. } if !value.is_empty() => write!(f, ", {} octets", value.len()),
        _ => Ok(()),
    }
}

/// Visible ASCII as it is, anything else as hexadecimal digits.
fn write_text_or_hex(f: &mut Formatter<'_>, octets: &[u8]) -> Result {
    let visible = |octet: &u8| octet.is_ascii_graphic() || *octet == b' ';
    match std::str::from_utf8(octets) {
        Ok(text) if octets.iter().take(128).all(visible) && octets.len() <= 128 => {
            write!(f, "{text:?}")
        }
        _ => write_hex(f, octets),
    }
}

/// The first 32 octets as hexadecimal digits.
fn write_hex(f: &mut Formatter<'_>, octets: &[u8]) -> Result {
    octets.iter().take(32).try_for_each(|octet| write!(f, "{octet:02x}"))?;
    f.write_str(if octets.len() > 32 { "..." } else { "" })
}

#[cfg(test)]
#[path = "pretty_tests.rs"]
mod tests;
