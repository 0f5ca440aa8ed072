//! Mistakes in a configuration file: all of them, with lines and what to write instead.

use std::fmt;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Line in the file, from 1; 0 when it concerns the whole file.
    pub line: usize,
    /// What is wrong and what to do, one sentence.
    pub message: String,
}

/// Every mistake of one file. Nothing of a file with mistakes is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file's name.
    pub file: String,
    /// The mistakes by line.
    pub errors: Vec<ConfigError>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match error.line {
                0 => write!(f, "{}: {}", self.file, error.message)?,
                line => write!(f, "{}:{}: {}", self.file, line, error.message)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
