//! EST (RFC 7030, 8951): paths, bodies and answers as values; no sockets, no clock.

use std::fmt;
use std::net::SocketAddr;

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use zeroize::Zeroizing;

use super::{Enrolled, Refusal, RefusalCode, csrattrs, jwt, keygen, pkcs7, shown};
use crate::authority::Authority;
use crate::csr::{Csr, CsrError, challenge_password};
use crate::error::Error;
use crate::failpoint;
use crate::profile::RoleProfile;
use crate::time::UnixTime;
use crate::validate;

/// The largest body looked at: an RSA-8192 request with a long challenge password fits.
pub const MAX_BODY: usize = 64 * 1024;

/// An HTTP request to the EST service.
#[derive(Clone, Copy)]
pub struct EstRequest<'a> {
    /// The method, in upper case.
    pub method: &'a str,
    /// The path of the request target, without query.
    pub path: &'a str,
    /// The `Authorization` header.
    pub authorization: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
    /// The client's address.
    pub peer: Option<SocketAddr>,
    /// The certificate chain the client proved in TLS, leaf first, DER; empty without one.
    pub client_chain: &'a [Vec<u8>],
}

impl std::fmt::Debug for EstRequest<'_> {
    /// Leaves out credentials and body: both may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EstRequest")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("authorization", &self.authorization.map(str::len))
            .field("body", &self.body.len())
            .field("peer", &self.peer)
            .field("client_chain", &self.client_chain.len())
            .finish()
    }
}

/// An HTTP answer. Its body is short: send it with its header in one write. Its `Debug` shows no body,
/// which may hold a key.
#[derive(Clone, PartialEq, Eq)]
pub struct EstReply {
    /// The status code.
    pub status: u16,
    /// Headers beside `Content-Length`, which the sender adds.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// What it means, for logs and metrics.
    pub outcome: EstOutcome,
}

impl fmt::Debug for EstReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EstReply")
            .field("status", &self.status)
            .field("headers", &self.headers)
            .field("body", &format_args!("{} octets", self.body.len()))
            .field("outcome", &self.outcome)
            .finish()
    }
}

/// What an EST answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EstOutcome {
    /// The CA certificates were sent.
    CaCerts,
    /// What keys are wanted was sent, or that any will do.
    CsrAttrs,
    /// A certificate was issued.
    Issued {
        /// The lease.
        lease_id: String,
        /// The certificate's serial number.
        serial: String,
        /// The role.
        role: String,
        /// Whether it repeats an earlier answer.
        replayed: bool,
        /// Whether it renews a lease.
        renewed: bool,
    },
    /// An operator must approve it; the client is told to ask again.
    Pending {
        /// The lease it will be.
        lease_id: String,
        /// The role.
        role: String,
        /// It was asked for just now, and not before.
        new: bool,
    },
    /// The request was refused.
    Refused(Refusal),
}

/// An operation of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Distribution of CA certificates (RFC 7030 4.1).
    CaCerts,
    /// Enrolment (4.2.1).
    SimpleEnroll,
    /// Renewal and rekey (4.2.2).
    SimpleReenroll,
    /// CSR attributes (4.5).
    CsrAttrs,
    /// Key generation by the server (4.4).
    ServerKeygen,
    /// Full CMC (4.3).
    FullCmc,
}

impl Operation {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "cacerts" => Self::CaCerts,
            "simpleenroll" => Self::SimpleEnroll,
            "simplereenroll" => Self::SimpleReenroll,
            "csrattrs" => Self::CsrAttrs,
            "serverkeygen" => Self::ServerKeygen,
            "fullcmc" => Self::FullCmc,
            _ => return None,
        })
    }

    fn method(self) -> &'static str {
        match self {
            Self::CaCerts | Self::CsrAttrs => "GET",
            _ => "POST",
        }
    }
}

/// A parsed path: an operation and the label that stands before or after the well-known part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EstPath<'a> {
    /// What is asked for.
    pub operation: Operation,
    /// The label, a role's name where it matters.
    pub label: Option<&'a str>,
}

/// Parses the three forms clients use: `/.well-known/est/OP`, `/.well-known/est/LABEL/OP`
/// (RFC 7030 3.2.2) and `/LABEL/.well-known/est/OP` (clients that only take a base URL).
pub fn parse_path(path: &str) -> Option<EstPath<'_>> {
    const WELL_KNOWN: &str = "/.well-known/est/";
    let (before, after) = path.split_once(WELL_KNOWN)?;
    let before = before.trim_matches('/');
    let after = after.strip_suffix('/').unwrap_or(after);
    let (inner, name) = match after.rsplit_once('/') {
        Some((label, name)) => (label, name),
        None => ("", after),
    };
    let label = match (before, inner) {
        ("", "") => None,
        (label, "") | ("", label) => Some(label),
        _ => return None,
    };
    Some(EstPath { operation: Operation::from_name(name)?, label })
}

/// Decodes a request body to DER: base64 in one line or wrapped (also with CRLF), PEM, or DER
/// itself; white space and zero octets anywhere, and stray octets after the padding, are skipped.
///
/// # Errors
/// [`RefusalCode::TooLarge`] or [`RefusalCode::MalformedRequest`].
pub fn decode_body(body: &[u8]) -> Result<Vec<u8>, Refusal> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let malformed = |detail: &str| {
        Refusal::new(RefusalCode::MalformedRequest, format!("the request body {detail}"))
    };
    if body.len() > MAX_BODY {
        return Err(Refusal::new(
            RefusalCode::TooLarge,
            format!("the request body has {} octets, more than {MAX_BODY}", body.len()),
        ));
    }
    // Base64 of a SEQUENCE starts with 'M': the tag itself means DER.
    if body.first() == Some(&0x30) {
        return Ok(body.to_vec());
    }
    let mut text = Vec::with_capacity(body.len());
    for line in body.split(|octet| *octet == b'\n') {
        if line.starts_with(b"-----") {
            continue;
        }
        for octet in line {
            match octet {
                b' ' | b'\t' | b'\r' | 0 => {}
                other => text.push(*other),
            }
        }
    }
    if let Some(padding) = text.iter().position(|octet| *octet == b'=') {
        text.truncate(padding);
    }
    if text.is_empty() {
        return Err(malformed("is empty: send the certification request, base64"));
    }
    LENIENT
        .decode(&text)
        .map_err(|_| malformed("is neither base64 nor DER: send the certification request"))
}

/// User and password of a Basic `Authorization` header (RFC 7617).
///
/// The user name is the role, the password the token.
pub fn parse_basic(header: &str) -> Option<(String, Zeroizing<String>)> {
    let (scheme, credentials) = header.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = Zeroizing::new(STANDARD.decode(credentials.trim()).ok()?);
    let text = std::str::from_utf8(&decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), Zeroizing::new(password.to_owned())))
}

impl Authority {
    /// Answers an EST request. Never fails: errors are answers.
    pub fn est(&self, request: &EstRequest<'_>, now: UnixTime) -> EstReply {
        self.answer(request, now).unwrap_or_else(|refusal| {
            let mut reply = refuse(refusal);
            // RFC 9110 15.5.6.
            if let (405, Some(path)) = (reply.status, parse_path(request.path)) {
                reply.headers.push(("Allow", path.operation.method().to_owned()));
            }
            reply
        })
    }

    fn answer(&self, request: &EstRequest<'_>, now: UnixTime) -> Result<EstReply, Refusal> {
        let path = parse_path(request.path).ok_or_else(|| {
            let shown: String = request.path.chars().take(200).collect();
            Refusal::new(
                RefusalCode::NotFound,
                format!("{shown:?} is no EST resource: use /.well-known/est/simpleenroll"),
            )
        })?;
        if request.method != path.operation.method() {
            return Err(Refusal::new(
                RefusalCode::MethodNotAllowed,
                format!("{:?} needs {}", path.operation, path.operation.method()),
            ));
        }
        match path.operation {
            Operation::CaCerts => {
                let certificates = self.ca_certificates();
                let body = pkcs7::certs_only(&certificates)?;
                Ok(EstReply {
                    status: 200,
                    headers: base64_headers("application/pkcs7-mime"),
                    body: STANDARD.encode(body).into_bytes(),
                    outcome: EstOutcome::CaCerts,
                })
            }
            Operation::CsrAttrs => self.csr_attributes(path.label, request),
            Operation::SimpleEnroll => self.simple_enroll(path.label, request, now),
            Operation::SimpleReenroll => self.simple_reenroll(request, now),
            Operation::ServerKeygen => self.server_keygen(path.label, request, now),
            Operation::FullCmc => Err(Refusal::new(
                RefusalCode::NotImplemented,
                format!("{:?} is not offered: use simpleenroll", path.operation),
            )),
        }
    }

    /// What a role wants of its clients' keys; without the name of one, what all roles want. Who
    /// asks is not asked (RFC 7030 4.5.1): kinds of keys are no secret.
    fn csr_attributes(
        &self,
        label: Option<&str>,
        request: &EstRequest<'_>,
    ) -> Result<EstReply, Refusal> {
        let user = request.authorization.and_then(parse_basic).map(|(user, _)| user);
        let role = label.map(str::to_owned).or(user.filter(|user| !user.is_empty()));
        let settings = self.settings();
        let first = |profile: &RoleProfile| profile.keys.first().copied();
        let wanted = match role {
            Some(role) => settings.roles.get(&role).and_then(first),
            None => {
                let mut wanted = settings.roles.values().map(first);
                wanted.next().flatten().filter(|kind| wanted.all(|other| other == Some(*kind)))
            }
        };
        let (status, headers, body) = match wanted {
            Some(kind) => {
                let body = STANDARD.encode(csrattrs::wanting(kind)?);
                (200, base64_headers("application/csrattrs"), body.into_bytes())
            }
            // RFC 7030 4.5.2: 204 says that no attributes are asked for.
            None => (204, Vec::new(), Vec::new()),
        };
        Ok(EstReply { status, headers, body, outcome: EstOutcome::CsrAttrs })
    }

    fn simple_enroll(
        &self,
        label: Option<&str>,
        request: &EstRequest<'_>,
        now: UnixTime,
    ) -> Result<EstReply, Refusal> {
        let Some((user, token)) = request.authorization.and_then(parse_basic) else {
            return self.enroll_with_jwt(label, request, now);
        };
        let role = one_role(label, &user)?;
        // Before any signature is verified: strangers cost one look-up.
        self.find_token(&token)?;
        let csr = parse_csr(request.body)?;
        let client = request.peer.map(|peer| peer.ip());
        let enrolled = self.enrol_with_token(role, &token, &csr, client, now)?;
        failpoint::hit("enrol.before_answer");
        self.issued(&enrolled, false)
    }

    /// Without credentials in the header they are in the request: a CI platform's token, which is
    /// too long for the header of stock clients and is bound to the key there.
    fn enroll_with_jwt(
        &self,
        label: Option<&str>,
        request: &EstRequest<'_>,
        now: UnixTime,
    ) -> Result<EstReply, Refusal> {
        let token = request_token(request).ok_or_else(no_credentials)?;
        let client = request.peer.map(|peer| peer.ip());
        // Before the request's own signature is verified: whose token is not accepted costs no
        // more than that.
        let accepted = self.jwt_admit(label, &token, client, now)?;
        let csr = parse_csr(request.body)?;
        let enrolled = self.enrol_accepted(&accepted, &csr, client, now)?;
        failpoint::hit("enrol.before_answer");
        self.issued(&enrolled, false)
    }

    /// RFC 7030 4.4: the key of the request and its signature are not looked at.
    fn server_keygen(
        &self,
        label: Option<&str>,
        request: &EstRequest<'_>,
        now: UnixTime,
    ) -> Result<EstReply, Refusal> {
        let client = request.peer.map(|peer| peer.ip());
        let (enrolled, key) = match request.authorization.and_then(parse_basic) {
            Some((user, token)) => {
                let role = one_role(label, &user)?;
                self.find_token(&token)?;
                keygen::check_request(&decode_body(request.body)?)?;
                self.enrol_with_token_keyed(role, &token, None, client, now)?
            }
            None => {
                let token = request_token(request).ok_or_else(no_credentials)?;
                let accepted = self.jwt_admit(label, &token, client, now)?;
                keygen::check_request(&decode_body(request.body)?)?;
                self.enrol_accepted_keyed(&accepted, None, client, now)?
            }
        };
        failpoint::hit("enrol.before_answer");
        let mut reply = self.issued(&enrolled, false)?;
        // Any text that no base64 contains.
        let boundary = format!("runnel-{}", enrolled.lease.id);
        let text = Zeroizing::new(STANDARD.encode(key.pkcs8()));
        let mut body = Zeroizing::new(Vec::with_capacity(text.len() + reply.body.len() + 512));
        for (kind, part) in [
            ("application/pkcs8", text.as_bytes()),
            ("application/pkcs7-mime; smime-type=certs-only", reply.body.as_slice()),
        ] {
            let head = format!(
                "--{boundary}\r\nContent-Type: {kind}\r\nContent-Transfer-Encoding: base64\r\n\r\n"
            );
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(part);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
        reply.headers = vec![
            ("Content-Type", format!("multipart/mixed; boundary={boundary}")),
            ("Cache-Control", "no-store".to_owned()),
        ];
        reply.body = std::mem::take(&mut *body);
        Ok(reply)
    }

    fn simple_reenroll(
        &self,
        request: &EstRequest<'_>,
        now: UnixTime,
    ) -> Result<EstReply, Refusal> {
        if request.client_chain.is_empty() {
            return Err(Refusal::new(
                RefusalCode::CredentialsMissing,
                "renewal needs the old certificate in TLS: use --cert and --key",
            ));
        }
        let peer = self.proven_peer(request.client_chain, now)?;
        let csr = parse_csr(request.body)?;
        let client = request.peer.map(|peer| peer.ip());
        let enrolled = self.renew(&peer, &csr, client, now)?;
        self.issued(&enrolled, true)
    }

    fn issued(&self, enrolled: &Enrolled, renewed: bool) -> Result<EstReply, Refusal> {
        let mut certificates = vec![enrolled.certificate.clone()];
        certificates.extend(self.ca().chain_for(&enrolled.certificate));
        let body = pkcs7::certs_only(&certificates)?;
        let serial = validate::serial_of(&enrolled.certificate)
            .ok_or_else(|| Error::Encode("the certificate does not parse".to_owned()))?;
        Ok(EstReply {
            status: 200,
            headers: base64_headers("application/pkcs7-mime; smime-type=certs-only"),
            body: STANDARD.encode(body).into_bytes(),
            outcome: EstOutcome::Issued {
                lease_id: enrolled.lease.id.clone(),
                serial: serial.to_string(),
                role: enrolled.lease.role.clone(),
                replayed: enrolled.replayed,
                renewed,
            },
        })
    }
}

/// The role that URL and credentials name.
fn one_role<'r>(label: Option<&'r str>, user: &'r str) -> Result<&'r str, Refusal> {
    match (label, user) {
        (Some(label), "") => Ok(label),
        (Some(label), user) if label != user => Err(Refusal::new(
            RefusalCode::TokenWrongRole,
            format!(
                "the URL names role {:?}, the credentials {:?}: use one role",
                shown(label),
                shown(user)
            ),
        )),
        (_, user) => Ok(user),
    }
}

fn no_credentials() -> Refusal {
    Refusal::new(
        RefusalCode::CredentialsMissing,
        "the request has neither Basic credentials nor a token inside: use --userpass role:token \
         with a token from runnel token create, or give the CI platform's token to pki --req with \
         --password",
    )
}

/// The token of a CI platform that a request for enrolment carries in its challengePassword. What
/// else may stand there (RFC 7030 3.5) is no token and not looked at.
pub fn request_token(request: &EstRequest<'_>) -> Option<Zeroizing<String>> {
    let path = parse_path(request.path)?;
    if !matches!(path.operation, Operation::SimpleEnroll | Operation::ServerKeygen)
        || request.method != path.operation.method()
        || request.authorization.and_then(parse_basic).is_some()
    {
        return None;
    }
    challenge_password(&decode_body(request.body).ok()?)
        .filter(|text| jwt::jws::looks_like_jwt(text))
}

/// Reads the certification request in a body, in any of the forms clients send it in.
///
/// # Errors
/// What is wrong with the body, the request or its key.
pub fn parse_csr(body: &[u8]) -> Result<Csr, Refusal> {
    let der = decode_body(body)?;
    Csr::from_der(&der).map_err(|error| {
        let code = match error {
            CsrError::Malformed(_) => RefusalCode::MalformedRequest,
            CsrError::BadSignature => RefusalCode::BadSelfSignature,
            CsrError::SignatureAlgorithm(_) | CsrError::Key(_) => RefusalCode::UnacceptableKey,
        };
        Refusal::new(code, error.to_string())
    })
}

fn base64_headers(content_type: &str) -> Vec<(&'static str, String)> {
    vec![
        ("Content-Type", content_type.to_owned()),
        ("Content-Transfer-Encoding", "base64".to_owned()),
    ]
}

/// A refusal as problem details (RFC 9457).
fn refuse(refusal: Refusal) -> EstReply {
    let status = refusal.code.status();
    if let Some(pending) = &refusal.pending {
        // RFC 7030 4.2.3: Retry-After is required, in seconds for clients that parse no dates.
        return EstReply {
            status,
            headers: vec![
                ("Content-Type", "text/plain".to_owned()),
                ("Retry-After", refusal.retry_after().unwrap_or(1).to_string()),
            ],
            body: format!("{}\n", refusal.public_detail()).into_bytes(),
            outcome: EstOutcome::Pending {
                lease_id: pending.id.clone(),
                role: pending.role.clone(),
                new: pending.new,
            },
        };
    }
    let mut headers = vec![("Content-Type", "application/problem+json".to_owned())];
    if status == 401 {
        headers.push(("WWW-Authenticate", "Basic realm=\"est\"".to_owned()));
    }
    if let Some(seconds) = refusal.retry_after() {
        headers.push(("Retry-After", seconds.to_string()));
    }
    EstReply {
        status,
        headers,
        body: refusal.problem().to_string().into_bytes(),
        outcome: EstOutcome::Refused(refusal),
    }
}
