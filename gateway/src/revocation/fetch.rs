//! One HTTP request to a place that a certificate or the configuration names, with every bound on
//! what the other side can cost.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Addresses of one name tried.
const MAX_ADDRESSES: usize = 2;

/// GET, or POST of an OCSP request. Only `http://`: what is fetched is signed, and asking for the
/// status of the certificate behind `https://` could go round in circles (RFC 5280 8).
///
/// # Errors
/// What went wrong, as a part of a sentence.
pub(super) async fn fetch(
    url: &str,
    ocsp_request: Option<Vec<u8>>,
    largest: usize,
    timeout: Duration,
) -> Result<Vec<u8>, String> {
    match tokio::time::timeout(timeout, exchange(url, ocsp_request, largest)).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {} s", timeout.as_secs_f32())),
    }
}

async fn exchange(
    url: &str,
    ocsp_request: Option<Vec<u8>>,
    largest: usize,
) -> Result<Vec<u8>, String> {
    let uri: hyper::Uri = url.parse().map_err(|_| "it is no URL".to_owned())?;
    if uri.scheme_str() != Some("http") {
        return Err("only http:// is fetched".to_owned());
    }
    let authority = uri.authority().ok_or_else(|| "it names no host".to_owned())?.clone();
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let stream = connect(&host, authority.port_u16().unwrap_or(80)).await?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(64 * 1024)
        .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let mut request = Request::builder()
        .uri(path)
        .header(HOST, authority.as_str())
        .header(CONNECTION, "close")
        .method(if ocsp_request.is_some() { "POST" } else { "GET" });
    if ocsp_request.is_some() {
        request = request.header(CONTENT_TYPE, "application/ocsp-request");
    }
    let body = Full::new(Bytes::from(ocsp_request.unwrap_or_default()));
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
