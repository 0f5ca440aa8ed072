//! What an operator types, and what the file tells back.

use std::time::Duration;

use xfrm::model::Offload;

use super::*;

/// Every mistake of a text, as the operator sees it.
pub(super) fn errors(text: &str) -> Vec<String> {
    match Config::parse(text, "runnel.toml") {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(errors) => errors.to_string().lines().map(str::to_owned).collect(),
    }
}

#[test]
fn the_documented_example_is_accepted() {
    let config = Config::parse(
        r#"
[gateway]
id = "gw.example.com"
listen = ["0.0.0.0", "::"]
dataplane = "auto"

[ike]
rekey = "1h"
child = "25m"
dpd = "10s"

[pki]
trust_domain = "ci.example.com"
status_listen = "0.0.0.0:8080"

[enrol]
listen = "0.0.0.0:8443"
url = "https://gw.example.com:8443"

[[pool]]
name = "runners"
addresses = ["10.77.0.0/16", "fd77::/64"]
dns = ["10.20.0.53"]
masquerade = false

[[role]]
name = "builder"
pool = "runners"
ttl = "1h"
allow = ["10.20.0.10:443/tcp", "10.20.1.0/24"]
"#,
        "runnel.toml",
    )
    .unwrap();
    assert_eq!(config.gateway.id.as_deref(), Some("gw.example.com"));
    assert_eq!(config.pools[0].dns.len(), 1);
    assert_eq!(config.roles[0].allow.len(), 2);
    assert_eq!(config.roles[0].ttl, Duration::from_secs(3600));
    assert!(config.warnings.is_empty());
}

#[test]
fn an_empty_file_means_the_built_in_configuration() {
    let config = Config::parse("", "runnel.toml").unwrap();
    assert_eq!(config, Config::built_in());
    let role = &config.roles[0];
    assert_eq!(role.name, "builder");
    let reach: Vec<String> = role.allow.iter().map(|entry| entry.net.to_string()).collect();
    assert_eq!(reach, ["10.77.0.1/32", "fd77::1/128"]);
    assert!(role.allow.iter().all(|entry| entry.ports == Some((80, 80))));
}

#[test]
fn a_pool_alone_moves_the_built_in_role_into_it() {
    let config =
        Config::parse("[[pool]]\nname = \"ci\"\naddresses = [\"10.9.0.0/24\"]\n", "f").unwrap();
    assert_eq!(config.roles[0].pool, "ci");
    assert_eq!(config.roles[0].allow[0].net.to_string(), "10.9.0.1/32");
}

#[test]
fn all_mistakes_are_reported_at_once_with_lines() {
    let found = errors(
        r#"[gateway]
lisen = ["0.0.0.0"]
dataplane = "fast"
[ike]
rekey = "1 hour"
[[pool]]
name = "runners"
addresses = ["10.77.0.1/16"]
[[role]]
name = "Builder"
[[role]]
name = "deploy"
pool = "runner"
allow = ["db.internal:5432/tcp"]
"#,
    );
    let expect = [
        ("runnel.toml:2:", "did you mean `listen`?"),
        ("runnel.toml:3:", "\"auto\", \"kernel\" or \"userspace\""),
        ("runnel.toml:5:", "write a duration like"),
        ("runnel.toml:8:", "write \"10.77.0.0/16\""),
        ("runnel.toml:10:", "cannot be a name"),
        ("runnel.toml:13:", "did you mean \"runners\"?"),
        ("runnel.toml:14:", "names are not resolved"),
    ];
    assert_eq!(found.len(), expect.len(), "{found:#?}");
    for ((at, part), line) in expect.iter().zip(&found) {
        assert!(line.starts_with(at) && line.contains(part), "{line} lacks {at} {part}");
    }
}

#[test]
fn broken_toml_gives_the_line_and_nothing_misleading() {
    let found = errors("[gateway]\nid = \"gw\nlisten = 5\n");
    assert!(found[0].starts_with("runnel.toml:2:"), "{found:?}");
    assert!(found.iter().all(|line| line.contains("not valid TOML")), "{found:?}");
}

#[test]
fn planned_sections_are_named_as_such() {
    let found = errors("[ha]\npeer = \"gw2\"\n");
    assert!(found[0].contains("gateway pairs is not in this version"), "{found:?}");
}

const ISSUER: &str = r#"
[enrol]
url = "https://gw.example.com:8443"
[[issuer]]
name = "github"
kind = "github"
[[role]]
name = "builder"
allow = ["10.20.0.10"]
[[role.match]]
issuer = "github"
repository_id = 123456
ref = ["refs/heads/main", "refs/tags/v*"]
"#;

#[test]
fn issuers_and_the_rules_of_their_tokens() {
    let config = Config::parse(ISSUER, "f").unwrap();
    let issuer = &config.issuers[0];
    assert_eq!(issuer.issuer, "https://token.actions.githubusercontent.com");
    assert_eq!(issuer.audience, "https://gw.example.com:8443", "the enrolment URL");
    let rule = &config.roles[0].claims[0];
    assert_eq!((rule.role.as_str(), rule.number), ("builder", 1));
    assert!(rule.claims["repository_id"][0].matches("123456"));
    assert!(rule.claims["ref"][1].matches("refs/tags/v1.2"));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);

    let named = ISSUER.replace("repository_id = 123456", "repository = \"octo/app\"");
    let warnings = Config::parse(&named, "f").unwrap().warnings;
    assert!(warnings[0].contains("by its name alone"), "{warnings:?}");
    let odd = ISSUER.replace("ref =", "colour = \"blue\"\nref =");
    let warnings = Config::parse(&odd, "f").unwrap().warnings;
    assert!(warnings[0].contains("no claim that github tokens"), "{warnings:?}");
    let private = ISSUER.replace(
        "kind = \"github\"",
        "kind = \"jenkins\"\nissuer = \"https://ci.example.com/oidc\"\nstatic_jwks = \"/etc/runnel/j.json\"",
    );
    let private =
        private.replace("repository_id = 123456", "sub = \"https://ci.example.com/job/a/\"");
    let config = Config::parse(&private, "f").unwrap();
    assert!(matches!(&config.issuers[0].keys, pki::enrol::jwt::KeySource::File(_)));
}

#[test]
fn mistakes_about_issuers_say_what_to_write() {
    let replaced = |from: &str, to: &str| ISSUER.replace(from, to);
    for (text, part) in [
        (replaced("url = \"https://gw.example.com:8443\"", ""), "has no audience"),
        (replaced("kind = \"github\"", "kind = \"gitea\""), "must be one of github"),
        (replaced("kind = \"github\"", ""), "has no kind"),
        (replaced("kind = \"github\"", "kind = \"generic\""), "has no `issuer`"),
        (replaced("kind =", "issuer = \"gw\"\nkind ="), "exactly: a URL"),
        (replaced("kind =", "issuer = \"http://gh\"\nkind ="), "only be fetched from https"),
        (replaced("kind =", "algorithms = [\"HS256\"]\nkind ="), "never accepted"),
        (replaced("kind =", "static_jwks = \"keys.json\"\nkind ="), "absolute path"),
        (replaced("kind =", "static_jwks = \"/a\"\nca = \"/b\"\nkind ="), "keep one"),
        (replaced("kind =", "audiance = \"x\"\nkind ="), "did you mean `audience`"),
        (replaced("issuer = \"github\"", "issuer = \"githup\""), "did you mean \"github\""),
        (replaced("repository_id = 123456", ""), "is about no project"),
        (replaced("repository_id = 123456", "repository_owner_id = 9"), "add repository_id"),
        (replaced("repository_id", "repositry_id"), "did you mean `repository_id`"),
        (replaced("= 123456", "= \"1234*\""), "without *"),
        (replaced("ref = [", "ref = [{}, "), "a text or a list of texts"),
        (replaced("ref =", "aud = \"x\"\nref ="), "judged for every token"),
        (replaced("issuer = \"github\"", "issuer = \"github\"\nca = \"x\""), "make two rules"),
        (format!("{ISSUER}[[issuer]]\nname = \"b\"\nkind = \"github\"\n"), "there twice"),
    ] {
        let found = errors(&text);
        assert!(found.iter().any(|line| line.contains(part)), "{part}: {found:#?}");
    }
}

/// What readers copy from the page about tokens must be accepted as it stands.
#[test]
fn the_examples_about_tokens_are_accepted() {
    let guide = include_str!("../../../docs/guide/ci-tokens.md");
    let mut rules = 0;
    for block in guide.split("```toml\n").skip(1) {
        let text = block.split("```").next().unwrap();
        let config = Config::parse(text, "ci-tokens.md").unwrap();
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        rules += config.roles.iter().map(|role| role.claims.len()).sum::<usize>();
    }
    assert!(rules >= 5, "{rules}");
}

#[test]
fn pools_cannot_overlap_and_clients_cannot_reach_each_other() {
    let found = errors(
        "[[pool]]\nname = \"a\"\naddresses = [\"10.0.0.0/16\"]\n[[pool]]\nname = \"b\"\naddresses = [\"10.0.1.0/24\"]\n[[role]]\nname = \"r\"\npool = \"a\"\nallow = [\"10.0.0.7\"]\n",
    );
    assert!(found[0].contains("overlaps 10.0.0.0/16 of pool \"a\""), "{found:?}");
    assert!(found[1].contains("cannot reach each other"), "{found:?}");
}

#[test]
fn wrong_types_say_what_is_wanted() {
    let found =
        errors("[gateway]\nlisten = \"0.0.0.0\"\n[ike]\nfragment_size = 10\n[[pool]]\nname = 5\n");
    assert!(found[0].contains("list of strings"), "{found:?}");
    assert!(found[1].contains("from 576 to 65000"), "{found:?}");
    assert!(found[2].contains("must be a string"), "{found:?}");
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn a_missing_file_says_so() {
    let missing = std::path::Path::new("/nonexistent/runnel.toml");
    let message = Config::load(Some(missing)).unwrap_err().to_string();
    assert!(message.contains("no such configuration file"), "{message}");
}

#[test]
fn a_role_that_allows_nothing_draws_a_warning() {
    let config = Config::parse("[[role]]\nname = \"idle\"\nallow = []\n", "f").unwrap();
    assert!(config.warnings[0].contains("allows nothing"), "{:?}", config.warnings);
}

#[test]
fn volumes_have_units_and_bounds() {
    let config = |text: &str| Config::parse(&format!("[ike]\n{text}\n"), "f");
    assert_eq!(config("").unwrap().ike.child_bytes, None);
    let ike = config("child_bytes = \"20GB\"\nchild_packets = 1_000_000").unwrap().ike;
    assert_eq!((ike.child_bytes, ike.child_packets), (Some(20_000_000_000), Some(1_000_000)));

    for (text, part) in [
        ("child_bytes = \"20\"", "write a number of bytes like"),
        ("child_bytes = \"10kB\"", "write 1MB to 1000TB"),
        ("child_packets = 10", "1000"),
    ] {
        let found = errors(&format!("[ike]\n{text}\n"));
        assert!(found.len() == 1 && found[0].contains(part), "{text}: {found:#?}");
    }
}

#[test]
fn a_wrong_proposal_is_found_before_anything_is_created() {
    let found = errors(
        "[ike]\nproposals = [\n  \"aes256gcm16-prfsha384-ecp384\",\n  \"aes256gcm16-prfsha384-ecp383\",\n]\nesp_proposals = [\"aes256gmc16\"]\n",
    );
    assert!(found[0].starts_with("runnel.toml:4:") && found[0].contains("ecp383"), "{found:?}");
    assert!(
        found[1].starts_with("runnel.toml:6:") && found[1].contains("aes256gmc16"),
        "{found:?}"
    );
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn the_half_open_bound_cannot_be_below_the_cookie_threshold() {
    let found = errors("[ike]\nmax_half_open = 10\n");
    assert!(found[0].contains("below `cookie_threshold`"), "{found:?}");
}

/// The guide's example is what readers copy: it must be accepted as it stands.
#[test]
fn the_guides_example_is_accepted() {
    let guide = include_str!("../../../docs/guide/configuration.md");
    let example = guide
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("the guide has an example");
    let config = Config::parse(example, "configuration.md").unwrap();
    assert_eq!(config.roles[0].allow.len(), 5);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    for text in &config.ike.proposals {
        ike::crypto::IkeSuite::parse_proposal(text).unwrap();
    }
    for text in &config.ike.esp_proposals {
        ike::crypto::EspSuite::parse_proposal(text).unwrap();
    }
}

const SITE: &str = r#"
[gateway]
id = "gw.example.com"
[[site]]
name = "office"
remote = "gw.office.example.com"
local_networks = ["10.20.0.0/16"]
remote_networks = ["10.30.0.0/16", "fd30::/64"]
allow = ["10.20.0.10:443/tcp"]
"#;

#[test]
fn a_site_is_known_by_its_remote_and_connected_unless_told_otherwise() {
    let config = Config::parse(SITE, "f").unwrap();
    let site = config.site("office").unwrap();
    assert_eq!((site.id.as_str(), site.connect), ("gw.office.example.com", true));
    assert_eq!(site.networks.len(), 2);

    let waits = SITE.replace("allow", "start = \"wait\"\nid = \"o.example.com\"\nallow");
    let site = Config::parse(&waits, "f").unwrap().sites.remove(0);
    assert_eq!((site.id.as_str(), site.connect), ("o.example.com", false));

    let passive = SITE.replace("remote = \"gw.office.example.com\"", "id = \"o.example.com\"");
    assert!(!Config::parse(&passive, "f").unwrap().sites[0].connect);

    assert!(!site_with("").childless);
    assert!(site_with("childless = true\n").childless);
}

fn site_with(line: &str) -> Site {
    let text = SITE.replace("allow", &format!("{line}allow"));
    Config::parse(&text, "f").unwrap().sites.remove(0)
}

const TRANSPORT: &str = r#"
[[site]]
name = "database"
remote = "198.51.100.2"
id = "db.example.com"
mode = "transport"
local_networks = ["192.0.2.1/32"]
remote_networks = ["198.51.100.2/32"]
allow = ["192.0.2.1:443/tcp"]
"#;

#[test]
fn offload_is_for_the_kernel_plane() {
    let parsed = |lines: &str| Config::parse(&format!("[gateway]\n{lines}"), "f");
    assert_eq!(parsed("").unwrap().gateway.offload, Offload::None);
    assert_eq!(parsed("offload = \"packet\"").unwrap().gateway.offload, Offload::Packet);
    let both = "dataplane = \"userspace\"\noffload = \"crypto\"\n";
    assert!(errors(&format!("[gateway]\n{both}"))[0].contains("set dataplane = \"kernel\""));
    assert!(parsed("dataplane = \"userspace\"\noffload = \"none\"").is_ok());
    assert!(errors("[gateway]\noffload = \"all\"\n")[0].contains("must be \"none\""));
}

#[test]
fn a_site_in_transport_mode_is_two_machines() {
    let site = Config::parse(TRANSPORT, "f").unwrap().sites.remove(0);
    assert!(site.transport && site.connect);
    let tunnel = TRANSPORT.replace("mode = \"transport\"\n", "");
    assert!(errors(&tunnel).iter().any(|line| line.contains("would swallow itself")));
    let other = Site { transport: false, ..site.clone() };
    assert!(!site.has_same_tunnel(&other), "a change of mode is another tunnel");
}

#[test]
fn mistakes_about_sites_say_what_to_write() {
    let office = "remote = \"gw.office.example.com\"";
    let second = format!(
        "{SITE}[[site]]\nname = \"two\"\nid = \"two.example.com\"\nlocal_networks = [\"10.20.0.0/16\"]\n"
    );
    for (text, part) in [
        (SITE.replace(office, ""), "neither `remote` nor `id`"),
        (SITE.replace(office, "id = \"o.example\"\nstart = \"now\""), "has no `remote`"),
        (SITE.replace(office, "remote = \"gw:500\""), "without a port"),
        (SITE.replace(office, "remote = \"10.30.0.1\""), "would swallow itself"),
        (SITE.replace(office, "id = \"GW.example.com\""), "this gateway's own id"),
        (SITE.replace("remote_networks", "remote_nets"), "did you mean `remote_networks`?"),
        (SITE.replace("remote_networks", "#"), "has no `remote_networks`"),
        (SITE.replace("10.30.0.0/16", "10.30.0.1/16"), "write \"10.30.0.0/16\""),
        (SITE.replace("10.30.0.0/16", "0.0.0.0/0"), "would take the tunnel's own packets along"),
        (SITE.replace("10.30.0.0/16", "10.20.3.0/24"), "the networks of both sides must differ"),
        (SITE.replace("10.30.0.0/16", "10.77.3.0/24"), "of pool \"runners\""),
        (SITE.replace("10.20.0.10:443/tcp", "10.9.0.1:443/tcp"), "not within `local_networks`"),
        (SITE.replace("allow", "start = \"later\"\nallow"), "must be \"now\""),
        (SITE.replace("allow", "mode = \"transport\"\nallow"), "joins two machines"),
        (TRANSPORT.replace("198.51.100.2/32", "198.51.100.3/32"), "[\"198.51.100.2/32\"]"),
        (TRANSPORT.replace("\"192.0.2.1/32\"", "\"2001:db8::1/128\""), "different families"),
        (
            format!("{TRANSPORT}[gateway]\ndataplane = \"userspace\"\n"),
            "only the kernel data plane",
        ),
        (SITE.replace("allow", "mode = \"tunel\"\nallow"), "must be \"tunnel\""),
        (
            SITE.replace("allow", "start = \"wait\"\nchildless = true\nallow"),
            "the side that connects",
        ),
        (SITE.replace("allow", "ca = \"a\"\npsk_file = \"b\"\nallow"), "keep one"),
        (format!("{second}remote_networks = [\"10.30.9.0/24\"]\n"), "of site \"office\""),
        (
            format!("{second}remote_networks = [\"10.40.0.0/16\"]\n")
                .replace("two.example.com", "gw.office.example.com"),
            "a gateway is one site",
        ),
    ] {
        let found = errors(&text);
        assert!(found.len() <= 2, "{part}: {found:#?}");
        assert!(found.iter().any(|line| line.contains(part)), "{part}: {found:#?}");
    }
}

#[test]
fn files_of_sites_are_read_and_complained_about_with_lines() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("runnel.toml");
    let write = |line: &str| std::fs::write(&file, format!("{SITE}{line}\n")).unwrap();
    let complaint = || Config::load(Some(&file)).unwrap_err().to_string();

    write("ca = \"office.pem\"");
    assert!(complaint().contains(":10: `ca` of site \"office\""), "{}", complaint());
    std::fs::write(dir.path().join("office.pem"), "nothing").unwrap();
    assert!(complaint().contains("holds no certificate"), "{}", complaint());
    let key = rcgen::KeyPair::generate().unwrap();
    let root = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
    std::fs::write(dir.path().join("office.pem"), root.pem()).unwrap();
    let config = Config::load(Some(&file)).unwrap();
    assert_eq!(config.sites[0].anchors, [root.der().to_vec()]);

    write("psk_file = \"office.psk\"");
    let psk = dir.path().join("office.psk");
    std::fs::write(&psk, "a key of more than twenty characters\n").unwrap();
    std::fs::set_permissions(&psk, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(complaint().contains("chmod 600"), "{}", complaint());
    std::fs::set_permissions(&psk, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = Config::load(Some(&file)).unwrap();
    let expected: &[u8] = b"a key of more than twenty characters";
    assert_eq!(config.sites[0].psk.as_ref().unwrap().expose(), expected);
    assert!(!format!("{config:?}").contains("twenty"), "a secret in Debug");
    std::fs::write(&psk, "short").unwrap();
    assert!(complaint().contains("openssl rand"), "{}", complaint());
}

#[test]
fn the_example_of_the_guide_is_accepted() {
    let guide = include_str!("../../../docs/guide/sites.md");
    let mut examples = 0;
    for block in guide.split("```toml\n").skip(1) {
        let text = block.split("```").next().unwrap();
        Config::parse(text, "sites.md").unwrap();
        examples += 1;
    }
    assert!(examples >= 2, "{examples}");
}

#[test]
fn external_cas_and_their_rules() {
    let config = Config::parse(
        r#"
[[role]]
name = "builder"
allow = ["10.20.0.10"]

[[role.match]]
ca = "corp"
subject = "C=CH, O=*, OU=CI, CN=*"

[[role.match]]
ca = "corp"
san = "*.ci.corp.example"

[[ca]]
name = "corp"
certificate = "/etc/runnel/corp.pem"
revocation = "strict"
ocsp = "http://ocsp.corp.example"
crl = ["http://crl.corp.example/1.crl", "/var/lib/corp.crl"]
timeout = "2s"
"#,
        "runnel.toml",
    )
    .unwrap();
    let ca = &config.cas[0];
    assert_eq!((ca.name.as_str(), ca.revocation), ("corp", Revocation::Strict));
    assert_eq!((ca.timeout, ca.refresh), (Duration::from_secs(2), Duration::from_secs(600)));
    assert_eq!(ca.crl.len(), 2);
    assert_eq!(config.roles[0].matches.len(), 2);
    assert!(config.warnings.is_empty());

    let found = errors(
        r#"
[[role]]
name = "builder"
allow = ["10.20.0.10"]
[[role.match]]
ca = "corb"
subject = "CI"
[[role.match]]
san = "a.*.b"
[[ca]]
name = "corp"
revocation = "hard"
ocsp = "https://ocsp.corp.example"
"#,
    );
    for (line, part) in [
        (6, "did you mean \"corp\""),
        (7, "not TYPE=VALUE"),
        (8, "names no ca"),
        (10, "has no certificate"),
        (12, "\"off\", \"soft\" or \"strict\""),
        (13, "must begin with http://"),
    ] {
        let at = format!("runnel.toml:{line}:");
        let here = found.iter().any(|error| error.starts_with(&at) && error.contains(part));
        assert!(here, "{line} {part}: {found:#?}");
    }
    let text = "[[role]]\nname = \"a\"\nallow = [\"10.20.0.10\"]\n[[role.match]]\nca = \"corp\"\n\
                [[ca]]\nname = \"corp\"\ncertificate = \"/x\"\n";
    let config = Config::parse(text, "runnel.toml").unwrap();
    assert!(config.warnings[0].contains("every certificate of ca \"corp\""));
}

#[test]
fn the_kinds_of_key_a_role_takes() {
    let role = |keys: &str| {
        let text = format!("[[role]]\nname = \"a\"\nallow = [\"10.20.0.10\"]\nkeys = {keys}\n");
        Config::parse(&text, "runnel.toml").map(|config| config.roles[0].keys.clone())
    };
    use pki::signer::KeyKind;
    assert_eq!(
        role("[\"ecdsa-p384\", \"rsa-4096\"]").unwrap(),
        [KeyKind::EcdsaP384, KeyKind::Rsa4096]
    );
    for (keys, part) in [
        ("[]", "leave it out"),
        ("[\"rsa-2048\"]", "must be one of ecdsa-p256"),
        ("[\"ed25519\", \"ed25519\"]", "twice"),
    ] {
        let error = role(keys).unwrap_err().to_string();
        assert!(error.contains("runnel.toml:4") && error.contains(part), "{keys}: {error}");
    }
}

#[test]
fn webhooks_need_a_certificate_or_a_proxy_and_a_secret() {
    let with = |hooks: &str| {
        format!(
            "[enrol]\nurl = \"https://gw.example.com:8443\"\n\
             [[issuer]]\nname = \"github\"\nkind = \"github\"\n\
             [[issuer]]\nname = \"k8s\"\nkind = \"kubernetes\"\nissuer = \"https://k8s.example.com\"\n\
             {hooks}\n"
        )
    };
    let from = "[[hooks.from]]\nissuer = \"github\"\nsecrets = [\"/etc/a\", \"/etc/b\"]";
    let text = with(&format!("[hooks]\nbehind_proxy = true\nburst = 7\n{from}"));
    let hooks = Config::parse(&text, "test").unwrap().hooks.unwrap();
    assert_eq!((hooks.listen.port(), hooks.certificate, hooks.rate.burst), (8444, None, 7));
    assert_eq!((hooks.from[0].issuer.as_str(), hooks.from[0].secrets.len()), ("github", 2));
    let text = with(&format!("[hooks]\ncert = \"/etc/c\"\nkey = \"/etc/k\"\n{from}"));
    assert!(Config::parse(&text, "test").unwrap().hooks.unwrap().certificate.is_some());
    assert_eq!(Config::parse("", "test").unwrap().hooks, None);
    for (text, part) in [
        (format!("[hooks]\n{from}"), "has no certificate"),
        (format!("[hooks]\ncert = \"/etc/c\"\n{from}"), "add key ="),
        (
            format!("[hooks]\nbehind_proxy = true\ncert = \"/c\"\nkey = \"/k\"\n{from}"),
            "`behind_proxy` takes plain HTTP",
        ),
        ("[hooks]\nbehind_proxy = true".to_owned(), "believes nobody"),
        (format!("[hooks]\nbehind_proxy = true\n{from}\n{from}"), "is there twice"),
        (
            "[hooks]\nbehind_proxy = true\n[[hooks.from]]\nissuer = \"github\"".to_owned(),
            "has no secret",
        ),
        (
            format!("[hooks]\nbehind_proxy = true\n{}", from.replace("\"github\"", "\"gitub\"")),
            "did you mean \"github\"?",
        ),
        (
            format!("[hooks]\nbehind_proxy = true\n{}", from.replace("\"github\"", "\"k8s\"")),
            "are not understood",
        ),
        (format!("[hooks]\nbehind_proxy = true\nport = 1\n{from}"), "unknown key `port`"),
    ] {
        let found = errors(&with(&text));
        assert!(found.iter().any(|line| line.contains(part)), "{part}: {found:#?}");
    }
}

#[test]
fn a_ca_key_is_a_kind_or_a_token_and_a_kind() {
    let uri = "pkcs11:token=t;object=o?module-path=/m.so&pin-source=file:/p";
    let text = format!("[pki]\nca_key = \"{uri}\"\nca_key_kind = \"rsa-3072\"\n");
    let config = Config::parse(&text, "f").unwrap();
    assert_eq!(config.pki.ca_key, pki::signer::KeyKind::Rsa3072);
    assert_eq!(config.pki.ca_token.unwrap().object, "o");
    for (text, said) in [
        ("[pki]\nca_key_kind = \"rsa-3072\"\n", "pkcs11: URI"),
        ("[pki]\nca_key = \"pkcs11:token=t;object=o?pin-value=1234\"\n", "pin-source"),
        ("[pki]\nca_key = \"rsa-1024\"\n", "choose one of"),
    ] {
        let error = Config::parse(text, "f").unwrap_err().to_string();
        assert!(error.contains(said) && !error.contains("1234"), "{error}");
    }
}

#[test]
fn enrolment_may_have_a_public_certificate() {
    let enrol = |lines: &str| Config::parse(&format!("[enrol]\n{lines}"), "runnel.toml");
    assert_eq!(enrol("").unwrap().enrol.certificate, None);
    let both = enrol("certificate = \"/etc/a.pem\"\nkey = \"/etc/a.key\"\n").unwrap();
    let files = ("/etc/a.pem".into(), "/etc/a.key".into());
    assert_eq!(both.enrol.certificate, Some(files));
    for (lines, part) in [
        ("certificate = \"/etc/a.pem\"\n", "without the other; add key"),
        ("key = \"/etc/a.key\"\n", "without the other; add certificate"),
        ("certificate = \"a.pem\"\nkey = \"/etc/a.key\"\n", "must be an absolute path"),
    ] {
        let error = enrol(lines).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}
