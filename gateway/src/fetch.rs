//! One HTTP request to a place that a certificate or the configuration names, with every bound on
//! what the other side can cost. Redirects are not followed.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

/// Addresses of one name tried.
const MAX_ADDRESSES: usize = 2;

/// GET, or POST of an OCSP request. Only `http://`: what is fetched is signed, and asking for the
/// status of the certificate behind `https://` could go round in circles (RFC 5280 8).
///
/// # Errors
/// What went wrong, as a part of a sentence.
pub(crate) async fn fetch(
    url: &str,
    ocsp_request: Option<Vec<u8>>,
    largest: usize,
    timeout: Duration,
) -> Result<Vec<u8>, String> {
    let exchange = async {
        let place = Place::parse(url, "http", 80)?;
        let stream = connect(&place.host, place.port).await?;
        let asked =
            ocsp_request.map(|body| Asked { body, kind: "application/ocsp-request", bearer: None });
        place.exchange(stream, asked, largest).await
    };
    within(timeout, exchange).await
}

/// What a POST brings along.
pub(crate) struct Asked {
    /// The body.
    pub(crate) body: Vec<u8>,
    /// Its content type.
    pub(crate) kind: &'static str,
    /// What we prove ourselves with.
    pub(crate) bearer: Option<Zeroizing<String>>,
}

/// GET over TLS, or POST with what is asked; only `https://`.
///
/// # Errors
/// What went wrong, as a part of a sentence.
pub(crate) async fn fetch_secure(
    url: &str,
    tls: Arc<ClientConfig>,
    asked: Option<Asked>,
    largest: usize,
    timeout: Duration,
) -> Result<Vec<u8>, String> {
    let exchange = async {
        let place = Place::parse(url, "https", 443)?;
        let name = ServerName::try_from(place.host.clone())
            .map_err(|_| format!("{} is no host name", place.host))?;
        let stream = connect(&place.host, place.port).await?;
        let connector = tokio_rustls::TlsConnector::from(tls);
        let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
        place.exchange(stream, asked, largest).await
    };
    within(timeout, exchange).await
}

async fn within<T>(
    timeout: Duration,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {} s", timeout.as_secs_f32())),
    }
}

/// A URL taken apart.
struct Place {
    authority: String,
    host: String,
    port: u16,
    path: String,
}

impl Place {
    fn parse(url: &str, scheme: &str, port: u16) -> Result<Self, String> {
        let uri: hyper::Uri = url.parse().map_err(|_| "it is no URL".to_owned())?;
        if uri.scheme_str() != Some(scheme) {
            return Err(format!("only {scheme}:// is fetched"));
        }
        let authority = uri.authority().ok_or_else(|| "it names no host".to_owned())?;
        Ok(Self {
            host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(port),
            authority: authority.as_str().to_owned(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }

    async fn exchange(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        asked: Option<Asked>,
        largest: usize,
    ) -> Result<Vec<u8>, String> {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(64 * 1024)
            .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder()
            .uri(self.path)
            .header(HOST, self.authority)
            .header(CONNECTION, "close")
            .method(if asked.is_some() { "POST" } else { "GET" });
        if let Some(asked) = &asked {
            request = request.header(CONTENT_TYPE, asked.kind);
            if let Some(bearer) = &asked.bearer {
                let value = Zeroizing::new(format!("Bearer {}", bearer.as_str()));
                let mut value = HeaderValue::from_str(&value)
                    .map_err(|_| "our token is no header's value".to_owned())?;
                value.set_sensitive(true);
                request = request.header(AUTHORIZATION, value);
            }
        }
        let body = Full::new(Bytes::from(asked.map(|asked| asked.body).unwrap_or_default()));
        let request = request.body(body).map_err(|error| error.to_string())?;
        let result = async {
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = response.status();
            if !status.is_success() {
                return Err(format!("HTTP {}", status.as_u16()));
            }
            let body = Limited::new(response.into_body(), largest).collect().await;
            body.map(|body| body.to_bytes().to_vec())
                .map_err(|error| format!("the body is cut off or too large ({error})"))
        };
        let result = result.await;
        connection.abort();
        result
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let found = tokio::net::lookup_host((host, port)).await;
    let addresses = found.map_err(|_| format!("the name {host} does not resolve"))?;
    let mut last = format!("the name {host} has no address");
    for address in addresses.take(MAX_ADDRESSES) {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("{address}: {error}"),
        }
    }
    Err(last)
}
