//! IKE messages for tests, well-formed and otherwise (RFC 7296 3).

/// Length of the IKE header.
const HEADER: usize = 28;

/// A message: its bytes and what is wrong with it.
#[derive(Debug, Clone)]
pub struct Bad {
    /// What is wrong.
    pub what: String,
    /// The UDP payload for port 500.
    pub bytes: Vec<u8>,
}

/// A small deterministic generator; tests need variety, not secrecy.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Starts from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number (xorshift64*).
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next_u64().to_be_bytes()[0]).collect()
    }
}

/// A correct IKE_SA_INIT request: AES-GCM-256, PRF-HMAC-SHA2-256, X25519.
#[must_use]
pub fn sa_init(dice: &mut Dice) -> Vec<u8> {
    let mut body = payload(34, false, &sa_body());
    let mut key_exchange = vec![0, 31, 0, 0];
    key_exchange.extend(dice.bytes(32));
    body.extend(payload(40, false, &key_exchange));
    body.extend(payload(0, false, &dice.bytes(32)));
    message(dice.next_u64(), 0, 33, 34, 0x08, 0, &body)
}

/// Every kind of broken or surprising message before authentication.
#[must_use]
pub fn catalogue(seed: u64) -> Vec<Bad> {
    let mut dice = Dice::new(seed);
    let good = sa_init(&mut dice);
    let mut list = Vec::new();
    for length in 0..good.len() {
        list.push(bad(format!("cut to {length} bytes"), good[..length].to_vec()));
        // The same cut, with a header that agrees.
        if length >= HEADER {
            list.push(bad(format!("cut to {length}, length adjusted"), sized(&good[..length])));
        }
    }
    for (what, length) in [("zero", 0_u32), ("tiny", 27), ("huge", 0x7fff_ffff), ("all ones", !0)] {
        let mut bytes = good.clone();
        bytes[24..28].copy_from_slice(&length.to_be_bytes());
        list.push(bad(format!("header length {what}"), bytes));
    }
    for at in [HEADER + 2, HEADER + 3] {
        for value in [0, 1, 3, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            list.push(bad(format!("payload length byte {at} is {value}"), bytes));
        }
    }
    let mut major = good.clone();
    major[17] = 0x30;
    list.push(bad("major version 3", major));
    for exchange in [0, 33, 38, 240, 255] {
        let mut bytes = good.clone();
        bytes[18] = exchange;
        list.push(bad(format!("exchange type {exchange}"), bytes));
    }
    let mut response = good.clone();
    response[19] = 0x20;
    list.push(bad("a response nobody asked for", response));
    let mut later = good.clone();
    later[20..24].copy_from_slice(&7_u32.to_be_bytes());
    list.push(bad("IKE_SA_INIT with message id 7", later));
    let mut zero = good.clone();
    zero[..8].fill(0);
    list.push(bad("initiator SPI 0", zero));
    list.push(bad("unknown critical payload", unknown_critical(&mut dice)));
    for (what, extra) in [("64 KiB of garbage", 65_000), ("8 KiB of garbage", 8192)] {
        list.push(bad(what, dice.bytes(extra)));
        let mut bytes = good.clone();
        bytes.extend(dice.bytes(extra - good.len()));
        list.push(bad(format!("a request with {what}"), sized(&bytes)));
    }
    list.push(bad("200 proposals", many_proposals(&mut dice, 200)));
    list.push(bad("a chain of 2000 empty payloads", many_payloads(&mut dice, 2000)));
    for exchange in [35, 36, 37] {
        let spi = (dice.next_u64(), dice.next_u64());
        let body = payload(0, false, &dice.bytes(80));
        let bytes = message(spi.0, spi.1, 46, exchange, 0x08, 1, &body);
        list.push(bad(format!("exchange {exchange} with unknown SPIs"), bytes));
    }
    for _ in 0..200 {
        let mut bytes = good.clone();
        for _ in 0..4 {
            let at = usize::try_from(dice.next_u64() % bytes.len() as u64).unwrap_or(0);
            bytes[at] = dice.next_u64().to_be_bytes()[0];
        }
        list.push(bad("four random bytes changed", bytes));
    }
    list
}

/// IKE_SA_INIT with a critical payload of unknown type (RFC 7296 2.5): the answer must be
/// UNSUPPORTED_CRITICAL_PAYLOAD.
#[must_use]
pub fn unknown_critical(dice: &mut Dice) -> Vec<u8> {
    /// From the private-use range.
    const TYPE: u8 = 200;
    let mut body = payload(33, true, &[1, 2, 3, 4]);
    body.extend(payload(34, false, &sa_body()));
    let mut key_exchange = vec![0, 31, 0, 0];
    key_exchange.extend(dice.bytes(32));
    body.extend(payload(40, false, &key_exchange));
    body.extend(payload(0, false, &dice.bytes(32)));
    message(dice.next_u64(), 0, TYPE, 34, 0x08, 0, &body)
}

/// A message with a victim's SPIs and an encrypted payload that cannot be authentic.
#[must_use]
pub fn forged(
    spi_i: u64,
    spi_r: u64,
    exchange: u8,
    id: u32,
    response: bool,
    dice: &mut Dice,
) -> Vec<u8> {
    let flags = 0x08 | if response { 0x20 } else { 0 };
    let body = payload(0, false, &dice.bytes(8 + 48 + 16));
    message(spi_i, spi_r, 46, exchange, flags, id, &body)
}

fn bad(what: impl Into<String>, bytes: Vec<u8>) -> Bad {
    Bad { what: what.into(), bytes }
}

fn message(
    spi_i: u64,
    spi_r: u64,
    first: u8,
    exchange: u8,
    flags: u8,
    id: u32,
    body: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(spi_i.to_be_bytes());
    bytes.extend(spi_r.to_be_bytes());
    bytes.extend([first, 0x20, exchange, flags]);
    bytes.extend(id.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    sized(&bytes)
}

/// The message with a header length that agrees with its size.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[24..28].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn payload(next: u8, critical: bool, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = vec![next, if critical { 0x80 } else { 0 }];
    bytes.extend(length.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// One proposal: ENCR 20 (AES-GCM-16) with 256 bits, PRF 5, KE 31.
fn sa_body() -> Vec<u8> {
    proposal(true, 1)
}

fn proposal(last: bool, number: u8) -> Vec<u8> {
    let transforms: [&[u8]; 3] = [
        &[3, 0, 0, 12, 1, 0, 0, 20, 0x80, 14, 1, 0],
        &[3, 0, 0, 8, 2, 0, 0, 5],
        &[0, 0, 0, 8, 4, 0, 0, 31],
    ];
    let inner: Vec<u8> = transforms.concat();
    let length = u16::try_from(inner.len() + 8).unwrap_or(u16::MAX).to_be_bytes();
    let mut bytes = vec![if last { 0 } else { 2 }, 0, length[0], length[1], number, 1, 0, 3];
    bytes.extend(inner);
    bytes
}

fn many_proposals(dice: &mut Dice, count: u8) -> Vec<u8> {
    let mut body = Vec::new();
    for number in 1..=count {
        body.extend(proposal(number == count, number));
    }
    let mut all = payload(34, false, &body);
    let mut key_exchange = vec![0, 31, 0, 0];
    key_exchange.extend(dice.bytes(32));
    all.extend(payload(40, false, &key_exchange));
    all.extend(payload(0, false, &dice.bytes(32)));
    message(dice.next_u64(), 0, 33, 34, 0x08, 0, &all)
}

fn many_payloads(dice: &mut Dice, count: usize) -> Vec<u8> {
    let mut body = Vec::new();
    for number in 0..count {
        body.extend(payload(if number + 1 == count { 0 } else { 43 }, false, &[]));
    }
    message(dice.next_u64(), 0, 43, 34, 0x08, 0, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_large_and_repeatable() {
        let (a, b) = (catalogue(7), catalogue(7));
        assert!(a.len() > 400);
        assert!(a.iter().zip(&b).all(|(x, y)| x.bytes == y.bytes));
    }

    #[test]
    fn a_correct_request_has_a_correct_length() {
        let bytes = sa_init(&mut Dice::new(1));
        assert_eq!(bytes[24..28], u32::try_from(bytes.len()).unwrap().to_be_bytes());
        assert_eq!(bytes.len(), HEADER + 4 + 36 + 4 + 36 + 4 + 32);
    }
}
