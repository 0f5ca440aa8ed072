//! Printing: tables for people, JSON and YAML for scripts.

use std::io::Write;

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;

/// `-o` of every listing.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct OutputArg {
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// For scripts
    Json,
    /// For scripts and people
    Yaml,
}

impl OutputArg {
    /// Prints `value` in the chosen form; `table` makes the text for people.
    pub(super) fn print<T: Serialize>(self, value: &T, table: impl FnOnce(&T) -> String) {
        match self.output {
            Format::Table => line(&table(value)),
            Format::Json => match serde_json::to_string_pretty(value) {
                Ok(text) => line(&text),
                Err(error) => error_line(&error.to_string()),
            },
            Format::Yaml => match serde_json::to_value(value) {
                Ok(value) => line(&yaml(&value)),
                Err(error) => error_line(&error.to_string()),
            },
        }
    }
}

/// A line on standard output. A reader that went away is no error (`runnel lease list | head`).
pub(super) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.trim_end_matches('\n').as_bytes());
    let _ = out.write_all(b"\n");
    let _ = out.flush();
}

/// A line on standard error.
pub(super) fn error_line(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "runnel: {}", text.trim_end());
}

/// Columns as wide as their widest cell, two spaces apart.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut push = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            line.push_str(cell);
            let pad = width.saturating_sub(cell.chars().count()) + 2;
            line.extend(std::iter::repeat_n(' ', pad));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    push(&mut header.iter().copied());
    for row in rows {
        push(&mut row.iter().map(String::as_str));
    }
    text
}

/// `name  value` lines.
pub(super) fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// Block-style YAML. Strings are quoted unless they are plain beyond doubt.
fn yaml(value: &Value) -> String {
    let mut text = String::new();
    emit(value, 0, &mut text);
    text
}

fn emit(value: &Value, indent: usize, text: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                text.push_str(&pad);
                text.push_str("- ");
                let mut inner = String::new();
                emit(item, indent + 2, &mut inner);
                text.push_str(inner.trim_start());
            }
        }
        Value::Object(map) if !map.is_empty() => {
            for (key, item) in map {
                text.push_str(&pad);
                text.push_str(&scalar(&Value::String(key.clone())));
                text.push(':');
                let nested = match item {
                    Value::Array(items) => !items.is_empty(),
                    Value::Object(map) => !map.is_empty(),
                    _ => false,
                };
                if nested {
                    text.push('\n');
                    emit(item, indent + 2, text);
                } else {
                    text.push(' ');
                    text.push_str(&scalar(item));
                    text.push('\n');
                }
            }
        }
        other => {
            text.push_str(&pad);
            text.push_str(&scalar(other));
            text.push('\n');
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => {
            let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
                && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
                    .contains(&text.to_ascii_lowercase().as_str());
            // A JSON string is a YAML double-quoted scalar.
            if plain { text.clone() } else { value.to_string() }
        }
        Value::Array(_) => "[]".to_owned(),
        Value::Object(_) => "{}".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_align_and_do_not_trail() {
        let text = table(&["ID", "ROLE"], &[vec!["r-7f3k9q".into(), "builder".into()]]);
        assert_eq!(text, "ID        ROLE\nr-7f3k9q  builder\n");
    }

    #[test]
    fn yaml_is_block_style_and_quotes_what_could_be_misread() {
        let value = json!({
            "id": "r-1", "on": "yes", "time": "2026-11-22T09:00:00Z", "n": 3, "none": null,
            "list": [{"a": 1, "b": []}, "x: y"],
        });
        assert_eq!(
            yaml(&value),
            "id: r-1\nlist:\n  - a: 1\n    b: []\n  - \"x: y\"\n\"n\": 3\nnone: null\n\
             \"on\": \"yes\"\ntime: \"2026-11-22T09:00:00Z\"\n"
        );
        assert_eq!(yaml(&json!([])), "[]\n");
    }
}
