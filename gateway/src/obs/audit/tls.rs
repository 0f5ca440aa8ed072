//! A TLS connection to a place that takes the audit trail: blocking, on the sink's own thread, every
//! wait bounded.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::config::AuditSink;

/// Where distributions keep the authorities that the system trusts.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Longest wait for a connection, and for one read or write.
const PATIENCE: Duration = Duration::from_secs(10);

/// Addresses of one name tried.
const MAX_ADDRESSES: usize = 4;

/// How to reach a sink.
#[derive(Debug, Clone)]
pub(super) struct Dialer {
    config: Arc<ClientConfig>,
    host: String,
    port: u16,
}

impl Dialer {
    /// Reads the certificates that the sink names.
    ///
    /// # Errors
    /// One sentence about the file that cannot be used.
    pub(super) fn new(sink: &AuditSink) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let path = match &sink.ca {
            Some(path) => path.as_path(),
            None => SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists()).ok_or_else(
                || format!("audit sink \"{}\": this system has no list of trusted authorities; name one with ca = \"FILE\"", sink.name),
            )?,
        };
        for certificate in certificates(path)? {
            // A system's list may hold some that cannot be anchors.
            let added = roots.add(certificate);
            if let (Err(error), Some(path)) = (added, &sink.ca) {
                return Err(format!("{}: {error}; it must hold CA certificates", path.display()));
            }
        }
        if roots.is_empty() {
            return Err(format!("{} holds no certificate", path.display()));
        }
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let config = match &sink.client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let key = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| format!("cannot read {}: {error:?}", key.display()))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())?
            }
        };
        Ok(Self { config: Arc::new(config), host: sink.host.clone(), port: sink.port })
    }

    /// Connects, and completes the TLS handshake.
    ///
    /// # Errors
    /// What went wrong, as a part of a sentence.
    pub(super) fn dial(&self) -> Result<Connection, String> {
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_| format!("{} is no host name", self.host))?;
        let tls = ClientConnection::new(Arc::clone(&self.config), name)
            .map_err(|error| error.to_string())?;
        let mut stream = StreamOwned::new(tls, self.connect()?);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).map_err(|error| told(&error))?;
        }
        Ok(Connection { stream })
    }

    fn connect(&self) -> Result<TcpStream, String> {
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        let addresses = found.map_err(|_| format!("the name {} does not resolve", self.host))?;
        let mut last = format!("the name {} has no address", self.host);
        for address in addresses.take(MAX_ADDRESSES) {
            let connected = TcpStream::connect_timeout(&address, PATIENCE).and_then(|stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                Ok(stream)
            });
            match connected {
                Ok(stream) => return Ok(stream),
                Err(error) => last = format!("{address}: {error}"),
            }
        }
        Err(last)
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl Connection {
    /// # Errors
    /// What went wrong, as a part of a sentence.
    pub(super) fn send(&mut self, octets: &[u8]) -> Result<(), String> {
        let sent = self.stream.write_all(octets).and_then(|()| self.stream.flush());
        sent.map_err(|error| told(&error))
    }

    /// What the other side has sent, at most as much as fits; 0 when it has closed.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, String> {
        match self.stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(0),
            received => received.map_err(|error| told(&error)),
        }
    }

    /// Octets that were sent and that the other side's system has not acknowledged.
    ///
    /// # Errors
    /// The operating system's, as a part of a sentence.
    pub(super) fn unacknowledged(&self) -> Result<usize, String> {
        xfrm::tcp::unacknowledged(&self.stream.sock).map_err(|error| told(&error))
    }

    /// Whether the other side keeps the connection open, without waiting.
    pub(super) fn is_open(&mut self) -> bool {
        if self.stream.sock.set_nonblocking(true).is_err() {
            return false;
        }
        let mut unasked = [0u8; 256];
        let open = match self.stream.read(&mut unasked) {
            Ok(octets) => octets > 0,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        };
        open && self.stream.sock.set_nonblocking(false).is_ok()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stream.conn.send_close_notify();
        let _ = self.stream.flush();
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unreadable = |error: &dyn std::fmt::Debug| {
        format!("cannot read certificates from {}: {error:?}", path.display())
    };
    let found = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))?;
    found.collect::<Result<_, _>>().map_err(|error| unreadable(&error))
}

fn told(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!("no answer within {} s", PATIENCE.as_secs())
        }
        _ => error.to_string(),
    }
}
