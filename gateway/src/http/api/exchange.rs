//! `POST /v1/token`: token exchange (RFC 8693). Parameters come as a form, errors go as OAuth has
//! them (RFC 6749 5.2), with the type and trace of problem details beside.

use pki::{Exchanged, Refusal, RefusalCode, UnixTime};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::http::{Reply, percent};

/// The only grant there is.
const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// What may be exchanged: tokens of CI platforms are both.
const SUBJECTS: [&str; 2] =
    ["urn:ietf:params:oauth:token-type:jwt", "urn:ietf:params:oauth:token-type:id_token"];
/// What is given: a one-time token for HTTP Basic.
const ISSUED: &str = "urn:runnel:params:oauth:token-type:one-time";

/// The parameters of a request.
pub(super) struct Parameters {
    /// The platform's token.
    pub(super) subject: Zeroizing<String>,
    /// Only rules of this role.
    pub(super) role: Option<String>,
    /// SHA-256 of the key's SubjectPublicKeyInfo, hexadecimal.
    pub(super) spki_sha256: String,
}

/// The platform's token alone, for fetching its issuer's keys.
pub(super) fn subject(body: &[u8]) -> Option<Zeroizing<String>> {
    fields(body)?.into_iter().find_map(|(name, value)| (name == "subject_token").then_some(value))
}

impl Parameters {
    /// Reads a form. Parameters that nobody knows are not looked at (RFC 6749 3.2).
    pub(super) fn read(body: &[u8]) -> Result<Self, Refused> {
        let fields = fields(body).ok_or_else(|| {
            invalid("the body is no form: send application/x-www-form-urlencoded, as curl -d does")
        })?;
        let one = |wanted: &str| {
            let mut found = fields.iter().filter(|(name, _)| name == wanted);
            match (found.next(), found.next()) {
                (Some(_), Some(_)) => {
                    Err(invalid(format!("{wanted} is there twice: send it once")))
                }
                // RFC 6749 3.2: without a value it counts as left out.
                (first, _) => Ok(first.map(|(_, value)| value).filter(|value| !value.is_empty())),
            }
        };
        let needed = |name: &str, hint: &str| {
            one(name)?.ok_or_else(|| invalid(format!("there is no {name}: {hint}")))
        };
        if needed("grant_type", &format!("send {GRANT}"))?.as_str() != GRANT {
            return Err(Refused {
                error: "unsupported_grant_type",
                refusal: malformed(format!("only token exchange is offered: send {GRANT}")),
            });
        }
        let kind = needed("subject_token_type", &format!("send {}", SUBJECTS[0]))?;
        if !SUBJECTS.contains(&kind.as_str()) {
            return Err(invalid(format!("subject_token_type must be {}", SUBJECTS.join(" or "))));
        }
        if one("requested_token_type")?.is_some_and(|kind| kind.as_str() != ISSUED) {
            return Err(invalid(format!(
                "requested_token_type can only be {ISSUED}: leave it out"
            )));
        }
        if one("actor_token")?.is_some() {
            return Err(invalid("nobody acts for somebody else here: leave actor_token out"));
        }
        let hint = "send the SHA-256 of your public key: openssl pkey -in key.pem -pubout -outform \
                    der | sha256sum";
        let spki_sha256 = needed("spki_sha256", hint)?.as_str().to_owned();
        let subject = needed("subject_token", "send the CI platform's token")?.clone();
        let role = one("scope")?.map(|scope| scope.as_str().to_owned());
        Ok(Self { subject, role, spki_sha256 })
    }
}

/// A refused exchange.
pub(super) struct Refused {
    error: &'static str,
    pub(super) refusal: Refusal,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let error = match refusal.code.status() {
            429 | 503 => "temporarily_unavailable",
            // RFC 8693 2.2.2: also for a subject_token that is not accepted.
            _ => "invalid_request",
        };
        Self { error, refusal }
    }
}

impl Refused {
    /// 400 for all that trying again does not mend (RFC 6749 5.2).
    pub(super) fn status(&self) -> u16 {
        match self.refusal.code.status() {
            status @ (413 | 429 | 503) => status,
            _ => 400,
        }
    }

    pub(super) fn reply(&self) -> Reply {
        let mut body = serde_json::json!({
            "error": self.error,
            "error_description": self.refusal.public_detail(),
        });
        if let (Some(body), serde_json::Value::Object(mut problem)) =
            (body.as_object_mut(), self.refusal.problem())
        {
            for name in ["type", "trace"] {
                if let Some(value) = problem.remove(name) {
                    body.insert(name.to_owned(), value);
                }
            }
        }
        let mut reply = super::answers::json(self.status(), &body);
        if let Some(seconds) = self.refusal.retry_after() {
            reply.headers.push(("retry-after", seconds.to_string()));
        }
        reply
    }
}

/// RFC 8693 2.2.1
#[derive(Serialize)]
struct Given<'a> {
    access_token: &'a str,
    issued_token_type: &'static str,
    token_type: &'static str,
    expires_in: u64,
    scope: &'a str,
}

/// The answer.
pub(super) fn given(exchanged: &Exchanged, now: UnixTime) -> Reply {
    super::answers::json(
        200,
        &Given {
            access_token: exchanged.secret.expose(),
            issued_token_type: ISSUED,
            // It is no access token: it goes as the password of HTTP Basic.
            token_type: "N_A",
            expires_in: exchanged.token.expires.since(now).as_secs(),
            scope: &exchanged.token.role,
        },
    )
}

fn malformed(detail: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::MalformedRequest, detail)
}

fn invalid(detail: impl Into<String>) -> Refused {
    Refused { error: "invalid_request", refusal: malformed(detail) }
}

/// The fields of a form, decoded; `None` when it is none.
fn fields(body: &[u8]) -> Option<Vec<(String, Zeroizing<String>)>> {
    let text = std::str::from_utf8(body).ok()?.trim_end_matches(['\r', '\n']);
    text.split('&')
        .filter(|field| !field.is_empty())
        .map(|field| {
            let (name, value) = field.split_once('=')?;
            Some((decode(name)?.to_string(), decode(value)?))
        })
        .collect()
}

fn decode(text: &str) -> Option<Zeroizing<String>> {
    let octets = percent::decode(text, true)?;
    Some(Zeroizing::new(std::str::from_utf8(&octets).ok()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded_or_refused() {
        let read = |text: &str| {
            fields(text.as_bytes()).map(|fields| {
                let text = |(name, value): &(String, Zeroizing<String>)| {
                    format!("{name}={}", value.as_str())
                };
                fields.iter().map(text).collect::<Vec<_>>()
            })
        };
        let decoded = read("a=b%3Ac+d&e=&%66=%C3%A9\r\n").unwrap();
        assert_eq!(decoded, ["a=b:c d", "e=", "f=é"]);
        assert_eq!(read("").unwrap(), Vec::<String>::new());
        for broken in ["a", "a=%", "a=%4", "a=%+4", "a=%zz", "a=%ff"] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }
}
