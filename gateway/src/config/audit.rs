//! `[audit]` and `[[audit.sink]]`: where the audit trail goes beside its file. Certificates and secrets
//! are read when the gateway starts, not here.

use std::path::PathBuf;
use std::time::Duration;

use super::read::named;
use super::section::{Findings, Section};
use super::value;

/// Port of syslog over TLS (RFC 5425 4.1).
const SYSLOG_PORT: u16 = 6514;

/// Octets of a file before it is put aside, when nothing is said.
const FILE_SIZE: u64 = 64 << 20;

/// Files put aside that are kept, when nothing is said.
const FILES: u64 = 15;

/// One day.
const DAY: Duration = Duration::from_secs(86_400);

/// How long records are kept, when nothing is said: more than the year that auditors look back.
const KEEP: Duration = DAY.saturating_mul(400);

/// The audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// No access is opened or prolonged while the trail cannot be written.
    pub required: bool,
    /// The file beside the store is put aside when it has so many octets.
    pub file_size: u64,
    /// So many that were put aside are kept.
    pub files: u64,
    /// Records stay in the trail so long at least.
    pub keep: Duration,
    /// Places elsewhere that take it.
    pub sinks: Vec<AuditSink>,
}

impl Default for Audit {
    fn default() -> Self {
        Self { required: false, file_size: FILE_SIZE, files: FILES, keep: KEEP, sinks: Vec::new() }
    }
}

/// A place elsewhere that takes the audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSink {
    /// Its name; it remembers under it what it has.
    pub name: String,
    /// How records get there.
    pub target: AuditTarget,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// How records are written.
    pub format: AuditFormat,
    /// Root certificates its certificate must come from; `None`: those the system trusts.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key, for receivers that want one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// `kind = ...` with what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditTarget {
    /// Syslog over TLS.
    Syslog,
    /// Batches by POST.
    Https {
        /// Path with query.
        path: String,
        /// The batch's shape.
        body: AuditBody,
        /// File with a header line that holds the service's secret.
        header_file: Option<PathBuf>,
    },
}

/// `format = ...`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditFormat {
    /// The trail's own lines: JSON with ECS names.
    Json,
    /// ArcSight Common Event Format.
    Cef,
    /// Open Cybersecurity Schema Framework.
    Ocsf,
}

/// `body = ...`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditBody {
    /// One record a line.
    Lines,
    /// A JSON array.
    Array,
    /// Splunk's HTTP Event Collector.
    Splunk,
    /// Elasticsearch's bulk API.
    Bulk,
}

pub(super) fn audit(mut section: Section<'_, '_>, found: &mut Findings<'_>) -> Audit {
    let required = section.boolean("required", found).unwrap_or(false);
    let file_size = section.size("file_size", 1 << 20..=1 << 40, found).unwrap_or(FILE_SIZE);
    let files = section.number("files", 1..=1_000, found).unwrap_or(FILES);
    let keep = section.duration("keep", DAY..=DAY.saturating_mul(36_500), found).unwrap_or(KEEP);
    let mut sinks: Vec<AuditSink> = Vec::new();
    for section in section.tables("sink", "[[audit.sink]]", found).unwrap_or_default() {
        let at = section.offset;
        if let Some(sink) = sink(section, found) {
            if sinks.iter().any(|other| other.name == sink.name) {
                let name = &sink.name;
                found.error(at, format!("audit sink \"{name}\" is there twice; rename one"));
            }
            sinks.push(sink);
        }
    }
    section.finish(&[], found);
    Audit { required, file_size, files, keep, sinks }
}

fn sink(mut section: Section<'_, '_>, found: &mut Findings<'_>) -> Option<AuditSink> {
    let Some(name) = named(&mut section, found) else {
        section.finish_quietly();
        return None;
    };
    let mistakes = found.errors.len();
    let format = word(&mut section, "format", FORMATS, found).unwrap_or(AuditFormat::Json);
    let kind = word(&mut section, "kind", &[("syslog", false), ("https", true)], found);
    if kind.is_none() && !section.has("kind") {
        let at = section.offset;
        found.error(
            at,
            format!("audit sink \"{name}\" has no kind; add kind = \"syslog\" or \"https\""),
        );
    }
    let (target, place) = match kind {
        Some(true) => https(&name, &mut section, found),
        _ => (Some(AuditTarget::Syslog), syslog(&name, kind.is_some(), &mut section, found)),
    };
    let path = |key, section: &mut Section<'_, '_>, found: &mut Findings<'_>| {
        section.string(key, found).map(|(text, _)| PathBuf::from(text))
    };
    let ca = path("ca", &mut section, found);
    let at = section.place("certificate");
    let certificate = path("certificate", &mut section, found);
    let key = path("key", &mut section, found);
    if certificate.is_some() != key.is_some() {
        found.error(at, format!("audit sink \"{name}\": `certificate` and `key` need each other"));
    }
    section.finish(&[], found);
    if found.errors.len() > mistakes {
        return None;
    }
    let (host, port) = place?;
    Some(AuditSink { name, target: target?, host, port, format, ca, client: certificate.zip(key) })
}

const FORMATS: &[(&str, AuditFormat)] =
    &[("json", AuditFormat::Json), ("cef", AuditFormat::Cef), ("ocsf", AuditFormat::Ocsf)];

const BODIES: &[(&str, AuditBody)] = &[
    ("lines", AuditBody::Lines),
    ("array", AuditBody::Array),
    ("splunk", AuditBody::Splunk),
    ("bulk", AuditBody::Bulk),
];

fn syslog(
    name: &str,
    told: bool,
    section: &mut Section<'_, '_>,
    found: &mut Findings<'_>,
) -> Option<(String, u16)> {
    match section.string("address", found) {
        Some((text, at)) => {
            let place = authority(&text, SYSLOG_PORT);
            if place.is_none() {
                found.error(
                    at,
                    format!(
                        "`address = \"{text}\"` is not HOST[:PORT], like \"siem.example.com:6514\""
                    ),
                );
            }
            place
        }
        None => {
            if told && !section.has("address") {
                let at = section.offset;
                found.error(
                    at,
                    format!(
                        "audit sink \"{name}\" has no address; add address = \"HOST:{SYSLOG_PORT}\""
                    ),
                );
            }
            None
        }
    }
}

fn https(
    name: &str,
    section: &mut Section<'_, '_>,
    found: &mut Findings<'_>,
) -> (Option<AuditTarget>, Option<(String, u16)>) {
    let body = word(section, "body", BODIES, found).unwrap_or(AuditBody::Lines);
    let header_file = section.string("header_file", found).map(|(text, _)| PathBuf::from(text));
    let Some((url, at)) = section.string("url", found) else {
        if !section.has("url") {
            found.error(
                section.offset,
                format!("audit sink \"{name}\" has no url; add url = \"https://...\""),
            );
        }
        return (None, None);
    };
    let rest = url.strip_prefix("https://").unwrap_or_default();
    let split = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(split);
    let clean = rest.chars().all(|c| c.is_ascii_graphic()) && !rest.contains(['#', '@']);
    let place = authority(host, 443).filter(|_| clean);
    if place.is_none() {
        found.error(at, format!("`url = \"{url}\"` must be https://HOST[:PORT]/PATH"));
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    (Some(AuditTarget::Https { path, body, header_file }), place)
}

/// `HOST`, `HOST:PORT`, `[ADDRESS]:PORT`.
fn authority(text: &str, port: u16) -> Option<(String, u16)> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => match text.split_once(':') {
            Some((host, _)) => (host, text.strip_prefix(host)?),
            None => (text, ""),
        },
    };
    let port = match rest.strip_prefix(':') {
        Some(digits) => digits.parse().ok().filter(|port| *port > 0)?,
        None if rest.is_empty() => port,
        None => return None,
    };
    super::is_host(host).then(|| (host.to_owned(), port))
}

fn word<T: Copy>(
    section: &mut Section<'_, '_>,
    key: &'static str,
    words: &[(&'static str, T)],
    found: &mut Findings<'_>,
) -> Option<T> {
    let (text, at) = section.string(key, found)?;
    let known = words.iter().find(|(word, _)| *word == text);
    if known.is_none() {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let hint = match value::nearest(&text, &names) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("it may be {}", names.join(", ")),
        };
        found.error(at, format!("`{key} = \"{text}\"` is unknown; {hint}"));
    }
    known.map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn sinks_of_both_kinds_are_read() {
        let text = "[audit]\nrequired = true\nfile_size = \"10MB\"\nfiles = 3\nkeep = \"90d\"\n\
            [[audit.sink]]\nname = \"siem\"\nkind = \"syslog\"\naddress = \"siem.example.com\"\n\
            format = \"cef\"\nca = \"/etc/siem.pem\"\n\
            [[audit.sink]]\nname = \"splunk\"\nkind = \"https\"\n\
            url = \"https://[2001:db8::1]:8088/services/collector?channel=1\"\nbody = \"splunk\"\n\
            header_file = \"/etc/splunk.header\"\ncertificate = \"/c\"\nkey = \"/k\"\n";
        let audit = Config::parse(text, "f").unwrap().audit;
        assert!(audit.required);
        assert_eq!((audit.file_size, audit.files), (10_000_000, 3));
        assert_eq!(audit.keep, DAY * 90);
        let [siem, splunk] = audit.sinks.as_slice() else { panic!("{audit:?}") };
        assert_eq!((siem.host.as_str(), siem.port), ("siem.example.com", 6514));
        assert_eq!((siem.format, &siem.target), (AuditFormat::Cef, &AuditTarget::Syslog));
        assert_eq!((splunk.host.as_str(), splunk.port), ("2001:db8::1", 8088));
        assert_eq!(splunk.client, Some(("/c".into(), "/k".into())));
        let AuditTarget::Https { path, body, .. } = &splunk.target else { panic!("{splunk:?}") };
        assert_eq!((path.as_str(), *body), ("/services/collector?channel=1", AuditBody::Splunk));
        assert_eq!(Config::parse("", "f").unwrap().audit, Audit::default());
    }

    #[test]
    fn every_mistake_of_a_sink_has_its_line() {
        let text = "[audit]\nrequire = true\n\
            [[audit.sink]]\nname = \"a\"\nkind = \"sislog\"\n\
            [[audit.sink]]\nname = \"b\"\n\
            [[audit.sink]]\nname = \"c\"\nkind = \"syslog\"\n\
            [[audit.sink]]\nname = \"d\"\nkind = \"https\"\nurl = \"http://x/\"\nbody = \"xml\"\n\
            [[audit.sink]]\nname = \"e\"\nkind = \"syslog\"\naddress = \"h:0\"\nkey = \"/k\"\n\
            [[audit.sink]]\nname = \"f\"\nkind = \"syslog\"\naddress = \"h\"\n\
            [[audit.sink]]\nname = \"f\"\nkind = \"syslog\"\naddress = \"h\"\n";
        let errors = Config::parse(text, "f").unwrap_err().to_string();
        for (at, part) in [
            ("f:2:", "did you mean `required`?"),
            ("f:5:", "did you mean \"syslog\"?"),
            ("f:6:", "has no kind"),
            ("f:8:", "has no address"),
            ("f:14:", "https://HOST"),
            ("f:15:", "it may be lines"),
            ("f:19:", "HOST[:PORT]"),
            ("f:16:", "need each other"),
            ("f:25:", "twice"),
        ] {
            assert!(
                errors.lines().any(|line| line.starts_with(at) && line.contains(part)),
                "{at} {part}: {errors}"
            );
        }
    }
}
