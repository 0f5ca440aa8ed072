//! The little of DER that must be seen as octets: what was signed, by which algorithm, and how.

/// One element.
#[derive(Clone, Copy)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    /// Tag, length and content.
    pub(super) whole: &'a [u8],
    pub(super) content: &'a [u8],
}

/// Splits the first element off; `None` when it is cut off, indefinite or longer than 16 MB.
pub(super) fn split(input: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (octets, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = octets.iter().fold(0usize, |sum, octet| sum << 8 | usize::from(*octet));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    let whole = input.get(..input.len().checked_sub(rest.len())?)?;
    Some((Element { tag, whole, content }, rest))
}

/// The content of the only element, which has this tag.
pub(super) fn only(input: &[u8], tag: u8) -> Option<&[u8]> {
    match split(input)? {
        (element, []) if element.tag == tag => Some(element.content),
        _ => None,
    }
}

pub(super) const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// The octets of a BIT STRING without unused bits.
fn bits(element: Element<'_>) -> Option<&[u8]> {
    match (element.tag, element.content.split_first()?) {
        (BIT_STRING, (0, octets)) => Some(octets),
        _ => None,
    }
}

/// A signed structure: certificate, revocation list or basic OCSP response.
#[derive(Clone, Copy)]
pub(super) struct SignedData<'a> {
    pub(super) message: &'a [u8],
    /// The AlgorithmIdentifier's content.
    pub(super) algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
}

/// `SEQUENCE { signed, AlgorithmIdentifier, BIT STRING, ... }`
pub(super) fn signed(input: &[u8]) -> Option<SignedData<'_>> {
    let (message, rest) = split(only(input, SEQUENCE)?)?;
    let (algorithm, rest) = split(rest)?;
    let (signature, _) = split(rest)?;
    (algorithm.tag == SEQUENCE).then_some(())?;
    Some(SignedData {
        message: message.whole,
        algorithm: algorithm.content,
        signature: bits(signature)?,
    })
}

/// AlgorithmIdentifier content and key octets of a SubjectPublicKeyInfo.
pub(super) fn public_key(spki: &[u8]) -> Option<(&[u8], &[u8])> {
    let (algorithm, rest) = split(only(spki, SEQUENCE)?)?;
    let (key, rest) = split(rest)?;
    (algorithm.tag == SEQUENCE && rest.is_empty()).then_some(())?;
    Some((algorithm.content, bits(key)?))
}
