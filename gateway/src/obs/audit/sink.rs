//! One place elsewhere that takes the audit trail, and the thread that brings it there.
//!
//! The store is the queue: a sink remembers, durably, up to which record it delivered, and a receiver
//! that is away costs no memory. What it got shortly before a crash it may get twice; it knows it by
//! its position.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pki::{AuditRecord, Authority};
use zeroize::Zeroizing;

use super::https::Https;
use super::syslog::Syslog;
use super::tls::Dialer;
use crate::config::{AuditSink, AuditTarget};

/// Records of one delivery.
const BATCH: usize = 256;
/// Looks for new records are this far apart.
const TICK: Duration = Duration::from_millis(500);
/// The first wait after a failure; each further one doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What a target did with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// It said that it has it.
    Delivered,
    /// It says nothing; whether it can still be reached later tells.
    Unconfirmed,
}

/// A protocol that records are sent by. Each call may block for some seconds.
pub(super) trait Target: Send + std::fmt::Debug {
    /// Whether the receiver can be reached and has what was sent; false: not yet.
    fn reach(&mut self) -> Result<bool, String>;

    /// Sends a batch, in order.
    fn send(&mut self, records: &[AuditRecord]) -> Result<Sent, String>;
}

/// How a sink is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkStatus {
    /// Its name.
    pub name: String,
    /// The last record that was delivered.
    pub delivered: u64,
    /// Why it takes nothing at the moment.
    pub trouble: Option<String>,
}

/// A sink, shared between its thread and who asks how it is.
#[derive(Debug)]
pub struct Sink {
    status: Mutex<SinkStatus>,
}

impl Sink {
    /// A sink that has not been reached yet.
    pub fn new(name: &str) -> Self {
        let trouble = Some("it has not been reached yet".to_owned());
        let status = SinkStatus { name: name.to_owned(), delivered: 0, trouble };
        Self { status: Mutex::new(status) }
    }

    /// How it is now.
    pub fn status(&self) -> SinkStatus {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, SinkStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings the trail to one sink.
#[derive(Debug)]
pub struct Courier {
    sink: Arc<Sink>,
    name: String,
    target: Box<dyn Target>,
    authority: Arc<Authority>,
    /// Delivered, durably.
    confirmed: u64,
    /// Sent; what is above `confirmed` may have to be sent again.
    sent: u64,
    wait: Duration,
    not_before: Option<Instant>,
}

impl Courier {
    /// Prepares a sink's delivery; `gateway` is how the gateway names itself.
    ///
    /// # Errors
    /// One sentence about what of its configuration cannot be used.
    pub fn new(
        config: &AuditSink,
        authority: Arc<Authority>,
        gateway: &str,
    ) -> Result<Self, String> {
        let dialer = Dialer::new(config)?;
        let target: Box<dyn Target> = match &config.target {
            AuditTarget::Syslog => Box::new(Syslog::new(dialer, config.format, gateway)),
            AuditTarget::Https { path, body, header_file } => Box::new(Https {
                dialer,
                format: config.format,
                body: *body,
                host: format!("{}:{}", bracketed(&config.host), config.port),
                path: path.clone(),
                header: header_file.as_deref().map(header).transpose()?,
            }),
        };
        let confirmed =
            authority.audit_position(&config.name).map_err(|error| error.to_string())?;
        Ok(Self::over(&config.name, target, authority, confirmed))
    }

    fn over(
        name: &str,
        target: Box<dyn Target>,
        authority: Arc<Authority>,
        confirmed: u64,
    ) -> Self {
        let sink = Arc::new(Sink::new(name));
        sink.lock().delivered = confirmed;
        Self {
            sink,
            name: name.to_owned(),
            target,
            authority,
            confirmed,
            sent: confirmed,
            wait: FIRST_WAIT,
            not_before: None,
        }
    }

    /// How it is, for others.
    pub fn sink(&self) -> Arc<Sink> {
        Arc::clone(&self.sink)
    }

    /// Works until `stop` becomes true, then delivers once more what is there.
    pub fn run(mut self, stop: &AtomicBool) {
        loop {
            let last_time = stop.load(Ordering::Relaxed);
            if self.not_before.is_none_or(|at| Instant::now() >= at) {
                let done = self.step();
                self.judge(done);
            }
            if last_time {
                return;
            }
            std::thread::sleep(TICK);
        }
    }

    /// Confirms what was sent before and sends what is new.
    fn step(&mut self) -> Result<(), String> {
        if !self.confirm()? {
            return Ok(());
        }
        loop {
            let records =
                self.authority.audit(self.sent, BATCH).map_err(|error| error.to_string())?;
            let Some(last) = records.last().map(|record| record.seq) else { return Ok(()) };
            let sent = self.target.send(&records)?;
            self.sent = last;
            match sent {
                Sent::Delivered => self.advance()?,
                // The rest waits until these are known to have arrived.
                Sent::Unconfirmed => return Ok(()),
            }
        }
    }

    /// Whether everything that was sent has arrived.
    fn confirm(&mut self) -> Result<bool, String> {
        let proven = self.sent == self.confirmed && self.sink.lock().trouble.is_none();
        if proven && self.authority.audit_end().is_ok_and(|end| end > self.sent) {
            // What is sent next tells.
            return Ok(true);
        }
        if (!proven || self.sent > self.confirmed) && !self.target.reach()? {
            return Ok(false);
        }
        if self.sent > self.confirmed {
            self.advance()?;
        }
        Ok(true)
    }

    fn advance(&mut self) -> Result<(), String> {
        let moved = self.authority.set_audit_position(&self.name, self.sent);
        moved.map_err(|error| error.to_string())?;
        self.confirmed = self.sent;
        Ok(())
    }

    fn judge(&mut self, done: Result<(), String>) {
        let mut status = self.sink.lock();
        status.delivered = self.confirmed;
        match done {
            Ok(()) => {
                if status.trouble.take().is_some() {
                    tracing::info!(sink = %self.name, "audit sink takes records");
                }
                self.wait = FIRST_WAIT;
                self.not_before = None;
            }
            Err(error) => {
                if status.trouble.as_ref() != Some(&error) {
                    let behind_from = self.confirmed;
                    tracing::error!(sink = %self.name, %error, behind_from, "audit sink takes nothing; it is tried again");
                }
                status.trouble = Some(error);
                self.sent = self.confirmed;
                self.not_before = Some(Instant::now() + self.wait);
                self.wait = (self.wait * 2).min(LONGEST_WAIT);
            }
        }
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// A header line from a file that only the gateway can read.
fn header(path: &std::path::Path) -> Result<Zeroizing<String>, String> {
    use std::os::unix::fs::MetadataExt;
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let mode = std::fs::metadata(path).map_err(failed)?.mode();
    if mode & 0o077 != 0 {
        let path = path.display();
        return Err(format!("{path} can be read by others; chmod 600 {path}"));
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(failed)?);
    let line = text.trim();
    let named = line.split_once(':').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    });
    if !named || line.contains(['\r', '\n']) {
        return Err(format!(
            "{} must hold one header line, like \"Authorization: Bearer ...\"",
            path.display()
        ));
    }
    Ok(Zeroizing::new(line.to_owned()))
}
