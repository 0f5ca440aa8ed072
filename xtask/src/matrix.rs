//! Checks that every test and lab the RFC matrix names exists.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::run::root;

/// Reports every name in `docs/rfc-matrix.md` that is no test function or lab of this tree. What
/// exists also ran: no test is ignored here, and labs run one by one.
pub(crate) fn check() -> Result<()> {
    let text = std::fs::read_to_string(root().join("docs/rfc-matrix.md"))
        .context("docs/rfc-matrix.md cannot be read")?;
    let mut tests = BTreeSet::new();
    for folder in ["ike", "pki", "xfrm", "gateway", "tests"] {
        functions(&root().join(folder), &mut tests)?;
    }
    let labs = std::fs::read_to_string(root().join("tests/src/labs/mod.rs"))?;
    let missing = missing(&text, &tests, &labs);
    if !missing.is_empty() {
        bail!("\n{}", missing.join("\n"));
    }
    Ok(())
}

fn missing(text: &str, tests: &BTreeSet<String>, labs: &str) -> Vec<String> {
    let mut missing = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let at = format!("docs/rfc-matrix.md:{}", number + 1);
        for name in line.split('`').skip(1).step_by(2).filter(|name| is_test_name(name)) {
            if !tests.contains(name) {
                missing.push(format!("{at}: there is no test `{name}`"));
            }
        }
        for rest in line.split("lab: ").skip(1) {
            let name: String = rest.chars().take_while(|c| is_lab_character(*c)).collect();
            if !name.is_empty() && !labs.contains(&format!("\"{name}\"")) {
                missing.push(format!("{at}: there is no lab {name}"));
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

/// Names of the functions below a folder that carry a test attribute.
fn functions(folder: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            functions(&path, found)?;
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.extend(test_functions(&std::fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

fn test_functions(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut marked = false;
    // Inside `proptest!` the attribute stands before each function as well.
    for line in source.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some(rest) = line.strip_prefix("fn ").or(line.strip_prefix("async fn ")) {
            if marked {
                names.extend(rest.split('(').next().map(str::to_owned));
            }
            marked = false;
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_do_not_exist_are_reported_with_their_line() {
        let tests = BTreeSet::from(["a_real_test".to_owned()]);
        let text = "x\n| `a_real_test`, `no_such_test`, lab: mtu, lab: ipv6, lab: nolab |";
        let found = missing(text, &tests, "entry(\"mtu\", ..), entry(\"ipv6\", ..)");
        assert_eq!(
            found,
            [
                "docs/rfc-matrix.md:2: there is no test `no_such_test`",
                "docs/rfc-matrix.md:2: there is no lab nolab",
            ]
        );
    }

    #[test]
    fn only_functions_with_the_attribute_are_tests() {
        let source =
            "#[test]\nfn one() {}\nfn helper() {}\n    #[test]\n    #[cfg(x)]\n    fn two() {}\n";
        assert_eq!(test_functions(source), ["one", "two"]);
    }
}
