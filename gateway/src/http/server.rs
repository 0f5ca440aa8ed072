//! The accept loop and one HTTP/1.1 connection, with every bound on what strangers can hold.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{HeaderMap, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::problem::{named, unread};
use super::worded::Worded;

/// Bounds of one listener.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections of one source at once (an IPv4 address or an IPv6 /64); many runners may share
    /// one behind a NAT.
    pub per_source: usize,
    /// Largest request body, bytes.
    pub body: usize,
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Time for a request's header, and again for its body.
    pub read: Duration,
    /// Longest life of a connection.
    pub life: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 384,
            per_source: 128,
            body: 64 * 1024,
            handshake: Duration::from_secs(10),
            read: Duration::from_secs(10),
            life: Duration::from_secs(60),
        }
    }
}

/// A request, read completely. Not `Debug`: its header and body carry tokens.
pub struct Request {
    /// Method, upper case.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Header fields.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// The client.
    pub peer: SocketAddr,
    /// What the client proved in TLS, leaf first, DER.
    pub client_chain: Vec<Vec<u8>>,
    /// Names this request in logs and in the answer.
    pub id: String,
}

/// An answer. Short: it goes out in one write. Its `Debug` shows no body, which may hold a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Header fields beside `Content-Length` and the request's id.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Bytes,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply")
            .field("status", &self.status)
            .field("headers", &self.headers)
            .field("body", &format_args!("{} octets", self.body.len()))
            .finish()
    }
}

impl Reply {
    /// A text answer.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body.into().into_bytes())
    }

    /// An answer of this type.
    pub fn new(status: u16, content_type: &str, body: Vec<u8>) -> Self {
        let headers = vec![("content-type", content_type.to_owned())];
        Self { status, headers, body: wiped(body) }
    }
}

/// Some answers hold a key: what was sent is wiped.
pub(super) fn wiped(body: Vec<u8>) -> Bytes {
    Bytes::from_owner(zeroize::Zeroizing::new(body))
}

/// Answers requests.
pub trait Service: Send + Sync + 'static {
    /// Answers one request.
    fn answer(&self, request: Request) -> impl Future<Output = Reply> + Send;
}

/// Serves until `stop` becomes true.
pub async fn serve<S: Service>(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    service: Arc<S>,
    limits: Limits,
    mut stop: watch::Receiver<bool>,
) {
    let slots = Slots::new(limits);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: give connections time to end.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(slot) = slots.take(peer.ip()) else {
            tracing::debug!(%peer, "too many connections");
            continue;
        };
        let (tls, service) = (tls.clone(), Arc::clone(&service));
        tokio::spawn(async move {
            let life = connection(stream, peer, tls, service, limits);
            match tokio::time::timeout(limits.life, life).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%peer, %error, "connection ended"),
                Err(_) => tracing::debug!(%peer, "connection lived too long"),
            }
            drop(slot);
        });
    }
}

async fn connection<S: Service>(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    service: Arc<S>,
    limits: Limits,
) -> anyhow::Result<()> {
    // Answers are one small write each: waiting for more to send would only delay them.
    stream.set_nodelay(true)?;
    let Some(tls) = tls else {
        return exchange(stream, peer, Vec::new(), service, limits).await;
    };
    let stream = tokio::time::timeout(limits.handshake, tls.accept(stream)).await??;
    let chain = stream
        .get_ref()
        .1
        .peer_certificates()
        .map(|chain| chain.iter().map(|der| der.to_vec()).collect())
        .unwrap_or_default();
    exchange(stream, peer, chain, service, limits).await
}

pub(super) async fn exchange<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    client_chain: Vec<Vec<u8>>,
    service: Arc<S>,
    limits: Limits,
) -> anyhow::Result<()> {
    let handler = service_fn(move |incoming: hyper::Request<Incoming>| {
        let (service, client_chain) = (Arc::clone(&service), client_chain.clone());
        async move {
            let id = request_id();
            let reply = match read(incoming, peer, client_chain, id.clone(), limits).await {
                Ok(request) => service.answer(request).await,
                Err(reply) => reply,
            };
            Ok::<_, Infallible>(respond(named(reply, &id), &id))
        }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.read)
        .max_buf_size(64 * 1024)
        // Header and body are copied together and leave in one write, hence one TLS record.
        .writev(false)
        .serve_connection(TokioIo::new(Worded::new(stream)), handler)
        .await?;
    Ok(())
}

async fn read(
    incoming: hyper::Request<Incoming>,
    peer: SocketAddr,
    client_chain: Vec<Vec<u8>>,
    id: String,
    limits: Limits,
) -> Result<Request, Reply> {
    let (parts, body) = incoming.into_parts();
    let unread = |status, code, detail: &str| unread(parts.uri.path(), status, code, detail);
    let too_large =
        || unread(413, "too_large", &format!("at most {} bytes are accepted", limits.body));
    if body.size_hint().lower() > u64::try_from(limits.body).unwrap_or(u64::MAX) {
        return Err(too_large());
    }
    let collected =
        tokio::time::timeout(limits.read, Limited::new(body, limits.body).collect()).await;
    let body = match collected {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(too_large());
        }
        Ok(Err(_)) => return Err(unread(400, "malformed_request", "the body is incomplete")),
        Err(_) => return Err(unread(408, "request_timeout", "the body took too long")),
    };
    Ok(Request {
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path().to_owned(),
        headers: parts.headers,
        body,
        peer,
        client_chain,
        id,
    })
}

fn respond(reply: Reply, id: &str) -> Response<Full<Bytes>> {
    let length = reply.body.len();
    let mut response = Response::new(Full::new(reply.body));
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    // RFC 9110 8.6: the length in a 304 would be that of what is not sent again.
    if reply.status != StatusCode::NOT_MODIFIED {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    for (name, value) in reply.headers {
        match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&value)) {
            (Ok(name), Ok(value)) if name != CONTENT_LENGTH => {
                headers.append(name, value);
            }
            _ => {}
        }
    }
    response
}

/// Unique in this process and unlikely to repeat in another: start time and a counter. What a client
/// says of itself is no id: it would choose what the audit trail says.
pub(super) fn request_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:x}-{count:x}", crate::sys::clock::wall().0)
}

/// What one stranger holds: an IPv4 address, or a whole IPv6 /64, where addresses cost nothing.
fn site(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        },
    }
}

/// Connections under way, in all and by source.
struct Slots {
    limits: Limits,
    held: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

struct Slot {
    source: IpAddr,
    held: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

impl Slots {
    fn new(limits: Limits) -> Self {
        Self { limits, held: Arc::default() }
    }

    fn take(&self, source: IpAddr) -> Option<Slot> {
        let source = site(source);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = held.values().sum();
        let own = held.get(&source).copied().unwrap_or(0);
        if all >= self.limits.connections || own >= self.limits.per_source {
            return None;
        }
        held.insert(source, own + 1);
        Some(Slot { source, held: Arc::clone(&self.held) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = held.get_mut(&self.source) {
            *own -= 1;
            if *own == 0 {
                held.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf};

    use super::*;

    #[test]
    fn one_ipv6_site_counts_as_one_source() {
        let slots = Slots::new(Limits { per_source: 2, ..Limits::default() });
        let from = |text: &str| slots.take(text.parse().unwrap());
        let held = [from("2001:db8::1"), from("2001:db8::2")];
        assert!(held.iter().all(Option::is_some));
        assert!(from("2001:db8::3").is_none(), "the same /64");
        assert!(from("2001:db8:0:1::3").is_some(), "another /64");
        let mapped = [from("::ffff:192.0.2.1"), from("192.0.2.1")];
        assert!(mapped.iter().all(Option::is_some));
        assert!(from("192.0.2.1").is_none(), "mapped and plain are one address");
        drop(held);
        assert!(from("2001:db8::3").is_some(), "places come back");
    }

    struct Echo;

    impl Service for Echo {
        async fn answer(&self, request: Request) -> Reply {
            Reply::new(200, "application/pkcs7-mime", request.body.to_vec())
        }
    }

    /// Counts writes, each of which would be one TLS record.
    struct Counting {
        inner: DuplexStream,
        writes: Arc<AtomicU64>,
    }

    impl AsyncRead for Counting {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.inner).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Counting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<std::io::Result<usize>> {
            self.writes.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.inner).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.inner).poll_flush(cx)
        }

        fn poll_shutdown(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.inner).poll_shutdown(cx)
        }
    }

    async fn talk(request: Vec<u8>) -> (String, u64) {
        let (mut client, inner) = tokio::io::duplex(256 * 1024);
        let writes = Arc::new(AtomicU64::new(0));
        let server = Counting { inner, writes: Arc::clone(&writes) };
        let limits = Limits { read: Duration::from_millis(300), ..Limits::default() };
        let peer = "192.0.2.1:4711".parse().unwrap();
        let served = tokio::spawn(exchange(server, peer, Vec::new(), Arc::new(Echo), limits));
        client.write_all(&request).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        drop(client);
        let _ = served.await.unwrap();
        (answer, writes.load(Ordering::Relaxed))
    }

    fn post(body: &str, length: usize) -> Vec<u8> {
        format!(
            "POST /x HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n\
             {body}"
        )
        .into_bytes()
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn header_and_body_leave_in_one_write_with_a_length() {
        let body = "A".repeat(6000);
        let (answer, writes) = run(talk(post(&body, body.len())));
        assert_eq!(writes, 1);
        let (head, rest) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert!(head.to_lowercase().contains("content-length: 6000"), "{head}");
        assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
        assert!(head.to_lowercase().contains("x-request-id: "), "{head}");
        assert!(head.len() < 1024);
        assert_eq!(rest, body);
    }

    #[test]
    fn stray_bytes_after_the_body_harm_nothing() {
        let mut request = post("abc", 3);
        request.extend_from_slice(b"\r\n");
        assert!(run(talk(request)).0.ends_with("abc"));
    }

    #[test]
    fn large_and_slow_bodies_are_refused() {
        let (answer, _) = run(talk(post("", 70_000)));
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        let (answer, _) = run(talk(post("ab", 3)));
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    }

    /// The header, lower case, and the problem of an answer.
    fn told(answer: &str) -> (String, serde_json::Value) {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let problem = serde_json::from_str(body);
        (head.to_lowercase(), problem.unwrap_or_else(|error| panic!("{error}: {answer}")))
    }

    #[test]
    fn what_cannot_be_parsed_is_answered_with_a_problem() {
        // RFC 9112 2.2, 3; RFC 6585 5; RFC 9110 15.5.15; RFC 9457 3.
        let field =
            |length| format!("GET / HTTP/1.1\r\nHost: gw\r\nX: {}\r\n\r\n", "a".repeat(length));
        let fields = format!("GET / HTTP/1.1\r\n{}\r\n", "X: a\r\n".repeat(200));
        let target = format!("GET /{} HTTP/1.1\r\nHost: gw\r\n\r\n", "a".repeat(66_000));
        for (request, status) in [
            ("no HTTP at all\r\n\r\n".to_owned(), 400),
            ("GET / HTTP/1.1\r\nno field\r\n\r\n".to_owned(), 400),
            ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}".to_owned(), 400),
            (fields, 431),
            (field(200_000), 431),
            (target, 414),
        ] {
            let (head, problem) = told(&run(talk(request.into_bytes())).0);
            assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
            assert!(head.contains("content-type: application/problem+json"), "{head}");
            let id = problem["request_id"].as_str().unwrap();
            assert!(head.contains(&format!("x-request-id: {id}")), "{head}");
            assert_eq!(problem["status"], status);
            assert!(problem["detail"].as_str().unwrap().contains(": "), "{problem}");
        }
        let (answer, _) = run(talk(post("abc", 3)));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    #[test]
    fn a_client_does_not_choose_the_id_of_its_request() {
        let request =
            "GET /v1/x HTTP/1.1\r\nHost: gw\r\nX-Request-Id: forged\r\nConnection: close\r\n\r\n";
        let (answer, _) = run(talk(request.as_bytes().to_vec()));
        assert!(answer.to_lowercase().contains("x-request-id: "), "{answer}");
        assert!(!answer.contains("forged"), "{answer}");
    }

    #[test]
    fn connections_are_bounded_by_source_and_in_all() {
        let limits = Limits { connections: 3, per_source: 2, ..Limits::default() };
        let slots = Slots::new(limits);
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "::1".parse().unwrap());
        let first = slots.take(a).unwrap();
        let _second = slots.take(a).unwrap();
        assert!(slots.take(a).is_none());
        let _third = slots.take(b).unwrap();
        assert!(slots.take(b).is_none());
        drop(first);
        assert!(slots.take(b).is_some());
    }
}
