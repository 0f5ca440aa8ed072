//! The program as scripts meet it: exit codes, one sentence per failure, nothing half-created.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::{Command, Output};

fn runnel(state: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_runnel"))
        .arg("--state")
        .arg(state)
        .args(words)
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn sentence(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "one sentence, not: {text}");
    text
}

#[test]
fn help_and_version_succeed_and_teach() {
    let dir = tempfile::tempdir().unwrap();
    let help = runnel(dir.path(), &["--help"]);
    assert_eq!(code(&help), 0);
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(text.contains("runnel token create --role builder"), "{text}");
    let version = runnel(dir.path(), &["--version"]);
    assert!(String::from_utf8(version.stdout).unwrap().starts_with("runnel "));
    let sub = runnel(dir.path(), &["lease", "release", "--help"]);
    assert!(String::from_utf8(sub.stdout).unwrap().contains("Examples:"));
}

#[test]
fn wrong_usage_is_2() {
    let dir = tempfile::tempdir().unwrap();
    for words in [
        &["frobnicate"][..],
        &["lease", "release"],
        &["lease", "release", "r-1", "--role", "builder"],
        &["bar", "lift"],
        &["bar", "lift", "key-1", "--all"],
        &["bar", "lift", "key-1", "--yes"],
        &["bar", "lift", "--all", "--kind", "lease"],
        &["token", "create"],
        &["token", "create", "--role", "builder", "--uses", "0"],
        &["token", "create", "--role", "builder", "--ttl", "soon"],
    ] {
        let output = runnel(dir.path(), words);
        assert_eq!(code(&output), 2, "{words:?}: {output:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn without_an_instance_everything_that_needs_one_is_3() {
    let dir = tempfile::tempdir().unwrap();
    for words in [
        &["status"][..],
        &["stop"],
        &["token", "list"],
        &["lease", "list", "-o", "json"],
        &["sa", "list"],
        &["cert", "list"],
        &["ca", "root"],
        &["doctor"],
    ] {
        let output = runnel(dir.path(), words);
        assert_eq!(code(&output), 3, "{words:?}: {output:?}");
        assert!(sentence(&output).contains("runnel up"), "{words:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn check_tells_every_mistake_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gw.toml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "[gateway]\nidd = \"gw\"\nlistn = []\n").unwrap();
    let output = runnel(dir.path(), &["--config", path, "check"]);
    assert_eq!(code(&output), 1);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("gw.toml:2:") && text.contains("gw.toml:3:"), "{text}");

    std::fs::write(&file, "[gateway]\nid = \"gw.example.com\"\n").unwrap();
    let output = runnel(dir.path(), &["--config", path, "check"]);
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("role builder"));
}

#[test]
fn up_refuses_bad_state_directories_in_one_sentence_and_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let newer = dir.path().join("newer");
    std::fs::create_dir(&newer).unwrap();
    std::fs::write(newer.join("version"), "999\n").unwrap();
    let output = runnel(&newer, &["up"]);
    assert_eq!(code(&output), 1);
    assert!(sentence(&output).contains("newer runnel (state version 999"));
    assert_eq!(std::fs::read_dir(&newer).unwrap().count(), 1);

    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = runnel(&file, &["up"]);
    assert_eq!(code(&output), 1);
    assert!(sentence(&output).contains("a file is in the way"));
}

#[test]
fn up_with_a_bad_key_or_filter_creates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let file = dir.path().join("gw.toml");
    std::fs::write(&file, "[gateway]\nidd = \"gw\"\n").unwrap();
    let output = runnel(&state, &["--config", file.to_str().unwrap(), "up"]);
    assert_eq!(code(&output), 1);
    assert!(sentence(&output).contains("did you mean `id`"));
    let output = runnel(&state, &["up", "--log", "x=y=z"]);
    assert_eq!(code(&output), 2);
    assert!(!state.exists());
}

#[test]
fn failpoints_are_listed_and_absent_from_ordinary_builds() {
    let dir = tempfile::tempdir().unwrap();
    let output = runnel(dir.path(), &["debug", "failpoints"]);
    let names = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(names.lines().any(|name| name == "est.before_answer"), "{names}");
    assert_eq!(code(&output) == 0, cfg!(feature = "failpoints"));
}

#[test]
fn a_ca_request_before_the_first_start_waits_for_its_certificate() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let config = dir.path().join("gw.toml");
    std::fs::write(&config, "[pki]\ntrust_domain = \"ci.example.com\"\nca_key = \"ed25519\"\n")
        .unwrap();
    let config = ["--config", config.to_str().unwrap()];
    let ca = |words: &[&str]| runnel(&state, &[&config[..], &["ca"], words].concat());

    // A certificate that nobody asked for, and none at all.
    let own = rcgen::generate_simple_self_signed(vec!["ca.example.com".to_owned()]).unwrap();
    let file = dir.path().join("chain.pem");
    std::fs::write(&file, own.cert.pem()).unwrap();
    let import = ["import", file.to_str().unwrap()];
    let output = ca(&import);
    assert_eq!(code(&output), 1);
    assert!(sentence(&output).contains("no certificate is awaited"));
    assert!(!state.exists(), "nothing is left of what failed");
    assert!(sentence(&ca(&["import", "missing.pem"])).contains("cannot read missing.pem"));
    assert_eq!(code(&ca(&["csr", "--key", "rsa-512"])), 2);

    let output = ca(&["csr"]);
    assert_eq!(code(&output), 0, "{output:?}");
    let request = String::from_utf8(output.stdout).unwrap();
    assert!(request.starts_with("-----BEGIN CERTIFICATE REQUEST-----"), "{request}");
    assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(ca(&["csr"]).stdout, request.as_bytes(), "the same until it is answered");
    assert_ne!(ca(&["csr", "--new"]).stdout, request.as_bytes());
    assert!(sentence(&ca(&import)).contains("has the key of the request"));
    assert!(sentence(&ca(&["import", "--crl", import[1]])).contains("there is no CA"));
    // What acts on a CA that issues needs the gateway that does.
    assert_eq!(code(&ca(&["rotate"])), 3);
}
