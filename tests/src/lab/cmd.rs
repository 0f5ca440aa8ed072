//! Runs a command to its end and turns a failure into one readable error.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// What a finished command said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Whether the command succeeded.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.code == 0
    }

    /// Both streams, for searching.
    #[must_use]
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// Runs a program; its standard output is the result.
///
/// # Errors
/// When it cannot be started or fails; the message holds what it printed.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    checked(&mut command)
}

/// Runs a prepared command; its standard output is the result.
///
/// # Errors
/// As [`run`].
pub fn checked(command: &mut Command) -> Result<String> {
    let said = output(command)?;
    if !said.ok() {
        bail!("`{}` failed ({}): {}", line(command), said.code, said.all().trim());
    }
    Ok(said.out)
}

/// Runs a prepared command and reports whatever it said, success or not.
///
/// # Errors
/// Only when it cannot be started.
pub fn output(command: &mut Command) -> Result<Said> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    Ok(Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a prepared command with `input` on its standard input.
///
/// # Errors
/// As [`run`].
pub fn feed(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("`{}` failed: {}", line(command), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as a person would type it.
#[must_use]
pub fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}
