//! Distinguished names: rendering and comparison.

use x509_parser::der_parser::asn1_rs::{Any, Tag};
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// A name as strongSwan prints it: `CN=r-7f3k9q, O=ci.example.com`, in order of encoding.
///
/// Control characters are shown as `?`; the text is for people and never parsed back.
pub(crate) fn render(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    for rdn in name.iter() {
        for (position, attribute) in rdn.iter().enumerate() {
            match (text.is_empty(), position) {
                (true, _) => {}
                (false, 0) => text.push_str(", "),
                (false, _) => text.push('+'),
            }
            text.push_str(&label(attribute));
            text.push('=');
            text.push_str(&shown(attribute));
        }
    }
    text
}

/// The text of a DER name; an unreadable one is shown as such.
pub fn render_der(der: &[u8]) -> String {
    match X509Name::from_der(der) {
        Ok(([], name)) => render(&name),
        _ => "(unreadable name)".to_owned(),
    }
}

/// Whether two DER names are the same (RFC 5280 7.1): RDN by RDN, attribute types equal, string
/// values equal whatever their string type, case and inner white space.
pub fn same(left: &[u8], right: &[u8]) -> bool {
    if left == right {
        return X509Name::from_der(left).is_ok_and(|(rest, _)| rest.is_empty());
    }
    match (normal(left), normal(right)) {
        (Some(left), Some(right)) => left == right,
        _ => false,
    }
}

/// A name in comparable form: the RDNs in order, each with its attributes sorted (an RDN is a set).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Normal(pub(super) Vec<Vec<Attribute>>);

/// One attribute in comparable form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Attribute {
    pub(super) kind: String,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    Text(String),
    Other(u32, Vec<u8>),
}

/// The comparable form of a DER name.
pub(super) fn normal(der: &[u8]) -> Option<Normal> {
    match X509Name::from_der(der) {
        Ok(([], name)) => Some(normalise(&name)),
        _ => None,
    }
}

/// The comparable form of a name.
pub(super) fn normalise(name: &X509Name<'_>) -> Normal {
    let attribute = |attribute: &AttributeTypeAndValue<'_>| Attribute {
        kind: attribute.attr_type().to_id_string(),
        value: match text(attribute.attr_value()) {
            Some(text) => Value::Text(fold(&text)),
            None => {
                Value::Other(attribute.attr_value().tag().0, attribute.attr_value().data.to_vec())
            }
        },
    };
    let rdns = name.iter().map(|rdn| {
        let mut attributes: Vec<_> = rdn.iter().map(attribute).collect();
        attributes.sort();
        attributes
    });
    Normal(rdns.collect())
}

/// Lower case, no outer white space, inner runs of it as one space.
pub(super) fn fold(text: &str) -> String {
    text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The text of a string value of any of the directory string types.
fn text(value: &Any<'_>) -> Option<String> {
    let data: &[u8] = value.data;
    match value.tag() {
        Tag::Utf8String
        | Tag::PrintableString
        | Tag::Ia5String
        | Tag::VisibleString
        | Tag::NumericString => String::from_utf8(data.to_vec()).ok(),
        // T.61 is in practice Latin-1.
        Tag::T61String => Some(data.iter().copied().map(char::from).collect()),
        Tag::BmpString => {
            let units = data.chunks_exact(2);
            if !units.remainder().is_empty() {
                return None;
            }
            let units: Vec<u16> =
                units.filter_map(|pair| pair.try_into().ok().map(u16::from_be_bytes)).collect();
            String::from_utf16(&units).ok()
        }
        Tag::UniversalString => {
            let units = data.chunks_exact(4);
            if !units.remainder().is_empty() {
                return None;
            }
            units.map(|four| char::from_u32(u32::from_be_bytes(four.try_into().ok()?))).collect()
        }
        _ => None,
    }
}

fn shown(attribute: &AttributeTypeAndValue<'_>) -> String {
    match text(attribute.attr_value()) {
        Some(text) => text.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
        None => format!("#{}", crate::issue::hex(attribute.attr_value().data)),
    }
}

/// Attribute types by the short names people write.
const LABELS: [(&str, &str); 17] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "S"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "T"),
    ("2.5.4.13", "D"),
    ("2.5.4.42", "G"),
    ("2.5.4.43", "I"),
    ("2.5.4.46", "dnQualifier"),
    ("1.2.840.113549.1.9.1", "E"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
];

fn label(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let known = LABELS.iter().find(|(known, _)| *known == oid);
    known.map_or(oid.clone(), |(_, label)| (*label).to_owned())
}

/// The type of a short name.
pub(super) fn oid_of(label: &str) -> Option<&'static str> {
    LABELS.iter().find(|(_, known)| known.eq_ignore_ascii_case(label)).map(|(oid, _)| *oid)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// DER with a one- or two-octet length.
    pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        match content.len() {
            length @ 0..128 => out.push(length as u8),
            length => out.extend([0x82, (length >> 8) as u8, length as u8]),
        }
        out.extend_from_slice(content);
        out
    }

    const CN: &[u8] = &[0x55, 4, 3];
    const O: &[u8] = &[0x55, 4, 10];
    const UTF8: u8 = 0x0c;
    const PRINTABLE: u8 = 0x13;
    const BMP: u8 = 0x1e;

    fn attribute(oid: &[u8], string: u8, value: &[u8]) -> Vec<u8> {
        tlv(0x30, &[tlv(6, oid), tlv(string, value)].concat())
    }

    fn name(rdns: &[Vec<u8>]) -> Vec<u8> {
        let rdns: Vec<_> = rdns.iter().map(|rdn| tlv(0x31, rdn)).collect();
        tlv(0x30, &rdns.concat())
    }

    #[test]
    fn renders_like_strongswan() {
        let der =
            name(&[attribute(CN, UTF8, b"r-7f3k9q"), attribute(O, PRINTABLE, b"ci.example.com")]);
        assert_eq!(render_der(&der), "CN=r-7f3k9q, O=ci.example.com");
        let strange = name(&[
            [attribute(CN, UTF8, b"a\nb"), attribute(O, UTF8, b"x")].concat(),
            attribute(&[0x2a, 3], 2, &[7]),
        ]);
        assert_eq!(render_der(&strange), "CN=a?b+O=x, 1.2.3=#07");
        assert_eq!(render_der(b"\x30\x05"), "(unreadable name)");
    }

    #[test]
    fn compares_by_rdn_ignoring_string_type_case_and_spaces() {
        let reference =
            name(&[attribute(CN, UTF8, b"Runner  One"), attribute(O, UTF8, b"Example")]);
        let bmp: Vec<u8> = "runner one".encode_utf16().flat_map(u16::to_be_bytes).collect();
        for (equal, candidate) in [
            (
                true,
                name(&[attribute(CN, PRINTABLE, b"runner one"), attribute(O, UTF8, b"EXAMPLE")]),
            ),
            (true, name(&[attribute(CN, BMP, &bmp), attribute(O, UTF8, b" Example ")])),
            (false, name(&[attribute(O, UTF8, b"Example"), attribute(CN, UTF8, b"Runner One")])),
            (false, name(&[attribute(CN, UTF8, b"RunnerOne"), attribute(O, UTF8, b"Example")])),
            (false, name(&[attribute(CN, UTF8, b"Runner One")])),
            (false, name(&[attribute(O, UTF8, b"Runner One"), attribute(O, UTF8, b"Example")])),
            (
                false,
                name(&[
                    [attribute(CN, UTF8, b"Runner One"), attribute(O, UTF8, b"Example")].concat()
                ]),
            ),
        ] {
            assert_eq!(same(&reference, &candidate), equal, "{}", render_der(&candidate));
            assert_eq!(same(&candidate, &reference), equal);
        }
    }

    #[test]
    fn an_rdn_is_a_set() {
        let (cn, o) = (attribute(CN, UTF8, b"a"), attribute(O, UTF8, b"b"));
        let left = name(&[[cn.clone(), o.clone()].concat()]);
        let right = name(&[[o, cn].concat()]);
        assert!(same(&left, &right));
    }

    #[test]
    fn garbage_equals_nothing_not_even_itself() {
        assert!(!same(b"garbage", b"garbage"));
        let mut trailing = name(&[attribute(CN, UTF8, b"a")]);
        trailing.push(0);
        assert!(!same(&trailing, &trailing));
    }

    proptest! {
        #[test]
        fn never_panics(left in any::<Vec<u8>>(), right in any::<Vec<u8>>()) {
            let (left, right) = (tlv(0x30, &left), tlv(0x30, &right));
            same(&left, &right);
            render_der(&left);
        }
    }
}
