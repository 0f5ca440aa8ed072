//! One record in the forms that receivers know: ECS JSON as the trail has it, CEF, and OCSF.

use pki::{Actor, AuditOutcome, AuditRecord};
use serde_json::{Map, Value, json};

use crate::config::AuditFormat;

/// OCSF version whose classes are used.
const OCSF: &str = "1.3.0";

/// A record as one line, without line end.
pub(super) fn line(record: &AuditRecord, format: AuditFormat) -> String {
    match format {
        AuditFormat::Json => record.line.clone(),
        AuditFormat::Cef => cef(record),
        AuditFormat::Ocsf => ocsf(record).to_string(),
    }
}

/// ArcSight Common Event Format, version 0. Keys are those of its dictionary; what has none is in the
/// custom strings with their labels.
fn cef(record: &AuditRecord) -> String {
    let event = &record.event;
    let severity = match (event.outcome, event.action.as_str()) {
        (AuditOutcome::Failure, _) => 6,
        (_, "lease.revoke" | "cert.revoke" | "key.bar" | "run.bar") => 5,
        _ => 3,
    };
    let action = header(&event.action);
    let version = header(env!("CARGO_PKG_VERSION"));
    let mut text = format!("CEF:0|Runnel|Runnel|{version}|{action}|{action}|{severity}|");
    let mut put = |key: &str, value: String| {
        if !text.ends_with('|') {
            text.push(' ');
        }
        text.push_str(key);
        text.push('=');
        text.push_str(&extension(&value));
    };
    put("rt", (event.at.micros() / 1_000).to_string());
    put("externalId", record.seq.to_string());
    put("act", event.action.clone());
    put("outcome", outcome(event.outcome).to_owned());
    let mut maybe = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            put(key, value);
        }
    };
    maybe("reason", event.reason.clone());
    maybe("duser", event.identity.clone());
    maybe("suid", operator(&event.actor));
    let tunnel = event.tunnel.as_ref();
    maybe("src", source(record));
    maybe("spt", tunnel.map(|tunnel| tunnel.remote.port().to_string()));
    let nat = tunnel.filter(|tunnel| tunnel.nat).map(|tunnel| tunnel.remote);
    maybe("sourceTranslatedAddress", nat.map(|nat| nat.ip().to_string()));
    maybe("dst", tunnel.map(|tunnel| tunnel.local.ip().to_string()));
    maybe("dpt", tunnel.map(|tunnel| tunnel.local.port().to_string()));
    let carried = tunnel.and_then(|tunnel| tunnel.carried);
    maybe("in", carried.map(|carried| carried.bytes_in.to_string()));
    maybe("out", carried.map(|carried| carried.bytes_out.to_string()));
    let custom = [
        ("lease", event.lease_id.clone()),
        ("role", event.role.clone()),
        ("serial", event.serial.clone()),
        ("run", event.job.run_id.clone()),
        ("suites", suites(record)),
        ("hash", Some(record.hash.clone())),
    ];
    for (number, (label, value)) in (1..).zip(custom) {
        if let Some(value) = value {
            maybe(&format!("cs{number}Label"), Some(label.to_owned()));
            maybe(&format!("cs{number}"), Some(value));
        }
    }
    maybe("flexString1Label", event.request.as_ref().map(|_| "request".to_owned()));
    maybe("flexString1", event.request.clone());
    text
}

fn header(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace(['\n', '\r'], " ")
}

fn extension(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('=', "\\=");
    text.replace('\n', "\\n").replace('\r', "\\r")
}

/// Open Cybersecurity Schema Framework: tunnels are Tunnel Activity, uses of tokens Authentication,
/// everything else Entity Management.
fn ocsf(record: &AuditRecord) -> Value {
    let event = &record.event;
    let failed = event.outcome == AuditOutcome::Failure;
    let (class, activity) = class(&event.action);
    let mut map = Map::new();
    let mut put = |name: &str, value: Value| {
        map.insert(name.to_owned(), value);
    };
    put("class_uid", json!(class));
    put("category_uid", json!(class / 1_000));
    put("activity_id", json!(activity));
    put("type_uid", json!(class * 100 + activity));
    put("time", json!(event.at.micros() / 1_000));
    put("severity_id", json!(if failed { 3 } else { 1 }));
    put("status_id", json!(if failed { 2 } else { 1 }));
    put("status", json!(if failed { "Failure" } else { "Success" }));
    if activity == 99 {
        put("activity_name", json!(event.action));
    }
    if let Some(reason) = &event.reason {
        put("status_detail", json!(reason));
    }
    put("message", json!(event.action));
    let mut metadata = json!({
        "version": OCSF,
        "uid": record.hash,
        "sequence": record.seq,
        "event_code": event.action,
        "log_name": "audit",
        "product": {
            "name": "Runnel", "vendor_name": "Runnel", "version": env!("CARGO_PKG_VERSION"),
        },
    });
    if let (Some(request), Some(metadata)) = (&event.request, metadata.as_object_mut()) {
        metadata.insert("correlation_uid".to_owned(), json!(request));
    }
    put("metadata", metadata);
    if let Some(uid) = operator(&event.actor) {
        put("actor", json!({ "user": { "uid": uid, "type_id": 2 } }));
    }
    let identity = event.identity.clone().or_else(|| event.token.clone());
    if class != 3004 {
        let name = event.lease_id.clone().unwrap_or_else(|| "unknown".to_owned());
        put("user", json!({ "uid": identity.unwrap_or_else(|| name.clone()), "name": name }));
    }
    if let Some(source) = source(record) {
        let mut endpoint = json!({ "ip": source });
        if let (Some(tunnel), Some(fields)) = (&event.tunnel, endpoint.as_object_mut()) {
            fields.insert("port".to_owned(), json!(tunnel.remote.port()));
        }
        put("src_endpoint", endpoint);
    }
    match class {
        4014 => {
            put("tunnel_type", json!("IKEv2/IPsec"));
            put("tunnel_type_id", json!(99));
            if let Some(tunnel) = &event.tunnel {
                let (ip, port) = (tunnel.local.ip().to_string(), tunnel.local.port());
                put("dst_endpoint", json!({ "ip": ip, "port": port }));
                let session = format!("{:016x}_{:016x}", tunnel.spi_i, tunnel.spi_r);
                put("session", json!({ "uid": session }));
                if let Some(carried) = tunnel.carried {
                    let bytes = carried.bytes_in.saturating_add(carried.bytes_out);
                    let (bytes_in, bytes_out) = (carried.bytes_in, carried.bytes_out);
                    put(
                        "traffic",
                        json!({ "bytes": bytes, "bytes_in": bytes_in, "bytes_out": bytes_out }),
                    );
                    put("duration", json!(carried.micros / 1_000));
                }
            }
        }
        3002 => put("service", json!({ "name": "enrolment" })),
        _ => {
            let kind = event.action.split('.').next().unwrap_or_default();
            let name = [&event.lease_id, &event.token, &event.serial, &event.object];
            let name = name.into_iter().flatten().next().cloned();
            let uid = name.unwrap_or_else(|| kind.to_owned());
            put("entity", json!({ "type": kind, "uid": uid, "name": uid }));
        }
    }
    if let Some(serial) = &event.serial {
        put("certificate", json!({ "serial_number": serial }));
    }
    let more = [
        ("lease", event.lease_id.clone()),
        ("role", event.role.clone()),
        ("run_id", event.job.run_id.clone()),
        ("run_url", event.job.run_url.clone()),
        ("job_id", event.job.job_id.clone()),
        ("suites", suites(record)),
    ];
    let more: Map<String, Value> = more
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.into())))
        .collect();
    if !more.is_empty() {
        put("unmapped", Value::Object(more));
    }
    Value::Object(map)
}

/// Class and activity of an action.
fn class(action: &str) -> (u32, u32) {
    let end = action.rsplit('.').next().unwrap_or_default();
    match action {
        "ike.sa.up" => (4014, 1),
        "ike.sa.down" => (4014, 2),
        "ike.sa.rekey" => (4014, 3),
        _ if action.starts_with("ike.") => (4014, 99),
        "token.use" | "token.replay" => (3002, 1),
        _ => match end {
            "create" | "issue" | "publish" => (3004, 1),
            "revoke" | "release" | "expire" | "prune" => (3004, 4),
            _ => (3004, 3),
        },
    }
}

fn outcome(outcome: AuditOutcome) -> &'static str {
    match outcome {
        AuditOutcome::Success => "success",
        AuditOutcome::Failure => "failure",
    }
}

fn operator(actor: &Actor) -> Option<String> {
    match actor {
        Actor::Uid(uid) => Some(uid.to_string()),
        Actor::System | Actor::Peer(_) => None,
    }
}

fn source(record: &AuditRecord) -> Option<String> {
    match (&record.event.tunnel, &record.event.actor) {
        (Some(tunnel), _) => Some(tunnel.remote.ip().to_string()),
        (None, Actor::Peer(address)) => Some(address.to_string()),
        (None, _) => None,
    }
}

fn suites(record: &AuditRecord) -> Option<String> {
    let tunnel = record.event.tunnel.as_ref()?;
    Some(match &tunnel.esp_suite {
        Some(esp) => format!("{} {esp}", tunnel.ike_suite),
        None => tunnel.ike_suite.clone(),
    })
}

#[cfg(test)]
mod tests {
    use pki::{AuditEvent, Carried, TunnelFacts, UnixTime};

    use super::*;

    fn down() -> AuditRecord {
        let at = UnixTime::from_secs(1_795_305_600);
        let mut event = AuditEvent::new("ike.sa.down", &Actor::System, at)
            .tunnel(TunnelFacts {
                local: "198.51.100.1:4500".parse().unwrap(),
                remote: "192.0.2.7:61234".parse().unwrap(),
                nat: true,
                spi_i: 1,
                spi_r: 2,
                ike_suite: "aes256gcm16-prfsha384-ecp384".to_owned(),
                esp_suite: Some("aes256gcm16".to_owned()),
                carried: Some(Carried { bytes_in: 7, bytes_out: 9, micros: 61_000_000 }),
            })
            .reason("a=b\\c|d\nforged");
        event.lease_id = Some("r-7f3k9q".to_owned());
        event.identity = Some("spiffe://ci.example.com/x".to_owned());
        event.request = Some("64f1-2a".to_owned());
        AuditRecord { seq: 7, event, hash: "ab".repeat(32), line: "{}".to_owned() }
    }

    #[test]
    fn cef_escapes_what_would_end_a_value() {
        let text = cef(&down());
        assert!(text.starts_with("CEF:0|Runnel|Runnel|"), "{text}");
        assert!(
            text.contains("|ike.sa.down|ike.sa.down|3|rt=1795305600000 externalId=7 "),
            "{text}"
        );
        assert!(text.contains("reason=a\\=b\\\\c|d\\nforged "), "{text}");
        let addresses =
            " src=192.0.2.7 spt=61234 sourceTranslatedAddress=192.0.2.7 dst=198.51.100.1";
        assert!(text.contains(&format!("{addresses} dpt=4500 in=7 out=9 ")), "{text}");
        assert!(text.ends_with(" flexString1Label=request flexString1=64f1-2a"), "{text}");
        assert!(text.contains(" cs1Label=lease cs1=r-7f3k9q "), "{text}");
        assert!(!text.contains('\n'));
        assert_eq!(header("a|b\\c\nd"), "a\\|b\\\\c d");
    }

    #[test]
    fn cef_tells_refusals_by_severity() {
        let mut record = down();
        record.event = AuditEvent::new("token.use", &Actor::System, UnixTime::from_secs(0))
            .refused("token_spent");
        assert!(cef(&record).contains("|token.use|token.use|6|"), "{}", cef(&record));
    }

    #[test]
    fn ocsf_has_the_classes_of_tunnels_tokens_and_entities() {
        let value = ocsf(&down());
        assert_eq!((&value["class_uid"], &value["type_uid"]), (&json!(4014), &json!(401_402)));
        assert_eq!(value["category_uid"], 4);
        assert_eq!(value["time"], 1_795_305_600_000i64);
        assert_eq!(value["user"]["uid"], "spiffe://ci.example.com/x");
        assert_eq!(value["traffic"], json!({ "bytes": 16, "bytes_in": 7, "bytes_out": 9 }));
        assert_eq!(value["src_endpoint"], json!({ "ip": "192.0.2.7", "port": 61234 }));
        assert_eq!(value["session"]["uid"], "0000000000000001_0000000000000002");
        assert_eq!(value["duration"], 61_000);
        assert_eq!(value["metadata"]["correlation_uid"], "64f1-2a");
        let of = |action: &str| {
            let mut record = down();
            let event = AuditEvent::new(action, &Actor::Uid(0), UnixTime::from_secs(0));
            record.event = event.refused("no").object("x");
            ocsf(&record)
        };
        let token = of("token.use");
        assert_eq!((&token["class_uid"], &token["status_id"]), (&json!(3002), &json!(2)));
        let lease = of("lease.revoke");
        assert_eq!((&lease["class_uid"], &lease["activity_id"]), (&json!(3004), &json!(4)));
        assert_eq!(lease["entity"]["type"], "lease");
        assert_eq!(lease["actor"]["user"]["uid"], "0");
        for value in [&token, &lease] {
            let class = value["class_uid"].as_u64().unwrap();
            assert_eq!(value["type_uid"], class * 100 + value["activity_id"].as_u64().unwrap());
        }
    }
}
