//! strongSwan's `pki` command: the stock enrolment client, and a certificate authority for tests.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine as _;

use super::cmd::{self, Said};
use super::host::Host;
use super::next;

/// Kind and size of a key, in `pki --gen` terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyType {
    /// `ecdsa`, `rsa` or `ed25519`.
    pub kind: &'static str,
    /// Bits; 0 where the kind has one size.
    pub bits: u32,
}

/// An extension that nobody knows: of the enterprise number for examples (RFC 5612).
pub const STRANGE: &str = "1.3.6.1.4.1.32473.1";

/// ECDSA on P-256.
pub const P256: KeyType = KeyType { kind: "ecdsa", bits: 256 };
/// ECDSA on P-384.
pub const P384: KeyType = KeyType { kind: "ecdsa", bits: 384 };
/// ECDSA on P-521.
pub const P521: KeyType = KeyType { kind: "ecdsa", bits: 521 };
/// RSA with 2048 bits.
pub const RSA2048: KeyType = KeyType { kind: "rsa", bits: 2048 };
/// RSA with 4096 bits.
pub const RSA4096: KeyType = KeyType { kind: "rsa", bits: 4096 };
/// Ed25519.
pub const ED25519: KeyType = KeyType { kind: "ed25519", bits: 0 };

/// Makes a private key (PEM, PKCS#8) at `to`.
///
/// # Errors
/// When `pki` fails.
pub fn generate(key: KeyType, to: &Path) -> Result<()> {
    let bits = key.bits.to_string();
    let mut args = vec!["--gen", "--type", key.kind, "--outform", "pem"];
    if key.bits > 0 {
        args.extend(["--size", &bits]);
    }
    fs::write(to, pki(&args)?).with_context(|| format!("cannot write {}", to.display()))
}

/// Makes a certificate request for `key` at `to`.
///
/// # Errors
/// When `pki` fails.
pub fn request(key: &Path, dn: &str, to: &Path) -> Result<()> {
    let key = key.display().to_string();
    fs::write(
        to,
        pki(&["--req", "--in", &key, "--type", "priv", "--dn", dn, "--outform", "pem"])?,
    )?;
    Ok(())
}

/// Makes a certificate request for `key` at `to`, with a password inside that is no argument of
/// any command.
///
/// # Errors
/// When `pki` fails.
pub fn request_with_password(key: &Path, dn: &str, password: &str, to: &Path) -> Result<()> {
    let options = to.with_extension("opt");
    fs::write(&options, format!("--password {password}\n"))?;
    let (key, file) = (key.display().to_string(), options.display().to_string());
    let words = ["--req", "--in", &key, "--type", "priv", "--dn", dn, "--options", &file];
    fs::write(to, pki(&[&words[..], &["--outform", "pem"]].concat())?)?;
    fs::remove_file(options)?;
    Ok(())
}

/// The subject of a certificate in strongSwan's spelling.
///
/// # Errors
/// When `pki` fails.
pub fn subject(cert: &Path) -> Result<String> {
    Ok(pki(&["--dn", "--in", &cert.display().to_string()])?.trim().to_owned())
}

/// What `pki --print` says about a certificate.
///
/// # Errors
/// When `pki` fails.
pub fn print(cert: &Path) -> Result<String> {
    pki(&["--print", "--in", &cert.display().to_string()])
}

/// The serial number of a certificate as lower-case hexadecimal without separators.
///
/// # Errors
/// When `openssl` cannot read it.
pub fn serial(cert: &Path) -> Result<String> {
    let said =
        cmd::run("openssl", &["x509", "-noout", "-serial", "-in", &cert.display().to_string()])?;
    let hex = said.trim().strip_prefix("serial=").context("openssl printed no serial")?;
    Ok(hex.to_ascii_lowercase())
}

/// SHA-256 of a key's SubjectPublicKeyInfo, hexadecimal, as an operator takes it.
///
/// # Errors
/// When `openssl` cannot read it.
pub fn public_key_hash(key: &Path) -> Result<String> {
    let public = key.with_extension("public.der");
    let (key, public) = (key.display().to_string(), public.display().to_string());
    cmd::run("openssl", &["pkey", "-in", &key, "-pubout", "-outform", "DER", "-out", &public])?;
    let said = cmd::run("openssl", &["dgst", "-sha256", "-r", &public])?;
    Ok(said.split_whitespace().next().context("openssl printed no digest")?.to_owned())
}

/// An enrolment server as the stock client sees it.
#[derive(Debug, Clone)]
pub struct Est {
    /// Base URL, for example `https://gw.example.com:8443`.
    pub url: String,
    /// The pinned root (PEM file).
    pub root: PathBuf,
    /// `/etc/hosts` for the client, so that the URL's name resolves.
    pub hosts: PathBuf,
    /// Run the `pki` of this root folder ([`super::next::root`]) instead of the machine's.
    pub newer: Option<PathBuf>,
}

impl Est {
    /// Fetches the CA chain with `pki --estca`. strongSwan writes the first CA to `to` and any
    /// other beside it as `NAME-1.pem` and so on; the result lists what was written.
    ///
    /// # Errors
    /// When the client fails.
    pub fn ca_certs(&self, from: &Host, to: &Path) -> Result<Vec<PathBuf>> {
        let to_text = to.display().to_string();
        let root = self.root.display().to_string();
        let said = self.pki(
            from,
            &[
                "--estca",
                "--url",
                &self.url,
                "--cacert",
                &root,
                "--caout",
                &to_text,
                "--outform",
                "pem",
                "--force",
            ],
        )?;
        if !said.ok() {
            bail!("pki --estca failed: {}\n{}", said.all(), from.lab().tails());
        }
        let mut found = vec![to.to_owned()];
        let stem = to.with_extension("").display().to_string();
        for number in 1..8 {
            let next = PathBuf::from(format!("{stem}-{number}.pem"));
            if next.exists() {
                found.push(next);
            }
        }
        Ok(found)
    }

    /// Enrols a request with `pki --est --userpass` and reports what the client said; on success
    /// its standard output is the certificate.
    ///
    /// # Errors
    /// Only when the client cannot be started.
    pub fn enrol(&self, from: &Host, request: &Path, userpass: &str) -> Result<Said> {
        self.est(from, request, &["--userpass", userpass])
    }

    /// Enrols a request that carries its own proof.
    ///
    /// # Errors
    /// Only when the client cannot be started.
    pub fn enrol_bare(&self, from: &Host, request: &Path) -> Result<Said> {
        self.est(from, request, &[])
    }

    fn est(&self, from: &Host, request: &Path, more: &[&str]) -> Result<Said> {
        let (request, root) = (request.display().to_string(), self.root.display().to_string());
        let words = ["--est", "--url", &self.url, "--cacert", &root, "--in", &request];
        self.pki(from, &[&words[..], more, &["--outform", "pem"]].concat())
    }

    /// Renews a certificate (simplereenroll): the old one authenticates the request.
    ///
    /// # Errors
    /// Only when the client cannot be started.
    pub fn renew(&self, from: &Host, request: &Path, cert: &Path, key: &Path) -> Result<Said> {
        let text = |path: &Path| path.display().to_string();
        let (request, root) = (text(request), text(&self.root));
        let (cert, key) = (text(cert), text(key));
        self.pki(
            from,
            &[
                "--est",
                "--url",
                &self.url,
                "--cacert",
                &root,
                "--in",
                &request,
                "--cert",
                &cert,
                "--key",
                &key,
                "--outform",
                "pem",
            ],
        )
    }

    /// Runs `pki` on a host with this server's name in its `/etc/hosts`.
    fn pki(&self, from: &Host, args: &[&str]) -> Result<Said> {
        /// What it says when the server has not waited for the end of the handshake.
        const CUT_OFF: &str = "EST request failed: HTTP 0";
        let mut tries = crate::guest::patience();
        loop {
            let mut command = match &self.newer {
                Some(newer) => with_hosts_below(from, &self.hosts, newer),
                None => with_hosts(from, &self.hosts),
            };
            command.arg("pki").args(args);
            if crate::guest::inside() {
                command.env("STRONGSWAN_CONF", crate::guest::EST_CONF);
            }
            let said = cmd::output(&mut command)?;
            tries -= 1;
            // A machine in software may be slower than any server's patience.
            if said.ok() || tries == 0 || !said.all().contains(CUT_OFF) {
                return Ok(said);
            }
        }
    }

    /// Enrols at one of the server's labels, by the option of a newer client.
    ///
    /// # Errors
    /// Only when the client cannot be started.
    pub fn enrol_label(
        &self,
        from: &Host,
        request: &Path,
        userpass: &str,
        label: &str,
    ) -> Result<Said> {
        self.est(from, request, &["--userpass", userpass, "--label", label])
    }
}

/// The same with the programs below another root folder.
fn with_hosts_below(host: &Host, hosts: &Path, root: &Path) -> std::process::Command {
    let mut command = host.command("unshare");
    let etc = root.join("etc/hosts");
    let (etc, hosts) = (etc.display(), hosts.display());
    let script = format!(
        "touch {etc} && mount --bind {hosts} {etc} && {}",
        next::enter(root, host.lab().dir(), "\"$@\"")
    );
    command.args(["-m", "sh", "-c", &script, "sh"]);
    command
}

/// A command prefix that runs the following words on `host` with its own `/etc/hosts`.
#[must_use]
pub fn with_hosts(host: &Host, hosts: &Path) -> std::process::Command {
    let mut command = host.command("unshare");
    let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    command.args(["-m", "sh", "-c", &script, "sh"]);
    command
}

/// A certificate authority made with `pki`, for baselines and negative tests.
pub struct Authority {
    dir: PathBuf,
    /// The authority's own certificate (PEM file).
    pub cert: PathBuf,
}

impl Authority {
    /// Makes a self-signed authority in `dir`.
    ///
    /// # Errors
    /// When `pki` fails.
    pub fn new(dir: &Path, name: &str, key: KeyType) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let authority = Self { dir: dir.to_owned(), cert: dir.join("ca.pem") };
        let private = authority.key();
        generate(key, &private)?;
        let private = private.display().to_string();
        let dn = format!("CN={name}");
        let pem = pki(&[
            "--self",
            "--ca",
            "--in",
            &private,
            "--type",
            "priv",
            "--dn",
            &dn,
            "--lifetime",
            "2",
            "--outform",
            "pem",
        ])?;
        fs::write(&authority.cert, pem)?;
        Ok(authority)
    }

    /// An intermediate authority signed by this one.
    ///
    /// # Errors
    /// When `pki` fails.
    pub fn intermediate(&self, dir: &Path, name: &str, key: KeyType) -> Result<Self> {
        self.intermediate_with(dir, name, key, &[])
    }

    /// An intermediate authority with further `pki --issue` words, for example `--pathlen`.
    ///
    /// # Errors
    /// When `pki` fails.
    pub fn intermediate_with(
        &self,
        dir: &Path,
        name: &str,
        key: KeyType,
        extra: &[&str],
    ) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let sub = Self { dir: dir.to_owned(), cert: dir.join("ca.pem") };
        generate(key, &sub.key())?;
        let words = [&["--ca", "--lifetime", "2"], extra].concat();
        self.sign(&sub.key(), &format!("CN={name}"), &words, &sub.cert)?;
        Ok(sub)
    }

    /// A revocation list (PEM) with these certificates on it.
    ///
    /// # Errors
    /// When `pki` fails.
    pub fn revocation_list(&self, revoked: &[&Path]) -> Result<String> {
        let (cert, key) = (self.cert.display().to_string(), self.key().display().to_string());
        let mut words: Vec<String> = ["--signcrl", "--lifetime", "1", "--outform", "pem"]
            .iter()
            .chain(&["--cacert", &cert, "--cakey", &key])
            .map(|word| (*word).to_owned())
            .collect();
        for path in revoked {
            words.extend(["--reason".to_owned(), "key-compromise".to_owned()]);
            words.extend(["--cert".to_owned(), path.display().to_string()]);
        }
        pki(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Makes a key and a certificate for it: `BASE-key.pem` and `BASE.pem` in the authority's
    /// folder. `extra` are further `pki --issue` words, for example `--not-after`.
    ///
    /// # Errors
    /// When `pki` fails.
    pub fn issue(
        &self,
        base: &str,
        dn: &str,
        san: &str,
        key: KeyType,
        extra: &[&str],
    ) -> Result<(PathBuf, PathBuf)> {
        let private = self.dir.join(format!("{base}-key.pem"));
        let cert = self.dir.join(format!("{base}.pem"));
        generate(key, &private)?;
        let mut words = vec!["--san", san];
        if !extra.contains(&"--not-after") {
            words.extend(["--lifetime", "1"]);
        }
        words.extend(extra);
        self.sign(&private, dn, &words, &cert)?;
        Ok((private, cert))
    }

    /// As [`Authority::issue`], with an extension that nobody knows, which `pki` cannot write.
    ///
    /// # Errors
    /// When `pki` or `openssl` fails.
    pub fn issue_strange(
        &self,
        base: &str,
        name: &str,
        san: &str,
        critical: bool,
    ) -> Result<(PathBuf, PathBuf)> {
        let path = |end: &str| self.dir.join(format!("{base}{end}"));
        let (private, cert, request) = (path("-key.pem"), path(".pem"), path(".req"));
        generate(P256, &private)?;
        let critical = if critical { "critical," } else { "" };
        let extensions = path(".cnf");
        let lines = [
            format!("subjectAltName=DNS:{san}"),
            "authorityKeyIdentifier=keyid".to_owned(),
            format!("{STRANGE}={critical}ASN1:UTF8String:strange\n"),
        ];
        fs::write(&extensions, lines.join("\n"))?;
        let text = |path: &Path| path.display().to_string();
        let subject = format!("/CN={name}");
        let key = text(&private);
        let request = text(&request);
        cmd::run("openssl", &["req", "-new", "-key", &key, "-subj", &subject, "-out", &request])?;
        let (ca, ca_key) = (text(&self.cert), text(&self.key()));
        let words = ["x509", "-req", "-days", "1", "-in", &request, "-CA", &ca, "-CAkey", &ca_key];
        let files = ["-extfile", &text(&extensions), "-out", &text(&cert)];
        let serial = ["-set_serial", &format!("0x{:x}", std::process::id()), "-sha256"];
        cmd::run("openssl", &[&words[..], &serial, &files].concat())?;
        Ok((private, cert))
    }

    /// A certificate (DER) for a request (DER), with the request's subject and another name.
    ///
    /// # Errors
    /// When `pki` fails.
    pub fn certify(&self, request: &Path, san: &str) -> Result<Vec<u8>> {
        let (ca_cert, ca_key) = (self.cert.display().to_string(), self.key().display().to_string());
        let request = request.display().to_string();
        let words = ["--issue", "--cacert", &ca_cert, "--cakey", &ca_key, "--lifetime", "1"];
        let input = ["--in", &request, "--type", "pkcs10", "--san", san, "--outform", "pem"];
        der(&pki(&[&words[..], &input].concat())?)
    }

    fn sign(&self, private: &Path, dn: &str, words: &[&str], to: &Path) -> Result<()> {
        let private = private.display().to_string();
        let (ca_cert, ca_key) = (self.cert.display().to_string(), self.key().display().to_string());
        let mut args = vec![
            "--issue",
            "--cacert",
            &ca_cert,
            "--cakey",
            &ca_key,
            "--in",
            &private,
            "--type",
            "priv",
            "--dn",
            dn,
            "--outform",
            "pem",
        ];
        args.extend(words);
        fs::write(to, pki(&args)?)?;
        Ok(())
    }

    fn key(&self) -> PathBuf {
        self.dir.join("ca-key.pem")
    }
}

/// The only block of a PEM text.
///
/// # Errors
/// When it is no base64.
pub fn der(text: &str) -> Result<Vec<u8>> {
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    base64::engine::general_purpose::STANDARD.decode(body).context("no PEM from pki")
}

fn pki(args: &[&str]) -> Result<String> {
    cmd::run("pki", args)
}
