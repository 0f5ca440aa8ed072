//! Many runners at once, from one address, while a stranger does what he can against them.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use ike::Input;
use ike::crypto::ring::PROVIDER;
use ike::crypto::{EspSuite, IkeSuite};
use ike::io::Command;
use ike::wire::Identification;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::runner::{PORTS, Runner, local_address, now, subject};
use super::scene::Scene;
use crate::hostile::cookies;
use crate::lab::Lab;
use crate::lab::gateway::{ID, Settings};
use crate::lab::pkitool::der;
use crate::lab::wait;
use crate::lab::world::{GATEWAY, Shape};
use crate::real::{Identity, Party, any_grant, config, p256_key, p256_request, target};

/// Runners behind the one address.
const RUNNERS: usize = 200;
/// All of them are connected in this time.
const LIMIT: Duration = Duration::from_secs(15);
/// Cookies the stranger returns each second.
const RATE: u32 = 500;
/// Cookies he has returned at least, on however slow a machine.
const ENOUGH: u64 = 1000;
/// How long he may take until every place for half-open IKE SAs is his; the first runner comes
/// then. They are forgotten after 30 s, and he fills them again.
const HEAD_START: Duration = Duration::from_secs(25);
/// Places for half-open IKE SAs, as configured.
const PLACES: usize = 1024;
/// Enrolments at once.
const ENROLLING: usize = 4;
/// The address all runners share.
const SHARED: &str = "198.51.100.10";

/// 200 runners behind one NAT address all connect within 15 s while another real address returns
/// 500 cookies a second.
///
/// The runners are engines of this workspace with real cryptography over real sockets in the
/// runner's namespace, since 200 strongSwan daemons want more cores than they exercise the
/// gateway. Their certificates come from the gateway's enrolment service through the stock client;
/// of the gateway's certificate they check the name and the key alone, and their child SAs carry
/// no packets: the other labs do both.
pub(super) fn runners(lab: &Lab) -> Result<()> {
    let shape = Shape { runner_nat: true, ..Shape::default() };
    let ike = format!("max_half_open = {PLACES}\n");
    // They enrol from one address; the limit for strangers is another matter.
    let limit = "rate = 10000\nburst = 10000".to_owned();
    let scene = Scene::new(lab, shape, &Settings { ike, enrol: limit, ..Settings::default() })?;
    lab.step(&format!("enrolling {RUNNERS} runners"));
    let identities = enrol(&scene, RUNNERS)?;
    lab.step("enrolled");

    let stranger = scene.world.internet.enter(|| UdpSocket::bind("203.0.113.1:0"))??;
    let gateway = SocketAddr::new(GATEWAY.parse()?, PORTS.0);
    let stop = AtomicBool::new(false);
    let (done, mut fleet) = std::thread::scope(|scope| {
        let attack =
            scope.spawn(|| cookies::run(&stranger, gateway, RATE, HEAD_START + 2 * LIMIT, &stop));
        let full = wait::holds(lab, "every place to be the stranger's", HEAD_START, || {
            Ok(scene.gateway.json(&["status"])?["half_open"] == PLACES)
        });
        if let Err(error) = full {
            stop.store(true, Ordering::Relaxed);
            return Err(error);
        }
        lab.step(&format!("{PLACES} half-open IKE SAs are the stranger's"));
        let fleet = scene.world.runner().enter(|| {
            let mut fleet = Fleet::new(identities, gateway)?;
            fleet.connect(LIMIT)?;
            anyhow::Ok(fleet)
        });
        stop.store(true, Ordering::Relaxed);
        let done = attack.join().map_err(|_| anyhow!("the stranger panicked"))??;
        anyhow::Ok((done, fleet??))
    })
    .with_context(|| lab.tails())?;

    let times = fleet.times();
    lab.step(&format!(
        "{} connected: half of them within {:.2} s, the last after {:.2} s; the stranger asked \
         {} times and returned {} cookies in {:.1} s",
        times.len(),
        times.get(times.len() / 2).map_or(0.0, Duration::as_secs_f64),
        times.last().map_or(0.0, Duration::as_secs_f64),
        done.asked,
        done.returned,
        done.lasted.as_secs_f64(),
    ));
    if done.returned < ENOUGH {
        bail!("the stranger returned only {} cookies, {ENOUGH} were wanted", done.returned);
    }

    let sas = scene.gateway.sas()?;
    let shared = sas.iter().filter(|sa| {
        sa["remote"].as_str().is_some_and(|remote| remote.starts_with(&format!("{SHARED}:")))
    });
    if shared.count() != RUNNERS {
        bail!("the gateway lists {} SAs, {RUNNERS} of {SHARED} were expected", sas.len());
    }
    // Leases follow their tunnels through the store.
    wait::holds(lab, "every lease to be active", Duration::from_secs(10), || {
        let status = scene.gateway.json(&["status"])?;
        Ok(status["leases"]["active"] == RUNNERS && status["child_sas"] == RUNNERS)
    })?;
    fleet.close()?;
    wait::holds(lab, "all runners to be gone", Duration::from_secs(10), || {
        Ok(scene.gateway.sas()?.is_empty())
    })?;
    scene.finish()
}

/// Enrols so many runners, each with its own key, through the stock client.
pub(super) fn enrol(scene: &Scene, runners: usize) -> Result<Vec<Identity>> {
    // Each has a token of its own: one opens a thousand leases at most.
    let uses = runners.div_ceil(ENROLLING).to_string();
    let create = ["token", "create", "--role", "builder", "--uses", &uses];
    let est = scene.est()?;
    let host = scene.world.runner();
    let dir = host.dir()?;
    let identities = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..ENROLLING)
            .map(|first| {
                let (identities, est, create, dir) = (&identities, &est, &create, &dir);
                scope.spawn(move || -> Result<()> {
                    let made = scene.gateway.json(create)?;
                    let token = made["token"].as_str().context("no token in the answer")?;
                    for number in (first..runners).step_by(ENROLLING) {
                        let (signer, public_key) = p256_key()?;
                        let request = dir.join(format!("request-{number}.der"));
                        std::fs::write(&request, p256_request(&signer, &public_key)?)?;
                        let said = est.enrol(host, &request, &format!("builder:{token}"))?;
                        if !said.ok() {
                            bail!("pki --est failed: {}", said.all());
                        }
                        let certificate = der(&said.out)?;
                        let identity = Identity {
                            name: subject(&certificate)?,
                            signer: Box::new(signer),
                            chain: vec![certificate],
                        };
                        if let Ok(mut identities) = identities.lock() {
                            identities.push(identity);
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow!("an enrolment panicked"))??;
        }
        anyhow::Ok(())
    })
    .with_context(|| scene.lab.tails())?;
    identities.into_inner().map_err(|_| anyhow!("an enrolment panicked"))
}

/// All of them, on one thread.
pub(super) struct Fleet {
    runners: Vec<Runner>,
    local: SocketAddr,
    started: Instant,
}

impl Fleet {
    /// Makes every runner and lets all of them send their first message.
    pub(super) fn new(identities: Vec<Identity>, gateway: SocketAddr) -> Result<Self> {
        let ike: Vec<IkeSuite> = vec!["aes256gcm16-prfsha384-x25519".parse()?];
        let esp: Vec<EspSuite> = vec!["aes256gcm16".parse()?];
        let started = Instant::now();
        let mut runners = Vec::new();
        let local = local_address(gateway)?;
        for (number, identity) in identities.into_iter().enumerate() {
            let config = config(&identity, &ike, &esp);
            let peer = target(&config, local, gateway, Identification::fqdn(ID))
                .context("no suite to offer")?;
            let mut seed = [0x5a; 32];
            seed[..8].copy_from_slice(&u64::try_from(number)?.to_be_bytes());
            let party =
                Party::new(config, &PROVIDER, identity.signer, any_grant, seed, now(started))?;
            let mut runner = Runner::new(party, local)?;
            runner.give(started, Input::Command(Command::Initiate(Box::new(peer))))?;
            runners.push(runner);
        }
        Ok(Self { runners, local, started })
    }

    /// Works until every runner is connected.
    pub(super) fn connect(&mut self, limit: Duration) -> Result<()> {
        while self.runners.iter().any(|runner| runner.connected.is_none()) {
            if self.started.elapsed() > limit {
                let missing = self.runners.iter().filter(|r| r.connected.is_none()).count();
                let all = self.runners.len();
                bail!("{missing} of {all} runners are not connected after {limit:?}");
            }
            self.work()?;
        }
        Ok(())
    }

    /// Closes every connection properly.
    pub(super) fn close(&mut self) -> Result<()> {
        for runner in &mut self.runners {
            runner.give(self.started, Input::Command(Command::Shutdown))?;
        }
        let by = Instant::now() + Duration::from_secs(60);
        while Instant::now() < by && !self.runners.iter().all(|r| r.party.engine.is_idle()) {
            self.work()?;
        }
        Ok(())
    }

    /// How long each runner took, the fastest first.
    fn times(&self) -> Vec<Duration> {
        let mut times: Vec<_> = self.runners.iter().filter_map(|r| r.connected).collect();
        times.sort_unstable();
        times
    }

    /// Waits for datagrams and timers once.
    pub(super) fn work(&mut self) -> Result<()> {
        let mut ready: Vec<PollFd<'_>> =
            self.runners.iter().map(|runner| PollFd::new(runner, PollFlags::IN)).collect();
        let patience = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        poll(&mut ready, Some(&patience))?;
        let readable: Vec<bool> = ready.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(ready);
        for (runner, readable) in self.runners.iter_mut().zip(readable) {
            runner.work(self.started, self.local, readable)?;
        }
        Ok(())
    }
}
