//! What a certificate of another CA decides: the role by its subject (protocol scenario wildcards),
//! and which of several the client shows, by what the gateway asks for (two-certs, certreq-init).

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::external::{BOTH, load, trust_gateway};
use super::scene::Scene;
use crate::lab::Lab;
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::Settings;
use crate::lab::http::{self, Server};
use crate::lab::pkitool::{Authority, P256};
use crate::lab::world::{FORBIDDEN, Shape};

const SOON: Duration = Duration::from_secs(5);

/// Two clients of one CA in two units: each reaches what its own role allows, and nothing else.
pub(super) fn wildcards(lab: &Lab) -> Result<()> {
    let corp = Authority::new(&lab.path("corp"), "Corp Root", P256)?;
    let issue = |unit: &str, name: &str| {
        let subject = format!("C=CH, O=Corp, OU={unit}, CN={name}");
        corp.issue(name, &subject, &format!("{name}.corp.example"), P256, &[])
    };
    let more = format!(
        "[[role.match]]\nca = \"corp\"\nsubject = \"C=CH, O=*, OU=CI, CN=*\"\n\n\
         [[role]]\nname = \"sales\"\npool = \"runners\"\nttl = \"1h\"\nallow = [\"{FORBIDDEN}\"]\n\n\
         [[role.match]]\nca = \"corp\"\nsubject = \"C=CH, O=*, OU=Sales, CN=*\"\n\n\
         [[ca]]\nname = \"corp\"\ncertificate = \"{}\"\nrevocation = \"off\"\n",
        corp.cert.display()
    );
    let settings = Settings { more, ..Settings::default() };
    let scene = Scene::new(lab, Shape { runners: 2, ..Shape::default() }, &settings)?;
    let mut connected = Vec::new();
    for (host, (unit, role)) in
        scene.world.runners.iter().zip([("CI", "builder"), ("Sales", "sales")])
    {
        let pair = issue(unit, role)?;
        let charon = Charon::start(host, &Options::default())?;
        trust_gateway(&scene, &charon, host)?;
        load(&charon, &[(role, &pair)])?;
        charon.initiate("net")?;
        scene.agree(&charon)?;
        connected.push((charon, role));
    }
    // What is not in a client's selectors it asks in clear, and in vain.
    scene.without_tunnel()?;
    for (charon, role) in &connected {
        let (own, other) = match *role {
            "builder" => (&scene.store, &scene.forbidden),
            _ => (&scene.forbidden, &scene.store),
        };
        lab.step(&format!("what the role {role} reaches, and what not"));
        reaches(charon, own, other)?;
        let leases = scene.gateway.json(&["lease", "list"])?;
        let list = leases.as_array().context("the lease list is no list")?;
        let name = format!("CN={role}");
        let lease = list.iter().find(|lease| lease["subject"].to_string().contains(&name));
        if lease.context("no lease")?["role"] != *role {
            bail!("not the role {role}: {leases}");
        }
    }
    for (charon, _) in &connected {
        charon.terminate("net")?;
    }
    scene.no_sas(SOON)?;
    scene.finish()
}

/// One server answers the client, the other does not.
fn reaches(charon: &Charon, own: &Server, other: &Server) -> Result<()> {
    let host = charon.host();
    http::download(host, &own.url(10_000), Duration::from_secs(10))?;
    let before = other.requests();
    if http::download(host, &other.url(1), Duration::from_millis(1500)).is_ok()
        || other.requests() != before
    {
        bail!("{} answers {}, which its role does not allow", other.address(), host.name());
    }
    Ok(())
}

/// A client with certificates of two CAs for one name shows the one whose CA the gateway asks for,
/// by the hash of its key (RFC 7296 3.7).
pub(super) fn two_certs(lab: &Lab) -> Result<()> {
    const NAMES: [&str; 2] = ["first", "second"];
    let cas = NAMES.map(|name| Authority::new(&lab.path(name), &format!("The {name} Root"), P256));
    let [first, second] = cas;
    let cas = [first?, second?];
    let issue = |ca: &Authority, name: &str| ca.issue(name, &format!("CN={name}"), BOTH, P256, &[]);
    let pairs = [issue(&cas[0], NAMES[0])?, issue(&cas[1], NAMES[1])?];
    // A gateway that trusts some of the two beside its own.
    let trusting = |which: &[usize]| {
        let mut more = String::new();
        for &number in which {
            more += &format!(
                "[[role.match]]\nca = \"{}\"\nsan = \"*.corp.example\"\n\n",
                NAMES[number]
            );
        }
        for &number in which {
            more += &format!(
                "[[ca]]\nname = \"{}\"\ncertificate = \"{}\"\nrevocation = \"off\"\n\n",
                NAMES[number],
                cas[number].cert.display()
            );
        }
        Settings { more, ..Settings::default() }
    };
    let scene = Scene::new(lab, Shape::default(), &trusting(&[0, 1]))?;
    let host = scene.world.runner();
    let charon = Charon::start(host, &Options::default())?;
    trust_gateway(&scene, &charon, host)?;
    for (name, ca) in NAMES.iter().zip(&cas) {
        charon.install(&ca.cert, &format!("x509ca/{name}.pem"))?;
    }
    let offered = [(NAMES[0], &pairs[0]), (NAMES[1], &pairs[1])];
    for (asked, shown) in [(&[0, 1][..], None), (&[0], Some(0)), (&[1], Some(1))] {
        scene.gateway.reload(&trusting(asked))?;
        load(&charon, &offered)?;
        let before = charon.log().len();
        charon.initiate("net")?;
        scene.agree(&charon)?;
        scene.download(host, 10_000)?;
        let log = charon.log();
        let new = log.get(before..).unwrap_or_default();
        for (number, name) in NAMES.iter().enumerate() {
            let said = new.contains(&format!("received cert request for \"CN=The {name} Root\""));
            if said != asked.contains(&number) {
                bail!("asked for the {name} root: {said}, expected {asked:?}: {new}");
            }
            let sent = new.contains(&format!("sending end entity cert \"CN={name}\""));
            if shown.is_some_and(|shown| sent != (shown == number)) {
                bail!("showed the {name} certificate: {sent}, expected {shown:?}: {new}");
            }
        }
        if let Some(shown) = shown {
            let sas = scene.gateway.sas()?;
            let lease = sas.first().and_then(|sa| sa["lease"].as_str()).context("no lease")?;
            let told = scene.gateway.json(&["lease", "show", lease])?;
            if !told["subject"].to_string().contains(&format!("CN={}", NAMES[shown])) {
                bail!("the gateway took another certificate: {told}");
            }
            lab.step(&format!("asked for the {} root: its certificate", NAMES[shown]));
        }
        charon.terminate("net")?;
        scene.no_sas(SOON)?;
    }
    scene.finish()
}
