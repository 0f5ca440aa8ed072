//! An unmodified strongSwan daemon (`charon-systemd` from Debian) on one host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::host::Host;
use super::process::Process;
use super::swanctl::{Conf, Connection};
use super::{Lab, cmd, next, wait};

/// The only plugins loaded, in two parts: between them stands what owns the SAs.
const PLUGINS: [&str; 2] = [
    "random nonce x509 revocation constraints pubkey pkcs1 pkcs8 pem openssl gcm curve25519 \
     chapoly hmac kdf drbg",
    "kernel-netlink socket-default vici updown",
];

/// The folders `swanctl` looks into; it complains about each that is missing.
const FOLDERS: [&str; 13] = [
    "x509", "x509ca", "x509ocsp", "x509aa", "x509ac", "x509crl", "pubkey", "private", "rsa",
    "ecdsa", "bliss", "pkcs8", "pkcs12",
];

/// How long the daemon may take to open its control socket.
const START_LIMIT: Duration = Duration::from_secs(10);

/// How long swanctl waits for a connection or its end.
const INITIATE_LIMIT: Duration = Duration::from_secs(20);

/// Settings of the daemon itself.
#[derive(Debug, Clone)]
pub struct Options {
    /// IKE fragment size in bytes.
    pub fragment_size: u32,
    /// First retransmission after this many seconds.
    pub retransmit_timeout: f32,
    /// Number of retransmissions before giving up.
    pub retransmit_tries: u32,
    /// Use RFC 7427 signatures; off means the classic methods of RFC 7296.
    pub signature_authentication: bool,
    /// Sign with PSS padding where the key is RSA.
    pub rsa_pss: bool,
    /// Fetch revocation lists and ask OCSP responders over HTTP.
    pub fetch: bool,
    /// The only way to learn a certificate's status, `ocsp` or `crl`; both when there is none.
    pub revocation: Option<String>,
    /// `/etc/hosts` for the daemon, when it must resolve names.
    pub hosts: Option<PathBuf>,
    /// Reauthenticate with the new IKE SA first.
    pub make_before_break: bool,
    /// Take certificates with unknown critical extensions, too, its own among them.
    pub any_critical: bool,
    /// EAP-TLS, with TLS fragments of this many octets.
    pub eap_tls: Option<u32>,
    /// Half-open SAs at which peers must return a cookie.
    pub cookie_threshold: u32,
    /// ESP in the kernel instead of kernel-libipsec's own; only the guest's kernel has it.
    pub kernel_esp: bool,
    /// Run the strongSwan of this root folder ([`next::root`]) instead of the machine's.
    pub root: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fragment_size: 1280,
            retransmit_timeout: 0.5,
            retransmit_tries: if crate::guest::inside() { 8 } else { 4 },
            signature_authentication: true,
            rsa_pss: false,
            any_critical: false,
            eap_tls: None,
            fetch: false,
            revocation: None,
            hosts: None,
            make_before_break: false,
            cookie_threshold: 30,
            kernel_esp: crate::guest::inside(),
            root: None,
        }
    }
}

/// A running strongSwan daemon with its own configuration folder.
pub struct Charon {
    host: Host,
    dir: PathBuf,
    process: Process,
}

impl Charon {
    /// Starts the daemon with a private `/run` and waits for its control socket.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(host: &Host, options: &Options) -> Result<Self> {
        let dir = host.dir()?.join("strongswan");
        for folder in FOLDERS {
            fs::create_dir_all(dir.join("swanctl").join(folder))?;
        }
        let conf = dir.join("strongswan.conf");
        fs::write(&conf, daemon_conf(&dir, options).text())?;
        // A daemon that ran here before may have left its socket.
        let socket = dir.join("vici.sock");
        let _ = fs::remove_file(&socket);
        // The daemon leaves pid files and sockets in /run: each gets its own.
        let program = "/usr/sbin/charon-systemd";
        let root = options.root.as_deref();
        let hosts = options.hosts.as_ref().map_or_else(String::new, |hosts| {
            let etc = root.map_or_else(String::new, |root| root.display().to_string());
            format!("mount --bind {} {etc}/etc/hosts && ", hosts.display())
        });
        let script = match root {
            Some(root) => next::enter(root, host.lab().dir(), program),
            None => format!("mount -t tmpfs lab /run && exec {program}"),
        };
        let script = format!("mount --make-rprivate / && {hosts}{script}");
        let conf = format!("STRONGSWAN_CONF={}", conf.display());
        let mut command = host.command("unshare");
        command.args(["-m", "env", &conf, "sh", "-c", &script]);
        let label = format!("charon on {}", host.name());
        let mut process = Process::start(host.lab(), &label, command, &dir.join("stdout.log"))?;
        host.lab().watch_log(&format!("{label} (log)"), &dir.join("charon.log"));
        wait::holds(host.lab(), &format!("{label} to start"), START_LIMIT, || {
            if let Some(code) = process.ended()? {
                bail!("{label} ended with {code} at start\n{}", host.lab().tails());
            }
            Ok(socket.exists())
        })?;
        Ok(Self { host: host.clone(), dir, process })
    }

    /// The host it runs on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The process, for signals.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A file below the swanctl folder, for example `x509/host.pem`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join("swanctl").join(name)
    }

    /// Copies a file below the swanctl folder.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn install(&self, from: &Path, name: &str) -> Result<()> {
        fs::copy(from, self.file(name))
            .with_context(|| format!("cannot install {} as {name}", from.display()))?;
        Ok(())
    }

    /// Writes the configuration (connections and anything in `more`) and loads it with all keys.
    ///
    /// # Errors
    /// When strongSwan does not accept it.
    pub fn load(&self, connections: &[Connection], more: &str) -> Result<()> {
        let conf = Conf::new().section("connections", |mut c| {
            for connection in connections {
                c = connection.write(c);
            }
            c
        });
        fs::write(self.file("swanctl.conf"), format!("{}{more}", conf.text()))?;
        let said = self.swanctl(&["--load-all", "--noprompt"])?;
        if !said.ok() || said.all().contains("failed") || said.all().contains("discarded") {
            bail!("strongSwan refused its configuration: {}", said.all());
        }
        Ok(())
    }

    /// Runs `swanctl` against this daemon.
    ///
    /// # Errors
    /// Only when it cannot be started.
    pub fn swanctl(&self, args: &[&str]) -> Result<cmd::Said> {
        let (verb, rest) = args.split_first().context("swanctl needs a command")?;
        let socket = format!("unix://{}/vici.sock", self.dir.display());
        let mut command = Command::new("swanctl");
        command
            .env("SWANCTL_DIR", self.dir.join("swanctl"))
            .env("STRONGSWAN_CONF", self.dir.join("strongswan.conf"))
            .args([verb, "--uri", &socket])
            .args(rest);
        cmd::output(&mut command)
    }

    /// Tries to bring a child up once and reports what strongSwan said.
    ///
    /// # Errors
    /// Only when swanctl cannot be started.
    pub fn try_initiate(&self, child: &str) -> Result<cmd::Said> {
        self.try_initiate_within(child, INITIATE_LIMIT)
    }

    /// As [`Charon::try_initiate`], where the gateway may take its time.
    ///
    /// # Errors
    /// Only when swanctl cannot be started.
    pub fn try_initiate_within(&self, child: &str, limit: Duration) -> Result<cmd::Said> {
        let seconds = (limit * crate::guest::patience()).as_secs().to_string();
        self.swanctl(&["--initiate", "--timeout", &seconds, "--child", child])
    }

    /// Brings a child up.
    ///
    /// # Errors
    /// When strongSwan reports a failure; the message holds both ends' last lines.
    pub fn initiate(&self, child: &str) -> Result<()> {
        let said = self.try_initiate(child)?;
        if !said.ok() {
            bail!("{} cannot connect: {}\n{}", self.host.name(), said.all(), self.lab().tails());
        }
        Ok(())
    }

    /// Ends an IKE SA by the connection's name.
    ///
    /// # Errors
    /// When strongSwan reports a failure.
    pub fn terminate(&self, name: &str) -> Result<()> {
        let seconds = (INITIATE_LIMIT * crate::guest::patience()).as_secs().to_string();
        let said = self.swanctl(&["--terminate", "--timeout", &seconds, "--ike", name])?;
        if !said.ok() {
            bail!("cannot terminate {name}: {}", said.all());
        }
        Ok(())
    }

    /// What `swanctl --list-sas` prints.
    ///
    /// # Errors
    /// Only when swanctl cannot be started.
    pub fn sas(&self) -> Result<String> {
        Ok(self.swanctl(&["--list-sas"])?.out)
    }

    /// The virtual addresses this client got, as listed with its SA (`[10.77.0.2]`).
    ///
    /// # Errors
    /// When there is none.
    pub fn virtual_addresses(&self) -> Result<Vec<String>> {
        let sas = self.sas()?;
        let line = sas
            .lines()
            .find(|line| line.trim_start().starts_with("local "))
            .with_context(|| format!("no SA on {}: {sas}", self.host.name()))?;
        let list = line.rsplit_once('[').and_then(|(_, rest)| rest.split_once(']'));
        let (list, _) = list.with_context(|| format!("no virtual address in `{line}`"))?;
        Ok(list.split_whitespace().map(str::to_owned).collect())
    }

    /// The daemon's own log (millisecond timestamps).
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("charon.log")).unwrap_or_default()
    }

    /// Waits for a text in the log, counted from byte `from`.
    ///
    /// # Errors
    /// When it does not appear in time.
    pub fn expect_log(&self, from: usize, text: &str, limit: Duration) -> Result<()> {
        let what = format!("`{text}` in the strongSwan log of {}", self.host.name());
        wait::holds(self.lab(), &what, limit, || {
            Ok(self.log().get(from..).is_some_and(|log| log.contains(text)))
        })
    }

    /// Ends the daemon.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop(&self.host.lab().clone(), Duration::from_secs(10)).map(drop)
    }

    fn lab(&self) -> &Lab {
        self.host.lab()
    }
}

fn daemon_conf(dir: &Path, options: &Options) -> Conf {
    let vici = format!("unix://{}/vici.sock", dir.display());
    let log = dir.join("charon.log").display().to_string();
    let [first, last] = PLUGINS;
    // The earlier of two kernel plugins owns the SAs.
    let esp = if options.kernel_esp { "" } else { "kernel-libipsec" };
    let fetch = if options.fetch { "curl" } else { "" };
    let eap = if options.eap_tls.is_some() { "eap-identity eap-tls" } else { "" };
    Conf::new()
        .section("charon", |c| {
            c.set("load", &format!("{first} {fetch} {eap} {esp} {last}"))
                .set("install_virtual_ip", "yes")
                .set("fragment_size", &options.fragment_size.to_string())
                .set("retransmit_timeout", &format!("{:.1}", options.retransmit_timeout))
                .set("retransmit_tries", &options.retransmit_tries.to_string())
                .set("retransmit_base", "1.4")
                .set("make_before_break", if options.make_before_break { "yes" } else { "no" })
                .set("cookie_threshold", &options.cookie_threshold.to_string())
                .set(
                    "signature_authentication",
                    if options.signature_authentication { "yes" } else { "no" },
                )
                .set("rsa_pss", if options.rsa_pss { "yes" } else { "no" })
                .section("x509", |x| {
                    x.set("enforce_critical", if options.any_critical { "no" } else { "yes" })
                })
                .section("plugins", |p| {
                    let mut p = p.section("vici", |v| v.set("socket", &vici));
                    // Scripts are told the DNS servers; nothing is written into the machine's own files.
                    p = p.section("updown", |u| u.set("dns_handler", "yes"));
                    if let Some(size) = options.eap_tls {
                        p = p.section("eap-tls", |e| {
                            e.set("fragment_size", &size.to_string()).set("max_message_count", "60")
                        });
                    }
                    let Some(only) = &options.revocation else { return p };
                    let flag = |way: &str| if way == only { "yes" } else { "no" };
                    p.section("revocation", |r| {
                        r.set("enable_ocsp", flag("ocsp")).set("enable_crl", flag("crl"))
                    })
                })
                .section("filelog", |f| {
                    f.section("lab", |l| {
                        l.set("path", &log)
                            .set("time_format", "%T")
                            .set("time_add_ms", "yes")
                            .set("flush_line", "yes")
                            .set("default", "1")
                            .set("ike", "2")
                            .set("cfg", "2")
                    })
                })
        })
        // Most of a command's time went into loading plugins that it never asks.
        .section("swanctl", |s| s.set("load", "random x509 pubkey pkcs1 pkcs8 pem openssl"))
}
