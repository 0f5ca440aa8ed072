//! Percent-encoding (RFC 3986 2.1).

use zeroize::Zeroizing;

/// What an encoded text stands for; in forms `plus` is a space.
pub(super) fn decode(text: &str, plus: bool) -> Option<Zeroizing<Vec<u8>>> {
    let digit = |octet: u8| char::from(octet).to_digit(16);
    // Never longer than the text: what is decoded may be a secret, and leaves no copies.
    let mut plain = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut octets = text.bytes();
    while let Some(octet) = octets.next() {
        plain.push(match octet {
            b'+' if plus => b' ',
            b'%' => {
                let (high, low) = (digit(octets.next()?)?, digit(octets.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plus_is_a_space_in_forms_only() {
        let read = |text, plus| decode(text, plus).map(|plain| plain.to_vec());
        assert_eq!(read("a+%2b%2F", true).unwrap(), b"a +/");
        assert_eq!(read("a+%2b%2F", false).unwrap(), b"a++/");
        for broken in ["%", "%4", "%+4", "%zz"] {
            assert_eq!(read(broken, true), None, "{broken}");
        }
    }
}
