//! The target for what CI platforms, or whoever claims to be one, send as webhooks. Panics are
//! findings.

use pki::UnixTime;
use pki::hook::{Delivery, HookKind, HookSecret, HookSource, Told, read, verify};

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this module.
pub const TARGETS: [Target; 1] = [("webhook", fuzz_webhook)];

const NOW: UnixTime = UnixTime::from_secs(1_795_305_600);
const KINDS: [HookKind; 2] = [HookKind::Github, HookKind::Gitlab];

/// Lines with event, signature (or token), time and name of a delivery, then its body: nobody is
/// believed without the secret, and only numbers are taken from what a platform says.
pub fn fuzz_webhook(data: &[u8]) {
    let mut lines = data.splitn(5, |octet| *octet == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let text = |octets| std::str::from_utf8(octets).ok();
    let (event, proof, time, name) = (text(line()), text(line()), text(line()), text(line()));
    let body = line();
    for kind in KINDS {
        let secrets = vec![HookSecret::new(b"a secret that nobody guesses")];
        let (issuer, iss) = ("ci".to_owned(), "https://ci.example.com".to_owned());
        let sources = [HookSource { kind, issuer, iss, secrets }];
        let bare = Delivery { event, id: name, body, ..Delivery::default() };
        let deliveries = [
            bare,
            Delivery { hub_signature: proof, token: proof, ..bare },
            Delivery {
                webhook_id: name,
                webhook_timestamp: time,
                webhook_signature: proof,
                token: proof,
                ..bare
            },
        ];
        for delivery in deliveries {
            let refused =
                verify(&sources, kind, &delivery, NOW).expect_err("nobody has the secret");
            assert!(refused.status() == 401 && refused.public_detail().len() < 200);
        }
        match read(kind, event, body) {
            Ok(Told::Over(over)) => {
                let digits = |text: &String| text.bytes().all(|octet| octet.is_ascii_digit());
                let all = [Some(&over.project), Some(&over.run), over.attempt.as_ref()];
                assert!(all.into_iter().chain([over.job.as_ref()]).flatten().all(digits));
                assert!(over.to_string().len() < 200);
            }
            Ok(Told::Nothing(why)) => assert!(!why.is_empty()),
            Err(error) => assert_eq!(error.status(), 400),
        }
    }
}

/// Seeds: name, target and octets that reach deep.
pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let seed = |name, text: &str| ("webhook", name, text.as_bytes().to_vec());
    vec![
        seed(
            "github",
            "workflow_job\nsha256=00ff\n\n72d3162e-cc78-11e3-81ab-4c9367dc0958\n{\"action\":\
             \"completed\",\"workflow_job\":{\"id\":9,\"run_id\":7001,\"run_attempt\":1,\
             \"check_run_url\":\"https://api.github.com/repos/o/r/check-runs/88001\"},\
             \"repository\":{\"id\":123456}}",
        ),
        seed(
            "github-run",
            "workflow_run\nsha256=\n\n\n{\"action\":\"completed\",\"workflow_run\":{\"id\":7001,\
             \"run_attempt\":2},\"repository\":{\"id\":\"123456\"}}",
        ),
        seed(
            "gitlab",
            "Job Hook\nv1,AAAA v1,BBBB\n1795305600\nf5e5f430\n{\"object_kind\":\"build\",\
             \"build_id\":302,\"build_status\":\"success\",\"pipeline_id\":574,\"project_id\":20}",
        ),
    ]
}
