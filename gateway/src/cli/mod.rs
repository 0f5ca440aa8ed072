//! The command line: one file per subcommand. Parses, asks the running instance, prints.

mod audit;
mod backup;
mod bar;
mod ca;
mod cert;
mod check;
mod debug;
mod doctor;
mod drain;
mod identity;
mod lease;
mod output;
mod paging;
mod reload;
mod restore;
mod revoke;
mod sa;
mod sealing;
mod site;
mod status;
mod stop;
mod token;
mod up;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::admin::proto::ErrorCode;
use crate::admin::{Client, ClientError};

const EXAMPLES: &str = "\
First steps:
  runnel up                                    start the gateway; creates CA and state once
  runnel token create --role builder           let one runner in
  runnel status                                what runs, and what needs attention
  runnel lease list                            who is connected
  runnel lease release r-7f3k9q                end one runner's access now

Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 not running, 4 not allowed.";

/// IKEv2/IPsec gateway with certificate enrolment for CI/CD networks.
#[derive(Debug, Parser)]
#[command(name = "runnel", version, about, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// Configuration file [default: /etc/runnel/runnel.toml if it exists, else built-in]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State directory: CA, leases, admin socket
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/runnel")]
    state: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Args),
    Stop(stop::Args),
    Check(check::Args),
    Reload(reload::Args),
    Status(status::Args),
    Doctor(doctor::Args),
    Drain(drain::Args),
    #[command(subcommand)]
    Token(token::Command),
    #[command(subcommand)]
    Lease(lease::Command),
    #[command(subcommand)]
    Cert(cert::Command),
    #[command(subcommand)]
    Ca(ca::Command),
    #[command(subcommand)]
    Identity(identity::Command),
    #[command(subcommand)]
    Sa(sa::Command),
    #[command(subcommand)]
    Site(site::Command),
    Revoke(revoke::Args),
    #[command(subcommand)]
    Bar(bar::Command),
    #[command(subcommand)]
    Audit(audit::Command),
    Backup(backup::Args),
    Restore(restore::Args),
    #[command(subcommand, hide = true)]
    Debug(debug::Command),
}

/// What every subcommand gets.
struct Context {
    config: Option<PathBuf>,
    state: PathBuf,
}

impl Context {
    fn client(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.state)?)
    }

    fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }
}

/// How a command fails; the variant decides the exit code.
#[derive(Debug)]
enum Failure {
    Failed(String),
    Usage(String),
    NotRunning(String),
    Denied(String),
}

impl Failure {
    fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NotRunning(_) => 3,
            Self::Denied(_) => 4,
        }
    }

    fn message(&self) -> &str {
        match self {
            Self::Failed(m) | Self::Usage(m) | Self::NotRunning(m) | Self::Denied(m) => m,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::NotRunning(_) => Self::NotRunning(message),
            ClientError::Denied(_) => Self::Denied(message),
            ClientError::Refused(refused) => match refused.code {
                ErrorCode::Denied => Self::Denied(message),
                ErrorCode::BadRequest => Self::Usage(message),
                ErrorCode::NotFound | ErrorCode::Failed => Self::Failed(message),
            },
            ClientError::Broken(_) => Self::Failed(message),
        }
    }
}

/// Parses the command line, does it, and says so by the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap's own choice: 0 for --help and --version, 2 for a mistake.
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::error_line(failure.message());
            ExitCode::from(failure.code())
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let context = Context { config: cli.config, state: cli.state };
    match cli.command {
        Command::Up(args) => up::run(&context, args),
        Command::Stop(args) => stop::run(&context, &args),
        Command::Check(args) => check::run(&context, &args),
        Command::Reload(args) => reload::run(&context, &args),
        Command::Status(args) => status::run(&context, &args),
        Command::Doctor(args) => doctor::run(&context, &args),
        Command::Drain(args) => drain::run(&context, &args),
        Command::Token(command) => token::run(&context, command),
        Command::Lease(command) => lease::run(&context, command),
        Command::Cert(command) => cert::run(&context, command),
        Command::Ca(command) => ca::run(&context, command),
        Command::Identity(command) => identity::run(&context, command),
        Command::Sa(command) => sa::run(&context, &command),
        Command::Site(command) => site::run(&context, &command),
        Command::Revoke(args) => revoke::run(&context, args),
        Command::Bar(command) => bar::run(&context, command),
        Command::Audit(command) => audit::run(&context, command),
        Command::Backup(args) => backup::run(&context, &args),
        Command::Restore(args) => restore::run(&context, &args),
        Command::Debug(command) => debug::run(&command),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_teaches_with_examples() {
        let help = Cli::command().render_long_help().to_string();
        for word in
            ["runnel up", "token create --role builder", "Exit codes", "--state", "--config"]
        {
            assert!(help.contains(word), "{word} is not in the help:\n{help}");
        }
        for name in ["up", "stop", "check", "status", "token", "lease", "cert", "ca", "sa", "site"]
        {
            let mut command = Cli::command();
            let sub = command.find_subcommand_mut(name).unwrap();
            assert!(sub.get_about().is_some(), "{name} has no description");
        }
    }

    #[test]
    fn every_leaf_command_shows_an_example() {
        fn visit(command: &clap::Command, path: &str) {
            let mut leaves = 0;
            for sub in command.get_subcommands().filter(|s| !s.is_hide_set()) {
                leaves += 1;
                visit(sub, &format!("{path} {}", sub.get_name()));
            }
            if leaves == 0 {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains(path), "{path} has no example in its help");
            }
        }
        visit(&Cli::command(), "runnel");
    }

    #[test]
    fn global_options_may_follow_the_subcommand() {
        let cli = Cli::try_parse_from(["runnel", "lease", "list", "--state", "/tmp/x"]).unwrap();
        assert_eq!(cli.state, Path::new("/tmp/x"));
        let wrong = Cli::try_parse_from(["runnel", "lease", "lsit"]).unwrap_err();
        assert_eq!(wrong.exit_code(), 2);
    }
}
