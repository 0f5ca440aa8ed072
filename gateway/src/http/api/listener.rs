//! What the listener itself answers, before a request reaches the interface: documented for every
//! operation, in the form that all errors of the interface have.

use std::time::Duration;

use pki::store::MemoryStore;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::config::Config;
use crate::http::server::exchange;
use crate::http::{EnrolService, EstService, Limited, Limits, Rate};

/// Ends nothing: no request here gets so far.
struct Nobody;

impl EndLeases for Nobody {
    fn release(&self, leases: &[String], _: &str, _: &Actor) -> Result<Ended, EndError> {
        panic!("{leases:?} is not to be released")
    }

    fn revoke(&self, lease: &str, _: &str, _: &Actor) -> Result<Ended, EndError> {
        panic!("{lease} is not to be revoked")
    }
}

/// The enrolment listener's service; a source may ask once.
fn service() -> Arc<Limited<EnrolService>> {
    let config = Config::built_in();
    let options = pki::Options::new(crate::service::pki_settings(&config, "gw.example.com"));
    let store = Arc::new(MemoryStore::new());
    let authority = Arc::new(Authority::with_store(store, &[7; 32], options, now()).unwrap());
    let keys = Arc::new(KeyFetcher::new(Arc::clone(&authority)));
    let refusals: Arc<Refusals> = Arc::default();
    let api = Api {
        authority: Arc::clone(&authority),
        refusals: Arc::clone(&refusals),
        keys: Arc::clone(&keys),
        config: LiveConfig::new(config),
        ender: Box::new(Nobody),
        gateway: "gw.example.com".to_owned(),
    };
    let est = EstService::new(authority, Arc::clone(&refusals), keys);
    let service = EnrolService { est, api: ApiService(Arc::new(api)) };
    let rate = Rate { per_second: 1, burst: 1 };
    Arc::new(Limited::new(Arc::new(service), rate, refusals, "[enrol]"))
}

/// One request over a connection of its own: status, head in lower case and body.
async fn ask(service: &Arc<Limited<EnrolService>>, request: &str) -> (u16, String, Vec<u8>) {
    let (mut client, server) = tokio::io::duplex(256 * 1024);
    let limits = Limits { read: Duration::from_millis(100), ..Limits::default() };
    let peer = "192.0.2.1:4711".parse().unwrap();
    let served = tokio::spawn(exchange(server, peer, Vec::new(), Arc::clone(service), limits));
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    let _ = served.await.unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, answer[end + 4..].to_vec())
}

fn request(method: &str, path: &str, length: usize, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// The answer with this status to a request that is sent by many at once, of whom the source may
/// be one.
async fn answered(
    service: &Arc<Limited<EnrolService>>,
    request: &str,
    status: u16,
) -> (u16, String, Vec<u8>) {
    let many = if status == 429 { 20 } else { 1 };
    let asking: Vec<_> = (0..many)
        .map(|_| {
            let (service, request) = (Arc::clone(service), request.to_owned());
            tokio::spawn(async move { ask(&service, &request).await })
        })
        .collect();
    let mut answers = Vec::new();
    for asked in asking {
        answers.push(asked.await.unwrap());
    }
    let wanted = answers.iter().position(|(found, ..)| *found == status).unwrap_or(0);
    answers.swap_remove(wanted)
}

#[test]
fn what_the_listener_refuses_is_documented_for_every_operation() {
    // RFC 9457 3; RFC 9110 15.5.9, 15.5.14; RFC 6585 4.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let schema = &document["components"]["schemas"]["Problem"];
    for (template, item) in document["paths"].as_object().unwrap() {
        let path = template.replace("{id}", "r-7f3k9q");
        for (method, operation) in
            item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters")
        {
            let (method, service) = (method.to_uppercase(), service());
            let mut wanted = vec![
                (413, request(&method, &path, 70_000, "")),
                (408, request(&method, &path, 3, "ab")),
            ];
            if template != "/v1/openapi.json" {
                wanted.push((429, request(&method, &path, 0, "")));
            }
            for (expected, request) in wanted {
                let (status, head, body) = runtime.block_on(answered(&service, &request, expected));
                assert_eq!(status, expected, "{method} {path}: {head}");
                assert!(head.contains("content-type: application/problem+json"), "{head}");
                assert_eq!(head.contains("retry-after: "), status == 429, "{head}");
                let told: Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(told["status"], status);
                let id = told["request_id"].as_str().unwrap();
                assert!(head.contains(&format!("x-request-id: {id}")), "{head}");
                for field in schema["required"].as_array().unwrap() {
                    assert!(told.get(field.as_str().unwrap()).is_some(), "{field}: {told}");
                }
                let documented = &operation["responses"][status.to_string()]["content"];
                assert!(documented["application/problem+json"].is_object(), "{method} {path}");
            }
        }
    }
}

#[test]
fn who_speaks_est_is_told_in_words() {
    // RFC 7030 4.2.3: text may say what went wrong.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let path = "/.well-known/est/simpleenroll";
    let (status, head, body) =
        runtime.block_on(ask(&service(), &request("POST", path, 70_000, "")));
    assert_eq!(status, 413);
    assert!(head.contains("content-type: text/plain"), "{head}");
    assert!(String::from_utf8(body).unwrap().contains("at most 65536 bytes"));
    let (status, head, _) = runtime.block_on(ask(&service(), &request("GET", path, 0, "")));
    assert_eq!(status, 405);
    assert!(head.contains("allow: post"), "{head}");
}
