//! Refusals: the peer gets the notify the RFC names, the operator gets one line that helps.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::endings::{GRACE, background_ping};
use super::scene::{Credentials, Scene, install};
use crate::lab::capture::Capture;
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{ID, Settings};
use crate::lab::pkitool::{Authority, P256};
use crate::lab::swanctl::Connection;
use crate::lab::world::{STORE, Shape};
use crate::lab::{Lab, wait};

/// Enough for whatever must come.
const SOON: Duration = Duration::from_secs(45);

/// Wrong CA, wrong identity, unknown proposals, selectors outside the role.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let host = scene.world.runner().clone();
    let credentials = scene.enrol(&host, "enrolled", P256)?;
    // A first message that is sent again is refused again.
    let options = Options { retransmit_timeout: 8.0, ..Options::default() };
    let charon = Charon::start(&host, &options)?;
    install(&charon, &credentials)?;

    case(&scene, &charon, &credentials, "unknown IKE proposal", "NO_PROP", |c| {
        c.ike = "aes192-sha384-modp2048".to_owned();
    })?;
    case(&scene, &charon, &credentials, "unknown ESP proposal", "NO_PROP", |c| {
        c.esp = "aes192-sha384".to_owned();
    })?;
    case(&scene, &charon, &credentials, "wrong identity", "AUTH_FAILED", |c| {
        c.local_id = "somebody-else.example.com".to_owned();
    })?;
    case(&scene, &charon, &credentials, "selectors outside the role", "TS_UNACCEPT", |c| {
        c.remote_ts = "192.0.2.0/24".to_owned();
    })?;

    let foreign = Authority::new(&lab.path("foreign"), "Foreign CA", P256)?;
    let (key, cert) = foreign.issue("runner", "CN=runner", "runner.example.com", P256, &[])?;
    charon.install(&key, "private/foreign.pem")?;
    charon.install(&cert, "x509/foreign.pem")?;
    charon.install(&foreign.cert, "x509ca/foreign.pem")?;
    case(&scene, &charon, &credentials, "wrong CA", "AUTH_FAILED", |c| {
        c.cert = "foreign.pem".to_owned();
        c.local_id = "runner.example.com".to_owned();
    })?;

    lab.step("and the right one still connects");
    let connection = scene.connection(&credentials);
    charon.load(&[connection], "")?;
    charon.initiate("net")?;
    scene.download(&host, 10_000)?;
    charon.terminate("net")?;
    scene.finish()
}

fn case(
    scene: &Scene,
    charon: &Charon,
    credentials: &Credentials,
    what: &str,
    notify: &str,
    change: impl FnOnce(&mut Connection),
) -> Result<()> {
    let mut connection = scene.connection(credentials);
    change(&mut connection);
    charon.load(&[connection], "")?;
    expect_refusal(scene, charon, what, notify)
}

/// Connects and expects a refusal: `notify` in strongSwan's log, one operator line at the gateway.
pub(super) fn expect_refusal(
    scene: &Scene,
    charon: &Charon,
    what: &str,
    notify: &str,
) -> Result<()> {
    let (refused, before) = (total(scene)?, refusal_lines(&scene.gateway.log()).len());
    let peer_before = charon.log().len();
    let said = charon.try_initiate("net")?;
    if said.ok() {
        bail!("{what}: connected, though it must be refused");
    }
    charon.expect_log(peer_before, notify, SOON)?;
    // A refusal is counted before its line is written.
    let log = wait::until(&scene.lab, "the refusal and its line", SOON, || {
        let log = scene.gateway.log();
        let written = refusal_lines(&log).len() > before;
        Ok((written && total(scene)? > refused).then_some(log))
    })?;
    let refusal = scene.gateway.refusals()?.first().cloned().context("no refusal")?;
    let lines = refusal_lines(&log);
    let new = lines.get(before..).unwrap_or_default();
    let [line] = new else {
        bail!("{what}: expected one operator line, found {}: {new:#?}", new.len())
    };
    let (says, fix) = (refusal["what"].as_str(), refusal["fix"].as_str());
    let (Some(says), Some(fix)) = (says, fix) else { bail!("{what}: odd refusal {refusal}") };
    if says.len() < 10 || fix.len() < 10 {
        bail!("{what}: the refusal does not say what differed and what to change: {refusal}");
    }
    scene.lab.step(&format!("{what}: {}", line.trim()));
    if charon.sas()?.contains("ESTABLISHED") {
        // A refused child leaves the IKE SA, which tells why it has none; the next case begins
        // without it.
        told_of_sa(scene, says)?;
        charon.terminate("net")?;
    }
    scene.no_sas(Duration::from_secs(5))
}

/// `sa show` of the only IKE SA says what was refused.
fn told_of_sa(scene: &Scene, says: &str) -> Result<()> {
    let sas = scene.gateway.sas()?;
    let [sa] = sas.as_slice() else { bail!("expected one IKE SA: {sas:?}") };
    let id = sa["id"].as_u64().context("an SA without id")?;
    let shown = scene.gateway.told(&["sa", "show", &id.to_string()])?;
    if !shown.contains(says) {
        bail!("`sa show` does not say `{says}`:\n{shown}");
    }
    Ok(())
}

/// Exchanges the gateway has refused since its start.
fn total(scene: &Scene) -> Result<u64> {
    let status = scene.gateway.json(&["status"])?;
    status["refusals"].as_u64().with_context(|| format!("`status` counts no refusals: {status}"))
}

/// Lines that tell the operator of a refusal.
pub(super) fn refusal_lines(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains(" WARN ") && line.contains(" refused code=")).collect()
}

/// The certificate's end is the SA's end; afterwards the certificate is refused.
pub(super) fn lifetime(lab: &Lab) -> Result<()> {
    let settings = Settings { ttl: "1m".to_owned(), ..Settings::default() };
    let scene = Scene::new(lab, Shape::default(), &settings)?;
    let (charon, credentials) = scene.connected(P256)?;
    let host = scene.world.runner();
    scene.download(host, 10_000)?;
    let mut inside = Capture::start(&scene.world.private, "eth0", "icmp")?;
    let _pinging = background_ping(host, STORE)?;
    let end = not_after(&credentials)?;
    let left = end - now();
    if !(1.0..=60.0).contains(&left) {
        bail!("a certificate for one minute has {left:.1} s left");
    }
    let peer_before = charon.log().len();
    let limit = Duration::from_secs_f64(left + 3.0);
    scene.without_tunnel()?;
    scene.no_sas(limit)?;
    let seen = now();
    let late = seen - end;
    lab.step(&format!("the SA ended {late:+.2} s from the certificate's end"));
    // A look that comes late on a busy machine does not make the end late.
    if !(-1.5..=10.0).contains(&late) {
        bail!("the SA ended {late:+.2} s from the certificate's end");
    }
    charon.expect_log(peer_before, "received DELETE for IKE_SA", Duration::from_secs(2))?;
    scene.no_download(host)?;
    inside.stop()?;
    let last = inside.times("icmp")?.last().copied().context("no ping was ever seen")?;
    lab.step(&format!("last inner packet {:+.3} s from the certificate's end", last - end));
    if last > seen + GRACE {
        bail!("inner packets still passed {:.3} s after the SA had ended", last - seen);
    }
    std::thread::sleep(Duration::from_secs_f64((end + 1.0 - now()).max(0.0)));
    expect_refusal(&scene, &charon, "expired certificate", "AUTH_FAILED")?;
    scene.finish()
}

/// Seconds since the epoch at which a certificate ends.
fn not_after(credentials: &Credentials) -> Result<f64> {
    let cert = credentials.cert.display().to_string();
    let text = crate::lab::cmd::run("openssl", &["x509", "-noout", "-enddate", "-in", &cert])?;
    let date = text.trim().trim_start_matches("notAfter=");
    let seconds = crate::lab::cmd::run("date", &["-u", "-d", date, "+%s"])?;
    Ok(seconds.trim().parse()?)
}

fn now() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// A client that expects another gateway says so to itself; nothing is left behind here.
pub(super) fn wrong_gateway(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab, Shape::default(), &Settings::default())?;
    let host = scene.world.runner().clone();
    let credentials = scene.enrol(&host, "enrolled", P256)?;
    let charon = scene.runner(&host, &credentials, |c| {
        c.remote_id = format!("not-{ID}");
    })?;
    let said = charon.try_initiate("net")?;
    if said.ok() {
        bail!("a client that expects another gateway connected");
    }
    scene.no_sas(Duration::from_secs(10))?;
    scene.finish()
}
