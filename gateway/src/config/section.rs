//! Reads one table of the document: remembers which keys were asked for, so that every unknown
//! key is reported with the nearest known one, and collects mistakes instead of stopping.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::value;

/// Mistakes and warnings found so far, with the text to turn offsets into lines.
pub(super) struct Findings<'t> {
    text: &'t str,
    pub(super) errors: Vec<ConfigError>,
    pub(super) warnings: Vec<ConfigError>,
}

impl<'t> Findings<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, errors: Vec::new(), warnings: Vec::new() }
    }

    /// The line (from 1) of a byte offset.
    pub(super) fn line(&self, offset: usize) -> usize {
        let upto = self.text.len().min(offset);
        self.text.as_bytes().iter().take(upto).filter(|byte| **byte == b'\n').count() + 1
    }

    pub(super) fn error(&mut self, offset: usize, message: impl Into<String>) {
        let line = self.line(offset);
        self.errors.push(ConfigError { line, message: message.into() });
    }

    pub(super) fn warn(&mut self, offset: usize, message: impl Into<String>) {
        let line = self.line(offset);
        self.warnings.push(ConfigError { line, message: message.into() });
    }
}

/// A value as text, and where it stands.
pub(super) type Text = (String, usize);

fn scalar(value: &DeValue<'_>) -> Option<String> {
    if let Some(number) = value.as_integer() {
        return i64::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n.to_string());
    }
    value.as_str().map(str::to_owned).or_else(|| value.as_bool().map(|flag| flag.to_string()))
}

/// One table being read.
pub(super) struct Section<'d, 'i> {
    name: &'static str,
    table: &'d DeTable<'i>,
    /// Byte offset of the table, for mistakes about a missing key.
    pub(super) offset: usize,
    known: Vec<&'static str>,
}

impl<'d, 'i> Section<'d, 'i> {
    pub(super) fn new(name: &'static str, table: &'d DeTable<'i>, offset: usize) -> Self {
        Self { name, table, offset, known: Vec::new() }
    }

    fn find(&mut self, key: &'static str) -> Option<&'d Spanned<DeValue<'i>>> {
        self.known.push(key);
        self.table.iter().find(|(k, _)| k.get_ref().as_ref() == key).map(|(_, value)| value)
    }

    /// Where the value of a key stands; the table's own place when it is absent.
    pub(super) fn place(&self, key: &str) -> usize {
        self.table
            .iter()
            .find(|(k, _)| k.get_ref().as_ref() == key)
            .map_or(self.offset, |(k, _)| k.span().start)
    }

    fn wrong(&self, found: &mut Findings<'_>, key: &str, value: &Spanned<DeValue<'i>>, want: &str) {
        found.error(
            value.span().start,
            format!("`{key}` in {} must be {want}, not {}", self.name, value.get_ref().type_str()),
        );
    }

    pub(super) fn table(
        &mut self,
        key: &'static str,
        name: &'static str,
        found: &mut Findings<'_>,
    ) -> Option<Section<'d, 'i>> {
        let value = self.find(key)?;
        match value.get_ref().as_table() {
            Some(table) => Some(Section::new(name, table, value.span().start)),
            None => {
                found.error(value.span().start, format!("write `[{key}]` as a table"));
                None
            }
        }
    }

    pub(super) fn tables(
        &mut self,
        key: &'static str,
        name: &'static str,
        found: &mut Findings<'_>,
    ) -> Option<Vec<Section<'d, 'i>>> {
        let value = self.find(key)?;
        let Some(array) = value.get_ref().as_array() else {
            found.error(
                value.span().start,
                format!("write `[[{key}]]` (two brackets): there can be several"),
            );
            return Some(Vec::new());
        };
        let mut sections = Vec::new();
        for item in array.iter() {
            match item.get_ref().as_table() {
                Some(table) => sections.push(Section::new(name, table, item.span().start)),
                None => self.wrong(found, key, item, "a table"),
            }
        }
        Some(sections)
    }

    pub(super) fn string(
        &mut self,
        key: &'static str,
        found: &mut Findings<'_>,
    ) -> Option<(String, usize)> {
        let value = self.find(key)?;
        match value.get_ref().as_str() {
            Some(text) => Some((text.to_owned(), value.span().start)),
            None => {
                self.wrong(found, key, value, "a string in quotes");
                None
            }
        }
    }

    pub(super) fn strings(
        &mut self,
        key: &'static str,
        found: &mut Findings<'_>,
    ) -> Option<Vec<(String, usize)>> {
        let value = self.find(key)?;
        let Some(array) = value.get_ref().as_array() else {
            self.wrong(found, key, value, "a list of strings like [\"...\"]");
            return None;
        };
        let mut texts = Vec::new();
        for item in array.iter() {
            match item.get_ref().as_str() {
                Some(text) => texts.push((text.to_owned(), item.span().start)),
                None => self.wrong(found, key, item, "a list of strings"),
            }
        }
        Some(texts)
    }

    pub(super) fn boolean(&mut self, key: &'static str, found: &mut Findings<'_>) -> Option<bool> {
        let value = self.find(key)?;
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            self.wrong(found, key, value, "true or false");
        }
        flag
    }

    /// A whole number within a range.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
        found: &mut Findings<'_>,
    ) -> Option<u64> {
        let value = self.find(key)?;
        let parsed = value
            .get_ref()
            .as_integer()
            .and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok());
        match parsed {
            Some(number) if range.contains(&number) => Some(number),
            _ => {
                found.error(
                    value.span().start,
                    format!(
                        "`{key}` in {} must be a whole number from {} to {}",
                        self.name,
                        range.start(),
                        range.end()
                    ),
                );
                None
            }
        }
    }

    /// A duration like `90s`, `25m`, `1h`, `1h30m`, within a range.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<Duration>,
        found: &mut Findings<'_>,
    ) -> Option<Duration> {
        let (text, at) = self.string(key, found)?;
        match value::duration(&text) {
            Ok(duration) if range.contains(&duration) => Some(duration),
            Ok(_) => {
                found.error(
                    at,
                    format!(
                        "`{key} = \"{text}\"` is out of range: write {} to {}",
                        value::duration_text(*range.start()),
                        value::duration_text(*range.end())
                    ),
                );
                None
            }
            Err(why) => {
                found.error(at, format!("`{key} = \"{text}\"`: {why}"));
                None
            }
        }
    }

    /// A number of bytes with its unit.
    pub(super) fn size(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
        found: &mut Findings<'_>,
    ) -> Option<u64> {
        let (text, at) = self.string(key, found)?;
        match value::size(&text) {
            Ok(size) if range.contains(&size) => Some(size),
            Ok(_) => {
                let (least, most) =
                    (value::size_text(*range.start()), value::size_text(*range.end()));
                found.error(
                    at,
                    format!("`{key} = \"{text}\"` is out of range: write {least} to {most}"),
                );
                None
            }
            Err(why) => {
                found.error(at, format!("`{key} = \"{text}\"`: {why}"));
                None
            }
        }
    }

    pub(super) fn socket(
        &mut self,
        key: &'static str,
        found: &mut Findings<'_>,
    ) -> Option<SocketAddr> {
        let (text, at) = self.string(key, found)?;
        match text.parse() {
            Ok(socket) => Some(socket),
            Err(_) => {
                found.error(at, format!("`{key} = \"{text}\"` is not ADDRESS:PORT, like \"0.0.0.0:8443\" or \"[::]:8443\""));
                None
            }
        }
    }

    pub(super) fn addresses(
        &mut self,
        key: &'static str,
        found: &mut Findings<'_>,
    ) -> Option<Vec<IpAddr>> {
        let texts = self.strings(key, found)?;
        let mut addresses = Vec::new();
        for (text, at) in texts {
            match text.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => found.error(at, format!("\"{text}\" in `{key}` is not an IP address")),
            }
        }
        Some(addresses)
    }

    /// Every key nobody has asked for, with its values: texts, numbers, truth values, or a list of
    /// them. Such a section has keys of the reader's own, so that none is unknown.
    pub(super) fn others(self, found: &mut Findings<'_>) -> Vec<(String, usize, Vec<Text>)> {
        let mut others = Vec::new();
        for (key, value) in self.table.iter() {
            let name = key.get_ref().as_ref();
            if self.known.contains(&name) {
                continue;
            }
            let items = match value.get_ref().as_array() {
                Some(items) => items.iter().collect(),
                None => vec![value],
            };
            let mut texts = Vec::new();
            for item in items {
                match scalar(item.get_ref()) {
                    Some(text) => texts.push((text, item.span().start)),
                    None => self.wrong(found, name, item, "a text or a list of texts"),
                }
            }
            others.push((name.to_owned(), key.span().start, texts));
        }
        others
    }

    /// Whether the key is written at all, rightly or wrongly.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.iter().any(|(k, _)| k.get_ref().as_ref() == key)
    }

    /// Ends a section that is too broken for its keys to be judged.
    pub(super) fn finish_quietly(self) {}

    /// Reports every key nobody asked for. `later` names keys of planned features.
    pub(super) fn finish(self, later: &[(&str, &str)], found: &mut Findings<'_>) {
        for (key, _) in self.table.iter() {
            let text = key.get_ref().as_ref();
            if self.known.contains(&text) {
                continue;
            }
            let at = key.span().start;
            if let Some((_, what)) = later.iter().find(|(name, _)| *name == text) {
                found.error(
                    at,
                    format!("`{text}` in {}: {what} is not in this version; remove it", self.name),
                );
                continue;
            }
            let message = match value::nearest(text, &self.known) {
                Some(near) => {
                    format!("unknown key `{text}` in {}; did you mean `{near}`?", self.name)
                }
                None => format!(
                    "unknown key `{text}` in {}; it may hold {}",
                    self.name,
                    self.known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")
                ),
            };
            found.error(at, message);
        }
    }
}
