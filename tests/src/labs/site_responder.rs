//! Gateway to gateway, strongSwan as responder: suites it chooses of what we offer, a certificate
//! below an intermediate authority, RSA-PSS, certificates that we refuse, and a shared key.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Result, bail};

use super::scene::{agreed, ping};
use super::sites::{
    BRANCH, Branch, OTHER, OTHER_ID, SOON, branch, connected, site, sound, spis, strongswan,
};
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{Gateway, ID, Settings};
use crate::lab::pkitool::{P256, P384, RSA2048};
use crate::lab::swanctl::{Conf, Connection};
use crate::lab::world::{STORE, Shape, World};
use crate::lab::{Lab, wait};

/// IKE and ESP suites as strongSwan writes them, and what it then lists for each.
const SUITES: [(&str, &str, [&str; 2]); 4] = [
    (
        "aes256gcm16-prfsha384-ecp384",
        "aes256gcm16",
        ["AES_GCM_16-256/PRF_HMAC_SHA2_384/ECP_384", "ESP:AES_GCM_16-256"],
    ),
    (
        "aes128gcm16-prfsha256-ecp256",
        "aes128gcm16",
        ["AES_GCM_16-128/PRF_HMAC_SHA2_256/ECP_256", "ESP:AES_GCM_16-128"],
    ),
    (
        "aes256-sha256-x25519",
        "aes256-sha256",
        ["AES_CBC-256/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/CURVE_25519", "ESP:AES_CBC-256/HMAC"],
    ),
    (
        "chacha20poly1305-prfsha256-x25519",
        "chacha20poly1305",
        ["CHACHA20_POLY1305/PRF_HMAC_SHA2_256/CURVE_25519", "ESP:CHACHA20_POLY1305"],
    ),
];

/// See the module.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let world = World::new(lab, Shape::default())?;
    let branch = branch(&world)?;
    let settings = Settings::default();
    let mut gateway = Gateway::start(&world.gateway, &settings)?;
    let mut loaded = Connection::default();
    let options = Options { rsa_pss: true, ..Options::default() };
    let peer = strongswan(lab, &world, &gateway, (P256, &options), |connection| {
        connection.remote_addr = "%any".to_owned();
        loaded = connection.clone();
    })?;
    let (charon, remote) = (&peer.charon, format!("remote = \"{OTHER}\""));
    let more = site(&peer.authority.cert, &remote);
    gateway.reload(&Settings { more, ..settings.clone() })?;
    connected(lab, &gateway, "branch", SOON)?;
    for (ike, esp, says) in SUITES {
        lab.step(&format!("{ike}, {esp}"));
        let wanted = Connection { ike: ike.to_owned(), esp: esp.to_owned(), ..loaded.clone() };
        charon.load(&[wanted], "")?;
        anew(lab, &gateway, charon)?;
        passes(&world, &branch)?;
        let listed = charon.sas()?;
        if let Some(lacks) = says.iter().find(|says| !listed.contains(*says)) {
            bail!("strongSwan lists no {lacks}:\n{listed}");
        }
    }

    lab.step("a certificate below an intermediate authority");
    let below = peer.authority.intermediate(&lab.path("branch-sub"), "Branch Sub", P384)?;
    let (key, cert) = below.issue("sub", "CN=branch below", OTHER_ID, P384, &[])?;
    charon.install(&key, "private/sub.pem")?;
    charon.install(&cert, "x509/sub.pem")?;
    charon.install(&below.cert, "x509ca/sub.pem")?;
    charon.load(&[Connection { cert: "sub.pem".to_owned(), ..loaded.clone() }], "")?;
    let from = charon.log().len();
    anew(lab, &gateway, charon)?;
    charon.expect_log(from, "sending issuer cert \"CN=Branch Sub\"", SOON)?;
    passes(&world, &branch)?;

    lab.step("RSA with PSS padding (RFC 7427)");
    let present = |name: &str, (key, cert): (PathBuf, PathBuf)| -> Result<()> {
        charon.install(&key, &format!("private/{name}.pem"))?;
        charon.install(&cert, &format!("x509/{name}.pem"))?;
        charon.load(&[Connection { cert: format!("{name}.pem"), ..loaded.clone() }], "")
    };
    let issued = peer.authority.issue("rsa", "CN=branch rsa", OTHER_ID, RSA2048, &[])?;
    present("rsa", issued)?;
    let from = charon.log().len();
    anew(lab, &gateway, charon)?;
    charon.expect_log(from, "RSA_EMSA_PSS", SOON)?;
    passes(&world, &branch)?;

    lab.step("an expired certificate and one of another name are refused, with the reason");
    let past = ["--not-before", "01.01.20 00:00:00", "--not-after", "01.01.21 00:00:00"];
    let expired = peer.authority.issue("past", "CN=branch past", OTHER_ID, P256, &past)?;
    present("past", expired)?;
    refused(lab, &gateway, charon, "expired")?;
    let another =
        peer.authority.issue("other", "CN=branch other", "other.example.com", P256, &[])?;
    present("other", another)?;
    refused(lab, &gateway, charon, "other")?;
    charon.load(&[loaded.clone()], "")?;
    gateway.told(&["site", "connect", "branch"])?;
    connected(lab, &gateway, "branch", SOON)?;
    agreed(lab, &gateway, charon)?;

    lab.step("a shared key");
    let (file, secret) = (lab.path("site.psk"), "correct horse battery staple, and more");
    fs::write(&file, format!("{secret}\n"))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let secrets = Conf::new().section("secrets", |s| {
        s.section("ike-site", |k| {
            k.set("id-a", ID).set("id-b", OTHER_ID).set("secret", &format!("\"{secret}\""))
        })
    });
    let psk = "psk".to_owned();
    let with_key = Connection { local_auth: psk.clone(), remote_auth: psk, ..loaded };
    charon.load(&[with_key], secrets.text())?;
    let more = site(&peer.authority.cert, &remote);
    let certificate = format!("ca = {:?}", peer.authority.cert);
    let more = more.replace(&certificate, &format!("psk_file = {file:?}"));
    let before = spis(&gateway)?;
    gateway.reload(&Settings { more, ..settings })?;
    renewed(lab, &gateway, &before)?;
    agreed(lab, &gateway, charon)?;
    passes(&world, &branch)?;
    charon.expect_log(0, "with pre-shared key successful", SOON)?;
    sound(&mut gateway, lab)
}

/// strongSwan deletes the SA, and we come again.
fn anew(lab: &Lab, gateway: &Gateway, charon: &Charon) -> Result<()> {
    let before = spis(gateway)?;
    charon.terminate("net")?;
    gateway.told(&["site", "connect", "branch"])?;
    renewed(lab, gateway, &before)?;
    agreed(lab, gateway, charon)
}

/// strongSwan deletes the SA, and we do not take what it shows when we come again.
fn refused(lab: &Lab, gateway: &Gateway, charon: &Charon, why: &str) -> Result<()> {
    if !gateway.sas()?.is_empty() {
        charon.terminate("net")?;
    }
    gateway.told(&["site", "connect", "branch"])?;
    wait::holds(lab, &format!("the refusal of what is {why}"), SOON, || {
        let refusals = gateway.refusals()?;
        let newest = refusals.first().map(ToString::to_string).unwrap_or_default();
        Ok(newest.contains(why) && gateway.sas()?.is_empty())
    })
}

/// Another SA is up.
fn renewed(lab: &Lab, gateway: &Gateway, before: &(String, String)) -> Result<()> {
    wait::holds(lab, "another IKE SA with a child", SOON, || {
        Ok(spis(gateway).is_ok_and(|now| now.0 != before.0 && !now.1.is_empty()))
    })
}

/// Both networks reach each other.
fn passes(world: &World, branch: &Branch) -> Result<()> {
    for (from, to) in [(&world.private, BRANCH), (&branch.host, STORE)] {
        let (sent, received) = ping(from, to, 3, 0.1)?;
        if sent != received {
            bail!("{received} of {sent} pings from {} to {to}\n{}", from.name(), world.lab.tails());
        }
    }
    Ok(())
}
