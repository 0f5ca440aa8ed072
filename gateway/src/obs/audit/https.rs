//! Batches by HTTPS POST, in the shapes that log services take.

use pki::AuditRecord;
use serde_json::json;
use zeroize::Zeroizing;

use super::encode;
use super::sink::{Sent, Target};
use super::tls::{Connection, Dialer};
use crate::config::{AuditBody, AuditFormat};

/// Octets of an answer that are looked at: its status is in the first line, its body says why not.
const MAX_ANSWER: usize = 16 * 1024;
/// The same for a bulk request, whose answer has a part for each record.
const MAX_BULK_ANSWER: usize = 1024 * 1024;
/// Characters of a refusal's body that are shown.
const MAX_SHOWN: usize = 200;

/// See the module.
#[derive(Debug)]
pub(super) struct Https {
    pub(super) dialer: Dialer,
    pub(super) format: AuditFormat,
    pub(super) body: AuditBody,
    /// `Host` header.
    pub(super) host: String,
    /// Path with query.
    pub(super) path: String,
    /// A header line with the service's secret.
    pub(super) header: Option<Zeroizing<String>>,
}

impl Target for Https {
    fn reach(&mut self) -> Result<bool, String> {
        self.dialer.dial().map(|_| true)
    }

    fn send(&mut self, records: &[AuditRecord]) -> Result<Sent, String> {
        let body = body(records, self.format, self.body);
        let mut connection = self.dialer.dial()?;
        connection.send(self.request(&body).as_bytes())?;
        let bulk = self.body == AuditBody::Bulk;
        let answer = answer(&mut connection, bulk)?;
        let status = status(&answer).ok_or("the answer is not HTTP")?;
        if (200..300).contains(&status) {
            // A bulk request succeeds as such; what became of each record is in its body.
            return if bulk { taken(&answer) } else { Ok(Sent::Delivered) };
        }
        let why = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim();
        let why: String =
            why.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_SHOWN).collect();
        Err(format!("HTTP {status} {why}").trim_end().to_owned())
    }
}

impl Https {
    /// Header and body in one write.
    fn request(&self, body: &str) -> Zeroizing<String> {
        let kind = match (self.body, self.format) {
            (AuditBody::Array, _) | (AuditBody::Splunk, _) => "application/json",
            (AuditBody::Lines, AuditFormat::Cef) => "text/plain; charset=utf-8",
            (AuditBody::Lines | AuditBody::Bulk, _) => "application/x-ndjson",
        };
        let secret = self.header.as_deref().map(String::as_str).unwrap_or_default();
        let end = if secret.is_empty() { "" } else { "\r\n" };
        Zeroizing::new(format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: runnel/{}\r\nContent-Type: {kind}\r\n\
             Content-Length: {}\r\nConnection: close\r\n{secret}{end}\r\n{body}",
            self.path,
            self.host,
            env!("CARGO_PKG_VERSION"),
            body.len()
        ))
    }
}

fn body(records: &[AuditRecord], format: AuditFormat, body: AuditBody) -> String {
    let lines = records.iter().map(|record| (record, encode::line(record, format)));
    match body {
        AuditBody::Lines => lines.map(|(_, line)| line + "\n").collect(),
        AuditBody::Array => {
            let items: Vec<_> = lines.map(|(_, line)| value(&line, format)).collect();
            format!("[{}]", items.join(","))
        }
        // One object after another, each with its time (Splunk's HTTP Event Collector).
        AuditBody::Splunk => lines
            .map(|(record, line)| {
                let micros = record.event.at.micros();
                let time =
                    format!("{}.{:06}", micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
                let event = value(&line, format);
                format!("{{\"time\":{time},\"source\":\"runnel\",\"event\":{event}}}\n")
            })
            .collect(),
        // Elasticsearch: the hash as document id, so that what is sent twice is there once.
        AuditBody::Bulk => lines
            .map(|(record, line)| {
                let create = json!({ "create": { "_id": record.hash } });
                format!("{create}\n{}\n", value(&line, format))
            })
            .collect(),
    }
}

/// A line as a JSON value: CEF becomes a string.
fn value(line: &str, format: AuditFormat) -> String {
    match format {
        AuditFormat::Json | AuditFormat::Ocsf => line.to_owned(),
        AuditFormat::Cef => json!(line).to_string(),
    }
}

/// Whether a bulk request's answer says that every record is there.
fn taken(answer: &str) -> Result<Sent, String> {
    const UNCLEAR: &str = "the answer to the bulk request does not say what became of the records";
    let text = body_of(answer).ok_or(UNCLEAR)?;
    let said: serde_json::Value = serde_json::from_str(&text).map_err(|_| UNCLEAR)?;
    match said["errors"].as_bool() {
        Some(false) => return Ok(Sent::Delivered),
        Some(true) => {}
        None => return Err(UNCLEAR.to_owned()),
    }
    let items = said["items"].as_array().ok_or(UNCLEAR)?;
    // A record that was there before was sent twice.
    let refused = items.iter().filter_map(|item| item.get("create")).find(|item| {
        let status = item["status"].as_u64();
        !matches!(status, Some(200..=299 | 409))
    });
    let Some(refused) = refused else { return Ok(Sent::Delivered) };
    let why = &refused["error"];
    let text = |name: &str| why[name].as_str().unwrap_or_default();
    let why: String = format!("{} {}", text("type"), text("reason"))
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_SHOWN)
        .collect();
    let status = refused["status"].as_u64().unwrap_or(0);
    Err(format!("a record is refused: {status} {}", why.trim()))
}

/// An answer's whole body, also of one in chunks (RFC 9112 7.1).
fn body_of(answer: &str) -> Option<String> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let chunked = head.lines().filter_map(|line| line.split_once(':')).any(|(name, value)| {
        name.eq_ignore_ascii_case("transfer-encoding")
            && value.trim().eq_ignore_ascii_case("chunked")
    });
    if !chunked {
        return Some(body.to_owned());
    }
    let (mut whole, mut rest) = (String::new(), body);
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}

/// Reads until the end of the answer or as much of it as matters.
fn answer(connection: &mut Connection, bulk: bool) -> Result<String, String> {
    let most = if bulk { MAX_BULK_ANSWER } else { MAX_ANSWER };
    let mut text = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        let octets = match connection.receive(&mut buffer) {
            Ok(octets) => octets,
            // A status without the rest of its body is an answer.
            Err(_) if is_enough(&String::from_utf8_lossy(&text), false, bulk) => 0,
            Err(error) => return Err(error),
        };
        text.extend_from_slice(buffer.get(..octets).unwrap_or_default());
        let answer = String::from_utf8_lossy(&text);
        if octets == 0 || text.len() >= most || is_enough(&answer, true, bulk) {
            return Ok(answer.into_owned());
        }
    }
}

/// Whether an answer says what there is to know: of a good one its header does, of another one, and
/// of one to a bulk request, the body too, when that is `wanted`.
fn is_enough(answer: &str, wanted: bool, bulk: bool) -> bool {
    let (Some(status), Some((head, body))) = (status(answer), answer.split_once("\r\n\r\n")) else {
        return false;
    };
    let length = head.lines().filter_map(|line| line.split_once(':'));
    let mut length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.find_map(|(_, value)| value.trim().parse::<usize>().ok());
    (200..300).contains(&status) && !bulk
        || !wanted
        || length.is_some_and(|length| body.len() >= length)
}

fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use pki::{Actor, AuditEvent, UnixTime};

    use super::*;

    fn records() -> Vec<AuditRecord> {
        let record = |seq: u64| AuditRecord {
            seq,
            event: AuditEvent::new("ca.create", &Actor::System, UnixTime::from_micros(1_500_000)),
            hash: format!("h{seq}"),
            line: format!("{{\"event.sequence\":{seq}}}"),
        };
        vec![record(1), record(2)]
    }

    #[test]
    fn bodies_have_the_shape_that_the_service_takes() {
        let json = |shape| body(&records(), AuditFormat::Json, shape);
        assert_eq!(json(AuditBody::Lines), "{\"event.sequence\":1}\n{\"event.sequence\":2}\n");
        assert_eq!(json(AuditBody::Array), "[{\"event.sequence\":1},{\"event.sequence\":2}]");
        assert_eq!(json(AuditBody::Bulk).lines().nth(2), Some("{\"create\":{\"_id\":\"h2\"}}"));
        let splunk = json(AuditBody::Splunk);
        let first = splunk.lines().next().unwrap();
        assert_eq!(
            first,
            "{\"time\":1.500000,\"source\":\"runnel\",\"event\":{\"event.sequence\":1}}"
        );
        let cef = body(&records(), AuditFormat::Cef, AuditBody::Array);
        let values: Vec<String> = serde_json::from_str(&cef).unwrap();
        assert!(values[1].starts_with("CEF:0|"));
    }

    #[test]
    fn an_answer_ends_with_its_body() {
        let refused = "HTTP/1.1 503 Busy\r\nContent-length: 4\r\n\r\n";
        let is_enough = |answer: &str, wanted| super::is_enough(answer, wanted, false);
        assert!(!is_enough(refused, true) && is_enough(refused, false));
        assert!(is_enough(&format!("{refused}full"), true));
        assert!(is_enough("HTTP/1.1 200 OK\r\n\r\n", true));
        assert!(!is_enough("HTTP/1.1 200 OK\r\n", true) && !is_enough("", false));
        assert!(!super::is_enough("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", true, true));
    }

    /// Elasticsearch answers 200 and says in the body which records it did not take.
    #[test]
    fn a_bulk_answer_counts_by_what_it_says_of_each_record() {
        let answer = |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-type: a\r\n\r\n{body}");
        let judged = |body: &str| taken(&answer(body));
        assert_eq!(judged(r#"{"took":3,"errors":false,"items":[]}"#), Ok(Sent::Delivered));
        let there = r#"{"errors":true,"items":[{"create":{"status":201}},
            {"create":{"status":409,"error":{"type":"version_conflict_engine_exception"}}}]}"#;
        assert_eq!(judged(there), Ok(Sent::Delivered), "it was there before");
        let full = r#"{"errors":true,"items":[{"create":{"status":201}},{"create":{"status":429,
            "error":{"type":"es_rejected_execution_exception","reason":"queue is full"}}}]}"#;
        let told = judged(full).unwrap_err();
        assert!(told.contains("429") && told.contains("queue is full"), "{told}");
        for unclear in ["", "ok", "{}", r#"{"errors":true}"#] {
            assert!(judged(unclear).is_err(), "{unclear}");
        }
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                       9\r\n{\"errors\"\r\n7;x=y\r\n:false}\r\n0\r\n\r\n";
        assert_eq!(taken(chunked), Ok(Sent::Delivered));
        let cut = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{\"err";
        assert!(taken(cut).is_err());
    }

    #[test]
    fn only_a_status_line_is_a_status() {
        assert_eq!(status("HTTP/1.1 204 No Content\r\n"), Some(204));
        assert_eq!(status("HTTP/1.0 429\r\n"), Some(429));
        for wrong in ["", "HTTP/1.1", "HTTP/2 200", "SMTP 200", "HTTP/1.1 2"] {
            assert_eq!(status(wrong), None, "{wrong}");
        }
    }
}
