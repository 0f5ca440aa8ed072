//! Events as JSON with ECS field names, flat, in ASCII: what the store keeps and every line shows.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::checkpoint::Checkpoint;
use super::{Actor, AuditEvent, AuditOutcome, Carried, TunnelFacts};
use crate::lease::CiRef;
use crate::time::UnixTime;

/// The event's fields as they are named on the line, in this order. Durations are nanoseconds, as
/// ECS has them.
#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(rename = "@timestamp")]
    at: String,
    #[serde(rename = "event.kind")]
    kind: String,
    #[serde(rename = "event.category")]
    category: String,
    #[serde(rename = "event.action")]
    action: String,
    #[serde(rename = "event.outcome")]
    outcome: AuditOutcome,
    #[serde(rename = "event.reason", default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(rename = "event.duration", default, skip_serializing_if = "Option::is_none")]
    duration: Option<u64>,
    #[serde(rename = "runnel.actor")]
    actor: String,
    #[serde(rename = "process.user.id", default, skip_serializing_if = "Option::is_none")]
    operator: Option<String>,
    #[serde(rename = "source.ip", default, skip_serializing_if = "Option::is_none")]
    source_ip: Option<IpAddr>,
    #[serde(rename = "source.port", default, skip_serializing_if = "Option::is_none")]
    source_port: Option<u16>,
    #[serde(rename = "client.nat.ip", default, skip_serializing_if = "Option::is_none")]
    nat_ip: Option<IpAddr>,
    #[serde(rename = "client.nat.port", default, skip_serializing_if = "Option::is_none")]
    nat_port: Option<u16>,
    #[serde(rename = "http.request.id", default, skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    #[serde(rename = "source.bytes", default, skip_serializing_if = "Option::is_none")]
    bytes_in: Option<u64>,
    #[serde(rename = "destination.ip", default, skip_serializing_if = "Option::is_none")]
    destination_ip: Option<IpAddr>,
    #[serde(rename = "destination.port", default, skip_serializing_if = "Option::is_none")]
    destination_port: Option<u16>,
    #[serde(rename = "destination.bytes", default, skip_serializing_if = "Option::is_none")]
    bytes_out: Option<u64>,
    #[serde(rename = "user.id", default, skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    #[serde(rename = "x509.serial_number", default, skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    #[serde(
        rename = "x509.subject.distinguished_name",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    subject: Option<String>,
    #[serde(rename = "x509.not_after", default, skip_serializing_if = "Option::is_none")]
    not_after: Option<String>,
    #[serde(rename = "runnel.issuer_id", default, skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
    #[serde(rename = "x509.hash.spki", default, skip_serializing_if = "Option::is_none")]
    spki: Option<String>,
    #[serde(rename = "runnel.lease_id", default, skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
    #[serde(rename = "runnel.role", default, skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    #[serde(rename = "runnel.token", default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(rename = "runnel.vip", default, skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<IpAddr>,
    #[serde(rename = "runnel.run_url", default, skip_serializing_if = "Option::is_none")]
    run_url: Option<String>,
    #[serde(rename = "runnel.run_id", default, skip_serializing_if = "Option::is_none")]
    run_id: Option<String>,
    #[serde(rename = "runnel.job_id", default, skip_serializing_if = "Option::is_none")]
    job_id: Option<String>,
    #[serde(rename = "runnel.policy_version", default, skip_serializing_if = "Option::is_none")]
    policy_version: Option<u64>,
    #[serde(rename = "runnel.sa_spi_i", default, skip_serializing_if = "Option::is_none")]
    spi_i: Option<String>,
    #[serde(rename = "runnel.sa_spi_r", default, skip_serializing_if = "Option::is_none")]
    spi_r: Option<String>,
    #[serde(rename = "runnel.ike_suite", default, skip_serializing_if = "Option::is_none")]
    ike_suite: Option<String>,
    #[serde(rename = "runnel.esp_suite", default, skip_serializing_if = "Option::is_none")]
    esp_suite: Option<String>,
    #[serde(rename = "runnel.object", default, skip_serializing_if = "Option::is_none")]
    object: Option<String>,
    #[serde(rename = "runnel.left_out", default, skip_serializing_if = "Option::is_none")]
    left_out: Option<u64>,
    #[serde(rename = "runnel.checkpoint.record", default, skip_serializing_if = "Option::is_none")]
    signed_record: Option<u64>,
    #[serde(rename = "runnel.checkpoint.hash", default, skip_serializing_if = "Option::is_none")]
    signed_hash: Option<String>,
    #[serde(rename = "runnel.checkpoint.key", default, skip_serializing_if = "Option::is_none")]
    signed_key: Option<String>,
    #[serde(
        rename = "runnel.checkpoint.signature",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    signature: Option<String>,
}

/// The bytes that are stored and chained.
pub(crate) fn encode(event: &AuditEvent) -> Vec<u8> {
    let (actor, operator, peer) = match &event.actor {
        Actor::System => ("system", None, None),
        Actor::Uid(uid) => ("operator", Some(uid.to_string()), None),
        Actor::Peer(address) => ("peer", None, Some(*address)),
    };
    let tunnel = event.tunnel.as_ref();
    let carried = tunnel.and_then(|tunnel| tunnel.carried);
    let nat = tunnel.filter(|tunnel| tunnel.nat).map(|tunnel| tunnel.remote);
    let spi = |spi: u64| format!("{spi:016x}");
    let signed = event.checkpoint.as_ref();
    let line = Line {
        at: event.at.rfc3339_micros(),
        kind: "event".to_owned(),
        category: category(&event.action).to_owned(),
        action: event.action.clone(),
        outcome: event.outcome,
        reason: event.reason.clone(),
        duration: carried.map(|carried| carried.micros.saturating_mul(1_000)),
        actor: actor.to_owned(),
        operator,
        source_ip: tunnel.map(|tunnel| tunnel.remote.ip()).or(peer),
        source_port: tunnel.map(|tunnel| tunnel.remote.port()),
        nat_ip: nat.map(|nat| nat.ip()),
        nat_port: nat.map(|nat| nat.port()),
        request: event.request.clone(),
        bytes_in: carried.map(|carried| carried.bytes_in),
        destination_ip: tunnel.map(|tunnel| tunnel.local.ip()),
        destination_port: tunnel.map(|tunnel| tunnel.local.port()),
        bytes_out: carried.map(|carried| carried.bytes_out),
        identity: event.identity.clone(),
        serial: event.serial.clone(),
        subject: event.subject.clone(),
        not_after: event.not_after.map(UnixTime::rfc3339_micros),
        issuer: event.issuer.clone(),
        spki: event.spki_sha256.clone(),
        lease: event.lease_id.clone(),
        role: event.role.clone(),
        token: event.token.clone(),
        addresses: event.addresses.clone(),
        run_url: event.job.run_url.clone(),
        run_id: event.job.run_id.clone(),
        job_id: event.job.job_id.clone(),
        policy_version: (event.policy_version > 0).then_some(event.policy_version),
        spi_i: tunnel.map(|tunnel| spi(tunnel.spi_i)),
        spi_r: tunnel.map(|tunnel| spi(tunnel.spi_r)),
        ike_suite: tunnel.map(|tunnel| tunnel.ike_suite.clone()),
        esp_suite: tunnel.and_then(|tunnel| tunnel.esp_suite.clone()),
        object: event.object.clone(),
        left_out: event.left_out,
        signed_record: signed.map(|signed| signed.record),
        signed_hash: signed.map(|signed| signed.hash.clone()),
        signed_key: signed.map(|signed| signed.key.clone()),
        signature: signed.map(|signed| signed.signature.clone()),
    };
    // Names and numbers only: this cannot fail.
    ascii(&serde_json::to_string(&line).unwrap_or_default()).into_bytes()
}

/// Reads what [`encode`] wrote, or a version before it.
pub(super) fn decode(value: &[u8]) -> Result<AuditEvent, String> {
    let line: Line = match serde_json::from_slice(value) {
        Ok(line) => line,
        // Events were stored under their own field names before.
        Err(cause) => {
            return serde_json::from_slice::<AuditEvent>(value).map_err(|_| cause.to_string());
        }
    };
    let actor = match (line.actor.as_str(), &line.operator, line.source_ip) {
        ("operator", Some(uid), _) => Actor::Uid(uid.parse().map_err(|_| "no user id")?),
        ("peer", _, Some(address)) => Actor::Peer(address),
        _ => Actor::System,
    };
    let number = |spi: &str| u64::from_str_radix(spi, 16).ok();
    let tunnel = || {
        Some(TunnelFacts {
            remote: (line.source_ip?, line.source_port?).into(),
            nat: line.nat_ip.is_some(),
            local: (line.destination_ip?, line.destination_port?).into(),
            spi_i: number(line.spi_i.as_deref()?)?,
            spi_r: number(line.spi_r.as_deref()?)?,
            ike_suite: line.ike_suite.clone()?,
            esp_suite: line.esp_suite.clone(),
            carried: line.bytes_in.zip(line.bytes_out).zip(line.duration).map(
                |((bytes_in, bytes_out), nanos)| Carried {
                    bytes_in,
                    bytes_out,
                    micros: nanos / 1_000,
                },
            ),
        })
    };
    let checkpoint = || {
        Some(Checkpoint {
            record: line.signed_record?,
            hash: line.signed_hash.clone()?,
            key: line.signed_key.clone()?,
            signature: line.signature.clone()?,
        })
    };
    Ok(AuditEvent {
        checkpoint: checkpoint(),
        at: parse_timestamp(&line.at).ok_or("no time")?,
        outcome: line.outcome,
        actor,
        tunnel: tunnel(),
        action: line.action,
        lease_id: line.lease,
        serial: line.serial,
        subject: line.subject,
        issuer: line.issuer,
        not_after: line.not_after.as_deref().and_then(parse_timestamp),
        role: line.role,
        identity: line.identity,
        token: line.token,
        spki_sha256: line.spki,
        job: CiRef { run_url: line.run_url, run_id: line.run_id, job_id: line.job_id },
        addresses: line.addresses,
        policy_version: line.policy_version.unwrap_or(0),
        object: line.object,
        reason: line.reason,
        left_out: line.left_out,
        request: line.request,
    })
}

/// ECS `event.category`.
fn category(action: &str) -> &'static str {
    if action == "ike.sa.auth_fail" {
        return "authentication";
    }
    match action.split('.').next() {
        Some("ike" | "site") => "network",
        Some("lease" | "token" | "cert" | "key" | "run" | "bar" | "hook") => "iam",
        Some("policy" | "config" | "ca" | "state" | "crl" | "gateway" | "audit") => "configuration",
        _ => "authentication",
    }
}

/// Text in JSON strings as ASCII: receivers that guess encodings then have nothing to guess.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() && c != '\u{7f}' {
            text.push(c);
        } else {
            let mut units = [0u16; 2];
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

fn parse_timestamp(text: &str) -> Option<UnixTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, by: char| -> Option<Vec<i64>> {
        text.split(by).map(|part| part.parse().ok()).collect()
    };
    let (clock, micros) = time.split_once('.')?;
    let ([year, month, day], [hour, minute, second]) =
        (<[i64; 3]>::try_from(numbers(date, '-')?).ok()?, numbers(clock, ':')?.try_into().ok()?);
    if micros.len() != 6 || !(1..=12).contains(&month) || !(0..=9_999).contains(&year) {
        return None;
    }
    // Days from a civil date: eras of 400 years that begin on 1 March.
    let year = year - i64::from(month <= 2);
    let (era, month_index) = (year.div_euclid(400), (month + 9) % 12);
    let day_of_year = (153 * month_index + 2) / 5 + day - 1;
    let year_of_era = year.rem_euclid(400);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    let secs = days * 86_400 + hour * 3_600 + minute * 60 + second;
    Some(UnixTime::from_micros(secs * 1_000_000 + micros.parse::<i64>().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> AuditEvent {
        let mut event = AuditEvent::new(
            "ike.sa.down",
            &Actor::Peer("192.0.2.7".parse().unwrap()),
            UnixTime::from_micros(1_795_305_600_012_345),
        )
        .tunnel(TunnelFacts {
            local: "198.51.100.1:4500".parse().unwrap(),
            remote: "192.0.2.7:61234".parse().unwrap(),
            nat: true,
            spi_i: 1,
            spi_r: u64::MAX,
            ike_suite: "aes256gcm16-prfsha384-ecp384".to_owned(),
            esp_suite: Some("aes256gcm16".to_owned()),
            carried: Some(Carried { bytes_in: 7, bytes_out: 9, micros: 61_000_001 }),
        })
        .object("Zürich 🚆")
        .reason("line\nbreak \"quoted\"");
        event.lease_id = Some("r-7f3k9q".to_owned());
        event.identity = Some("spiffe://ci.example.com/role/builder/r-7f3k9q".to_owned());
        event.job.run_id = Some("4711".to_owned());
        event.addresses = vec!["10.77.0.2".parse().unwrap(), "fd77::2".parse().unwrap()];
        event.policy_version = 3;
        event.serial = Some("0a".to_owned());
        event.subject = Some("CN=r-7f3k9q, O=ci.example.com".to_owned());
        event.issuer = Some("0123456789abcdef".to_owned());
        event.not_after = Some(UnixTime::from_secs(1_795_309_200));
        event.left_out = Some(2);
        event.request = Some("64f1-2a".to_owned());
        event.checkpoint = Some(Checkpoint {
            record: 9,
            hash: "00ff".to_owned(),
            key: "0123456789abcdef".to_owned(),
            signature: "AAAA".to_owned(),
        });
        event
    }

    #[test]
    fn fields_have_ecs_names_and_ascii_values() {
        let bytes = encode(&full());
        assert!(bytes.is_ascii() && !bytes.contains(&b'\n'));
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        for (name, expected) in [
            ("@timestamp", "2026-11-22T00:00:00.012345Z"),
            ("event.action", "ike.sa.down"),
            ("event.category", "network"),
            ("event.outcome", "success"),
            ("source.ip", "192.0.2.7"),
            ("client.nat.ip", "192.0.2.7"),
            ("http.request.id", "64f1-2a"),
            ("destination.ip", "198.51.100.1"),
            ("runnel.lease_id", "r-7f3k9q"),
            ("runnel.run_id", "4711"),
            ("runnel.sa_spi_r", "ffffffffffffffff"),
            ("runnel.object", "Zürich 🚆"),
            ("x509.subject.distinguished_name", "CN=r-7f3k9q, O=ci.example.com"),
            ("x509.not_after", "2026-11-22T01:00:00.000000Z"),
        ] {
            assert_eq!(value[name], expected, "{name}");
        }
        assert_eq!(value["event.duration"], 61_000_001_000u64);
        assert_eq!((&value["source.bytes"], &value["destination.bytes"]), (&7.into(), &9.into()));
        assert_eq!(value["client.nat.port"], 61234);
        assert!(value.get("runnel.token").is_none(), "absent fields are not written");
        let mut event = full();
        event.tunnel.as_mut().unwrap().nat = false;
        let value: serde_json::Value = serde_json::from_slice(&encode(&event)).unwrap();
        assert!(value.get("client.nat.ip").is_none() && value.get("source.port").is_some());
    }

    #[test]
    fn what_changes_the_state_as_a_whole_is_configuration() {
        for action in ["ca.rotate", "state.backup", "state.restore", "state.accept_loss"] {
            assert_eq!(category(action), "configuration", "{action}");
        }
        assert_eq!(category("ike.sa.auth_fail"), "authentication");
    }

    #[test]
    fn events_read_back_as_written() {
        for actor in [Actor::System, Actor::Uid(1000), full().actor] {
            let event = AuditEvent { actor, ..full() };
            assert_eq!(decode(&encode(&event)).unwrap(), event);
        }
        let bare = AuditEvent::new("ca.create", &Actor::System, UnixTime::from_secs(951_827_696));
        assert_eq!(decode(&encode(&bare)).unwrap(), bare);
    }

    #[test]
    fn events_of_earlier_versions_are_read() {
        let old = br#"{"at":1795305600000000,"action":"lease.create","outcome":"success",
            "actor":{"peer":"192.0.2.7"},"lease_id":"r-1","reason":"token"}"#;
        let event = decode(old).unwrap();
        assert_eq!(
            (event.action.as_str(), event.lease_id.as_deref()),
            ("lease.create", Some("r-1"))
        );
        assert_eq!(event.actor, Actor::Peer("192.0.2.7".parse().unwrap()));
        assert!(decode(b"{\"at\":1}").is_err() && decode(b"").is_err());
    }
}
