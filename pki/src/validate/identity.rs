//! Does the IKE identity belong to the certificate (RFC 4945 3.1, RFC 7296 3.5)?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{IkeId, PeerError, San, name};

/// ID types (IANA, "IKEv2 Identification Payload ID Types").
mod id_type {
    pub(super) const IPV4_ADDR: u8 = 1;
    pub(super) const FQDN: u8 = 2;
    pub(super) const RFC822_ADDR: u8 = 3;
    pub(super) const IPV6_ADDR: u8 = 5;
    pub(super) const DER_ASN1_DN: u8 = 9;
}

/// Accepts the identity when it is the subject or one of the alternative names.
///
/// # Errors
/// [`PeerError::IdentityMismatch`] naming both sides, or [`PeerError::UnsupportedIdentity`].
pub(crate) fn check(id: IkeId<'_>, subject: &[u8], sans: &[San]) -> Result<(), PeerError> {
    let matches = match id.kind {
        id_type::DER_ASN1_DN => name::same(id.data, subject),
        id_type::FQDN => sans.iter().any(|san| match san {
            San::Dns(dns) => same_dns(dns.as_bytes(), id.data),
            _ => false,
        }),
        id_type::RFC822_ADDR => sans.iter().any(|san| match san {
            San::Email(email) => email.as_bytes().eq_ignore_ascii_case(id.data),
            _ => false,
        }),
        id_type::IPV4_ADDR | id_type::IPV6_ADDR => match address(id) {
            Some(address) => sans.contains(&San::Ip(address)),
            None => false,
        },
        other => return Err(PeerError::UnsupportedIdentity(other)),
    };
    if matches {
        return Ok(());
    }
    let mut names = vec![name::render_der(subject)];
    names.extend(sans.iter().map(ToString::to_string));
    Err(PeerError::IdentityMismatch { id: render(id), certificate: names.join(" | ") })
}

/// An identity for display.
pub fn render(id: IkeId<'_>) -> String {
    match id.kind {
        id_type::DER_ASN1_DN => name::render_der(id.data),
        id_type::FQDN | id_type::RFC822_ADDR => String::from_utf8_lossy(id.data)
            .chars()
            .take(256)
            .map(|c| if c.is_control() { '?' } else { c })
            .collect(),
        id_type::IPV4_ADDR | id_type::IPV6_ADDR => match address(id) {
            Some(address) => address.to_string(),
            None => format!("an address of {} octets", id.data.len()),
        },
        other => format!("an identity of type {other}"),
    }
}

fn address(id: IkeId<'_>) -> Option<IpAddr> {
    match id.kind {
        id_type::IPV4_ADDR => <[u8; 4]>::try_from(id.data).ok().map(|a| Ipv4Addr::from(a).into()),
        id_type::IPV6_ADDR => <[u8; 16]>::try_from(id.data).ok().map(|a| Ipv6Addr::from(a).into()),
        _ => None,
    }
}

/// DNS names without regard to case; a final dot is not significant. Wildcards are not expanded:
/// an identity names one peer.
fn same_dns(left: &[u8], right: &[u8]) -> bool {
    let left = left.strip_suffix(b".").unwrap_or(left);
    let right = right.strip_suffix(b".").unwrap_or(right);
    !left.is_empty() && left.eq_ignore_ascii_case(right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::name::tests::tlv;

    fn subject(string: u8, cn: &[u8]) -> Vec<u8> {
        let attribute = tlv(0x30, &[tlv(6, &[0x55, 4, 3]), tlv(string, cn)].concat());
        tlv(0x30, &tlv(0x31, &attribute))
    }

    #[test]
    fn matches_subject_and_alternative_names() {
        let certificate = subject(0x0c, b"r-1");
        let sans = [
            San::Dns("r-1.builder.Example.com".to_owned()),
            San::Email("Runner@example.com".to_owned()),
            San::Uri("spiffe://example.com/x".to_owned()),
            San::Ip("10.77.0.2".parse().unwrap()),
            San::Ip("fd77::2".parse().unwrap()),
        ];
        let v6: [u8; 16] = "fd77::2".parse::<Ipv6Addr>().unwrap().octets();
        let utf8_dn = subject(0x0c, b"r-1");
        let printable_dn = subject(0x13, b"R-1");
        let other_dn = subject(0x13, b"r-2");
        let mut trailing_dn = utf8_dn.clone();
        trailing_dn.push(0);
        for (accepted, kind, data) in [
            (true, 9, &utf8_dn[..]),
            (true, 9, &printable_dn),
            (false, 9, &other_dn),
            (false, 9, &trailing_dn),
            (false, 9, b""),
            (true, 2, b"R-1.BUILDER.example.COM"),
            (true, 2, b"r-1.builder.example.com."),
            (false, 2, b"r-1.builder.example.co"),
            (false, 2, b"*.builder.example.com"),
            (false, 2, b"r-1"),
            (false, 2, b""),
            (false, 2, b"spiffe://example.com/x"),
            (true, 3, b"runner@EXAMPLE.com"),
            (false, 3, b"other@example.com"),
            (true, 1, &[10, 77, 0, 2]),
            (false, 1, &[10, 77, 0, 3]),
            (false, 1, &[10, 77, 0]),
            (true, 5, &v6),
            (false, 5, &v6[..15]),
            (false, 1, &v6),
        ] {
            let id = IkeId { kind, data };
            let result = check(id, &certificate, &sans);
            assert_eq!(result.is_ok(), accepted, "{kind} {}", render(id));
            if !accepted {
                assert!(matches!(result, Err(PeerError::IdentityMismatch { .. })));
            }
        }
        assert_eq!(
            check(IkeId { kind: 11, data: b"key" }, &certificate, &sans),
            Err(PeerError::UnsupportedIdentity(11))
        );
    }

    #[test]
    fn the_refusal_names_both_sides() {
        let sans = [San::Dns("r-1.example.com".to_owned())];
        let id = IkeId { kind: 2, data: b"gw\nfake" };
        let error = check(id, &subject(0x0c, b"r-1"), &sans).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the peer calls itself gw?fake but its certificate says CN=r-1 | DNS:r-1.example.com: \
             set `id` in its `local` section to one of these"
        );
    }
}
