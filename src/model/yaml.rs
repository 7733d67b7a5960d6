//! Names and texts as YAML that stands for just them.

use std::fmt::Write as _;

/// A double-quoted YAML string that stands for just this text, whatever is in it. Pure ASCII.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        let _infallible = match c {
            '"' => write!(quoted, "\\\""),
            '\\' => write!(quoted, "\\\\"),
            ' '..='~' => write!(quoted, "{c}"),
            _ if u32::from(c) <= 0xff => write!(quoted, "\\x{:02x}", u32::from(c)),
            _ if u32::from(c) <= 0xffff => write!(quoted, "\\u{:04x}", u32::from(c)),
            _ => write!(quoted, "\\U{:08x}", u32::from(c)),
        };
    }
    quoted.push('"');
    quoted
}

/// A name as a YAML scalar: quoted where it would be a number or a word with a meaning of its own.
pub(super) fn scalar(name: &str) -> String {
    let words = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    match name.starts_with(|c: char| c.is_ascii_digit()) || words.contains(&name) {
        true => quoted(name),
        false => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_its_quotes_and_a_name_stays_a_name() {
        assert_eq!(
            quoted("a\"\\\n\u{e9}\u{2028}\u{1f600}"),
            r#""a\"\\\x0a\xe9\u2028\U0001f600""#
        );
        for name in ["0", "1e3", "yes", "null", "0x1f"] {
            assert_eq!(scalar(name), format!("\"{name}\""));
        }
        assert_eq!(scalar("web-1"), "web-1");
    }
}
