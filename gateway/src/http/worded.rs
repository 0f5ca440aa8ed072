//! Words for what the HTTP library refuses by itself.
//!
//! A request whose head cannot be parsed reaches no service: the library answers with a bare status
//! line and closes. This wrapper of the connection writes a problem (RFC 9457) with a request id in
//! its place, and lets the client read it before the connection goes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::problem::{named, problem};
use super::server::request_id;

/// What a refused client may still send is read so long and so far: a connection that is closed with
/// octets unread is reset, and the answer with it (RFC 9112 9.6).
const LINGER: Duration = Duration::from_secs(2);
/// Octets of a bare answer at most: a status line, a length, a date.
const BARE: usize = 512;
/// See [`LINGER`].
const LINGER_OCTETS: usize = 1024 * 1024;

/// A connection that carries whole answers only.
pub(super) struct Worded<S> {
    inner: S,
    /// What is written in place of a bare answer, and how much of it was.
    instead: Option<(Vec<u8>, usize)>,
    linger: Option<Pin<Box<Sleep>>>,
    drained: usize,
}

impl<S> Worded<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, instead: None, linger: None, drained: 0 }
    }
}

/// The status of an answer that consists of nothing else; ours all carry an id.
fn bare(answer: &[u8]) -> Option<u16> {
    // Most of what is written is looked at no further.
    let text = std::str::from_utf8(answer.get(..answer.len().min(BARE))?).ok()?;
    let head = text.strip_suffix("\r\n\r\n")?;
    let (line, fields) = head.split_once("\r\n")?;
    let status = line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let ours = fields.contains("x-request-id:") || fields.contains("\r\n\r\n");
    (matches!(status, 400 | 414 | 431) && !ours).then_some(status)
}

/// The answer with words.
fn worded(status: u16, id: &str) -> Vec<u8> {
    let (reason, code, detail) = match status {
        414 => ("URI Too Long", "uri_too_long", "the request's target is too long: shorten it"),
        431 => (
            "Request Header Fields Too Large",
            "header_too_large",
            "the request's header is too large: send at most 100 fields and 64 KiB",
        ),
        _ => (
            "Bad Request",
            "malformed_request",
            "the request's head is no HTTP/1.1: correct its request line and its fields",
        ),
    };
    let reply = named(problem(status, code, detail), id);
    let mut answer = format!("HTTP/1.1 {status} {reason}\r\n");
    for (name, value) in &reply.headers {
        answer.push_str(&format!("{name}: {value}\r\n"));
    }
    let length = reply.body.len();
    answer.push_str(&format!(
        "x-request-id: {id}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    ));
    let mut answer = answer.into_bytes();
    answer.extend_from_slice(&reply.body);
    answer
}

impl<S: AsyncRead + Unpin> AsyncRead for Worded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Worded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.instead.is_none()
            && let Some(status) = bare(buf)
        {
            let id = request_id();
            tracing::debug!(status, request = %id, "a request that cannot be parsed");
            this.instead = Some((worded(status, &id), 0));
        }
        let Some((answer, written)) = &mut this.instead else {
            return Pin::new(&mut this.inner).poll_write(cx, buf);
        };
        while let Some(rest) = answer.get(*written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut this.inner).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                more => *written += more,
            }
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            if this.instead.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
        let linger = this.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut scratch = [0; 4096];
        while this.drained < LINGER_OCTETS && linger.as_mut().poll(cx).is_pending() {
            let mut read = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read)) {
                Ok(()) if !read.filled().is_empty() => this.drained += read.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bare_refusals_are_given_words() {
        let refusal = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
                       content-length: 0\r\n\r\n";
        assert_eq!(bare(refusal.as_bytes()), Some(431));
        for other in [
            "HTTP/1.1 400 Bad Request\r\nx-request-id: 1\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 3\r\n\r\nabc",
            "HTTP/1.1 400",
            "",
        ] {
            assert_eq!(bare(other.as_bytes()), None, "{other}");
        }
        assert_eq!(bare(&worded(400, "id")), None);
    }
}
