//! An OCSP responder of OpenSSL with a delegated signer, for the status of other CAs' certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::host::Host;
use super::pkitool::{self, Authority, P256};
use super::process::Process;
use super::wait;

/// A responder on a host, in the name of an authority.
pub struct Responder {
    host: Host,
    authority: PathBuf,
    /// Key and certificate.
    signer: (PathBuf, PathBuf),
    port: u16,
    process: Option<Process>,
    starts: u32,
}

impl Responder {
    /// Makes a signer of the authority and answers about these certificates, the revoked ones
    /// marked; no other is known.
    ///
    /// # Errors
    /// When OpenSSL does not come up.
    pub fn start(
        host: &Host,
        authority: &Authority,
        port: u16,
        certificates: &[(&Path, bool)],
    ) -> Result<Self> {
        let words = ["--flag", "ocspSigning"];
        let signer = authority.issue("ocsp", "CN=OCSP signer", "ocsp.example", P256, &words)?;
        let mut responder = Self {
            host: host.clone(),
            authority: authority.cert.clone(),
            signer,
            port,
            process: None,
            starts: 0,
        };
        responder.serve(certificates)?;
        Ok(responder)
    }

    /// Answers about these certificates from now on.
    ///
    /// # Errors
    /// When OpenSSL does not come up.
    pub fn serve(&mut self, certificates: &[(&Path, bool)]) -> Result<()> {
        self.kill()?;
        self.starts += 1;
        let dir = self.host.dir()?;
        let index = dir.join("ocsp-index.txt");
        let mut text = String::new();
        for (certificate, revoked) in certificates {
            let (state, since) =
                if *revoked { ("R", "260101000000Z,keyCompromise") } else { ("V", "") };
            let serial = pkitool::serial(certificate)?.to_ascii_uppercase();
            text += &format!("{state}\t491231235959Z\t{since}\t{serial}\tunknown\t/CN={serial}\n");
        }
        fs::write(&index, text)?;
        let mut command = self.host.command("openssl");
        command.args(["ocsp", "-port", &self.port.to_string(), "-nmin", "1", "-index"]).arg(&index);
        command.arg("-CA").arg(&self.authority).arg("-rsigner").arg(&self.signer.1);
        command.arg("-rkey").arg(&self.signer.0);
        let log = dir.join(format!("ocsp-{}.log", self.starts));
        self.process = Some(Process::start(self.host.lab(), "responder", command, &log)?);
        wait::holds(self.host.lab(), "the responder to listen", Duration::from_secs(5), || {
            Ok(fs::read_to_string(&log).unwrap_or_default().contains("ACCEPT"))
        })
    }

    /// Ends it, if it runs.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }
}
