//! What the kernel says when it refuses, and what an operator can do about it.

use std::fmt;
use std::io;

use super::socket::Protocol;
use super::wire::{Attrs, HEADER_LEN, attr_kind_at, attr_u32};
use crate::error::PlaneError;

/// Text of an extended acknowledgement (`NLMSGERR_ATTR_MSG`).
const ATTR_MSG: u16 = 1;
/// Offset of the offending attribute in the request (`NLMSGERR_ATTR_OFFS`).
const ATTR_OFFS: u16 = 2;
/// Kind of a missing attribute (`NLMSGERR_ATTR_MISS_TYPE`).
const ATTR_MISS_TYPE: u16 = 5;
/// The request was not echoed (`NLM_F_CAPPED`).
const FLAG_CAPPED: u16 = 0x100;
/// Extended acknowledgement attributes follow (`NLM_F_ACK_TLVS`).
const FLAG_ACK_TLVS: u16 = 0x200;

/// The kernel's refusal of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Positive errno.
    pub errno: i32,
    /// The kernel's own words, when it has any.
    pub text: Option<String>,
    /// Kind of the attribute it objects to.
    pub attribute: Option<u16>,
    /// Kind of the attribute it misses.
    pub missing: Option<u16>,
    protocol: Protocol,
}

impl Refusal {
    /// A refusal that came from a system call instead of a message.
    pub fn from_io(error: &io::Error, protocol: Protocol) -> Self {
        Self {
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            text: None,
            attribute: None,
            missing: None,
            protocol,
        }
    }

    /// Reads the payload of `NLMSG_ERROR` (or `NLMSG_DONE`); `None` is an acknowledgement.
    ///
    /// # Errors
    /// When it is too short to hold an errno.
    pub(crate) fn parse(
        payload: &[u8],
        flags: u16,
        request: &[u8],
        protocol: Protocol,
    ) -> Result<Option<Self>, PlaneError> {
        let code = payload
            .get(..4)
            .and_then(|b| b.try_into().ok())
            .map(i32::from_ne_bytes)
            .ok_or_else(|| PlaneError::Malformed("acknowledgement without errno".to_owned()))?;
        if code == 0 {
            return Ok(None);
        }
        let mut refusal = Self {
            errno: code.saturating_neg(),
            text: None,
            attribute: None,
            missing: None,
            protocol,
        };
        if flags & FLAG_ACK_TLVS != 0 {
            refusal.read_extended(payload, flags, request)?;
        }
        Ok(Some(refusal))
    }

    fn read_extended(
        &mut self,
        payload: &[u8],
        flags: u16,
        request: &[u8],
    ) -> Result<(), PlaneError> {
        let echoed = if flags & FLAG_CAPPED != 0 {
            HEADER_LEN
        } else {
            // The whole request follows, its length in its own header.
            let length = payload.get(4..8).map(attr_u32).transpose()?.unwrap_or_default();
            (usize::try_from(length).unwrap_or(usize::MAX).saturating_add(3)) & !3
        };
        let attrs = payload.get(4usize.saturating_add(echoed)..).unwrap_or(&[]);
        for attr in Attrs::new(attrs) {
            let attr = attr?;
            match attr.kind {
                ATTR_MSG => {
                    let text = attr.value.split(|b| *b == 0).next().unwrap_or(&[]);
                    let text = String::from_utf8_lossy(text);
                    self.text = Some(text.trim_end_matches('.').to_owned());
                }
                ATTR_OFFS => {
                    let offset = usize::try_from(attr_u32(attr.value)?).unwrap_or(usize::MAX);
                    self.attribute = attr_kind_at(request, offset);
                }
                ATTR_MISS_TYPE => {
                    self.missing = u16::try_from(attr_u32(attr.value)?).ok();
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The refusal as an error that says what was attempted and what to do.
    pub fn into_error(self, what: impl Into<String>) -> PlaneError {
        PlaneError::Kernel {
            what: what.into(),
            reason: self.to_string(),
            errno: self.errno,
            fix: self.fix(),
        }
    }

    fn fix(&self) -> String {
        let text = self.text.as_deref().unwrap_or_default();
        let algorithm = text.contains("algorithm not found");
        match (self.protocol, self.errno) {
            (_, libc::EPERM | libc::EACCES) => "run as root or with CAP_NET_ADMIN",
            (Protocol::Xfrm, _) if algorithm => {
                "this kernel lacks the algorithm for ESP: enable CONFIG_INET_ESP, \
                 CONFIG_INET6_ESP and CONFIG_CRYPTO_GCM, or load the modules esp4, esp6 and gcm \
                 (chacha20poly1305, cbc, sha256_generic, authenc, authencesn for other suites)"
            }
            (
                Protocol::Xfrm,
                libc::ENOSYS | libc::EPROTONOSUPPORT | libc::ENOPROTOOPT | libc::EOPNOTSUPP,
            ) => {
                "this kernel lacks IPsec: enable CONFIG_XFRM_USER, CONFIG_INET_ESP and \
                 CONFIG_INET6_ESP, or load the modules xfrm_user, esp4 and esp6"
            }
            (Protocol::Xfrm, libc::EEXIST) => {
                "another IPsec daemon on this machine may use the same SPI, reqid or policy; \
                 see `ip xfrm policy`"
            }
            (Protocol::Netfilter, libc::ENOENT) => {
                "something else removed Runnel's nftables table (a reloaded nftables.service \
                 does); it is put back at the next check"
            }
            (Protocol::Netfilter, libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::ENOSYS) => {
                "this kernel lacks nftables: enable CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET, \
                 or load the module nf_tables"
            }
            (Protocol::Route, libc::EOPNOTSUPP) if text.contains("device type") => {
                "this kernel lacks xfrm interfaces: enable CONFIG_XFRM_INTERFACE or load the \
                 module xfrm_interface"
            }
            (Protocol::Route, libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
                "this kernel lacks the address family; for IPv6 check \
                 net.ipv6.conf.all.disable_ipv6"
            }
            (Protocol::Route, libc::EEXIST) => {
                "something else on this machine uses it; see `ip link`, `ip address` and `ip route`"
            }
            (_, libc::ENODEV) => "check that the interface exists with `ip link`",
            (_, libc::ENETDOWN | libc::ENETUNREACH) => "check that the interface is up",
            (_, libc::ENOMEM | libc::ENOBUFS) => "the kernel is short of memory or socket buffers",
            (_, libc::ESRCH | libc::ENOENT) => "it is no longer installed",
            (_, libc::EINVAL) => {
                "this kernel may be too old or too new for this request; please report it with \
                 `uname -r`"
            }
            _ => "see the kernel log",
        }
        .to_owned()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => f.write_str(text)?,
            None => {
                let text = io::Error::from_raw_os_error(self.errno).to_string();
                f.write_str(text.split(" (os error").next().unwrap_or(&text))?;
            }
        }
        if let Some(kind) = self.attribute {
            write!(f, ", attribute {}", self.protocol.attribute_name(kind))?;
        }
        if let Some(kind) = self.missing {
            write!(f, ", attribute {} is missing", self.protocol.attribute_name(kind))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::Message;
    use super::*;

    /// A capped error message with extended acknowledgement attributes.
    fn error_payload(errno: i32, tlvs: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = (-errno).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&[0; HEADER_LEN]);
        let mut attrs = Message::new(0, 0, &[]);
        for (kind, value) in tlvs {
            attrs = attrs.attr(*kind, value);
        }
        bytes.extend_from_slice(&attrs.bytes()[HEADER_LEN..]);
        bytes
    }

    #[test]
    fn names_the_attribute_and_the_missing_module() {
        let request = Message::new(0x10, 0, &[0; 224]).attr(18, &[0; 8]);
        let offset = u32::try_from(HEADER_LEN + 224).unwrap().to_ne_bytes();
        let payload = error_payload(
            libc::ENOSYS,
            &[(1, b"Requested AEAD algorithm not found\0"), (2, &offset)],
        );
        let refusal =
            Refusal::parse(&payload, FLAG_CAPPED | FLAG_ACK_TLVS, request.bytes(), Protocol::Xfrm)
                .unwrap()
                .unwrap();
        let error = refusal.into_error("install an SA").to_string();
        assert_eq!(
            error.split("; ").next().unwrap(),
            "the kernel refused to install an SA: Requested AEAD algorithm not found, attribute \
             XFRMA_ALG_AEAD (38)"
        );
        assert!(error.contains("CONFIG_CRYPTO_GCM"), "{error}");
    }

    #[test]
    fn permission_names_the_capability() {
        let payload = error_payload(libc::EPERM, &[]);
        let refusal = Refusal::parse(&payload, FLAG_CAPPED, &[], Protocol::Route).unwrap().unwrap();
        let error = refusal.into_error("add a route").to_string();
        assert!(error.contains("Operation not permitted (1)"), "{error}");
        assert!(error.contains("CAP_NET_ADMIN"), "{error}");
    }

    #[test]
    fn zero_is_an_acknowledgement_and_short_is_malformed() {
        assert_eq!(Refusal::parse(&[0; 4], 0, &[], Protocol::Xfrm), Ok(None));
        assert!(Refusal::parse(&[0; 3], 0, &[], Protocol::Xfrm).is_err());
        // Claimed attributes that are not there, and an echoed length beyond the message.
        let mut payload = error_payload(libc::EINVAL, &[]);
        payload[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(Refusal::parse(&payload, FLAG_ACK_TLVS, &[], Protocol::Xfrm).unwrap().is_some());
        assert!(Refusal::parse(&i32::MIN.to_ne_bytes(), 0, &[], Protocol::Xfrm).unwrap().is_some());
    }
}
