//! What a CA does whose keys are in a token that is not there.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::record::{ISSUING_KEY, Octets, ROOT_KEY};
use crate::audit::Actor;
use crate::authority::Authority;
use crate::entropy::SystemEntropy;
use crate::error::Error;
use crate::profile::{Options, Settings};
use crate::record::{self, key};
use crate::revoke::{Order, RevocationReason};
use crate::store::{MemoryStore, Store, Txn};
use crate::time::UnixTime;
use crate::validate;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn after(hours: u64) -> UnixTime {
    NOW.plus(Duration::from_secs(hours * 3_600))
}

fn open(store: &Arc<dyn Store>) -> Authority {
    let options = Options::new(Settings::new("ci.example.com"));
    Authority::with_store(Arc::clone(store), &[7; 32], options, NOW).unwrap()
}

/// An authority that has published lists and answers, and whose keys then went.
fn without_keys() -> Authority {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let authority = open(&store);
    authority.crl(NOW).unwrap();
    authority.root_crl(NOW).unwrap();
    authority.ocsp_for(&authority.issuing_der(), NOW).unwrap().unwrap();
    let mut ca = authority.ca_record().unwrap().value;
    let in_token = |purpose: &str, sealed: &[u8]| {
        let signer = authority.sealer.open_key(purpose, sealed).unwrap();
        let reference = serde_json::json!({
            "token": "token \"hsm\"",
            "object": purpose,
            "id": STANDARD.encode([1]),
            "algorithm": signer.algorithm(),
            "public_key": STANDARD.encode(signer.public_key_der()),
        });
        let reference = serde_json::to_vec(&reference).unwrap();
        authority.sealer.seal(purpose, &reference, &mut SystemEntropy::new()).unwrap()
    };
    let root = ca.roots[0].key.as_ref().unwrap();
    ca.roots[0].key = Some(Octets(in_token(ROOT_KEY, &root.0)));
    ca.issuing[0].key = in_token(ISSUING_KEY, &ca.issuing[0].key);
    let mut txn = Txn::new();
    txn.put(key::CA, record::encode(&ca));
    store.transact(txn).unwrap();
    open(&store)
}

/// The certificate of the OCSP signer that is on record.
fn store_signer(authority: &Authority, issuer: &str) -> Option<Vec<u8>> {
    let entry = authority.store.get(&key::ocsp_signer(issuer)).unwrap()?;
    let value: serde_json::Value = serde_json::from_slice(&entry.value).unwrap();
    Some(STANDARD.decode(value["der"].as_str().unwrap()).unwrap())
}

#[test]
fn lists_stay_as_long_as_they_are_good() {
    let authority = without_keys();
    let number = authority.crl(NOW).unwrap().number;
    let minutes = |minutes: u64| NOW.plus(Duration::from_secs(minutes * 60));
    for at in [16, 17, 59] {
        assert_eq!(authority.crl(minutes(at)).unwrap().number, number, "{at}");
    }
    let told = authority.crl(minutes(61)).unwrap_err();
    assert!(matches!(&told, Error::Token(why) if why.contains("hsm")), "{told}");
    let root = authority.root_crl(NOW).unwrap().number;
    assert_eq!(authority.root_crl(after(25)).unwrap().number, root);
    assert!(authority.root_crl(after(8 * 24)).is_err());
}

#[test]
fn answers_go_on_with_a_signer_that_should_have_a_successor() {
    let authority = without_keys();
    let issuing = authority.issuing_der();
    let root = authority.ca().root().id.clone();
    let answer = |at| authority.ocsp_for(&issuing, at);
    // Two thirds of fourteen days are over.
    assert!(answer(after(10 * 24)).unwrap().is_some());
    assert!(answer(after(14 * 24 - 1)).unwrap().is_some());
    let told = answer(after(14 * 24)).unwrap_err();
    assert!(matches!(told, Error::Token(_)), "{told}");
    // One that is revoked answers no more, however young.
    let signer = store_signer(&authority, &root).unwrap();
    let serial = validate::serial_of(&signer).unwrap();
    let reason = RevocationReason::KeyCompromise;
    let order = Order { reason, actor: &Actor::System, now: after(1) };
    assert_eq!(authority.revoke_bare(&root, &serial, &order).unwrap(), 1);
    assert!(answer(after(2)).is_err());
}

#[test]
fn the_status_names_the_token_of_each_key_and_what_is_wrong_with_it() {
    let authority = without_keys();
    let status = authority.ca_status().certificates;
    for (ca, object) in status.iter().zip([ROOT_KEY, ISSUING_KEY]) {
        assert!(ca.token.as_ref().is_some_and(|token| token.contains(object)), "{ca:?}");
        assert_eq!(ca.trouble, None);
    }
    assert!(authority.root_crl(after(25)).is_ok());
    assert!(authority.probe_ca_keys().is_err());
    for ca in authority.ca_status().certificates {
        assert!(ca.trouble.is_some_and(|why| why.contains("cannot be reached")), "{}", ca.kind);
    }
}
