//! Values that TOML has no type for: durations, allow-list entries, names.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::model::AllowEntry;

/// Parses `90s`, `25m`, `1h`, `7d`, `1h30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a duration like \"90s\", \"25m\", \"1h30m\" or \"7d\"".to_owned();
    let mut total: u64 = 0;
    let mut digits = String::new();
    if text.is_empty() {
        return Err(wrong());
    }
    for ch in text.chars() {
        if ch.is_ascii_digit() {
            digits.push(ch);
            continue;
        }
        let unit = match ch {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        digits.clear();
        total = number
            .checked_mul(unit)
            .and_then(|seconds| total.checked_add(seconds))
            .ok_or_else(wrong)?;
    }
    if digits.is_empty() { Ok(Duration::from_secs(total)) } else { Err(wrong()) }
}

/// The shortest text [`duration`] reads back.
pub fn duration_text(duration: Duration) -> String {
    let mut rest = duration.as_secs();
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, size) in [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)] {
        let count = rest / size;
        rest %= size;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    text
}

/// Units of [`size`], largest first.
const UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1000),
];

/// Parses a number of bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong = || "write a number of bytes like \"500MB\", \"20GB\" or \"16GiB\"".to_owned();
    let (unit, factor) =
        UNITS.iter().find(|(unit, _)| text.ends_with(unit)).copied().ok_or_else(wrong)?;
    let digits = text.strip_suffix(unit).unwrap_or_default();
    if digits.is_empty() || !digits.bytes().all(|octet| octet.is_ascii_digit()) {
        return Err(wrong());
    }
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)
}

/// The shortest text [`size`] reads back, of a multiple of 1000.
pub(super) fn size_text(bytes: u64) -> String {
    let fits = |(_, factor): &&(&str, u64)| bytes >= *factor && bytes.is_multiple_of(*factor);
    let (unit, factor) = UNITS.iter().find(fits).copied().unwrap_or(("kB", 1000));
    format!("{}{unit}", bytes / factor)
}

/// Parses one entry of an allow list: `NETWORK[:PORT[-PORT]][/PROTOCOL]`, IPv6 with ports in
/// brackets.
pub(super) fn allow_entry(text: &str) -> Result<AllowEntry, String> {
    let (rest, protocol) = match text.rsplit_once('/') {
        Some((rest, word)) if word.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            (rest, Some(protocol(word)?))
        }
        _ => (text, None),
    };
    let (network, ports) = if let Some(inner) = rest.strip_prefix('[') {
        let Some((network, after)) = inner.split_once(']') else {
            return Err(format!(
                "\"{text}\" has no closing bracket; write it like \"[fd00::1]:443/tcp\""
            ));
        };
        match after.strip_prefix(':') {
            Some(ports) => (network, Some(ports)),
            None if after.is_empty() => (network, None),
            None => {
                return Err(format!("\"{text}\": write a colon and the port after the bracket"));
            }
        }
    } else if rest.matches(':').count() == 1 {
        match rest.split_once(':') {
            Some((network, ports)) => (network, Some(ports)),
            None => (rest, None),
        }
    } else {
        (rest, None)
    };
    let net = match network.parse::<IpNet>() {
        Ok(net) if net.trunc() == net => net,
        Ok(net) => {
            return Err(format!("{net} has host bits set; write \"{}\"", net.trunc()));
        }
        Err(_) => IpNet::from(network.parse::<IpAddr>().map_err(|_| {
            format!("\"{network}\" is not an address or network; write it like \"10.20.0.10:443/tcp\" or \"10.20.1.0/24\" (names are not resolved)")
        })?),
    };
    let ports = ports.map(port_range).transpose()?;
    match (ports, protocol) {
        (Some(_), None) => {
            Err(format!("\"{text}\" names a port but no protocol; add \"/tcp\" or \"/udp\""))
        }
        (Some(_), Some(number)) if !matches!(number, 6 | 17 | 132) => {
            Err(format!("\"{text}\": only tcp, udp and sctp have ports"))
        }
        (Some((from, to)), _) if from > to => {
            Err(format!("\"{text}\": the port range runs backwards"))
        }
        _ => Ok(AllowEntry { net, protocol, ports }),
    }
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let port = |part: &str| {
        part.parse::<u16>()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| format!("\"{part}\" is not a port from 1 to 65535"))
    };
    match text.split_once('-') {
        Some((from, to)) => Ok((port(from)?, port(to)?)),
        None => port(text).map(|one| (one, one)),
    }
}

fn protocol(word: &str) -> Result<u8, String> {
    match word {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "sctp" => Ok(132),
        "icmp" => Ok(1),
        "icmpv6" => Ok(58),
        _ => Err(format!("unknown protocol \"{word}\"; use tcp, udp, sctp, icmp or icmpv6")),
    }
}

impl fmt::Display for AllowEntry {
    /// As [`allow_entry`] reads it back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.net.prefix_len() == self.net.max_prefix_len();
        let net = if host { self.net.addr().to_string() } else { self.net.to_string() };
        match (self.ports, self.net) {
            (Some(_), IpNet::V6(_)) => write!(f, "[{net}]")?,
            _ => f.write_str(&net)?,
        }
        match self.ports {
            Some((from, to)) if from == to => write!(f, ":{from}")?,
            Some((from, to)) => write!(f, ":{from}-{to}")?,
            None => {}
        }
        let word = match self.protocol {
            None => return Ok(()),
            Some(6) => "tcp",
            Some(17) => "udp",
            Some(132) => "sctp",
            Some(1) => "icmp",
            Some(58) => "icmpv6",
            Some(other) => return write!(f, "/{other}"),
        };
        write!(f, "/{word}")
    }
}

/// A name of a pool or role: goes into URLs, firewall chains and certificate names.
pub(super) fn name(text: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty()
        || text.len() > 32
        || !text.chars().all(fits)
        || text.starts_with('-')
        || text.ends_with('-')
    {
        return Err(format!(
            "\"{text}\" cannot be a name; use 1 to 32 of a-z, 0-9 and inner hyphens"
        ));
    }
    Ok(())
}

/// A DNS name (RFC 1123), for identities.
pub(super) fn dns_name(text: &str) -> bool {
    text.len() <= 253
        && !text.is_empty()
        && text.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        })
}

/// Octets written as pairs of hexadecimal digits.
pub(super) fn hex(digits: &[u8]) -> Option<Vec<u8>> {
    // Room for all at once: they may be a key, and a vector that grows leaves copies behind.
    let mut octets = Vec::with_capacity(digits.len() / 2);
    let (pairs, rest) = digits.as_chunks::<2>();
    for pair in pairs {
        let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
        octets.push(u8::try_from(high? * 16 + low?).ok()?);
    }
    rest.is_empty().then_some(octets)
}

/// The known word that differs least, when it is near enough to be a slip.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .min()
        .filter(|(cost, candidate)| *cost <= 1 + candidate.len() / 4)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = i;
        let mut before = i + 1;
        for (b, cell) in right.iter().zip(row.iter_mut().skip(1)) {
            let cost = (diagonal + usize::from(a != *b)).min(before + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = cost;
            before = cost;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back_as_written() {
        for text in ["90s", "25m", "1h", "1h30m", "7d"] {
            let parsed = duration(text).unwrap();
            assert_eq!(duration(&duration_text(parsed)).unwrap(), parsed, "{text}");
        }
        assert_eq!(duration("1h30m").unwrap(), Duration::from_secs(5400));
        for text in ["", "5", "h", "1x", "-1s", "1.5h", "99999999999999999999s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_read_back_as_written() {
        for text in ["1MB", "500MB", "20GB", "16GiB", "1000TB", "5kB"] {
            let parsed = size(text).unwrap();
            assert_eq!(size(&size_text(parsed)).unwrap(), parsed, "{text}");
        }
        assert_eq!(size("2GB").unwrap(), 2_000_000_000);
        assert_eq!(size("2GiB").unwrap(), 2 << 30);
        for text in ["", "5", "GB", "1.5GB", "-1MB", "1 GB", "1gb", "99999999999TB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn allow_entries_in_every_form() {
        let entry = |text: &str| allow_entry(text).unwrap();
        let https = entry("10.20.0.10:443/tcp");
        assert_eq!(https.net.to_string(), "10.20.0.10/32");
        assert_eq!((https.protocol, https.ports), (Some(6), Some((443, 443))));
        assert_eq!(entry("10.20.1.0/24").protocol, None);
        assert_eq!(entry("10.20.1.0/24:8000-8100/udp").ports, Some((8000, 8100)));
        assert_eq!(entry("fd00::/64").net.to_string(), "fd00::/64");
        assert_eq!(entry("[fd00::1]:53/udp").net.to_string(), "fd00::1/128");
        assert_eq!(entry("[fd00::/64]:53/udp").net.to_string(), "fd00::/64");
        assert_eq!(entry("fd00::1/tcp").protocol, Some(6));
        assert_eq!(entry("10.0.0.1/icmp").protocol, Some(1));
    }

    #[test]
    fn wrong_allow_entries_say_what_to_write() {
        for (text, part) in [
            ("registry.example:443/tcp", "names are not resolved"),
            ("10.20.0.10:443", "add \"/tcp\""),
            ("10.20.0.10:443/icmp", "only tcp, udp and sctp"),
            ("10.20.0.1/24", "write \"10.20.0.0/24\""),
            ("10.20.0.10:0/tcp", "1 to 65535"),
            ("10.20.0.10:9-8/tcp", "backwards"),
            ("10.20.0.10/tpc", "unknown protocol"),
            ("[fd00::1:443/tcp", "closing bracket"),
        ] {
            let message = allow_entry(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn allow_entries_are_written_as_they_are_read() {
        for text in [
            "10.20.0.10:443/tcp",
            "10.20.1.0/24",
            "[fd00::1]:53/udp",
            "fd00::/64",
            "10.0.0.1",
            "10.0.0.0/8:1-9/sctp",
            "10.0.0.1/icmp",
            "[fd00::/64]:80/tcp",
        ] {
            assert_eq!(allow_entry(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn suggestions_only_for_slips() {
        assert_eq!(nearest("lisen", &["listen", "id"]), Some("listen"));
        assert_eq!(nearest("qqq", &["listen", "id"]), None);
    }
}
