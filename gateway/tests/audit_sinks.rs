//! Audit sinks against receivers on loopback: framing, shapes, and what a receiver that goes away
//! misses.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gateway::config::{AuditBody, AuditFormat, AuditSink, AuditTarget};
use gateway::obs::audit::{Courier, Sink};
use pki::audit::chain;
use pki::{Actor, AuditEvent, Authority, Options, Settings, UnixTime};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Longer than any machine needs for what is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

type Tls = StreamOwned<ServerConnection, TcpStream>;

/// A receiver with a certificate of its own authority.
struct Receiver {
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    ca: PathBuf,
    _files: tempfile::TempDir,
}

impl Receiver {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let ca = files.path().join("ca.pem");
        std::fs::write(&ca, certificate.pem()).unwrap();
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { listener, tls: Arc::new(tls), ca, _files: files }
    }

    fn sink(&self, target: AuditTarget, format: AuditFormat) -> AuditSink {
        AuditSink {
            name: "test".to_owned(),
            target,
            host: "localhost".to_owned(),
            port: self.listener.local_addr().unwrap().port(),
            format,
            ca: Some(self.ca.clone()),
            client: None,
        }
    }

    fn accept(&self) -> Tls {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        StreamOwned::new(ServerConnection::new(Arc::clone(&self.tls)).unwrap(), stream)
    }
}

fn authority(directory: &Path) -> Arc<Authority> {
    let options = Options::new(Settings::new("ci.example.com"));
    Arc::new(Authority::open(directory, options, UnixTime::from_secs(1_795_305_600)).unwrap())
}

fn record(authority: &Authority, name: &str) {
    let event = AuditEvent::new("test.event", &Actor::System, UnixTime::from_secs(1_795_305_600));
    authority.record_audit(&event.object(name)).unwrap();
}

/// A sink's thread.
struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    sink: Arc<Sink>,
}

impl Running {
    fn start(config: &AuditSink, authority: &Arc<Authority>) -> Self {
        let courier = Courier::new(config, Arc::clone(authority), "gw.example.com").unwrap();
        let (stop, sink) = (Arc::new(AtomicBool::new(false)), courier.sink());
        let flag = Arc::clone(&stop);
        let thread = Some(std::thread::spawn(move || courier.run(&flag)));
        Self { stop, thread, sink }
    }

    fn until(&self, what: &str, mut holds: impl FnMut(&Sink) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(&self.sink) {
            assert!(Instant::now() < end, "{what}: {:?}", self.sink.status());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn delivered(&self, position: u64) {
        self.until("delivered", |sink| sink.status().delivered >= position);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// The next message by octet counting (RFC 5425 4.3); `None` when the sender has closed.
fn message(tls: &mut Tls) -> Option<String> {
    let mut digits = String::new();
    loop {
        let mut octet = [0u8];
        match tls.read(&mut octet) {
            Ok(1) if octet[0] == b' ' => break,
            Ok(1) => digits.push(char::from(octet[0])),
            _ => return None,
        }
    }
    let mut text = vec![0u8; digits.parse().unwrap()];
    tls.read_exact(&mut text).ok()?;
    Some(String::from_utf8(text).unwrap())
}

/// The trail's line in a message.
fn line(message: &str) -> &str {
    message.split_once("] ").unwrap().1
}

/// One request's header and body; `None` when the sender has closed.
fn request(tls: &mut Tls) -> Option<(String, String)> {
    let mut text = Vec::new();
    let mut octet = [0u8];
    while !text.ends_with(b"\r\n\r\n") {
        tls.read_exact(&mut octet).ok()?;
        text.push(octet[0]);
    }
    let head = String::from_utf8(text).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    let mut body = vec![0u8; length.parse().unwrap()];
    tls.read_exact(&mut body).unwrap();
    Some((head, String::from_utf8(body).unwrap()))
}

fn reply(tls: &mut Tls, status: &str) {
    let text = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    tls.write_all(text.as_bytes()).unwrap();
    tls.flush().unwrap();
}

#[test]
fn syslog_delivers_the_trail_in_order_and_a_copy_of_it_verifies() {
    // RFC 5424 6, RFC 5425 4.3.
    let (receiver, state) = (Receiver::new(), tempfile::tempdir().unwrap());
    let authority = authority(state.path());
    for number in 0..600 {
        record(&authority, &number.to_string());
    }
    let end = authority.audit_end().unwrap();
    let config = receiver.sink(AuditTarget::Syslog, AuditFormat::Json);
    let (copies, copied) = mpsc::channel();
    let server = std::thread::spawn(move || {
        let mut tls = receiver.accept();
        while let Some(message) = message(&mut tls) {
            copies.send(message).unwrap();
        }
    });
    let running = Running::start(&config, &authority);
    running.delivered(end);
    assert_eq!(running.sink.status().trouble, None);
    drop(running);
    server.join().unwrap();
    let messages: Vec<String> = copied.iter().collect();
    let copy: String = messages.iter().map(|message| format!("{}\n", line(message))).collect();
    let report = chain::verify_lines(copy.as_bytes()).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.first, report.last), (1, end));
    assert!(messages[1].starts_with("<110>1 2026-11-22T00:00:00.000000Z gw.example.com runnel "));
}

#[test]
fn what_a_receiver_lost_with_its_connection_is_sent_again() {
    // RFC 5425 4.3.
    // A connection that stays open for a while after a record counts as a delivery, and on a busy
    // machine the receiver may take that while to close it: then the scenario begins anew.
    const TRIES: usize = 20;
    let (lost, again) = (0..TRIES).find_map(|_| lost_and_sent_again()).unwrap();
    assert_eq!(line(&lost), line(&again));
}

/// A record as it came on a connection that then died, and as it came again; `None` when it had
/// counted as delivered by then.
fn lost_and_sent_again() -> Option<(String, String)> {
    let (receiver, state) = (Receiver::new(), tempfile::tempdir().unwrap());
    let authority = authority(state.path());
    let end = authority.audit_end().unwrap();
    let config = receiver.sink(AuditTarget::Syslog, AuditFormat::Json);
    let address = receiver.listener.local_addr().unwrap();
    let (copies, copied) = mpsc::channel();
    let server = std::thread::spawn(move || {
        // The first connection takes the record and dies: nobody can tell whether it was kept.
        let mut first = receiver.accept();
        let lost = message(&mut first).unwrap();
        drop(first);
        let mut second = receiver.accept();
        let Some(again) = message(&mut second) else { return };
        copies.send((lost, again)).unwrap();
        while message(&mut second).is_some() {}
    });
    let running = Running::start(&config, &authority);
    let mut seen = None;
    running.until("sent again, or taken for delivered", |sink| {
        // In this order: a copy that came before the delivery is not missed.
        let delivered = sink.status().delivered >= end;
        seen = copied.try_recv().ok();
        seen.is_some() || delivered
    });
    if seen.is_some() {
        running.delivered(end);
    }
    drop(running);
    // Wakes a server that still waits for a second connection.
    drop(TcpStream::connect(address));
    server.join().unwrap();
    seen
}

#[test]
fn a_refused_batch_is_tried_again_and_delivered_once_it_is_taken() {
    let (receiver, state) = (Receiver::new(), tempfile::tempdir().unwrap());
    let authority = authority(state.path());
    record(&authority, "one");
    let end = authority.audit_end().unwrap();
    let secret = state.path().join("header");
    std::fs::write(&secret, "Authorization: Splunk 4711\n").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let target = AuditTarget::Https {
        path: "/services/collector?channel=1".to_owned(),
        body: AuditBody::Splunk,
        header_file: Some(secret),
    };
    let config = receiver.sink(target, AuditFormat::Ocsf);
    let (gate, go) = mpsc::channel::<()>();
    let server = std::thread::spawn(move || {
        let mut requests = Vec::new();
        let mut refused = false;
        while requests.len() < 2 {
            let mut tls = receiver.accept();
            // A connection without a request only sees whether somebody is there.
            let Some(request) = request(&mut tls) else { continue };
            requests.push(request);
            reply(&mut tls, if refused { "200 OK" } else { "503 Busy" });
            if !refused {
                refused = true;
                go.recv_timeout(PATIENCE).unwrap();
            }
        }
        requests
    });
    let running = Running::start(&config, &authority);
    running.until("refused", |sink| {
        sink.status().trouble.is_some_and(|trouble| trouble.contains("HTTP 503"))
    });
    assert_eq!(running.sink.status().delivered, 0, "nothing counts before it is taken");
    gate.send(()).unwrap();
    running.delivered(end);
    assert_eq!(authority.audit_position("test").unwrap(), end);
    drop(running);
    let requests = server.join().unwrap();
    let (head, body) = &requests[1];
    assert_eq!(body, &requests[0].1, "the same batch again");
    assert!(head.starts_with("POST /services/collector?channel=1 HTTP/1.1\r\nHost: localhost:"));
    assert!(head.contains("\r\nAuthorization: Splunk 4711\r\n"), "{head}");
    let events: Vec<serde_json::Value> =
        body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len() as u64, end);
    assert_eq!(events[0]["event"]["metadata"]["sequence"], 1);
    assert!(events[0]["event"]["class_uid"].is_u64());
}

/// It took the connection and reads nothing more: its system soon has no room left, and
/// acknowledges nothing.
#[test]
fn a_receiver_that_acknowledges_nothing_has_nothing() {
    let (receiver, state) = (Receiver::new(), tempfile::tempdir().unwrap());
    let authority = authority(state.path());
    // More than it has room for, and less than our own system keeps for it.
    socket2::SockRef::from(&receiver.listener).set_recv_buffer_size(4_096).unwrap();
    for _ in 0..4 {
        record(&authority, &"x".repeat(50 * 1024));
    }
    let config = receiver.sink(AuditTarget::Syslog, AuditFormat::Json);
    let (gate, go) = mpsc::channel::<()>();
    let server = std::thread::spawn(move || {
        let mut tls = receiver.accept();
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock).unwrap();
        }
        let _ = go.recv_timeout(PATIENCE);
    });
    let running = Running::start(&config, &authority);
    running.until("noticed", |sink| {
        let trouble = sink.status().trouble;
        trouble.is_some_and(|why| why.contains("acknowledges nothing") || why.contains("no answer"))
    });
    assert_eq!(running.sink.status().delivered, 0);
    gate.send(()).unwrap();
    server.join().unwrap();
}

#[test]
fn a_bulk_request_of_which_a_record_was_refused_is_not_delivered() {
    let (receiver, state) = (Receiver::new(), tempfile::tempdir().unwrap());
    let authority = authority(state.path());
    let end = authority.audit_end().unwrap();
    let path = "/audit/_bulk".to_owned();
    let target = AuditTarget::Https { path, body: AuditBody::Bulk, header_file: None };
    let config = receiver.sink(target, AuditFormat::Json);
    let (gate, go) = mpsc::channel::<()>();
    let server = std::thread::spawn(move || {
        let mut answers = vec![
            r#"{"errors":false,"items":[]}"#,
            r#"{"errors":true,"items":[{"create":{"status":400,"error":{"type":"mapper"}}}]}"#,
        ];
        while let Some(answer) = answers.last() {
            let mut tls = receiver.accept();
            let Some(_) = request(&mut tls) else { continue };
            let text =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
            tls.write_all(text.as_bytes()).unwrap();
            tls.flush().unwrap();
            answers.pop();
            if answers.len() == 1 {
                go.recv_timeout(PATIENCE).unwrap();
            }
        }
    });
    let running = Running::start(&config, &authority);
    running.until("refused", |sink| {
        sink.status().trouble.is_some_and(|why| why.contains("400") && why.contains("mapper"))
    });
    assert_eq!(running.sink.status().delivered, 0);
    gate.send(()).unwrap();
    running.delivered(end);
    drop(running);
    server.join().unwrap();
}

#[test]
fn a_sink_goes_on_where_the_last_process_stopped() {
    let (receiver, state) = (Receiver::new(), tempfile::tempdir().unwrap());
    let config = receiver.sink(AuditTarget::Syslog, AuditFormat::Json);
    let (copies, copied) = mpsc::channel();
    let server = std::thread::spawn(move || {
        for _ in 0..2 {
            let mut tls = receiver.accept();
            while let Some(message) = message(&mut tls) {
                copies.send(message).unwrap();
            }
        }
    });
    let first = authority(state.path());
    let end = first.audit_end().unwrap();
    let running = Running::start(&config, &first);
    running.delivered(end);
    drop(running);
    drop(first);
    let second = authority(state.path());
    record(&second, "after the restart");
    let running = Running::start(&config, &second);
    running.delivered(end + 1);
    drop(running);
    server.join().unwrap();
    let copy: String = copied.iter().map(|message| format!("{}\n", line(&message))).collect();
    let report = chain::verify_lines(copy.as_bytes()).unwrap();
    assert!(report.is_sound() && report.records == end + 1, "each record once: {report:?}");
}

#[test]
fn a_receiver_of_another_authority_gets_nothing() {
    let (receiver, other) = (Receiver::new(), Receiver::new());
    let state = tempfile::tempdir().unwrap();
    let authority = authority(state.path());
    let mut config = receiver.sink(AuditTarget::Syslog, AuditFormat::Json);
    config.ca = Some(other.ca.clone());
    let server = std::thread::spawn(move || {
        let mut tls = receiver.accept();
        assert_eq!(message(&mut tls), None);
    });
    let running = Running::start(&config, &authority);
    running.until("refused", |sink| {
        sink.status().trouble.is_some_and(|trouble| trouble.contains("certificate"))
    });
    server.join().unwrap();
    assert_eq!(running.sink.status().delivered, 0);
}

#[test]
fn secrets_that_others_can_read_and_missing_files_are_refused() {
    let (receiver, state) = (Receiver::new(), tempfile::tempdir().unwrap());
    let authority = authority(state.path());
    let secret = state.path().join("header");
    let https = |file: &Path| AuditTarget::Https {
        path: "/".to_owned(),
        body: AuditBody::Lines,
        header_file: Some(file.to_owned()),
    };
    let refused =
        |config: &AuditSink| Courier::new(config, Arc::clone(&authority), "gw").unwrap_err();
    std::fs::write(&secret, "Authorization: Bearer x").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    let config = receiver.sink(https(&secret), AuditFormat::Json);
    assert!(refused(&config).contains("chmod 600"));
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    for wrong in ["", "no colon", "A: b\r\nHost: evil"] {
        std::fs::write(&secret, wrong).unwrap();
        assert!(refused(&config).contains("one header line"), "{wrong:?}");
    }
    let mut config = receiver.sink(AuditTarget::Syslog, AuditFormat::Json);
    config.ca = Some(state.path().join("missing.pem"));
    assert!(refused(&config).contains("missing.pem"));
}
