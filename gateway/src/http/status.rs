//! CA certificates, revocation lists and OCSP over plain HTTP, for clients that cannot reach
//! anything else yet. Everything served here is signed or pinned.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use pki::{Authority, Crl, OcspStatus, UnixTime};

use super::{Rate, Reply, Request, Service, percent};
use crate::sys::clock;

/// How often one source may ask. Many runners share an address, and each asks a few times.
pub const STATUS_RATE: Rate = Rate { per_second: 100, burst: 1_000 };
/// How long caches on the way may repeat a revocation list without asking.
const KEEP: Duration = Duration::from_secs(60);

/// The status service.
#[derive(Debug)]
pub struct StatusService {
    authority: Arc<Authority>,
}

impl StatusService {
    /// Over the PKI.
    pub fn new(authority: Arc<Authority>) -> Self {
        Self { authority }
    }
}

impl Service for StatusService {
    async fn answer(&self, request: Request) -> Reply {
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/ocsp" | "/ocsp/") => self.ocsp(request.body.to_vec()).await,
            ("GET" | "HEAD", path) if list_of(path).is_some() => {
                self.crl(list_of(path).unwrap_or_default().to_owned(), &request).await
            }
            ("GET" | "HEAD", path) => match path.strip_prefix("/ocsp/") {
                Some(encoded) => match from_path(encoded) {
                    Some(der) => self.ocsp(der).await,
                    None => Reply::text(400, "the path is no base64 of an OCSP request\n"),
                },
                None => self.file(path),
            },
            _ => Reply::text(405, "only GET is offered here, and POST to /ocsp\n"),
        }
    }
}

impl StatusService {
    fn file(&self, path: &str) -> Reply {
        let pem = |pem: String| Reply::new(200, "application/x-pem-file", pem.into_bytes());
        let place = path.strip_prefix('/').and_then(|name| name.strip_suffix(".cer"));
        match (path, place.and_then(|place| self.authority.ca_certificate_at(place))) {
            ("/root.pem", _) => pem(self.authority.root_pem()),
            ("/issuing.pem", _) => pem(self.authority.issuing_pem()),
            (_, Some(der)) => Reply::new(200, "application/pkix-cert", der),
            (_, None) => nothing_here(),
        }
    }

    async fn crl(&self, place: String, request: &Request) -> Reply {
        let authority = Arc::clone(&self.authority);
        let now = UnixTime::from_micros(clock::wall().0);
        match super::blocking_status(move || authority.crl_at(&place, now)).await {
            Ok(Ok(Some(crl))) => list(crl, request),
            Ok(Ok(None)) => nothing_here(),
            Ok(Err(error)) => {
                tracing::error!(%error, "CRL not available");
                Reply::text(503, "the CRL is not available now\n")
            }
            Err(error) => {
                tracing::error!(%error, "CRL request failed");
                Reply::text(500, "internal error\n")
            }
        }
    }

    /// RFC 6960 appendix A.1; the status of the answer is inside, HTTP says 200.
    async fn ocsp(&self, request: Vec<u8>) -> Reply {
        let authority = Arc::clone(&self.authority);
        let now = UnixTime::from_micros(clock::wall().0);
        let answered = super::blocking_status(move || authority.ocsp(&request, now)).await;
        let answer = match answered {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(%error, "OCSP request failed");
                return Reply::text(500, "internal error\n");
            }
        };
        if answer.status == OcspStatus::InternalError {
            let error = answer.error.map(|error| error.to_string()).unwrap_or_default();
            tracing::error!(%error, "OCSP answer not available");
        }
        let mut reply = Reply::new(200, "application/ocsp-response", answer.der);
        // RFC 5019 6.2: what caches on the way may repeat, and how long.
        let cache = match answer.cache_until {
            Some(until) => {
                let seconds = until.since(now).as_secs();
                format!("max-age={seconds}, public, no-transform, must-revalidate")
            }
            None => "no-store".to_owned(),
        };
        reply.headers.push(("cache-control", cache));
        reply
    }
}

/// The CA whose list a path means.
fn list_of(path: &str) -> Option<&str> {
    path.strip_prefix("/crl/").and_then(|name| name.strip_suffix(".crl"))
}

/// A list, or that the asker has it already (RFC 9110 13.1). One copy of it serves everybody.
fn list(crl: Arc<Crl>, request: &Request) -> Reply {
    let tag = format!("\"{}-{}\"", crl.number, crl.this_update.micros());
    let modified = http_date(crl.this_update);
    let asked = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
    let known = match asked("if-none-match") {
        Some(tags) => {
            tags.split(',').any(|known| matches!(known.trim(), "*") || known.trim() == tag)
        }
        None => asked("if-modified-since") == Some(modified.as_str()),
    };
    let mut reply = if known {
        Reply { status: 304, headers: Vec::new(), body: Bytes::new() }
    } else {
        let headers = vec![("content-type", "application/pkix-crl".to_owned())];
        Reply { status: 200, headers, body: Bytes::from_owner(Octets(crl)) }
    };
    // A revocation makes a new list at once: caches ask again soon, which costs no list.
    let cache = format!("max-age={}, public, no-transform, must-revalidate", KEEP.as_secs());
    let headers = [("etag", tag), ("last-modified", modified), ("cache-control", cache)];
    reply.headers.extend(headers);
    reply
}

/// The octets of a list that others use as well.
struct Octets(Arc<Crl>);

impl AsRef<[u8]> for Octets {
    fn as_ref(&self) -> &[u8] {
        &self.0.der
    }
}

/// IMF-fixdate (RFC 9110 5.6.7).
fn http_date(at: UnixTime) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = usize::try_from(at.secs().div_euclid(86_400).rem_euclid(7)).unwrap_or(0);
    let text = at.to_string();
    let (date, time) = text.trim_end_matches('Z').split_once('T').unwrap_or_default();
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next(), parts.next(), parts.next());
    let month = month.and_then(|month| month.parse::<usize>().ok()).unwrap_or(1);
    let name = |names: &[&'static str], at: usize| names.get(at).copied().unwrap_or_default();
    format!(
        "{}, {} {} {} {time} GMT",
        name(&DAYS, days),
        day.unwrap_or_default(),
        name(&MONTHS, month.saturating_sub(1)),
        year.unwrap_or_default()
    )
}

fn nothing_here() -> Reply {
    Reply::text(
        404,
        "here are /root.pem, /issuing.pem, /ocsp, and of each CA that `runnel ca status` names \
         /PLACE.cer and /crl/PLACE.crl\n",
    )
}

/// The request of a GET (RFC 6960 appendix A.1): base64, its `/`, `+` and `=` percent-encoded or
/// not.
fn from_path(encoded: &str) -> Option<Vec<u8>> {
    let mut plain = percent::decode(encoded, false)?;
    // Clients that leave the padding out are understood as well.
    let padding = plain.iter().rev().take_while(|octet| **octet == b'=').count();
    let length = plain.len() - padding;
    plain.truncate(length);
    plain.extend(std::iter::repeat_n(b'=', (4 - length % 4) % 4));
    STANDARD.decode(plain.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(service: &StatusService, path: &str, headers: &[(&'static str, &str)]) -> Reply {
        let mut request = Request {
            method: "GET".to_owned(),
            path: path.to_owned(),
            headers: hyper::HeaderMap::new(),
            body: Bytes::new(),
            peer: "192.0.2.1:4711".parse().unwrap(),
            client_chain: Vec::new(),
            id: "test".to_owned(),
        };
        for (name, value) in headers {
            request.headers.insert(*name, value.parse().unwrap());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(service.answer(request))
    }

    #[test]
    fn who_has_the_list_is_not_sent_it_again() {
        let store = Arc::new(pki::store::MemoryStore::new());
        let options = pki::Options::new(pki::Settings::new("ci.example.com"));
        let now = UnixTime::from_micros(clock::wall().0);
        let authority = Arc::new(Authority::with_store(store, &[7; 32], options, now).unwrap());
        let service = StatusService::new(Arc::clone(&authority));
        let first = ask(&service, "/crl/issuing.crl", &[]);
        let header = |reply: &Reply, name: &str| {
            reply.headers.iter().find(|(known, _)| *known == name).unwrap().1.clone()
        };
        assert_eq!((first.status, &first.body[..]), (200, &authority.crl(now).unwrap().der[..]));
        assert!(header(&first, "cache-control").starts_with("max-age=60, public"));
        let (tag, modified) = (header(&first, "etag"), header(&first, "last-modified"));
        let others = format!("\"7\", {tag}");
        for known in [
            ("if-none-match", tag.as_str()),
            ("if-none-match", others.as_str()),
            ("if-modified-since", modified.as_str()),
        ] {
            let again = ask(&service, "/crl/issuing.crl", &[known]);
            assert_eq!((again.status, again.body.len()), (304, 0), "{known:?}");
            assert_eq!(header(&again, "etag"), tag);
        }
        assert_eq!(ask(&service, "/crl/issuing.crl", &[("if-none-match", "\"0\"")]).status, 200);
        assert_eq!(ask(&service, "/crl/other.crl", &[]).status, 404);
        assert_eq!(ask(&service, "/issuing.cer", &[]).status, 200);
    }

    #[test]
    fn dates_are_as_http_has_them() {
        let date = |secs| http_date(UnixTime::from_secs(secs));
        assert_eq!(date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date(951_827_696), "Tue, 29 Feb 2000 12:34:56 GMT");
    }

    #[test]
    fn requests_in_a_path_are_read_however_they_are_encoded() {
        let expected = Some(vec![0xfb, 0xff, 0xfe, 0x01]);
        for path in ["+//+AQ==", "%2B%2F%2f%2BAQ%3D%3D", "+//+AQ"] {
            assert_eq!(from_path(path), expected, "{path}");
        }
        for path in ["%2", "%", "%zz", "a", "\u{e4}"] {
            assert_eq!(from_path(path), None, "{path}");
        }
        assert_eq!(from_path(""), Some(Vec::new()));
    }
}
