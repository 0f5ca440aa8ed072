//! An OIDC issuer for tests: real keys of every accepted algorithm, real signatures, and the claims
//! that the platforms put into their tokens.

use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use serde_json::{Value, json};

/// A signing key.
#[derive(Debug)]
enum Signer {
    Rs256(RsaKeyPair),
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
}

/// A key of an issuer.
#[derive(Debug)]
pub struct IssuerKey {
    /// Its name.
    pub kid: String,
    signer: Signer,
}

impl IssuerKey {
    /// An RSA key of 2048 bits, made by openssl.
    pub fn rs256(kid: &str) -> Self {
        Self { kid: kid.to_owned(), signer: Signer::Rs256(rsa()) }
    }

    /// A key on P-256.
    pub fn es256(kid: &str) -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap_or_else(broken);
        let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random);
        Self { kid: kid.to_owned(), signer: Signer::Es256(key.unwrap_or_else(broken)) }
    }

    /// An Ed25519 key.
    pub fn eddsa(kid: &str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap_or_else(broken);
        let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap_or_else(broken);
        Self { kid: kid.to_owned(), signer: Signer::EdDsa(key) }
    }

    /// The name of its algorithm.
    pub fn algorithm(&self) -> &'static str {
        match self.signer {
            Signer::Rs256(_) => "RS256",
            Signer::Es256(_) => "ES256",
            Signer::EdDsa(_) => "EdDSA",
        }
    }

    /// The public key as a JWK (RFC 7517).
    pub fn jwk(&self) -> Value {
        let (kid, alg) = (&self.kid, self.algorithm());
        match &self.signer {
            Signer::Rs256(key) => {
                let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(key.public());
                let (n, e) = (encode(&public.n), encode(&public.e));
                json!({"kty": "RSA", "use": "sig", "kid": kid, "alg": alg, "n": n, "e": e})
            }
            Signer::Es256(key) => {
                let point = key.public_key().as_ref();
                let (x, y) = (encode(&point[1..33]), encode(&point[33..]));
                json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": kid, "alg": alg, "x": x, "y": y})
            }
            Signer::EdDsa(key) => {
                let x = encode(key.public_key().as_ref());
                json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": kid, "alg": alg, "x": x})
            }
        }
    }

    /// The public key's own octets, as somebody would use them who takes them for a secret.
    pub fn public_octets(&self) -> Vec<u8> {
        match &self.signer {
            Signer::Rs256(key) => key.public_key().as_ref().to_vec(),
            Signer::Es256(key) => key.public_key().as_ref().to_vec(),
            Signer::EdDsa(key) => key.public_key().as_ref().to_vec(),
        }
    }

    /// A signed token.
    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({"typ": "JWT", "alg": self.algorithm(), "kid": self.kid});
        self.sign_as(&header, claims)
    }

    /// A token with a header of the caller's.
    pub fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let signed = format!(
            "{}.{}",
            encode(header.to_string().as_bytes()),
            encode(claims.to_string().as_bytes())
        );
        let signature = self.signature(signed.as_bytes());
        format!("{signed}.{}", encode(&signature))
    }

    fn signature(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.signer {
            Signer::Rs256(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                let signed = key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature);
                signed.unwrap_or_else(broken);
                signature
            }
            Signer::Es256(key) => {
                key.sign(&random, message).unwrap_or_else(broken).as_ref().to_vec()
            }
            Signer::EdDsa(key) => key.sign(message).as_ref().to_vec(),
        }
    }
}

/// A key set.
pub fn jwks(keys: &[&IssuerKey]) -> Vec<u8> {
    let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
    json!({ "keys": keys }).to_string().into_bytes()
}

/// Base64url without padding.
pub fn encode(octets: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(octets)
}

/// The claims of a GitHub Actions job on `main`; `now` in seconds since 1970.
pub fn github(now: i64, audience: &str, jti: &str) -> Value {
    json!({
        "iss": "https://token.actions.githubusercontent.com",
        "aud": audience,
        "sub": "repo:octo/app:ref:refs/heads/main",
        "jti": jti,
        "iat": now, "nbf": now - 300, "exp": now + 300,
        "repository": "octo/app", "repository_id": "123456",
        "repository_owner": "octo", "repository_owner_id": "9919",
        "repository_visibility": "private",
        "ref": "refs/heads/main", "ref_type": "branch", "ref_protected": "true",
        "event_name": "push", "runner_environment": "github-hosted",
        "workflow": "build", "workflow_ref": "octo/app/.github/workflows/build.yml@refs/heads/main",
        "job_workflow_ref": "octo/app/.github/workflows/build.yml@refs/heads/main",
        "run_id": "7001", "run_number": "12", "run_attempt": "1", "check_run_id": "88001",
        "actor": "mona", "actor_id": "77", "sha": "de3d86d22c6a3dc46c0f1c7a1b0f4f3d3b9a1c55"
    })
}

/// The claims of a GitLab CI job on a protected branch.
pub fn gitlab(now: i64, audience: &str, jti: &str) -> Value {
    json!({
        "iss": "https://gitlab.com",
        "aud": audience,
        "sub": "project_path:group/app:ref_type:branch:ref:main",
        "jti": jti,
        "iat": now, "nbf": now - 5, "exp": now + 3_600,
        "project_id": "20", "project_path": "group/app",
        "namespace_id": "72", "namespace_path": "group",
        "ref": "main", "ref_type": "branch", "ref_path": "refs/heads/main", "ref_protected": "true",
        "pipeline_source": "push", "pipeline_id": "574", "job_id": "302",
        "user_id": "1", "user_login": "sample-user", "runner_environment": "gitlab-hosted",
        "sha": "714a629c0b401fdce83e847fc9589983fc6f46bc"
    })
}

/// The claims of a Jenkins build: no `jti` and no `nbf`.
pub fn jenkins(now: i64, audience: &str) -> Value {
    json!({
        "iss": "https://jenkins.example.com/oidc",
        "aud": audience,
        "sub": "https://jenkins.example.com/job/ci/job/app/",
        "iat": now, "exp": now + 3_600, "build_number": 41
    })
}

/// The claims of a Kubernetes service account token bound to a pod.
pub fn kubernetes(now: i64, audience: &str, jti: &str) -> Value {
    json!({
        "iss": "https://kubernetes.default.svc.cluster.local",
        "aud": [audience],
        "sub": "system:serviceaccount:ci:builder",
        "jti": jti,
        "iat": now, "nbf": now, "exp": now + 600,
        "kubernetes.io": {
            "namespace": "ci",
            "node": {"name": "node-1", "uid": "6f1a"},
            "pod": {"name": "build-x7", "uid": "93c2"},
            "serviceaccount": {"name": "builder", "uid": "14ee"}
        }
    })
}

fn rsa() -> RsaKeyPair {
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .args(["-outform", "DER"])
        .stderr(Stdio::null())
        .output()
        .unwrap_or_else(broken);
    // Some versions write PKCS#1 here; this one reads both and writes PKCS#8.
    let mut child = Command::new("openssl")
        .args(["pkcs8", "-topk8", "-nocrypt", "-inform", "DER", "-outform", "DER"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(broken);
    if let Some(mut input) = child.stdin.take() {
        input.write_all(&made.stdout).unwrap_or_else(broken);
    }
    let pkcs8 = child.wait_with_output().unwrap_or_else(broken).stdout;
    RsaKeyPair::from_pkcs8(&pkcs8).unwrap_or_else(broken)
}

/// Tests end here when the machine cannot make keys.
fn broken<T, E: std::fmt::Debug>(error: E) -> T {
    panic!("the test issuer cannot make its keys: {error:?}")
}
