//! Enrolment with the tokens of a CI platform: a local issuer with real signatures, served over
//! HTTPS by openssl; stock strongSwan and curl as clients.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::scene::{Credentials, Scene};
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{Gateway, ID, Settings};
use crate::lab::host::Host;
use crate::lab::pkitool::{self, Est, P256, with_hosts};
use crate::lab::process::Process;
use crate::lab::world::{Shape, World};
use crate::lab::{Lab, cmd, wait};
use crate::oidc::{self, IssuerKey};

/// The issuer, on the gateway's own host: labs have no name service.
const ISSUER: &str = "https://127.0.0.1:9443";
/// The version of this machine's strongSwan, which a configuration is made for.
const STOCK: Option<&str> = Some("5.9.8");
/// What tokens must be made for: the enrolment URL.
const AUDIENCE: &str = "https://gw.example.com:8443";

/// A job enrols with its token and connects; another key gets nothing; `/v1/leases` gives a lease
/// and a configuration, and its release token ends the tunnel.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let world = World::new(lab, Shape::default())?;
    let key = IssuerKey::rs256("2026-11");
    let (ca, _issuer) = issuer(lab, &world.gateway, &key)?;
    let rules = format!(
        "[[role.match]]\nissuer = \"github\"\nrepository_id = \"123456\"\n\n\
         [[issuer]]\nname = \"github\"\nkind = \"github\"\nissuer = \"{ISSUER}\"\nca = {ca:?}\n"
    );
    let settings = Settings { more: rules, ..Settings::default() };
    let gateway = Gateway::start(&world.gateway, &settings)?;
    let mut scene = Scene::around(world, gateway)?;
    let host = scene.world.runner().clone();
    let est = scene.est()?;

    lab.step("the token is tested before it is used");
    let token = key.sign(&claims("1"));
    tested(&scene, &token, true, "")?;
    let pull = key.sign(&with(claims("2"), "event_name", "pull_request"));
    tested(&scene, &pull, false, "event_name")?;

    lab.step("pki --req --password, pki --est: a certificate for the job");
    let first = enrol(&scene, &est, &host, "first", &token)?;
    let lease = scene.gateway.lease(&first.serial)?;
    let expected = [("door", "jwt"), ("role", "builder"), ("run_id", "7001"), ("job_id", "88001")];
    for (field, value) in expected {
        if lease[field] != value {
            bail!("{field} of the lease is not {value}: {lease}");
        }
    }
    if lease["identity"] != "spiffe://ci.example.com/ci/github/9919/123456"
        || lease["claims"]["repository"] != "octo/app"
    {
        bail!("the lease does not tell its job: {lease}");
    }

    lab.step("the tunnel carries a download");
    let mut charon = scene.runner(&host, &first, |_| {})?;
    charon.initiate("net")?;
    scene.agree(&charon)?;
    scene.download(&host, 1_000_000)?;
    charon.terminate("net")?;
    charon.stop()?;

    lab.step("the token with another key is refused, and says why");
    let dir = host.dir()?.join("thief");
    fs::create_dir_all(&dir)?;
    let request = request(&dir, &token)?;
    let refused = est.enrol_bare(&host, &request)?;
    if refused.ok() || !refused.all().contains("HTTP 403") {
        bail!("a replayed token should be refused with HTTP 403: {}", refused.all());
    }
    let codes: Vec<Value> = scene.gateway.refusals()?.iter().map(|r| r["code"].clone()).collect();
    if !codes.contains(&json!("enrol_token_replay")) {
        bail!("the operator is not told of the replay: {codes:?}");
    }
    let (status, problem) = post(&scene, &est, STOCK, &token, &dir)?;
    let spent = problem["trace"]["token"][0].clone();
    if status != 403 || spent["field"] != "spent" || spent["ok"] != false {
        bail!("/v1/leases should refuse a replayed token with its trace: {status} {problem}");
    }

    lab.step("killed and started again: spent stays spent, the same key gets the same lease");
    scene.gateway.kill()?;
    scene.gateway.up(&[])?;
    let again = est.enrol_bare(&host, &first.request)?;
    let file = first.cert.with_file_name("again.pem");
    fs::write(&file, &again.out)?;
    if !again.ok() || pkitool::serial(&file)? != first.serial {
        bail!("a retry after a crash should repeat the certificate: {}", again.all());
    }
    let still = est.enrol_bare(&host, &request)?;
    if still.ok() || !still.all().contains("HTTP 403") {
        bail!("a crash made a spent token good again: {}", still.all());
    }

    lab.step("POST /v1/leases: a lease and the configuration to connect with");
    let dir = host.dir()?.join("json");
    fs::create_dir_all(&dir)?;
    let fresh = key.sign(&claims("3"));
    let (status, lease) = post(&scene, &est, STOCK, &fresh, &dir)?;
    if status != 201 {
        bail!("/v1/leases answered {status}: {lease}");
    }
    let options = Options { fetch: true, hosts: Some(est.hosts.clone()), ..Options::default() };
    let (charon, address) = follow(&scene, &lease, &dir, &options)?;
    scene.download(&host, 1_000_000)?;
    comes_back(lab, &mut scene, &charon, &address, "stopped", |gateway| {
        anyhow::ensure!(gateway.stop()? == 0, "runnel did not stop cleanly");
        Ok(())
    })?;
    comes_back(lab, &mut scene, &charon, &address, "killed", Gateway::kill)?;

    lab.step("the release token shows and ends it");
    let id = lease["lease"]["id"].as_str().context("no lease id")?.to_owned();
    let release = lease["release_token"].as_str().context("no release token")?.to_owned();
    let url = format!("{AUDIENCE}/v1/leases/{id}");
    scene.lease_in_state("active", || {
        let (status, shown) = curl(&est, &host, &release, &[&url])?;
        if status != 200 {
            bail!("the release token should show the lease: {status} {shown}");
        }
        Ok(shown["lease"].clone())
    })?;
    let other = format!("{AUDIENCE}/v1/leases/{}", scene.gateway.lease(&first.serial)?["id"]);
    let other = other.replace('"', "");
    if curl(&est, &host, &release, &["-X", "DELETE", &other])?.0 != 403 {
        bail!("a release token ends another lease");
    }
    let before = charon.log().len();
    let (status, ended) = curl(&est, &host, &release, &["-X", "DELETE", &url])?;
    if status != 200 || ended["revoked"] != 1 || ended["sas_closed"] != 1 {
        bail!("the release should close one tunnel: {status} {ended}");
    }
    if !scene.gateway.sas()?.is_empty() {
        bail!("there is still an SA after the answer");
    }
    charon.expect_log(before, "received DELETE for IKE_SA", Duration::from_secs(15))?;
    scene.no_download(&host)?;
    drop(charon);
    scene.finish()
}

/// Connects with nothing but the key in `dir` and what `/v1/leases` answered; the daemon and its
/// virtual address.
pub(super) fn follow(
    scene: &Scene,
    lease: &Value,
    dir: &Path,
    options: &Options,
) -> Result<(Charon, String)> {
    let charon = Charon::start(scene.world.runner(), options)?;
    charon.install(&dir.join("key.pem"), "private/ci.pem")?;
    for (field, name) in [
        ("certificate", "x509/ci.pem"),
        ("root", "x509ca/gw.pem"),
        ("swanctl_conf", "swanctl.conf"),
    ] {
        fs::write(charon.file(name), lease[field].as_str().context("a field is missing")?)?;
    }
    let said = charon.swanctl(&["--load-all", "--noprompt"])?;
    if !said.ok() || said.all().contains("failed") || said.all().contains("discarded") {
        bail!("strongSwan refused the rendered configuration: {}", said.all());
    }
    let address = lease["lease"]["addresses"][0].as_str().context("no address")?.to_owned();
    let limit = Duration::from_secs(20);
    wait::holds(&scene.lab, "the tunnel of the rendered configuration", limit, || {
        Ok(charon.virtual_addresses().is_ok_and(|found| found.contains(&address)))
    })?;
    Ok((charon, address))
}

/// The client is back on its address by itself after the gateway was away.
fn comes_back(
    lab: &Lab,
    scene: &mut Scene,
    charon: &Charon,
    address: &String,
    how: &str,
    end: impl FnOnce(&mut Gateway) -> Result<()>,
) -> Result<()> {
    lab.step(&format!("the gateway is {how} and started again"));
    end(&mut scene.gateway)?;
    scene.gateway.up(&[])?;
    // Silence is noticed after 10 s, and given up after what this client's retransmissions take.
    wait::holds(lab, "the client to come back", Duration::from_secs(45), || {
        let back = charon.virtual_addresses().is_ok_and(|found| found.contains(address));
        Ok(back && !scene.gateway.sas()?.is_empty())
    })?;
    scene.download(scene.world.runner(), 100_000)?;
    Ok(())
}

/// Starts the issuer; the path is that of the CA its server is trusted by.
fn issuer(lab: &Lab, host: &Host, key: &IssuerKey) -> Result<(PathBuf, Process)> {
    let dir = host.dir()?.join("issuer");
    let authority = pkitool::Authority::new(&dir, "Issuer CA", P256)?;
    let (private, cert) = authority.issue("server", "CN=issuer", "127.0.0.1", P256, &[])?;
    let site = dir.join("site");
    fs::create_dir_all(site.join(".well-known"))?;
    let document = json!({"issuer": ISSUER, "jwks_uri": format!("{ISSUER}/keys.json")}).to_string();
    served(&site.join(".well-known/openid-configuration"), document.as_bytes())?;
    served(&site.join("keys.json"), &oidc::jwks(&[key]))?;
    let mut command = host.command("openssl");
    command.current_dir(&site).args(["s_server", "-HTTP", "-accept", "127.0.0.1:9443"]);
    command.arg("-key").arg(private).arg("-cert").arg(cert);
    let process = Process::start(lab, "the issuer", command, &dir.join("s_server.log"))?;
    wait::holds(lab, "the issuer to listen", Duration::from_secs(45), || {
        Ok(process.log().contains("ACCEPT"))
    })?;
    Ok((authority.cert.clone(), process))
}

/// A file as `openssl s_server -HTTP` sends it: the whole answer.
fn served(path: &Path, body: &[u8]) -> Result<()> {
    let head = format!(
        "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    fs::write(path, [head.as_bytes(), body].concat())?;
    Ok(())
}

pub(super) fn claims(jti: &str) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    with(oidc::github(i64::try_from(now).unwrap_or(0), AUDIENCE, jti), "iss", ISSUER)
}

fn with(mut claims: Value, name: &str, value: &str) -> Value {
    claims[name] = json!(value);
    claims
}

/// `runnel identity test` says what the gateway will say.
fn tested(scene: &Scene, token: &str, good: bool, field: &str) -> Result<()> {
    let file = scene.lab.path("token.txt");
    fs::write(&file, token)?;
    let (file, config) = (file.display().to_string(), scene.gateway.config());
    let config = config.display().to_string();
    let words = ["--config", &config, "identity", "test", "--jwt", &file, "-o", "json"];
    let said = scene.gateway.cli(&words)?;
    let judged: Value = serde_json::from_str(&said.out)
        .with_context(|| format!("no JSON from identity test: {}", said.all()))?;
    let fields = judged["trace"]["rules"][0]["fields"].as_array().cloned().unwrap_or_default();
    let failed: Vec<&Value> = fields.iter().filter(|f| f["ok"] == false).collect();
    let named = failed.iter().all(|f| f["field"] == field) && failed.is_empty() == good;
    if said.ok() != good || judged["accepted"] != good || !named {
        bail!("identity test should say {good} and blame {field:?}: {}", said.all());
    }
    Ok(())
}

/// A fresh key in `dir` and a request with the token inside, kept off the command line.
fn request(dir: &Path, token: &str) -> Result<PathBuf> {
    let (key, request) = (dir.join("key.pem"), dir.join("req.pem"));
    pkitool::generate(P256, &key)?;
    pkitool::request_with_password(&key, "CN=ci", token, &request)?;
    Ok(request)
}

pub(super) fn enrol(
    scene: &Scene,
    est: &Est,
    host: &Host,
    name: &str,
    token: &str,
) -> Result<Credentials> {
    let dir = host.dir()?.join(name);
    fs::create_dir_all(&dir)?;
    let request = request(&dir, token)?;
    let chain = est.ca_certs(host, &dir.join("ca.pem"))?;
    let said = est.enrol_bare(host, &request)?;
    if !said.ok() {
        bail!("pki --est failed: {}\n{}", said.all(), scene.lab.tails());
    }
    let (key, cert) = (dir.join("key.pem"), dir.join("cert.pem"));
    fs::write(&cert, &said.out)?;
    let (subject, serial) = (pkitool::subject(&cert)?, pkitool::serial(&cert)?);
    Ok(Credentials { key, request, cert, chain, subject, serial, token: token.to_owned() })
}

/// `POST /v1/leases` with a fresh key in `dir`.
pub(super) fn post(
    scene: &Scene,
    est: &Est,
    client: Option<&str>,
    token: &str,
    dir: &Path,
) -> Result<(u16, Value)> {
    let host = scene.world.runner();
    let (key, request, body) = (dir.join("key.pem"), dir.join("csr.pem"), dir.join("body.json"));
    pkitool::generate(P256, &key)?;
    pkitool::request(&key, "CN=ci", &request)?;
    let csr = fs::read_to_string(&request)?;
    fs::write(&body, json!({"csr": csr, "client": client}).to_string())?;
    let data = format!("@{}", body.display());
    let answer = curl(est, host, token, &["-d", &data, &format!("{AUDIENCE}/v1/leases")]);
    answer.with_context(|| scene.lab.tails())
}

/// One request with a bearer token; status and JSON of the answer.
fn curl(est: &Est, host: &Host, bearer: &str, words: &[&str]) -> Result<(u16, Value)> {
    // The header comes from a file, as tokens must not be arguments.
    let header = host.dir()?.join("header.txt");
    fs::write(&header, format!("Authorization: Bearer {bearer}\n"))?;
    let mut command = with_hosts(host, &est.hosts);
    command.args(["curl", "-sS", "--max-time", "20", "-w", "\n%{http_code}", "--cacert"]);
    command.arg(&est.root).arg("-H").arg(format!("@{}", header.display())).args(words);
    let said = cmd::output(&mut command)?;
    let (body, status) = said
        .out
        .trim_end()
        .rsplit_once('\n')
        .with_context(|| format!("curl to {ID} failed: {}", said.all()))?;
    let json = serde_json::from_str(body).with_context(|| format!("no JSON: {}", said.all()))?;
    Ok((status.trim().parse()?, json))
}
