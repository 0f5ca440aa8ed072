//! `runnel token`

use clap::Subcommand;
use ipnet::IpNet;

use super::output::{self, OutputArg, table};
use super::paging::PageArgs;
use super::{Context, Failure};
use crate::admin::proto::Request;
use crate::admin::view::{NewToken, Token};
use crate::sys::clock::parse_duration;

const CREATE: &str = "\
Examples:
  runnel token create --role builder                   one runner, within 15 minutes
  TOKEN=$(runnel token create --role builder -q)       the secret alone, for scripts
  runnel token create --role builder --ttl 5m --uses 3
  runnel token create --role builder --from 192.0.2.0/24
                                                       for clients of this network alone
  KEY=$(openssl pkey -in key.pem -pubout -outform DER | sha256sum | cut -d' ' -f1)
  runnel token create --role builder --key \"$KEY\"     for this key alone

The runner presents it as `pki --est --userpass ROLE:TOKEN`.";
const LIST: &str = "\
Examples:
  runnel token list
  runnel token list -o json";
const REVOKE: &str = "\
Examples:
  runnel token revoke 4m2x9c       leases it opened stay; end them with `runnel lease revoke`";

/// One-time tokens that open leases
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a token; its secret is shown once
    #[command(after_help = CREATE)]
    Create {
        /// Role of the leases it opens
        #[arg(long)]
        role: String,
        /// How long it can be used: 90s, 15m, 1h
        #[arg(long, default_value = "15m", value_parser = parse_duration)]
        ttl: std::time::Duration,
        /// How many leases it opens
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// Network the client must be in: 192.0.2.0/24
        #[arg(long, value_name = "CIDR")]
        from: Option<IpNet>,
        /// SHA-256 of the public key that may spend it, hexadecimal
        #[arg(long, value_name = "SHA256")]
        key: Option<String>,
        /// Print the secret alone
        #[arg(short, long)]
        quiet: bool,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Tokens and their state, never their secrets
    #[command(after_help = LIST)]
    List {
        #[command(flatten)]
        pages: PageArgs,
        #[command(flatten)]
        output: OutputArg,
    },
    /// Make a token unusable
    #[command(after_help = REVOKE)]
    Revoke {
        /// Its id, from `token list`
        id: String,
    },
}

pub(super) fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let mut client = context.client()?;
    match command {
        Command::Create { role, ttl, uses, from, key, quiet, output } => {
            let ttl = ttl.as_secs();
            let token: NewToken =
                client.ask(Request::TokenCreate { role, ttl, uses, from, key })?;
            if quiet {
                output::line(&token.token);
            } else {
                output.print(&token, |token| {
                    let bound = bound(token.from.as_deref(), token.key.as_deref());
                    format!(
                        "{}\n\nrole {}, {} use(s), until {}, for {bound}; its id is {}. \
                         It is shown this once.\n",
                        token.token, token.role, token.uses, token.expires, token.id
                    )
                });
            }
        }
        Command::List { pages, output } => {
            let tokens: Vec<Token> = pages.list(&mut client, Request::TokenList)?;
            output.print(&tokens, |tokens| {
                let rows: Vec<_> = tokens
                    .iter()
                    .map(|t| {
                        vec![
                            t.id.clone(),
                            t.role.clone(),
                            t.state.clone(),
                            t.uses_left.to_string(),
                            t.expires.clone(),
                            bound(t.from.as_deref(), t.key.as_deref()),
                            t.leases.join(","),
                        ]
                    })
                    .collect();
                table(&["ID", "ROLE", "STATE", "USES LEFT", "EXPIRES", "FOR", "LEASES"], &rows)
            });
        }
        Command::Revoke { id } => {
            let () = client.ask(Request::TokenRevoke { id: id.clone() })?;
            output::line(&format!("token {id} revoked"));
        }
    }
    Ok(())
}

/// Who may spend a token.
fn bound(from: Option<&str>, key: Option<&str>) -> String {
    let key = key.map(|key| format!("key sha256:{}", key.get(..16).unwrap_or(key)));
    let bounds: Vec<_> = from.map(str::to_owned).into_iter().chain(key).collect();
    if bounds.is_empty() { "anyone".to_owned() } else { bounds.join(", ") }
}
