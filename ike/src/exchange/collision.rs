//! Two rekeys of one SA that cross (RFC 7296 2.8.1, 2.8.2): of the two new SAs, the one whose
//! exchange had the lowest of the four nonces is redundant, and who initiated that exchange closes
//! it. Who initiated the other deletes the old SA. Both sides come to the same answer alone.

use crate::wire::Nonce;

/// Whether our exchange made the redundant SA.
pub(crate) fn ours_is_redundant(ours: (&Nonce, &Nonce), theirs: (&Nonce, &Nonce)) -> bool {
    ours.0.min(ours.1) < theirs.0.min(theirs.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nonce(first: u8) -> Nonce {
        let mut octets = vec![0x80; 32];
        octets[0] = first;
        Nonce::new(octets).unwrap()
    }

    #[test]
    fn the_lowest_of_four_decides() {
        let (a, b, c, d) = (nonce(1), nonce(9), nonce(2), nonce(3));

        assert!(ours_is_redundant((&a, &b), (&c, &d)));
        assert!(ours_is_redundant((&b, &a), (&d, &c)));
        assert!(!ours_is_redundant((&c, &d), (&b, &a)));
    }

    #[test]
    fn a_prefix_is_lower() {
        // RFC 7296 2.8.1: octet by octet; the shorter of two that agree is lower.
        let short = Nonce::new(vec![5; 16]).unwrap();
        let long = Nonce::new(vec![5; 32]).unwrap();
        let high = nonce(0xff);

        assert!(ours_is_redundant((&short, &high), (&long, &high)));
    }
}
