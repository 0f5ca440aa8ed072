//! Lists in files, and what is kept of lists.

use std::sync::mpsc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};

use super::*;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Elsewhere");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ca::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate of this number and its CA's.
fn path(ca: &Ca, number: u64) -> Vec<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(number));
    let leaf = params.signed_by(&KeyPair::generate().unwrap(), ca).unwrap();
    vec![leaf.der().to_vec(), ca.der().to_vec()]
}

fn list(ca: &Ca, revoked: impl Iterator<Item = u64>) -> Vec<u8> {
    let entry = |number: u64| RevokedCertParams {
        serial_number: SerialNumber::from(number),
        revocation_time: rcgen::date_time_ymd(2026, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(2120, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked.map(entry).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(ca).unwrap().der().to_vec()
}

fn ask(checks: &RevocationChecks, file: &Path, path: &[Vec<u8>]) -> Verdict {
    let sources = Sources {
        mode: Revocation::Strict,
        ocsp: None,
        lists: vec![ListPlace::File(file.to_owned())],
        timeout: Duration::from_secs(1),
        refresh: Duration::from_secs(600),
    };
    let (tell, told) = mpsc::channel();
    assert!(checks.check(sources, path, Vec::new(), move |verdict| tell.send(verdict).unwrap()));
    told.recv().unwrap()
}

#[test]
fn a_list_in_a_file_is_read_again_when_the_file_changes() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let checks = RevocationChecks::new(runtime.handle().clone());
    let (ca, directory) = (ca(), tempfile::tempdir().unwrap());
    let (file, next) = (directory.path().join("list"), directory.path().join("next"));
    let path = path(&ca, 7);

    let verdict = ask(&checks, &file, &path);
    assert!(
        matches!(&verdict, Verdict::Unknown(why) if why.contains("No such file")),
        "{verdict:?}"
    );
    std::fs::write(&file, list(&ca, std::iter::empty())).unwrap();
    assert_eq!(ask(&checks, &file, &path), Verdict::Good(None));
    assert_eq!(checks.memory().lists.len(), 1);
    assert_eq!(ask(&checks, &file, &path), Verdict::Good(None));
    std::fs::write(&next, list(&ca, [7].into_iter())).unwrap();
    std::fs::rename(&next, &file).unwrap();
    let verdict = ask(&checks, &file, &path);
    assert!(matches!(&verdict, Verdict::Revoked(_)), "{verdict:?}");
    // What is gone says nothing more.
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(ask(&checks, &file, &path), Verdict::Unknown(_)));
}

#[test]
fn a_file_that_is_too_large_is_refused_with_what_to_do() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let checks = RevocationChecks::new(runtime.handle().clone());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("list");
    std::fs::File::create(&file).unwrap().set_len(1 << 40).unwrap();
    let verdict = ask(&checks, &file, &path(&ca(), 7));
    let told = "the file has more than 4194304 octets: have the CA divide its list";
    assert!(matches!(&verdict, Verdict::Unknown(why) if why.contains(told)), "{verdict:?}");
}

#[test]
fn lists_that_are_kept_are_bounded_by_what_they_take() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let checks = RevocationChecks::new(runtime.handle().clone());
    let der = list(&ca(), 1..10_001);
    let octets = der.len();
    let list = Arc::new(parse(der).unwrap());
    assert!(list.size() > octets * 2, "an entry takes more in memory");
    let fit = MAX_LISTS / list.size();
    for number in 0..fit * 2 {
        checks.keep(ListPlace::Url(number.to_string()), None, &list);
    }
    let memory = checks.memory();
    assert!(memory.lists.len() <= fit && memory.lists.len() + 2 > fit, "{fit}");
    let newest = ListPlace::Url((fit * 2 - 1).to_string());
    assert!(memory.lists.contains_key(&newest));
}
