//! What most labs begin with: the network, a running gateway, the artifact store, enrolment.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::lab::Lab;
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{Gateway, ID, Settings};
use crate::lab::host::Host;
use crate::lab::http::{self, Download, Server};
use crate::lab::pkitool::{self, Est, KeyType};
use crate::lab::process::Process;
use crate::lab::swanctl::Connection;
use crate::lab::wait;
use crate::lab::world::{FORBIDDEN, GATEWAY, PRIVATE_NET, RUNNERS, STORE, Shape, World};

/// How long a download that must succeed may take; some carry 100 MB.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(300);

/// How long pings may take to reach their number.
const PING_LIMIT: Duration = Duration::from_secs(120);

/// How long a lease may take to follow its tunnel.
const LEASE_LIMIT: Duration = Duration::from_secs(45);

/// A network with a running gateway and an artifact store.
pub(crate) struct Scene {
    pub(crate) gateway: Gateway,
    pub(crate) store: Server,
    pub(crate) forbidden: Server,
    pub(crate) world: World,
    pub(crate) lab: Lab,
}

/// A key, its certificate and the chain to trust, as the stock client got them.
pub(crate) struct Credentials {
    pub(crate) key: PathBuf,
    pub(crate) request: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) chain: Vec<PathBuf>,
    pub(crate) subject: String,
    pub(crate) serial: String,
    pub(crate) token: String,
}

impl Scene {
    /// Builds the network and starts everything.
    pub(crate) fn new(lab: &Lab, shape: Shape, settings: &Settings) -> Result<Self> {
        let world = World::new(lab, shape)?;
        let networks: Vec<&str> = settings.addresses.iter().map(String::as_str).collect();
        lab.leaks().protect(&networks)?;
        lab.step("the network is built");
        let gateway = Gateway::start(&world.gateway, settings)?;
        lab.step("the gateway is up");
        Self::around(world, gateway)
    }

    /// Puts the artifact store beside a gateway that exists already.
    pub(crate) fn around(world: World, gateway: Gateway) -> Result<Self> {
        let store = Server::start(&world.private, world.store())?;
        let forbidden = Server::start(&world.private, world.forbidden())?;
        // No tunnel's selectors hold it: clients ask it beside the tunnel, in clear, and in vain.
        world.lab.leaks().expect_from_now(RUNNERS, FORBIDDEN)?;
        Ok(Self { gateway, store, forbidden, lab: world.lab.clone(), world })
    }

    /// The enrolment server, its root taken from `runnel ca root`.
    pub(crate) fn est(&self) -> Result<Est> {
        let root = self.lab.path("root.pem");
        fs::write(&root, self.gateway.told(&["ca", "root"])?)?;
        let hosts = self.lab.path("hosts");
        fs::write(&hosts, format!("127.0.0.1 localhost\n{GATEWAY} {ID}\n"))?;
        Ok(Est { url: format!("https://{ID}:8443"), root, hosts, newer: None })
    }

    /// Enrols with a fresh one-time token, exactly as the documentation tells an operator.
    pub(crate) fn enrol(&self, host: &Host, name: &str, key: KeyType) -> Result<Credentials> {
        let token = self.gateway.token()?;
        let dir = host.dir()?.join(name);
        fs::create_dir_all(&dir)?;
        let private = dir.join("key.pem");
        pkitool::generate(key, &private)?;
        self.enrol_with(host, &dir, &token)
    }

    /// Enrols the key in `dir` with a given token.
    pub(crate) fn enrol_with(&self, host: &Host, dir: &Path, token: &str) -> Result<Credentials> {
        let est = self.est()?;
        let (key, request, cert) = (dir.join("key.pem"), dir.join("req.der"), dir.join("cert.pem"));
        pkitool::request(&key, "CN=ci", &request)?;
        let chain = est.ca_certs(host, &dir.join("ca.pem"))?;
        let said = est.enrol(host, &request, &format!("builder:{token}"))?;
        if !said.ok() {
            bail!("pki --est failed: {}\n{}", said.all(), self.lab.tails());
        }
        fs::write(&cert, &said.out)?;
        self.lab.step(&format!("{} has a certificate", host.name()));
        let subject = pkitool::subject(&cert)?;
        let serial = pkitool::serial(&cert)?;
        let token = token.to_owned();
        Ok(Credentials { key, request, cert, chain, subject, serial, token })
    }

    /// The connection a runner needs, ready to be changed by a lab.
    pub(crate) fn connection(&self, credentials: &Credentials) -> Connection {
        Connection {
            remote_addr: GATEWAY.to_owned(),
            vips: vec!["0.0.0.0".to_owned()],
            local_id: credentials.subject.clone(),
            remote_id: ID.to_owned(),
            remote_ts: PRIVATE_NET.to_owned(),
            ..Connection::default()
        }
    }

    /// Starts strongSwan on a runner with these credentials and one connection named `net`.
    pub(crate) fn runner(
        &self,
        host: &Host,
        credentials: &Credentials,
        change: impl FnOnce(&mut Connection),
    ) -> Result<Charon> {
        let charon = Charon::start(host, &Options::default())?;
        self.load(&charon, credentials, change)?;
        Ok(charon)
    }

    /// Loads credentials and the connection `net` into a running strongSwan.
    pub(crate) fn load(
        &self,
        charon: &Charon,
        credentials: &Credentials,
        change: impl FnOnce(&mut Connection),
    ) -> Result<()> {
        install(charon, credentials)?;
        let mut connection = self.connection(credentials);
        change(&mut connection);
        charon.load(&[connection], "")
    }

    /// Enrols and connects the first runner.
    pub(crate) fn connected(&self, key: KeyType) -> Result<(Charon, Credentials)> {
        let host = self.world.runner();
        let credentials = self.enrol(host, "enrolled", key)?;
        let charon = self.runner(host, &credentials, |_| {})?;
        charon.initiate("net")?;
        self.agree(&charon)?;
        Ok((charon, credentials))
    }

    /// Both ends list the same IKE SA with the same children, by SPI.
    pub(crate) fn agree(&self, charon: &Charon) -> Result<()> {
        agree(&self.gateway, charon)
    }

    /// Waits until both ends agree after a rekey or a reauthentication.
    pub(crate) fn settle(&self, charon: &Charon) -> Result<()> {
        agreed(&self.lab, &self.gateway, charon)
    }

    /// Downloads generated bytes from the store and checks them.
    pub(crate) fn download(&self, host: &Host, size: u64) -> Result<Download> {
        let got = http::download(host, &self.store.url(size), DOWNLOAD_LIMIT)
            .with_context(|| format!("last lines\n{}", self.lab.tails()))?;
        if got.bytes != size {
            bail!("{} of {size} bytes arrived", got.bytes);
        }
        Ok(got)
    }

    /// From here on runners may be without tunnel: what they go on sending to the store is in
    /// clear, and nobody answers.
    pub(crate) fn without_tunnel(&self) -> Result<()> {
        self.lab.leaks().expect_from_now(RUNNERS, STORE)
    }

    /// The store must not answer a host.
    pub(crate) fn no_download(&self, host: &Host) -> Result<()> {
        // A client that has no tunnel asks in clear.
        let _in_clear = self.lab.leaks().expect(RUNNERS, STORE)?;
        let before = self.store.requests();
        if http::download(host, &self.store.url(1), Duration::from_millis(1500)).is_ok()
            || self.store.requests() != before
        {
            bail!("the store answers although there must be no tunnel");
        }
        Ok(())
    }

    /// Waits until the gateway has no IKE SA.
    pub(crate) fn no_sas(&self, limit: Duration) -> Result<()> {
        wait::holds(&self.lab, "the gateway's SA list to be empty", limit, || {
            Ok(self.gateway.sas()?.is_empty())
        })
    }

    /// Waits until the lease that `look` reads has a state, and returns it: leases follow their
    /// tunnels through the store, a moment later.
    pub(crate) fn lease_in_state(
        &self,
        state: &str,
        mut look: impl FnMut() -> Result<Value>,
    ) -> Result<Value> {
        wait::until(&self.lab, &format!("the lease to be {state}"), LEASE_LIMIT, || {
            let lease = look()?;
            Ok((lease["state"] == state).then_some(lease))
        })
    }

    /// What must hold at the end of every lab: the gateway runs, has not panicked, and no SA is
    /// without a live lease. The leak check, which follows, learns whose sources tunnels may bring.
    pub(crate) fn finish(mut self) -> Result<()> {
        if let Some(code) = self.gateway.process()?.ended()? {
            bail!("runnel ended with code {code}\n{}", self.lab.tails());
        }
        self.lab.leaks().own(&self.gateway.leased()?)?;
        let status = self.gateway.json(&["status"])?;
        if status["sas_without_lease"] != 0 {
            bail!("there are SAs without a live lease: {status}");
        }
        let log = self.gateway.log();
        if let Some(line) = log.lines().find(|line| line.contains("panicked")) {
            bail!("runnel panicked: {line}");
        }
        let code = self.gateway.stop()?;
        if code != 0 {
            bail!("runnel stopped with exit code {code}\n{}", self.lab.tails());
        }
        Ok(())
    }
}

/// Both ends list the same IKE SA with the same children, by SPI.
pub(crate) fn agree(gateway: &Gateway, charon: &Charon) -> Result<()> {
    let theirs = charon.sas()?;
    let ours = gateway.sas()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let listed = |spi: &Value| spi.as_str().is_some_and(|spi| theirs.contains(spi));
    let sa = ours.iter().find(|sa| listed(&sa["spi_i"]) && listed(&sa["spi_r"]));
    let sa = sa.with_context(|| format!("no IKE SA in common: {ours:?}\n{theirs}"))?;
    let children = sa["children"].as_array().context("no list of children")?;
    // `in  c3a1b2d4,   1200 bytes, ...`
    let half = |way: &str, spi: &str| {
        theirs.lines().any(|line| {
            let mut words = line.split_whitespace().map(|word| word.trim_end_matches(','));
            words.next() == Some(way) && words.next() == Some(spi)
        })
    };
    let same = |child: &Value| {
        half("in", &text(&child["spi_out"])) && half("out", &text(&child["spi_in"]))
    };
    let installed = theirs.matches("INSTALLED").count();
    if children.is_empty() || installed != children.len() || !children.iter().all(same) {
        bail!("other children at either end: {children:?}\n{theirs}");
    }
    Ok(())
}

/// Waits until both ends agree, when one of them is a moment behind.
pub(crate) fn agreed(lab: &Lab, gateway: &Gateway, charon: &Charon) -> Result<()> {
    wait::until(lab, "the same SAs at both ends", Duration::from_secs(10), || {
        Ok(agree(gateway, charon).ok())
    })
}

/// Copies credentials to where strongSwan looks for them.
pub(crate) fn install(charon: &Charon, credentials: &Credentials) -> Result<()> {
    charon.install(&credentials.key, "private/host.pem")?;
    charon.install(&credentials.cert, "x509/host.pem")?;
    for (number, file) in credentials.chain.iter().enumerate() {
        charon.install(file, &format!("x509ca/ca-{number}.pem"))?;
    }
    Ok(())
}

/// Pings and returns (sent, received).
pub(crate) fn ping(host: &Host, address: &str, count: u32, interval: f32) -> Result<(u32, u32)> {
    let said = host.output(
        "ping",
        &[
            "-n",
            "-q",
            "-c",
            &count.to_string(),
            "-i",
            &format!("{interval:.2}"),
            "-W",
            "2",
            address,
        ],
    )?;
    ping_counts(&said.out).with_context(|| format!("ping said: {}", said.all()))
}

/// A ping that runs beside something else, until it is finished.
pub(crate) struct Pings {
    process: Process,
    lab: Lab,
}

/// What became of [`Pings`].
pub(crate) struct Pinged {
    /// Echo requests sent.
    pub(crate) sent: u32,
    /// Numbers of those that were not answered. The very last one is never among them: its answer
    /// may still have been on its way.
    pub(crate) lost: Vec<u32>,
}

impl Pings {
    /// Starts pinging every `interval` seconds.
    pub(crate) fn start(host: &Host, address: &str, interval: f32) -> Result<Self> {
        let log = host.dir()?.join(format!("ping-{address}.log"));
        // Numbers of a former run would count as answers of this one.
        let _ = fs::remove_file(&log);
        let mut command = host.command("ping");
        command.args(["-n", "-i", &format!("{interval:.2}"), address]);
        let process = Process::start(host.lab(), &format!("ping to {address}"), command, &log)?;
        Ok(Self { process, lab: host.lab().clone() })
    }

    /// Waits until the request of this number, or a later one, is answered.
    pub(crate) fn reach(&self, count: u32) -> Result<()> {
        wait::holds(&self.lab, &format!("{count} pings"), PING_LIMIT, || {
            Ok(answered(&self.process.log()).last().is_some_and(|last| *last >= count))
        })
    }

    /// Ends it.
    pub(crate) fn finish(mut self) -> Result<Pinged> {
        self.process.signal(Signal::INT)?;
        self.process.wait(&self.lab, PING_LIMIT)?;
        let log = self.process.log();
        let (sent, _) = ping_counts(&log).with_context(|| format!("ping said: {log}"))?;
        let answered = answered(&log);
        let lost = (1..sent).filter(|number| !answered.contains(number)).collect();
        Ok(Pinged { sent, lost })
    }
}

/// Numbers of the echo requests that ping saw answered.
fn answered(log: &str) -> BTreeSet<u32> {
    log.lines()
        .filter(|line| line.contains("bytes from"))
        .filter_map(|line| line.split_once("icmp_seq=")?.1.split_whitespace().next()?.parse().ok())
        .collect()
}

/// Reads `600 packets transmitted, 600 received` from ping's summary.
pub(crate) fn ping_counts(text: &str) -> Option<(u32, u32)> {
    let line = text.lines().find(|line| line.contains("packets transmitted"))?;
    let mut words = line.split([' ', ',']).filter_map(|word| word.parse::<u32>().ok());
    Some((words.next()?, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_of_ping_is_read() {
        let text = "\n--- 10.20.0.10 ping statistics ---\n\
                    600 packets transmitted, 599 received, 0.166667% packet loss, time 59900ms\n";
        assert_eq!(ping_counts(text), Some((600, 599)));
    }

    #[test]
    fn answered_pings_are_told_by_their_number() {
        let text = "PING 10.20.0.10 (10.20.0.10) 56(84) bytes of data.\n\
                    64 bytes from 10.20.0.10: icmp_seq=1 ttl=63 time=0.512 ms\n\
                    From 198.51.100.1 icmp_seq=2 Destination Host Unreachable\n\
                    64 bytes from 10.20.0.10: icmp_seq=12 ttl=63 time=0.498 ms\n";
        assert_eq!(answered(text), BTreeSet::from([1, 12]));
    }
}
