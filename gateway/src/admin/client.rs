//! The command line's side of the admin socket. Blocking; one connection per command.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use thiserror::Error;

use super::proto::{AdminError, Answer, Envelope, Request, VERSION};
use crate::state::StateDir;

/// Longest wait for an answer: more than a revocation that waits for a busy data plane needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the instance gave no result.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("runnel is not running (nothing answers at {}); start it with `runnel up`", .0.display())]
    NotRunning(PathBuf),
    /// The socket is not for this user.
    #[error("you may not use {}; run this as the user that runs runnel (usually root)", .0.display())]
    Denied(PathBuf),
    /// It answered with an error.
    #[error("{}", .0.message)]
    Refused(AdminError),
    /// The conversation broke.
    #[error("the running instance did not answer: {0}; see its log")]
    Broken(String),
}

/// A connection to the running instance.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Client {
    /// Connects to the instance that uses this state directory.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] or [`ClientError::Denied`].
    pub fn connect(state: &Path) -> Result<Self, ClientError> {
        let path = StateDir::socket(state);
        match UnixStream::connect(&path) {
            Ok(stream) => {
                // Both only fail for a zero duration.
                let _ = stream.set_read_timeout(Some(PATIENCE));
                let _ = stream.set_write_timeout(Some(PATIENCE));
                Ok(Self { stream: BufReader::new(stream), path })
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                Err(ClientError::Denied(path))
            }
            Err(_) => Err(ClientError::NotRunning(path)),
        }
    }

    /// Asks, and reads the answer as `T`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask<T: DeserializeOwned>(&mut self, request: Request) -> Result<T, ClientError> {
        let mut line = serde_json::to_vec(&Envelope { v: VERSION, request })
            .map_err(|e| ClientError::Broken(e.to_string()))?;
        line.push(b'\n');
        let answer = self.exchange(&line).map_err(|e| match e.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => {
                ClientError::NotRunning(self.path.clone())
            }
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                ClientError::Broken(format!("no answer within {} s", PATIENCE.as_secs()))
            }
            _ => ClientError::Broken(e.to_string()),
        })?;
        let answer: Answer =
            serde_json::from_str(&answer).map_err(|e| ClientError::Broken(e.to_string()))?;
        match answer.error {
            Some(error) => Err(ClientError::Refused(error)),
            // A result of nothing (`null`) reads as no result at all.
            None => serde_json::from_value(answer.result.unwrap_or_default())
                .map_err(|e| ClientError::Broken(e.to_string())),
        }
    }

    /// Waits until the instance closes the connection, at most this long.
    pub fn wait_for_end(mut self, patience: Duration) -> bool {
        let _ = self.stream.get_ref().set_read_timeout(Some(patience));
        let mut rest = String::new();
        matches!(self.stream.read_line(&mut rest), Ok(0))
    }

    fn exchange(&mut self, line: &[u8]) -> std::io::Result<String> {
        self.stream.get_mut().write_all(line)?;
        let mut answer = String::new();
        if self.stream.read_line(&mut answer)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(answer)
    }
}
