//! Fragmentation with reordering, duplication, loss and forgery.

use ike::wire::*;
use proptest::prelude::*;

use crate::toy::{ToyAead, ToyCbcMac, counting_iv};

const KEY: u64 = 99;

fn request() -> Header {
    Header::new(IkeSpi(1), IkeSpi(2), ExchangeType::IkeAuth, Flags::REQUEST, 1)
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

fn split(plaintext: &[u8], max_len: usize) -> Vec<Vec<u8>> {
    let first = PayloadType::IdI;
    seal_fragments(request(), first, plaintext, max_len, &ToyAead(KEY), &mut counting_iv()).unwrap()
}

fn insert(reassembler: &mut Reassembler, datagram: &[u8]) -> Result<Progress, WireError> {
    reassembler.insert(&Frame::locate(datagram)?, &ToyAead(KEY))
}

#[test]
fn layout_of_a_fragment() {
    // RFC 7383 2.5: number and total follow the generic header and are authenticated.
    let fragments = split(&content(500), 300);

    assert_eq!(fragments.len(), 3);
    assert!(fragments.iter().all(|fragment| fragment.len() <= 300));
    assert_eq!(fragments[0].len(), 300, "fragments are as large as allowed");
    assert_eq!(fragments[0][16], PayloadType::Skf.value());
    assert_eq!(fragments[0][28], PayloadType::IdI.value(), "the first one names the payload");
    assert_eq!(fragments[1][28], PayloadType::None.value());
    assert_eq!(fragments[1][32..36], [0, 2, 0, 3]);
    let frame = Frame::locate(&fragments[1]).unwrap();
    assert_eq!(frame.fragment(), Some((2, 3)));
    assert_eq!(frame.aad(), &fragments[1][..36]);
}

#[test]
fn what_fits_is_not_split() {
    // RFC 7383 2.5.1
    let overhead = 28 + 4 + 8 + 1 + 16;
    let whole = split(&content(200), 200 + overhead);
    assert_eq!(whole.len(), 1);
    assert_eq!(whole[0][16], PayloadType::Sk.value());

    assert_eq!(split(&content(201), 200 + overhead).len(), 2);
}

#[test]
fn datagrams_without_room_are_refused() {
    let overhead = 28 + 8 + 8 + 1 + 16;
    let sealed = |max_len| {
        let first = PayloadType::IdI;
        let plaintext = content(100);
        seal_fragments(request(), first, &plaintext, max_len, &ToyAead(KEY), &mut counting_iv())
    };

    assert_eq!(sealed(overhead).unwrap_err(), WireError::NoRoom { limit: overhead });
    assert_eq!(sealed(0).unwrap_err(), WireError::NoRoom { limit: 0 });
    assert_eq!(sealed(overhead + 1).unwrap().len(), 100);
}

#[test]
fn reassembles_in_reverse_and_ignores_repetitions() {
    let plaintext = content(1000);
    let fragments = split(&plaintext, 300);
    let mut reassembler = Reassembler::new(FragmentLimits::default());

    let last = fragments.len() as u16;
    assert_eq!(
        insert(&mut reassembler, &fragments[4]),
        Ok(Progress::Stored { have: 1, total: last })
    );
    assert_eq!(insert(&mut reassembler, &fragments[4]), Ok(Progress::Duplicate { number: last }));
    for fragment in fragments[1..4].iter().rev() {
        assert!(matches!(insert(&mut reassembler, fragment), Ok(Progress::Stored { .. })));
    }
    let Ok(Progress::Complete(opened)) = insert(&mut reassembler, &fragments[0]) else {
        panic!("the first fragment completes the message");
    };

    assert_eq!(opened.plaintext.as_bytes(), plaintext);
    assert_eq!(opened.first_inner, PayloadType::IdI);
    assert_eq!(opened.header.message_id, 1);
    assert_eq!(insert(&mut reassembler, &fragments[0]), Ok(Progress::Duplicate { number: 1 }));
    assert_eq!(reassembler.stored_bytes(), 0);
}

#[test]
fn a_smaller_split_replaces_a_larger_one() {
    // RFC 7383 2.6: path MTU discovery makes the sender split anew.
    let plaintext = content(1000);
    let (large, small) = (split(&plaintext, 600), split(&plaintext, 200));
    let mut reassembler = Reassembler::new(FragmentLimits::default());

    insert(&mut reassembler, &large[0]).unwrap();
    let progress = insert(&mut reassembler, &small[0]);
    assert_eq!(progress, Ok(Progress::Stored { have: 1, total: small.len() as u16 }));
    assert!(reassembler.stored_bytes() < 200, "the earlier split is forgotten");
    assert_eq!(insert(&mut reassembler, &large[1]), Ok(Progress::Superseded));

    let mut complete = None;
    for fragment in &small[1..] {
        if let Progress::Complete(opened) = insert(&mut reassembler, fragment).unwrap() {
            complete = Some(opened);
        }
    }
    assert_eq!(complete.unwrap().plaintext.as_bytes(), plaintext);
}

#[test]
fn forged_fragments_change_nothing() {
    // RFC 7383 2.6.
    let fragments = split(&content(500), 300);
    let mut reassembler = Reassembler::new(FragmentLimits::default());
    insert(&mut reassembler, &fragments[0]).unwrap();
    let before = reassembler.stored_bytes();

    // Another total, another number and other content, each without the key.
    let forge = |at: usize, value: u8| {
        let mut forged = fragments[1].clone();
        forged[at] = value;
        forged
    };
    for forged in [forge(35, 9), forge(33, 3), forge(60, 0xff)] {
        assert_eq!(insert(&mut reassembler, &forged), Err(WireError::Integrity));
        assert_eq!(reassembler.stored_bytes(), before);
    }
    insert(&mut reassembler, &fragments[1]).unwrap();
    assert!(matches!(insert(&mut reassembler, &fragments[2]), Ok(Progress::Complete(_))));
}

#[test]
fn limits_hold_before_and_after_decryption() {
    let fragments = split(&content(1000), 200);
    let total = fragments.len() as u16;

    let mut few = Reassembler::new(FragmentLimits { fragments: total - 1, bytes: 10_000 });
    assert!(matches!(insert(&mut few, &fragments[0]), Err(WireError::TooMany { .. })));

    let mut small = Reassembler::new(FragmentLimits { fragments: total, bytes: 300 });
    insert(&mut small, &fragments[0]).unwrap();
    insert(&mut small, &fragments[1]).unwrap();
    assert!(matches!(insert(&mut small, &fragments[2]), Err(WireError::TooLong { .. })));
    assert!(small.stored_bytes() <= 300);
}

#[test]
fn numbers_outside_the_total_are_malformed() {
    // RFC 7383 2.5
    for fields in [[0, 0, 0, 3], [0, 4, 0, 3], [0, 0, 0, 0]] {
        let mut fragment = split(&content(500), 300).remove(0);
        fragment[32..36].copy_from_slice(&fields);
        assert_eq!(
            Frame::locate(&fragment).unwrap_err(),
            WireError::Invalid {
                part: Part::Payload(PayloadType::Skf),
                field: Field::FragmentNumber,
                at: 32
            }
        );
    }
}

#[test]
fn fragments_of_another_message_are_refused() {
    let plaintext = content(500);
    let header = Header { message_id: 2, ..request() };
    let first = PayloadType::IdI;
    let other =
        seal_fragments(header, first, &plaintext, 300, &ToyAead(KEY), &mut counting_iv()).unwrap();
    let mut reassembler = Reassembler::new(FragmentLimits::default());
    insert(&mut reassembler, &split(&plaintext, 300)[0]).unwrap();

    assert!(matches!(
        insert(&mut reassembler, &other[1]),
        Err(WireError::Invalid { field: Field::FragmentHeader, .. })
    ));
}

#[test]
fn a_whole_message_is_no_fragment() {
    let whole = split(&content(10), 300);
    let mut reassembler = Reassembler::new(FragmentLimits::default());

    assert_eq!(
        insert(&mut reassembler, &whole[0]),
        Err(WireError::Misplaced { payload: PayloadType::Sk })
    );
    let fragments = split(&content(500), 300);
    assert_eq!(
        open(&fragments[0], &ToyAead(KEY)),
        Err(WireError::Misplaced { payload: PayloadType::Skf })
    );
}

proptest! {
    #[test]
    fn shuffled_and_repeated_fragments_give_the_message_back(
        plaintext in prop::collection::vec(any::<u8>(), 1..3000),
        max_len in 90usize..1400,
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        cbc: bool,
    ) {
        let cipher: &dyn SkCipher = if cbc { &ToyCbcMac(KEY) } else { &ToyAead(KEY) };
        let first = PayloadType::Sa;
        let datagrams =
            seal_fragments(request(), first, &plaintext, max_len, cipher, &mut counting_iv())
                .unwrap();
        prop_assert!(datagrams.iter().all(|datagram| datagram.len() <= max_len));
        if datagrams.len() == 1 {
            let opened = open(&datagrams[0], cipher).unwrap();
            prop_assert_eq!(opened.plaintext.as_bytes(), plaintext);
            return Ok(());
        }
        let total = datagrams.len() as u16;
        let mut reassembler =
            Reassembler::new(FragmentLimits { fragments: total, bytes: plaintext.len() });
        let shuffled = order.iter().map(|index| index.index(datagrams.len()));
        let mut complete = None;
        for at in shuffled.chain((0..datagrams.len()).rev()) {
            let frame = Frame::locate(&datagrams[at]).unwrap();
            if let Progress::Complete(opened) = reassembler.insert(&frame, cipher).unwrap() {
                prop_assert!(complete.replace(opened).is_none());
            }
        }
        let opened = complete.unwrap();
        prop_assert_eq!(opened.plaintext.as_bytes(), plaintext);
        prop_assert_eq!(opened.first_inner, PayloadType::Sa);
    }

    #[test]
    fn without_one_fragment_nothing_is_complete(length in 500usize..2000, missing: prop::sample::Index) {
        let datagrams = split(&content(length), 200);
        let missing = missing.index(datagrams.len());
        let mut reassembler = Reassembler::new(FragmentLimits::default());
        for (at, datagram) in datagrams.iter().enumerate() {
            if at != missing {
                let progress = insert(&mut reassembler, datagram).unwrap();
                let stored = matches!(progress, Progress::Stored { .. });
                prop_assert!(stored);
            }
        }
    }
}
