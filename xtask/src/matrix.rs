//! Checks that every test and lab the RFC matrix names exists and has passed.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};

use crate::run::root;

/// What has passed in this run.
#[derive(Default)]
pub(crate) struct Ran {
    /// Test functions, without their modules.
    pub(crate) tests: BTreeSet<String>,
    /// Labs.
    pub(crate) labs: BTreeSet<String>,
}

/// Reports every test and lab that `docs/rfc-matrix.md` names and that has not passed in this run;
/// labs only when they were to run.
pub(crate) fn check(ran: &Ran, labs: bool) -> Result<()> {
    let text = std::fs::read_to_string(root().join("docs/rfc-matrix.md"))
        .context("docs/rfc-matrix.md cannot be read")?;
    let missing = missing(&text, ran, labs);
    if !missing.is_empty() {
        bail!("\n{}", missing.join("\n"));
    }
    Ok(())
}

fn missing(text: &str, ran: &Ran, labs: bool) -> Vec<String> {
    let mut missing = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let at = format!("docs/rfc-matrix.md:{}", number + 1);
        for name in line.split('`').skip(1).step_by(2).filter(|name| is_test_name(name)) {
            if !ran.tests.contains(name) {
                missing.push(format!("{at}: no test `{name}` has passed"));
            }
        }
        for rest in line.split("lab: ").skip(1).filter(|_| labs) {
            let name: String = rest.chars().take_while(|c| is_lab_character(*c)).collect();
            if !name.is_empty() && !ran.labs.contains(&name) {
                missing.push(format!("{at}: no lab {name} has passed"));
            }
        }
    }
    missing
}

fn is_lab_character(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
}

fn is_test_name(name: &str) -> bool {
    name.contains('_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_did_not_pass_are_reported_with_their_line() {
        let ran = Ran {
            tests: BTreeSet::from(["a_real_test".to_owned()]),
            labs: BTreeSet::from(["mtu".to_owned(), "ipv6".to_owned()]),
        };
        let text = "x\n| `a_real_test`, `no_such_test`, lab: mtu, lab: ipv6, lab: nolab |";
        let test = "docs/rfc-matrix.md:2: no test `no_such_test` has passed";
        let lab = "docs/rfc-matrix.md:2: no lab nolab has passed";
        assert_eq!(missing(text, &ran, true), [test, lab]);
        assert_eq!(missing(text, &ran, false), [test]);
    }
}
