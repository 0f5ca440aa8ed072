//! The interface against the document that describes it: every route, status and field that one
//! has, the other has.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use pki::store::MemoryStore;
use serde_json::{Value, json};

use super::*;
use crate::config::Config;
use crate::sys::clock;
use crate::test_issuer as oidc;

/// How every request here is named.
const REQUEST: &str = "1-1";

const AUDIENCE: &str = "https://gw.example.com:8443";

/// Ends leases without tunnels.
struct Ender {
    authority: Arc<Authority>,
    broken: Arc<AtomicBool>,
}

impl Ender {
    fn ended(&self, changed: bool, lease: &str) -> Result<Ended, EndError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(EndError::NotConfirmed("the data plane does not answer".to_owned()));
        }
        Ok(Ended {
            revoked: usize::from(changed),
            leases: vec![lease.to_owned()],
            sas_closed: 0,
            crl_number: Some(1),
            elapsed_ms: 1,
            already: !changed,
            cancelled: Vec::new(),
            barred: Vec::new(),
            keys_barred: 1,
        })
    }
}

impl EndLeases for Ender {
    fn release(&self, leases: &[String], cause: &str, actor: &Actor) -> Result<Ended, EndError> {
        let [lease] = leases else { panic!("one lease is asked for at a time: {leases:?}") };
        let change = self.authority.release(lease, cause, actor, now())?;
        self.ended(change.changed(), lease)
    }

    fn revoke(&self, lease: &str, reason: &str, actor: &Actor) -> Result<Ended, EndError> {
        let selector = pki::RevokeSelector::Lease(lease.to_owned());
        let outcome = self.authority.revoke(&selector, reason.parse()?, actor, now())?;
        self.ended(outcome.changes[0].changed(), lease)
    }
}

struct Fixture {
    service: ApiService,
    authority: Arc<Authority>,
    key: oidc::IssuerKey,
    broken: Arc<AtomicBool>,
    runtime: tokio::runtime::Runtime,
    document: Value,
    /// What was seen: method, route and status.
    seen: BTreeSet<(String, String, u16)>,
    /// Fields of schemas that were seen.
    fields: BTreeSet<String>,
    _directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (keys, key) = (directory.path().join("keys.json"), oidc::IssuerKey::eddsa("k1"));
        std::fs::write(&keys, oidc::jwks(&[&key])).unwrap();
        let text = format!(
            "[gateway]\nid = \"gw.example.com\"\n[enrol]\nurl = \"{AUDIENCE}\"\n\
             [[pool]]\nname = \"runners\"\naddresses = [\"10.77.0.0/24\"]\ndns = [\"10.20.0.53\"]\n\
             [[issuer]]\nname = \"github\"\nkind = \"github\"\nalgorithms = [\"EdDSA\"]\n\
             static_jwks = \"{}\"\n\
             [[issuer]]\nname = \"broken\"\nkind = \"generic\"\nissuer = \"https://x.example.com\"\n\
             static_jwks = \"/nonexistent/keys.json\"\n\
             [[role]]\nname = \"builder\"\nallow = [\"10.20.0.10:443/tcp\"]\n\
             [[role.match]]\nissuer = \"github\"\nrepository_id = \"123456\"\n\
             ref = \"refs/heads/main\"\n\
             [[role]]\nname = \"small\"\nallow = [\"10.20.0.10:443/tcp\"]\n\
             allow_server_keygen = true\n\
             [[role.match]]\nissuer = \"github\"\nrepository_id = \"777\"\n\
             [[role]]\nname = \"watched\"\nallow = [\"10.20.0.10:443/tcp\"]\n\
             approval = \"manual\"\n\
             [[role.match]]\nissuer = \"github\"\nrepository_id = \"888\"\n",
            keys.display()
        );
        let config = Config::parse(&text, "test").unwrap();
        let settings = crate::service::pki_settings(&config, "gw.example.com");
        let store = Arc::new(MemoryStore::new());
        let options = pki::Options::new(settings);
        let authority = Authority::with_store(store, &[7; 32], options, now()).unwrap();
        let (authority, broken) = (Arc::new(authority), Arc::new(AtomicBool::new(false)));
        let api = Api {
            authority: Arc::clone(&authority),
            refusals: Arc::default(),
            keys: Arc::new(KeyFetcher::new(Arc::clone(&authority))),
            config: LiveConfig::new(config),
            ender: Box::new(Ender {
                authority: Arc::clone(&authority),
                broken: Arc::clone(&broken),
            }),
            gateway: "gw.example.com".to_owned(),
        };
        Self {
            service: ApiService(Arc::new(api)),
            authority,
            key,
            broken,
            runtime: tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap(),
            document: serde_json::from_str(OPENAPI).unwrap(),
            seen: BTreeSet::new(),
            fields: BTreeSet::new(),
            _directory: directory,
        }
    }

    fn jwt(&self, jti: &str) -> String {
        self.key.sign(&oidc::github(clock::unix_seconds(), AUDIENCE, jti))
    }

    /// One request, whose answer and body must be as documented.
    fn ask(&mut self, method: &str, path: &str, bearer: Option<&str>, body: &str) -> (u16, Value) {
        self.ask_with(method, path, bearer, Vec::new(), body)
    }

    fn ask_with(
        &mut self,
        method: &str,
        path: &str,
        bearer: Option<&str>,
        client_chain: Vec<Vec<u8>>,
        body: &str,
    ) -> (u16, Value) {
        let mut headers = hyper::HeaderMap::new();
        if let Some(bearer) = bearer {
            headers.insert(AUTHORIZATION, format!("Bearer {bearer}").parse().unwrap());
        }
        let request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            headers,
            body: body.as_bytes().to_vec().into(),
            peer: "192.0.2.7:4711".parse().unwrap(),
            client_chain,
            id: REQUEST.to_owned(),
        };
        let reply = self.runtime.block_on(self.service.answer(request));
        let reply = crate::http::problem::named(reply, REQUEST);
        let answer: Value = serde_json::from_slice(&reply.body).unwrap();
        let (template, item) = self.route(path);
        let operation = item.get(method.to_lowercase()).cloned();
        let operation = match (&operation, reply.status) {
            (Some(operation), _) => operation.clone(),
            // A method that is not offered: every operation of the route says so.
            (None, 405) => {
                item.as_object().unwrap().values().find(|v| v.is_object()).unwrap().clone()
            }
            _ => panic!("{method} {path} is not documented and answered {}", reply.status),
        };
        let documented = &operation["responses"][reply.status.to_string()];
        assert!(documented.is_object(), "{method} {path}: {} is not documented", reply.status);
        let header = |name: &str| reply.headers.iter().find(|(found, _)| *found == name);
        if reply.status == 405 {
            // RFC 9110 15.5.6, 9.3.2.
            let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
            let mut methods: Vec<String> = methods.map(|method| method.to_uppercase()).collect();
            if methods.iter().any(|method| method == "GET") {
                methods.push("HEAD".to_owned());
            }
            let (_, allowed) = header("allow").unwrap_or_else(|| panic!("{method} {path}"));
            let mut allowed: Vec<&str> = allowed.split(", ").collect();
            methods.sort();
            allowed.sort();
            assert_eq!(allowed, methods, "{path}");
        }
        let (_, content_type) = &reply.headers[0];
        let schema = &documented["content"][content_type]["schema"];
        assert!(schema.is_object(), "{method} {path}: {content_type} is not documented");
        self.check(&answer, &schema.clone(), "answer");
        if let (true, Ok(sent)) = (reply.status < 400, serde_json::from_str::<Value>(body)) {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            self.check(&sent, &schema.clone(), "request");
        }
        let methods: Vec<String> = match operation_of(&item, method) {
            Some(method) => vec![method],
            None => {
                item.as_object().unwrap().keys().filter(|k| *k != "parameters").cloned().collect()
            }
        };
        for method in methods {
            self.seen.insert((method, template.clone(), reply.status));
        }
        (reply.status, answer)
    }

    fn route(&self, path: &str) -> (String, Value) {
        let parts: Vec<&str> = path.split('/').collect();
        let paths = self.document["paths"].as_object().unwrap();
        let fits = |template: &str| {
            let wanted: Vec<&str> = template.split('/').collect();
            wanted.len() == parts.len()
                && wanted
                    .iter()
                    .zip(&parts)
                    .all(|(want, part)| want.starts_with('{') || want == part)
        };
        let found = paths.iter().find(|(template, _)| fits(template));
        let (template, item) = found.unwrap_or_else(|| panic!("{path} is not documented"));
        (template.clone(), item.clone())
    }

    /// A value against a schema; unknown fields, missing ones and wrong types fail.
    fn check(&mut self, value: &Value, schema: &Value, at: &str) {
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.rsplit('/').next().unwrap().to_owned();
            let schema = self.document["components"]["schemas"][&name].clone();
            assert!(schema.is_object(), "there is no schema {name}");
            for (field, _) in value.as_object().unwrap_or_else(|| panic!("{at}: {value}")) {
                self.fields.insert(format!("{name}.{field}"));
            }
            return self.check(value, &schema, &name);
        }
        match schema["type"].as_str().unwrap() {
            "string" => {
                let text = value.as_str().unwrap_or_else(|| panic!("{at} is no text: {value}"));
                if let Some(known) = schema["enum"].as_array() {
                    assert!(known.iter().any(|word| word == text), "{at}: {text}");
                }
                if schema["format"] == "date-time" {
                    assert!(text.len() == 20 && text.ends_with('Z'), "{at}: {text}");
                }
            }
            "integer" => assert!(value.is_u64(), "{at}: {value}"),
            "boolean" => assert!(value.is_boolean(), "{at}: {value}"),
            "array" => {
                for item in value.as_array().unwrap_or_else(|| panic!("{at}: {value}")) {
                    self.check(item, &schema["items"], at);
                }
            }
            "object" => {
                let object = value.as_object().unwrap_or_else(|| panic!("{at}: {value}"));
                let Some(known) = schema["properties"].as_object() else { return };
                for name in schema["required"].as_array().unwrap() {
                    assert!(object.contains_key(name.as_str().unwrap()), "{at} lacks {name}");
                }
                for (name, value) in object {
                    let schema =
                        known.get(name).unwrap_or_else(|| panic!("{at}.{name} is not documented"));
                    self.check(value, schema, &format!("{at}.{name}"));
                }
            }
            other => panic!("the test does not know the type {other}"),
        }
    }
}

fn operation_of(item: &Value, method: &str) -> Option<String> {
    let method = method.to_lowercase();
    item.get(&method).map(|_| method)
}

fn ring_hex(octets: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, octets);
    digest.as_ref().iter().map(|octet| format!("{octet:02x}")).collect()
}

struct Key(rcgen::KeyPair);

impl Key {
    fn new() -> Self {
        Self(rcgen::KeyPair::generate().unwrap())
    }

    fn csr(&self) -> String {
        let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.serialize_request(&self.0).unwrap().pem().unwrap()
    }

    fn body(&self) -> String {
        json!({ "csr": self.csr() }).to_string()
    }
}

fn der(pem: &Value) -> Vec<u8> {
    x509_parser::pem::parse_x509_pem(pem.as_str().unwrap().as_bytes()).unwrap().1.contents
}

#[test]
fn the_interface_is_what_its_document_says() {
    // RFC 9457 3.
    let mut f = Fixture::new();
    let (key, other) = (Key::new(), Key::new());

    // Opening.
    let jwt = f.jwt("one");
    let full = json!({"csr": key.csr(), "role": "builder", "client": "6.0.1"}).to_string();
    let (status, issued) = f.ask("POST", "/v1/leases", Some(&jwt), &full);
    assert_eq!(status, 201, "{issued}");
    assert_eq!(
        issued["allow"],
        json!(["10.20.0.10:443/tcp", "10.20.0.53:53/tcp", "10.20.0.53:53/udp"])
    );
    assert_eq!(issued["lease"]["run_id"], "7001");
    assert_eq!(issued["lease"]["claims"]["repository"], "octo/app");
    let id = issued["lease"]["id"].as_str().unwrap().to_owned();
    let conf = issued["swanctl_conf"].as_str().unwrap();
    for line in [
        "ocsp = request",
        "remote_addrs = gw.example.com",
        "vips = 0.0.0.0",
        "remote_ts = 10.20.0.10/32,10.20.0.53/32",
        "certs = ci.pem",
        "keyingtries = 0",
        "start_action = start",
        "dpd_action = restart",
        "close_action = start",
    ] {
        assert!(conf.lines().any(|found| found.trim() == line), "{line} is not in\n{conf}");
    }
    assert!(conf.contains(&format!("id = \"CN={id}, O=gw.example.com\"")), "{conf}");
    let release = issued["release_token"].as_str().unwrap().to_owned();
    let (status, again) = f.ask("POST", "/v1/leases", Some(&jwt), &key.body());
    assert_eq!((status, &again["release_token"]), (200, &issued["release_token"]));
    assert!(!again["swanctl_conf"].as_str().unwrap().contains("ocsp = "), "unknown to 5.9.8");
    let (status, replay) = f.ask("POST", "/v1/leases", Some(&jwt), &other.body());
    assert_eq!((status, &replay["type"]), (403, &json!("urn:runnel:problem:token_replay")));
    let token = f.authority.token_create(&pki::TokenCreate::new("builder"), &Actor::System, now());
    let token = token.unwrap().1.expose().to_owned();
    let (status, second) = f.ask("POST", "/v1/leases", Some(&token), &other.body());
    assert_eq!(status, 201, "{second}");
    let second_id = second["lease"]["id"].as_str().unwrap().to_owned();

    // Not opening.
    let pull = f.key.sign(&{
        let mut claims = oidc::github(clock::unix_seconds(), AUDIENCE, "pull");
        claims["event_name"] = json!("pull_request");
        claims
    });
    let (status, refused) = f.ask("POST", "/v1/leases", Some(&pull), &key.body());
    assert_eq!(status, 403);
    let fields = refused["trace"]["rules"][0]["fields"].as_array().unwrap();
    let event = fields.iter().find(|field| field["field"] == "event_name").unwrap();
    assert_eq!((&event["ok"], &event["found"]), (&json!(false), &json!("pull_request")));
    let fresh = f.jwt("fresh");
    for (status, bearer, body) in [
        (401, None, key.body()),
        (401, Some("eyJhIjoxfQ.e30.AAAA"), key.body()),
        (401, Some("abcdef-nosuchtoken"), key.body()),
        (400, Some(fresh.as_str()), "{".to_owned()),
        (400, Some(&fresh), json!({"csr": key.csr(), "color": 1}).to_string()),
        (400, Some(&fresh), json!({"csr": "AAAA"}).to_string()),
        (400, Some(&fresh), json!({"csr": key.csr(), "client": "new"}).to_string()),
        (400, Some(&fresh), "{}".to_owned()),
        (413, Some(&fresh), format!("{{\"csr\": \"{}\"}}", "A".repeat(40_000))),
        (400, Some(&fresh), json!({"key_type": "ecdsa"}).to_string()),
        (400, Some(&fresh), json!({"csr": key.csr(), "key_type": "any"}).to_string()),
        (403, Some(&fresh), json!({"key_type": "any", "role": "builder"}).to_string()),
    ] {
        let (found, answer) = f.ask("POST", "/v1/leases", bearer, &body);
        assert_eq!(found, status, "{answer}");
    }
    let broken = f.key.sign(&json!({
        "iss": "https://x.example.com", "aud": AUDIENCE, "sub": "a",
        "exp": clock::unix_seconds() + 60,
    }));
    assert_eq!(f.ask("POST", "/v1/leases", Some(&broken), &key.body()).0, 401);
    f.authority.hold_issuance(Some("the disk is full".to_owned()));
    assert_eq!(f.ask("POST", "/v1/leases", Some(&fresh), &key.body()).0, 503);
    f.authority.hold_issuance(None);
    assert_eq!(f.ask("PUT", "/v1/leases", None, "").0, 405);
    assert_eq!(f.authority.leases(true).unwrap().len(), 2);

    // A key made here, where the role allows it.
    let making = f.key.sign(&{
        let mut claims = oidc::github(clock::unix_seconds(), AUDIENCE, "made");
        claims["repository_id"] = json!("777");
        claims
    });
    let wanted = json!({"key_type": "ecdsa-p384", "client": "6.0.1"}).to_string();
    let (status, made) = f.ask("POST", "/v1/leases", Some(&making), &wanted);
    assert_eq!(status, 201, "{made}");
    let private = rcgen::KeyPair::from_pem(made["private_key"].as_str().unwrap()).unwrap();
    let public = rcgen::PublicKeyData::subject_public_key_info(&private);
    let certificate = der(&made["certificate"]);
    assert!(certificate.windows(public.len()).any(|part| part == public), "another key's");
    let (status, again) = f.ask("POST", "/v1/leases", Some(&making), &wanted);
    assert_eq!((status, &again["type"]), (409, &json!("urn:runnel:problem:key_not_repeated")));
    assert!(again.get("private_key").is_none());
    assert_eq!(f.authority.leases(true).unwrap().len(), 3);

    // A lease that waits for an operator.
    let watched = f.key.sign(&{
        let mut claims = oidc::github(clock::unix_seconds(), AUDIENCE, "watched");
        claims["repository_id"] = json!("888");
        claims
    });
    let patient = Key::new();
    let (status, waits) = f.ask("POST", "/v1/leases", Some(&watched), &patient.body());
    assert_eq!((status, &waits["state"]), (202, &json!("pending")), "{waits}");
    let waits_id = waits["lease_id"].as_str().unwrap().to_owned();
    let waits_path = format!("/v1/leases/{waits_id}");
    let waits_release = waits["release_token"].as_str().unwrap().to_owned();
    for bearer in [&watched, &waits_release] {
        let (status, shown) = f.ask("GET", &waits_path, Some(bearer), "");
        assert_eq!((status, &shown["lease_id"]), (202, &json!(waits_id)));
    }
    assert_eq!(f.ask("POST", "/v1/leases", Some(&watched), &other.body()).0, 403);
    f.authority.decide_pending(&waits_id, true, None, &Actor::System, now()).unwrap();
    let (status, shown) = f.ask("GET", &waits_path, Some(&waits_release), "");
    assert_eq!((status, &shown["state"]), (202, &json!("approved")));
    let (status, opened) = f.ask("POST", "/v1/leases", Some(&watched), &patient.body());
    assert_eq!((status, &opened["lease"]["id"]), (201, &json!(waits_id)), "{opened}");
    assert_eq!(opened["release_token"], json!(waits_release));

    // One whose client does not wait for it.
    let impatient = f.key.sign(&{
        let mut claims = oidc::github(clock::unix_seconds(), AUDIENCE, "impatient");
        claims["repository_id"] = json!("888");
        claims
    });
    let (_, waits) = f.ask("POST", "/v1/leases", Some(&impatient), &patient.body());
    let path = format!("/v1/leases/{}", waits["lease_id"].as_str().unwrap());
    let (status, ended) = f.ask("DELETE", &path, Some(&impatient), "");
    assert_eq!(
        (status, &ended["cancelled"][0], &ended["revoked"]),
        (200, &waits["lease_id"], &json!(0))
    );
    assert!(f.authority.pending_leases(now()).unwrap().is_empty());
    // One that must not be opened any more, whatever the operator says.
    let revoked = f.key.sign(&{
        let mut claims = oidc::github(clock::unix_seconds(), AUDIENCE, "revoked");
        claims["repository_id"] = json!("888");
        claims
    });
    let (_, waits) = f.ask("POST", "/v1/leases", Some(&revoked), &patient.body());
    let path = format!("/v1/leases/{}", waits["lease_id"].as_str().unwrap());
    let csr = json!({ "csr": patient.csr() }).to_string();
    assert_eq!(f.ask("POST", &format!("{path}/renew"), Some(&revoked), &csr).0, 202);
    let (status, ended) = f.ask("POST", &format!("{path}/revoke"), Some(&revoked), "");
    assert_eq!((status, &ended["cancelled"][0]), (200, &waits["lease_id"]));
    assert!(f.authority.pending_leases(now()).unwrap().is_empty());
    assert_eq!(
        f.ask("POST", "/v1/leases", Some(&impatient), &patient.body()).0,
        403,
        "it is spent"
    );

    // A one-time token for a platform's.
    let swapped = f.jwt("exchanged");
    let exchanged = Key::new();
    let public = rcgen::PublicKeyData::subject_public_key_info(&exchanged.0);
    let hash = ring_hex(&public);
    let form = |grant: &str, kind: &str, token: &str, rest: &str| {
        format!("grant_type={grant}&subject_token_type={kind}&subject_token={token}&{rest}")
    };
    let grant = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange";
    let kind = "urn:ietf:params:oauth:token-type:jwt";
    let asked = form(grant, kind, &swapped, &format!("scope=builder&spki_sha256={hash}"));
    let (status, given) = f.ask("POST", "/v1/token", None, &asked);
    assert_eq!(
        (status, &given["scope"], &given["token_type"]),
        (200, &json!("builder"), &json!("N_A"))
    );
    assert!(given["expires_in"].as_u64().unwrap() <= 900);
    let (status, again) = f.ask("POST", "/v1/token", None, &asked);
    assert_eq!((status, &again["access_token"]), (200, &given["access_token"]));
    let other_key = form(grant, kind, &swapped, &format!("spki_sha256={}", "ab".repeat(32)));
    let (status, refused) = f.ask("POST", "/v1/token", None, &other_key);
    assert_eq!((status, &refused["type"]), (400, &json!("urn:runnel:problem:token_replay")));
    let fresh = f.jwt("not-exchanged");
    let bound = format!("spki_sha256={hash}");
    for (status, error, form) in [
        (400, "invalid_request", "grant_type".to_owned()),
        (400, "unsupported_grant_type", form("password", kind, &fresh, &bound)),
        (400, "invalid_request", form(grant, "urn:x", &fresh, &bound)),
        (400, "invalid_request", form(grant, kind, &fresh, "")),
        (400, "invalid_request", form(grant, kind, &fresh, "spki_sha256=abc")),
        (400, "invalid_request", form(grant, kind, &fresh, &format!("{bound}&{bound}"))),
        (400, "invalid_request", form(grant, kind, &fresh, &format!("{bound}&actor_token=a"))),
        (400, "invalid_request", form(grant, kind, &fresh, &format!("{bound}&scope=nobody"))),
        (400, "invalid_request", form(grant, kind, "eyJhIjoxfQ.e30.AAAA", &bound)),
        (413, "invalid_request", "a=".to_owned() + &"b".repeat(40_000)),
        // Whose keys cannot be had is answered as a stranger's token.
        (400, "invalid_request", {
            let broken = f.key.sign(&json!({
                "iss": "https://x.example.com", "aud": AUDIENCE, "sub": "a",
                "exp": clock::unix_seconds() + 60,
            }));
            form(grant, kind, &broken, &bound)
        }),
    ] {
        let (found, answer) = f.ask("POST", "/v1/token", None, &form);
        assert_eq!((found, &answer["error"]), (status, &json!(error)), "{answer}");
    }
    f.authority.hold_issuance(Some("the disk is full".to_owned()));
    let (status, answer) = f.ask("POST", "/v1/token", None, &form(grant, kind, &fresh, &bound));
    assert_eq!((status, &answer["error"]), (503, &json!("temporarily_unavailable")), "{answer}");
    f.authority.hold_issuance(None);
    assert_eq!(f.ask("GET", "/v1/token", None, "").0, 405);
    let given = given["access_token"].as_str().unwrap().to_owned();
    let (status, opened) = f.ask("POST", "/v1/leases", Some(&given), &exchanged.body());
    assert_eq!((status, &opened["lease"]["run_id"]), (201, &json!("7001")), "{opened}");
    assert_eq!(opened["lease"]["door"], "exchange");

    // One lease: every credential of its holder, and nobody else's.
    let path = format!("/v1/leases/{id}");
    let chain = vec![der(&issued["certificate"])];
    let same_job = f.jwt("asked for later");
    for bearer in [&release, &jwt, &same_job] {
        let (status, shown) = f.ask("GET", &path, Some(bearer), "");
        assert_eq!((status, &shown["lease"]["id"]), (200, &json!(id)));
    }
    assert_eq!(f.ask("GET", &format!("/v1/leases/{second_id}"), Some(&token), "").0, 200);
    assert_eq!(f.ask_with("GET", &path, None, chain.clone(), "").0, 200);
    for bearer in [token.as_str(), second["release_token"].as_str().unwrap(), "rt-00"] {
        for (method, tail) in [("GET", ""), ("DELETE", ""), ("POST", "/renew"), ("POST", "/revoke")]
        {
            let (status, answer) =
                f.ask(method, &format!("{path}{tail}"), Some(bearer), &key.body());
            assert_eq!(status, 403, "{method} {tail}: {answer}");
        }
    }
    let second_chain = vec![der(&second["certificate"])];
    assert_eq!(f.ask_with("GET", &path, None, second_chain, "").0, 403);
    let gone = f.authority.release_token("r-gone000000").expose().to_owned();
    for (method, tail) in [("GET", ""), ("DELETE", ""), ("POST", "/renew"), ("POST", "/revoke")] {
        assert_eq!(f.ask(method, &format!("{path}{tail}"), None, "").0, 401);
        let missing = format!("/v1/leases/r-gone000000{tail}");
        assert_eq!(f.ask(method, &missing, Some(&gone), "").0, 404);
    }
    assert_eq!(f.ask("PATCH", &path, None, "").0, 405);
    assert_eq!(f.ask("GET", &format!("{path}/renew"), None, "").0, 405);
    assert_eq!(f.ask("GET", &format!("{path}/revoke"), None, "").0, 405);

    // Renewal: the same key with any credential, another one with the certificate alone.
    let renew = format!("{path}/renew");
    let body = json!({"csr": key.csr(), "client": "5.9.8"}).to_string();
    let (status, renewed) = f.ask("POST", &renew, Some(&release), &body);
    assert_eq!((status, &renewed["lease"]["id"]), (200, &json!(id)));
    assert_ne!(renewed["certificate"], issued["certificate"]);
    assert_eq!(f.ask("POST", &renew, Some(&release), &other.body()).0, 403);
    assert_eq!(f.ask_with("POST", &renew, None, chain, &other.body()).0, 429);
    assert_eq!(f.ask("POST", &renew, Some(&release), "{}").0, 400);
    assert_eq!(f.ask("POST", &renew, Some(&release), &" ".repeat(40_000)).0, 413);

    // Ending.
    let revoke = format!("{path}/revoke");
    assert_eq!(f.ask("POST", &revoke, Some(&release), "{\"reason\": \"none\"}").0, 400);
    assert_eq!(f.ask("POST", &revoke, Some(&release), &" ".repeat(40_000)).0, 413);
    let (status, ended) = f.ask("DELETE", &path, Some(&jwt), "");
    assert_eq!((status, &ended["revoked"]), (200, &json!(1)), "the token that opened it");
    let (status, ended) = f.ask("DELETE", &path, Some(&release), "");
    assert_eq!((status, &ended["already"]), (200, &json!(true)));
    let lease = f.authority.lease(&id).unwrap().unwrap();
    assert_eq!(lease.end.unwrap().cause, "client");
    f.broken.store(true, Ordering::Relaxed);
    assert_eq!(f.ask("DELETE", &path, Some(&release), "").0, 503);
    assert_eq!(f.ask("POST", &revoke, Some(&release), "").0, 503);
    f.broken.store(false, Ordering::Relaxed);
    let second_revoke = format!("/v1/leases/{second_id}/revoke");
    let reason = "{\"reason\": \"key-compromise\"}";
    let (status, ended) = f.ask("POST", &second_revoke, Some(&token), reason);
    assert_eq!((status, &ended["revoked"]), (200, &json!(1)));

    // A job that opens one lease after the other meets its limit.
    let met = (0..10).find(|n| {
        let (jwt, body) = (f.jwt(&format!("many-{n}")), Key::new().body());
        f.ask("POST", "/v1/leases", Some(&jwt), &body).0 == 429
    });
    assert!(met.is_some(), "ten leases of one job");

    // The document itself, and that nothing in it went unseen.
    let (status, served) = f.ask("GET", "/v1/openapi.json", None, "");
    assert_eq!((status, &served), (200, &f.document));
    assert_eq!(f.ask("POST", "/v1/openapi.json", None, "").0, 405);
    let mut documented = BTreeSet::new();
    for (template, item) in f.document["paths"].as_object().unwrap() {
        for (method, operation) in
            item.as_object().unwrap().iter().filter(|(k, _)| *k != "parameters")
        {
            for status in operation["responses"].as_object().unwrap().keys() {
                documented.insert((method.clone(), template.clone(), status.parse().unwrap()));
            }
        }
    }
    // What the listener answers is seen to in a test of its own.
    let own = |(_, _, status): &(String, String, u16)| !matches!(status, 408 | 413 | 429);
    f.seen.retain(own);
    documented.retain(own);
    assert_eq!(f.seen, documented);
    let mut fields = BTreeSet::new();
    for (name, schema) in f.document["components"]["schemas"].as_object().unwrap() {
        for field in schema["properties"].as_object().unwrap().keys() {
            fields.insert(format!("{name}.{field}"));
        }
    }
    assert_eq!(f.fields, fields);

    // And what was done is in the trail under the request's name.
    let records = f.authority.audit(0, 10_000).unwrap();
    let by_peers = records.iter().filter(|record| matches!(record.event.actor, Actor::Peer(_)));
    let named: BTreeSet<_> = by_peers
        .map(|record| (record.event.action.as_str(), record.event.request.as_deref()))
        .collect();
    for action in ["lease.create", "lease.renew", "lease.release", "lease.revoke"] {
        assert!(named.contains(&(action, Some(REQUEST))), "{action}: {named:?}");
    }
    assert!(named.iter().all(|(_, request)| *request == Some(REQUEST)), "{named:?}");
}

#[test]
fn other_paths_are_no_resources() {
    let f = Fixture::new();
    let twice = ["/v1//leases/a", "/v1//v1/leases/a", "/v1/leases/a//"];
    for path in ["/v1/", "/v1/leases/a/b/c", "/v1/lease", "/v1/leases/a/other"].iter().chain(&twice)
    {
        let request = Request {
            method: "GET".to_owned(),
            path: (*path).to_owned(),
            headers: hyper::HeaderMap::new(),
            body: Vec::new().into(),
            peer: "192.0.2.7:4711".parse().unwrap(),
            client_chain: Vec::new(),
            id: "1-1".to_owned(),
        };
        assert_eq!(f.runtime.block_on(f.service.answer(request)).status, 404, "{path}");
    }
}
