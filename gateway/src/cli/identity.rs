//! `runnel identity`

use std::borrow::Cow;
use std::io::Read;

use clap::Subcommand;
use pki::enrol::jwt::jwks::KeySet;
use pki::enrol::jwt::{Issuer, Step, Trace, examine, jws};
use pki::{Refusal, UnixTime};
use serde::Serialize;
use zeroize::Zeroizing;

use super::output::OutputArg;
use super::{Context, Failure};
use crate::config::Config;
use crate::obs::plain;
use crate::oidc;
use crate::sys::clock;

const TEST: &str = "\
Examples:
  runnel identity test --jwt token.txt         which rule matches, or which field failed
  runnel identity test --jwt - -o json         the token on standard input, the trace as JSON
  runnel --config new.toml identity test --jwt token.txt     before the file is put in place

Reads the configuration and fetches the issuer's keys as `runnel up` would; spends nothing and
needs no running gateway. Exit code 0: the token opens a lease, unless it is spent already.";

/// Tokens of CI platforms and what they give
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Say which rule matches a token, or which field failed
    #[command(after_help = TEST)]
    Test {
        /// File with the token; - for standard input. Never an argument: arguments are public
        #[arg(long, value_name = "FILE")]
        jwt: String,
        /// Only rules of this role, as the enrolment URL may name one
        #[arg(long)]
        role: Option<String>,
        #[command(flatten)]
        output: OutputArg,
    },
}

/// What the test found out.
#[derive(Debug, Serialize)]
struct Judged {
    /// Whether the token opens a lease.
    accepted: bool,
    /// The role it gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    /// The identity its lease gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    /// Where its job can be looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    run_url: Option<String>,
    /// Why not, in one word and in one sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// Every step.
    trace: Trace,
}

pub(super) fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let Command::Test { jwt, role, output } = command;
    let token = read(&jwt)?;
    let config = super::check::load(context)?;
    oidc::check(&config).map_err(|errors| Failure::failed(errors.join("\n")))?;
    let judged = judge(&config, &token, role.as_deref());
    output.print(&judged, text);
    match judged.detail {
        None => Ok(()),
        Some(detail) => Err(Failure::Failed(detail)),
    }
}

fn read(file: &str) -> Result<Zeroizing<String>, Failure> {
    let limit = u64::try_from(jws::MAX_TOKEN).unwrap_or(u64::MAX) + 2;
    let mut text = Zeroizing::new(String::new());
    let done = match file {
        "-" => std::io::stdin().take(limit).read_to_string(&mut text),
        path => std::fs::File::open(path).and_then(|f| f.take(limit).read_to_string(&mut text)),
    };
    done.map_err(|error| Failure::Failed(format!("cannot read the token from {file}: {error}")))?;
    Ok(text)
}

fn judge(config: &Config, token: &str, role: Option<&str>) -> Judged {
    let rules: Vec<_> = config.roles.iter().flat_map(|r| r.claims.iter().cloned()).collect();
    let now = UnixTime::from_micros(clock::wall().0);
    let keys = |issuer: &Issuer| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let octets = runtime.map_err(|error| error.to_string())?.block_on(oidc::fetch_keys(issuer));
        KeySet::parse(&octets?).map(Cow::Owned)
    };
    let (trace, judged) = examine(&config.issuers, &rules, keys, token, role, now);
    let id = crate::service::gateway_id(config);
    let domain = crate::service::pki_settings(config, &id).trust_domain;
    match judged {
        Ok(accepted) => Judged {
            accepted: true,
            role: Some(accepted.role),
            identity: Some(format!("spiffe://{domain}{}", accepted.context.path)),
            run_url: accepted.context.ci_ref.run_url,
            reason: None,
            detail: None,
            trace,
        },
        Err(Refusal { code, detail, .. }) => Judged {
            accepted: false,
            role: None,
            identity: None,
            run_url: None,
            reason: Some(code.name().to_owned()),
            detail: Some(detail),
            trace,
        },
    }
}

fn text(judged: &Judged) -> String {
    let mut text = match &judged.role {
        Some(role) => format!("accepted: role {role}\n"),
        None => format!("refused: {}\n", judged.reason.as_deref().unwrap_or_default()),
    };
    for (name, value) in [("identity", &judged.identity), ("run", &judged.run_url)] {
        if let Some(value) = value {
            text.push_str(&format!("{name:9} {value}\n"));
        }
    }
    let issuer = judged.trace.issuer.as_deref().unwrap_or("of no configured issuer");
    text.push_str(&format!("token ({issuer})\n"));
    steps(&judged.trace.token, &mut text);
    for rule in &judged.trace.rules {
        let verdict = if rule.matched { "matches" } else { "does not match" };
        text.push_str(&format!("rule {} of role {}: {verdict}\n", rule.rule, rule.role));
        steps(&rule.fields, &mut text);
    }
    text
}

fn steps(steps: &[Step], text: &mut String) {
    for step in steps {
        let mark = if step.ok { "ok" } else { "NO" };
        let found = step.found.as_deref().unwrap_or("not there");
        text.push_str(&format!("  {mark}  {}: {}", step.field, plain(found)));
        if let (false, Some(wanted)) = (step.ok, &step.wanted) {
            text.push_str(&format!(" (wanted: {})", plain(wanted)));
        }
        if let Some(hint) = &step.hint {
            text.push_str(&format!("; {hint}"));
        }
        text.push('\n');
    }
}
