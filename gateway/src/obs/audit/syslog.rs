//! Syslog over TLS (RFC 5424 messages, RFC 5425 transport).
//!
//! The protocol has no acknowledgement. A batch counts as delivered when the receiver's system has
//! acknowledged every octet of it (TCP) and keeps the connection open; otherwise it is sent again.
//! What the receiver's program makes of it nobody is told.

use std::time::{Duration, Instant};

use pki::{AuditOutcome, AuditRecord};

use super::encode;
use super::sink::{Sent, Target};
use super::tls::{Connection, Dialer};
use crate::config::AuditFormat;

/// Facility "log audit" (13), RFC 5424 6.2.1.
const FACILITY: u8 = 13;
/// Severities "warning" and "informational".
const WARNING: u8 = 4;
const INFORMATIONAL: u8 = 6;

/// A receiver that acknowledges nothing for so long is not there any more.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Syslog {
    dialer: Dialer,
    format: AuditFormat,
    host: String,
    connection: Option<Connection>,
    /// When the latest batch was sent.
    sent: Option<Instant>,
}

impl Syslog {
    pub(super) fn new(dialer: Dialer, format: AuditFormat, gateway: &str) -> Self {
        Self { dialer, format, host: name(gateway, 255), connection: None, sent: None }
    }

    fn connection(&mut self) -> Result<&mut Connection, String> {
        if self.connection.as_mut().is_some_and(|connection| !connection.is_open()) {
            self.connection = None;
            return Err("the receiver closed the connection".to_owned());
        }
        if self.connection.is_none() {
            // Nothing was sent on the new one.
            self.sent = None;
        }
        match &mut self.connection {
            Some(connection) => Ok(connection),
            none => Ok(none.insert(self.dialer.dial()?)),
        }
    }
}

impl Target for Syslog {
    fn reach(&mut self) -> Result<bool, String> {
        let unacknowledged = self.connection()?.unacknowledged()?;
        let sent = self.sent;
        if unacknowledged == 0 {
            self.sent = None;
            return Ok(true);
        }
        if sent.is_some_and(|sent| sent.elapsed() >= UNACKNOWLEDGED) {
            self.connection = None;
            return Err(format!(
                "the receiver acknowledges nothing: {unacknowledged} octets for {} s",
                UNACKNOWLEDGED.as_secs()
            ));
        }
        Ok(false)
    }

    fn send(&mut self, records: &[AuditRecord]) -> Result<Sent, String> {
        let (host, format) = (self.host.clone(), self.format);
        let mut frames = Vec::new();
        for record in records {
            frame(&mut frames, record, &host, format);
        }
        let sent = self.connection().and_then(|connection| connection.send(&frames));
        self.sent = Some(Instant::now());
        if sent.is_err() {
            self.connection = None;
        }
        sent.map(|()| Sent::Unconfirmed)
    }
}

/// Octet counting (RFC 5425 4.3): the message's length, a space, the message.
fn frame(frames: &mut Vec<u8>, record: &AuditRecord, host: &str, format: AuditFormat) {
    let text = message(record, host, format);
    frames.extend_from_slice(format!("{} {text}", text.len()).as_bytes());
}

/// One message (RFC 5424 6). It is ASCII, so it needs no byte order mark.
fn message(record: &AuditRecord, host: &str, format: AuditFormat) -> String {
    let event = &record.event;
    let severity = match event.outcome {
        AuditOutcome::Failure => WARNING,
        AuditOutcome::Success => INFORMATIONAL,
    };
    // RFC 5424 7.3.1: a sequenceId wraps at 2147483647, to 1.
    let sequence = (record.seq.max(1) - 1) % 2_147_483_647 + 1;
    let process = std::process::id();
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "<{}>1 {} {host} runnel {process} {} [meta sequenceId=\"{sequence}\"][origin \
         software=\"runnel\" swVersion=\"{version}\"] {}",
        FACILITY * 8 + severity,
        event.at.rfc3339_micros(),
        name(&event.action, 32),
        encode::line(record, format)
    )
}

/// A header field: printable ASCII without spaces, `-` when nothing is left.
fn name(text: &str, most: usize) -> String {
    let text: String = text.chars().filter(char::is_ascii_graphic).take(most).collect();
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use pki::{Actor, AuditEvent, UnixTime};

    use super::*;

    #[test]
    fn messages_are_framed_by_octet_counting() {
        let at = UnixTime::from_micros(1_795_305_600_012_345);
        let event = AuditEvent::new("token.use", &Actor::System, at).refused("token_spent");
        let line = "{\"event.sequence\":2147483648}".to_owned();
        let record = AuditRecord { seq: 2_147_483_648, event, hash: String::new(), line };
        let text = message(&record, "gw.example.com", AuditFormat::Json);
        let process = std::process::id();
        assert!(
            text.starts_with(&format!(
                "<108>1 2026-11-22T00:00:00.012345Z gw.example.com runnel {process} token.use \
                 [meta sequenceId=\"1\"][origin software=\"runnel\" swVersion=\""
            )),
            "{text}"
        );
        assert!(text.ends_with("\"] {\"event.sequence\":2147483648}"), "{text}");
        let mut frames = Vec::new();
        frame(&mut frames, &record, "gw.example.com", AuditFormat::Json);
        frame(&mut frames, &record, "gw.example.com", AuditFormat::Json);
        let one = format!("{} {text}", text.len());
        assert_eq!(String::from_utf8(frames).unwrap(), format!("{one}{one}"));
        assert_eq!((name("a b\u{e9}", 32), name(" ", 32)), ("ab".to_owned(), "-".to_owned()));
    }
}
