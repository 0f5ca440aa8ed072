//! Checks that commands and links in the README and the documents are real.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Parser;

use crate::Cli;
use crate::run::{Program, root};

/// Checks every document; all mistakes are reported at once.
pub(crate) fn check() -> Result<()> {
    let mut mistakes = Vec::new();
    for file in documents()? {
        let text = std::fs::read_to_string(&file)?;
        let name = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
        for (number, line) in commands(&text) {
            if let Err(why) = check_command(&line) {
                mistakes.push(format!("{name}:{number}: `{line}`: {why}"));
            }
        }
        for (number, link) in links(&text) {
            let target = file.parent().unwrap_or(Path::new(".")).join(&link);
            if !target.exists() {
                mistakes.push(format!("{name}:{number}: the link to {link} leads nowhere"));
            }
        }
    }
    if !mistakes.is_empty() {
        bail!("\n{}", mistakes.join("\n"));
    }
    Ok(())
}

fn documents() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("docs")];
    for entry in std::fs::read_dir(root())? {
        folders.extend(markdown(entry?.path()).map(|file| {
            found.push(file);
            PathBuf::new()
        }));
    }
    folders.retain(|folder| folder.is_dir());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Some(file) = markdown(path) {
                found.push(file);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn markdown(path: PathBuf) -> Option<PathBuf> {
    (path.is_file() && path.extension().is_some_and(|ext| ext == "md")).then_some(path)
}

/// `cargo xtask` and `runnel` commands in fenced blocks, with line numbers.
fn commands(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fence = None;
    for (index, line) in text.lines().enumerate() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            fence = match fence {
                Some(_) => None,
                None => Some(language.trim().to_owned()),
            };
            continue;
        }
        let shell = matches!(fence.as_deref(), Some("sh" | "bash" | "console" | "shell"));
        let command = line.trim_start().trim_start_matches("$ ").trim_start_matches("# ");
        let command = command.split(" #").next().unwrap_or_default().trim();
        if shell && (command.starts_with("cargo xtask ") || command.starts_with("runnel ")) {
            found.push((index + 1, command.to_owned()));
        }
    }
    found
}

fn check_command(line: &str) -> Result<()> {
    // A pipe or redirection ends the part that is ours.
    let own = line.split(['|', '>', ';', '&']).next().unwrap_or_default();
    let words: Vec<&str> = own.split_whitespace().collect();
    if let [_, "xtask", rest @ ..] = words.as_slice() {
        let placeholder = |word: &&str| match *word {
            "N" | "S" => "1".to_owned(),
            other => other.to_owned(),
        };
        let args = std::iter::once("xtask".to_owned()).chain(rest.iter().map(placeholder));
        return match Cli::try_parse_from(args) {
            Ok(_) => Ok(()),
            Err(error) => bail!("{}", error.to_string().lines().next().unwrap_or_default()),
        };
    }
    check_runnel(words.get(1..).unwrap_or_default())
}

/// The subcommand must exist and its help must know every flag used.
fn check_runnel(words: &[&str]) -> Result<()> {
    let path: Vec<&str> = words
        .iter()
        .copied()
        .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
        .take_while(|word| !word.starts_with('-'))
        .take(2)
        .collect();
    // The second word may be an argument instead of a subcommand.
    let help = Program::built("runnel").args(&path).args(["--help"]).output().or_else(|_| {
        Program::built("runnel").args(path.iter().take(1)).args(["--help"]).output()
    })?;
    for flag in words.iter().filter(|word| word.starts_with("--")) {
        let flag = flag.split('=').next().unwrap_or(flag);
        if !help.contains(flag) {
            bail!("`runnel {}` has no {flag}", path.join(" "));
        }
    }
    Ok(())
}

/// Relative links, without anchors and web addresses.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for part in line.split("](").skip(1) {
            let link = part.split([')', '#', ' ']).next().unwrap_or_default();
            if !link.is_empty() && !link.contains("://") && !link.starts_with("mailto:") {
                found.push((index + 1, link.to_owned()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_shell_blocks_only() {
        let text = "cargo xtask demo\n```sh\ncargo xtask test --fast   # quick\n```\n```toml\nrunnel x\n```\n";
        assert_eq!(commands(text), [(3, "cargo xtask test --fast".to_owned())]);
    }

    #[test]
    fn a_command_that_does_not_exist_is_a_mistake() {
        assert!(check_command("cargo xtask test --fast").is_ok());
        assert!(check_command("cargo xtask sim --walks N").is_ok());
        assert!(check_command("cargo xtask tset").is_err());
    }

    #[test]
    fn links_to_the_web_are_left_alone() {
        assert_eq!(links("[a](b.md#c) [d](https://e/)"), [(1, "b.md".to_owned())]);
    }
}
