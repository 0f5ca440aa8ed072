//! CA certificates, revocation lists and OCSP over plain HTTP, for clients that cannot reach
//! anything else yet. Everything served here is signed or pinned.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pki::{Authority, OcspStatus, UnixTime};

use super::{Reply, Request, Service};
use crate::sys::clock;

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
            ("GET" | "HEAD", path) => match path.strip_prefix("/ocsp/") {
                Some(encoded) => match from_path(encoded) {
                    Some(der) => self.ocsp(der).await,
                    None => Reply::text(400, "the path is no base64 of an OCSP request\n"),
                },
                None => self.file(path).await,
            },
            _ => Reply::text(405, "only GET is offered here, and POST to /ocsp\n"),
        }
    }
}

impl StatusService {
    async fn file(&self, path: &str) -> Reply {
        let pem = |pem: String| Reply::new(200, "application/x-pem-file", pem.into_bytes());
        let cer = |der| Reply::new(200, "application/pkix-cert", der);
        match path {
            "/root.pem" => pem(self.authority.root_pem()),
            "/issuing.pem" => pem(self.authority.issuing_pem()),
            _ => {
                let list = path.strip_prefix("/crl/").and_then(|name| name.strip_suffix(".crl"));
                let place = path.strip_prefix('/').and_then(|name| name.strip_suffix(".cer"));
                match (list, place.and_then(|place| self.authority.ca_certificate_at(place))) {
                    (Some(place), _) => self.crl(place.to_owned()).await,
                    (None, Some(der)) => cer(der),
                    (None, None) => nothing_here(),
                }
            }
        }
    }

    async fn crl(&self, place: String) -> Reply {
        let authority = Arc::clone(&self.authority);
        let now = UnixTime::from_micros(clock::wall().0);
        match super::blocking(move || authority.crl_at(&place, now)).await {
            Ok(Ok(Some(crl))) => Reply::new(200, "application/pkix-crl", crl.der.clone()),
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
        let answered = super::blocking(move || authority.ocsp(&request, now)).await;
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
    let mut plain = Vec::with_capacity(encoded.len());
    let mut octets = encoded.bytes();
    while let Some(octet) = octets.next() {
        plain.push(match octet {
            b'%' => {
                let digit = |octet: u8| char::from(octet).to_digit(16);
                let (high, low) = (digit(octets.next()?)?, digit(octets.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    // Clients that leave the padding out are understood as well.
    let padding = plain.iter().rev().take_while(|octet| **octet == b'=').count();
    plain.truncate(plain.len() - padding);
    plain.extend(std::iter::repeat_n(b'=', (4 - plain.len() % 4) % 4));
    STANDARD.decode(plain).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
