//! Text that strangers had a hand in, made fit for a log line and a terminal.

/// Characters shown of a field that a stranger may have written.
const SHOWN: usize = 200;

/// Characters shown of a sentence that quotes both sides.
const SENTENCE: usize = 1000;

/// A stranger's field: short, in one line, without control characters or anything else that
/// changes how the rest is shown.
pub(crate) fn field(text: &str) -> String {
    cut(text, SHOWN)
}

/// A sentence of ours that quotes strangers.
pub(crate) fn plain(text: &str) -> String {
    cut(text, SENTENCE)
}

fn cut(text: &str, most: usize) -> String {
    let mut out = String::with_capacity(text.len().min(most));
    for (count, c) in text.chars().enumerate() {
        if count >= most {
            out.push_str(" ...");
            break;
        }
        if c.is_control() || is_invisible(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Characters that show nothing and turn the order of others, or end a line for some readers.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_writes_no_second_line_and_turns_nothing_around() {
        assert_eq!(field("CN=x\nWARN forged\x1b[2J"), "CN=x\\nWARN forged\\u{1b}[2J");
        assert_eq!(field("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(field("Zürich, naïve"), "Zürich, naïve");
    }

    #[test]
    fn long_fields_are_cut_between_characters() {
        let shown = field(&"ü".repeat(5000));
        assert_eq!(shown.chars().filter(|c| *c == 'ü').count(), SHOWN);
        assert!(shown.ends_with(" ..."));
    }
}
