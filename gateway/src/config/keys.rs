//! Sections about keys that lie in files of their own: `[[psk]]` and `[[ppk]]`. The files are read when the
//! gateway starts or reloads, not here.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ike::wire::{IdType, Identification};

use super::model::{PeerId, Ppk, Psk, Role, Site};
use super::section::{Findings, Section};
use super::value;

/// How identities are written, for messages.
const FORMS: &str = "write a host name, a mail address, an IP address, a distinguished name like \
                     \"CN=ci, O=example\", or \"keyid:TEXT\" (\"keyid:0x...\" for octets)";

/// Octets of a peer's distinguished name at most: nobody configures a longer one, and it is read
/// before the peer has proved anything.
const MAX_DN: usize = 1024;

/// Octets of a PPK_ID at most.
const MAX_PPK_ID: usize = 128;

pub(super) fn psks(
    sections: Vec<Section<'_, '_>>,
    roles: &[Role],
    sites: &[Site],
    found: &mut Findings<'_>,
) -> Vec<Psk> {
    let mut seen = BTreeSet::new();
    let mut psks = Vec::new();
    for mut section in sections {
        let id = identity(&mut section, found);
        if let Some(id) = &id
            && !seen.insert(id.clone())
        {
            found.error(section.place("id"), format!("[[psk]] \"{id}\" is there twice; keep one"));
        }
        let site = sites.iter().find(|site| site.peer_id().is_some() && site.peer_id() == id);
        if let Some(site) = site {
            found.error(
                section.place("id"),
                format!(
                    "site \"{}\" has this id too; a peer is a site or a client, keep one",
                    site.name
                ),
            );
        }
        let file = file(&mut section, found);
        let role = role(&mut section, roles, found);
        let gateway_shares = match section.string("gateway", found) {
            None => true,
            Some((word, _)) if word == "psk" => true,
            Some((word, _)) if word == "certificate" => false,
            Some((word, at)) => {
                found.error(
                    at,
                    format!("`gateway = \"{word}\"` must be \"psk\" or \"certificate\""),
                );
                true
            }
        };
        if let (Some(id), Some(file), Some(role)) = (id, file, role) {
            psks.push(Psk { id, file, role, gateway_shares });
        }
        section.finish(&[], found);
    }
    psks
}

pub(super) fn ppks(sections: Vec<Section<'_, '_>>, found: &mut Findings<'_>) -> Vec<Ppk> {
    let mut seen = BTreeSet::new();
    let mut ppks = Vec::new();
    for mut section in sections {
        let id = id(&mut section, found).map(|(id, _)| id);
        if let Some(id) = &id {
            if id.is_empty() || id.len() > MAX_PPK_ID {
                found.error(
                    section.place("id"),
                    format!("the name of a [[ppk]] has 1 to {MAX_PPK_ID} octets"),
                );
            }
            if !seen.insert(id.clone()) {
                found.error(
                    section.place("id"),
                    format!("[[ppk]] \"{id}\" is there twice; keep one"),
                );
            }
        }
        let file = file(&mut section, found);
        let required = section.boolean("required", found).unwrap_or(false);
        let client = section.string("client", found).and_then(|(text, at)| {
            let client = PeerId::parse(&text);
            if client.is_none() {
                found.error(at, format!("`client = \"{text}\"` is no identity; {FORMS}"));
            }
            client
        });
        if let (Some(id), Some(file)) = (id, file) {
            ppks.push(Ppk { id, file, required, client });
        }
        section.finish(&[], found);
    }
    ppks
}

fn identity(section: &mut Section<'_, '_>, found: &mut Findings<'_>) -> Option<PeerId> {
    let (text, at) = id(section, found)?;
    let id = PeerId::parse(&text);
    if id.is_none() {
        found.error(at, format!("`id = \"{text}\"` is no identity; {FORMS}"));
    }
    id
}

fn id(section: &mut Section<'_, '_>, found: &mut Findings<'_>) -> Option<(String, usize)> {
    let id = section.string("id", found);
    if id.is_none() && !section.has("id") {
        found.error(section.offset, "this section has no id; add id = \"...\"");
    }
    id
}

/// The path of a key file.
pub(super) fn file(section: &mut Section<'_, '_>, found: &mut Findings<'_>) -> Option<PathBuf> {
    let Some((text, at)) = section.string("file", found) else {
        if !section.has("file") {
            found.error(
                section.offset,
                "this section names no key; add file = \"/etc/runnel/NAME.key\" (keys are never \
                 written into the configuration)",
            );
        }
        return None;
    };
    let path = PathBuf::from(&text);
    if !path.is_absolute() {
        found.error(at, format!("`file = \"{text}\"` must be an absolute path"));
        return None;
    }
    Some(path)
}

fn role(section: &mut Section<'_, '_>, roles: &[Role], found: &mut Findings<'_>) -> Option<String> {
    let names: Vec<&str> = roles.iter().map(|role| role.name.as_str()).collect();
    match section.string("role", found) {
        Some((role, _)) if names.contains(&role.as_str()) => Some(role),
        Some((role, at)) => {
            let hint = match value::nearest(&role, &names) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("the roles are {}", names.join(", ")),
            };
            found.error(at, format!("`role = \"{role}\"` names an unknown role; {hint}"));
            None
        }
        None => match names.as_slice() {
            [only] => Some((*only).to_owned()),
            _ => {
                let count = names.len();
                found.error(
                    section.offset,
                    format!(
                        "this section names no role and there are {count}; add role = \"NAME\""
                    ),
                );
                None
            }
        },
    }
}

impl PeerId {
    /// Reads an identity as people write it; `None` when it is none.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(octets) = text.strip_prefix("keyid:") {
            let octets = match octets.strip_prefix("0x") {
                Some(digits) => value::hex(digits.as_bytes())?,
                None => octets.as_bytes().to_vec(),
            };
            return (!octets.is_empty()).then_some(Self::KeyId(octets));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self::Address(address.to_canonical()));
        }
        if text.contains('=') {
            return Some(Self::Dn(text.to_owned()));
        }
        if let Some((user, host)) = text.split_once('@') {
            let fits = !user.is_empty()
                && value::dns_name(host)
                && !user.contains(|c: char| c.is_control() || c.is_whitespace());
            return fits.then(|| Self::Mail(text.to_ascii_lowercase()));
        }
        value::dns_name(text).then(|| Self::Fqdn(text.to_ascii_lowercase()))
    }

    /// The same identity as it comes over the wire; `None` for types nobody can configure.
    pub fn of(id: &Identification) -> Option<Self> {
        Some(match id.id_type {
            IdType::Fqdn => Self::Fqdn(id.as_text()?.to_ascii_lowercase()),
            IdType::Rfc822Addr => Self::Mail(id.as_text()?.to_ascii_lowercase()),
            IdType::Ipv4Addr | IdType::Ipv6Addr => Self::Address(id.as_address()?.to_canonical()),
            IdType::KeyId => Self::KeyId(id.data.clone()),
            IdType::DerAsn1Dn if id.data.len() <= MAX_DN => {
                Self::Dn(pki::validate::render_dn(&id.data))
            }
            _ => return None,
        })
    }

    /// Whether another is the same. Distinguished names are compared as people write them, without
    /// regard to case.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dn(ours), Self::Dn(theirs)) => ours.eq_ignore_ascii_case(theirs),
            (ours, theirs) => ours == theirs,
        }
    }

    /// The type's number (IANA, "IKEv2 Identification Payload ID Types") and octets that name the
    /// identity in the store.
    pub fn key(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Fqdn(name) => (IdType::Fqdn.value(), name.clone().into_bytes()),
            Self::Mail(name) => (IdType::Rfc822Addr.value(), name.clone().into_bytes()),
            Self::Address(address) => {
                let id = Identification::address(*address);
                (id.id_type.value(), id.data)
            }
            Self::KeyId(octets) => (IdType::KeyId.value(), octets.clone()),
            Self::Dn(name) => (IdType::DerAsn1Dn.value(), name.to_ascii_lowercase().into_bytes()),
        }
    }
}

/// As it is written in the configuration.
impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fqdn(name) | Self::Mail(name) | Self::Dn(name) => f.write_str(name),
            Self::Address(address) => write!(f, "{address}"),
            Self::KeyId(octets) => match std::str::from_utf8(octets) {
                Ok(text) if !text.contains(|c: char| c.is_control()) => write!(f, "keyid:{text}"),
                _ => {
                    f.write_str("keyid:0x")?;
                    octets.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn identities_are_read_as_people_write_them() {
        let of = |text: &str| PeerId::parse(text);
        assert_eq!(of("CI-7.example.com"), Some(PeerId::Fqdn("ci-7.example.com".to_owned())));
        assert_eq!(of("ci@Example.com"), Some(PeerId::Mail("ci@example.com".to_owned())));
        assert_eq!(of("192.0.2.7"), Some(PeerId::Address("192.0.2.7".parse().unwrap())));
        assert_eq!(of("keyid:runner 7"), Some(PeerId::KeyId(b"runner 7".to_vec())));
        assert_eq!(of("keyid:0x00ff"), Some(PeerId::KeyId(vec![0, 0xff])));
        assert_eq!(of("CN=ci, O=x"), Some(PeerId::Dn("CN=ci, O=x".to_owned())));
        for nothing in ["", "keyid:", "keyid:0xf", "@", "a b", "ci@", "@host"] {
            assert_eq!(of(nothing), None, "{nothing}");
        }
        for text in ["ci-7.example.com", "keyid:runner 7", "keyid:0x00ff", "2001:db8::1"] {
            assert_eq!(of(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_peers_identity_is_compared_by_type_and_without_case() {
        let is = |ours: &PeerId, theirs: &Identification| {
            PeerId::of(theirs).is_some_and(|theirs| ours.is(&theirs))
        };
        let fqdn = PeerId::parse("ci-7.example.com").unwrap();
        assert!(is(&fqdn, &Identification::fqdn("CI-7.Example.com")));
        assert!(!is(&fqdn, &Identification::rfc822("ci-7.example.com")));
        assert!(!is(&fqdn, &Identification::key_id(b"ci-7.example.com".to_vec())));
        let dn = PeerId::parse("cn=CI, o=x").unwrap();
        let der = [
            &[0x30, 0x19, 0x31, 0x0b, 0x30, 0x09, 0x06, 0x03, 0x55, 0x04, 0x03, 0x0c, 0x02][..],
            b"ci",
            &[0x31, 0x0a, 0x30, 0x08, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x0c, 0x01],
            b"x",
        ]
        .concat();
        assert!(is(&dn, &Identification::dn(der)));
        assert!(!is(&dn, &Identification::dn(vec![0x30, 0x00])));
    }

    #[test]
    fn every_mistake_of_a_section_has_its_line() {
        let text = "[[psk]]\nid = \"a b\"\nfile = \"key\"\nrole = \"bilder\"\n\
                    gateway = \"eap\"\nkey = \"secret\"\n[[psk]]\nid = \"ci\"\nfile = \"/k\"\n\
                    [[psk]]\nid = \"CI\"\nfile = \"/k\"\n[[psk]]\n";
        let errors = Config::parse(text, "f").unwrap_err().to_string();
        let expect = [
            ("f:2:", "is no identity"),
            ("f:3:", "absolute"),
            ("f:4:", "did you mean \"builder\"?"),
            ("f:5:", "\"psk\" or \"certificate\""),
            ("f:6:", "unknown key `key`"),
            ("f:11:", "twice"),
            ("f:13:", "no id"),
            ("f:13:", "never"),
        ];
        let lines: Vec<&str> = errors.lines().collect();
        assert_eq!(lines.len(), expect.len(), "{errors}");
        for (at, part) in expect {
            assert!(
                lines.iter().any(|line| line.starts_with(at) && line.contains(part)),
                "{part}: {errors}"
            );
        }
    }

    #[test]
    fn a_peer_is_a_site_or_a_client() {
        let text = "[[site]]\nname = \"o\"\nid = \"GW.office.example\"\n\
                    local_networks = [\"10.20.0.0/16\"]\nremote_networks = [\"10.30.0.0/16\"]\n\
                    [[psk]]\nid = \"gw.OFFICE.example\"\nfile = \"/k\"\n";

        let errors = Config::parse(text, "f").unwrap_err().to_string();

        assert!(errors.contains("f:7:") && errors.contains("keep one"), "{errors}");
    }

    #[test]
    fn post_quantum_keys_may_belong_to_one_client() {
        let text = "[[ppk]]\nid = \"q1\"\nfile = \"/k\"\nrequired = true\nclient = \"CI\"\n";
        let config = Config::parse(text, "f").unwrap();
        let ppk = &config.ppks[0];
        assert_eq!((ppk.id.as_str(), ppk.required), ("q1", true));
        assert_eq!(ppk.client, Some(PeerId::Fqdn("ci".to_owned())));

        let text = "[[ppk]]\nid = \"\"\nfile = \"/k\"\nclient = \"a b\"\n[[ppk]]\nid = \"\"\n";
        let errors = Config::parse(text, "f").unwrap_err().to_string();
        for part in ["f:2:", "1 to 128", "f:4:", "is no identity", "f:6:", "twice", "never"] {
            assert!(errors.contains(part), "{part}: {errors}");
        }
    }
}
