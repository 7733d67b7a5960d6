//! Text from outside made harmless: names for services, strings in YAML, words in comments.

use std::collections::BTreeSet;

/// The longest name of a service or segment.
const LONGEST: usize = 63;

/// Text for a comment: on one line, printable, and not too long.
pub(super) fn plain(text: &str) -> String {
    const LONG: usize = 300;
    let shown: String = text.chars().take(LONG).flat_map(char::escape_default).collect();
    match text.chars().nth(LONG) {
        Some(_) => format!("{shown}..."),
        None => shown,
    }
}

/// The name that a text suggests, and whether it is that text itself.
pub(super) fn suggested(text: &str, instead: &str) -> (String, bool) {
    let mut name = String::new();
    for c in text.chars() {
        match c.to_ascii_lowercase() {
            c if c.is_ascii_lowercase() || c.is_ascii_digit() => name.push(c),
            _ if name.ends_with('-') || name.is_empty() => {}
            _ => name.push('-'),
        }
    }
    name.truncate(LONGEST);
    let name = name.trim_end_matches('-');
    match name {
        "" => (instead.to_owned(), false),
        "world" | "host" => (format!("{name}-{instead}"), false),
        _ => (name.to_owned(), name == text),
    }
}

/// The name itself, or the first of `name-2`, `name-3`, … that is free.
pub(super) fn unique(name: &str, is_taken: impl Fn(&str) -> bool) -> String {
    if !is_taken(name) {
        return name.to_owned();
    }
    (2_u64..)
        .map(|number| {
            let number = format!("-{number}");
            let kept = name.get(..LONGEST - number.len()).unwrap_or(name);
            format!("{}{number}", kept.trim_end_matches('-'))
        })
        .find(|name| !is_taken(name))
        .unwrap_or_default()
}

/// `a, b, c and 4 more`.
pub(super) fn several(all: &BTreeSet<String>, most: usize) -> String {
    let shown: Vec<&str> = all.iter().take(most).map(String::as_str).collect();
    match all.len().saturating_sub(most) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_valid_and_say_what_they_were() {
        for (text, name, same) in [
            ("web", "web", true),
            ("Web_API", "web-api", false),
            ("--x..y--", "x-y", false),
            ("wörld", "w-rld", false),
            ("world", "world-service", false),
            ("\u{202e}\n", "service", false),
        ] {
            assert_eq!(suggested(text, "service"), (name.to_owned(), same), "{text:?}");
        }
        assert_eq!(suggested(&"a".repeat(200), "service").0.len(), 63);
        let taken = |name: &str| name == "a" || name == "a-2";
        assert_eq!(unique("a", taken), "a-3");
        let long = "b".repeat(63);
        let other = unique(&long, |name| name == long);
        assert_eq!((other.len(), other.ends_with("b-2")), (63, true));
    }

    #[test]
    fn nothing_gets_out_of_its_comment() {
        assert_eq!(plain("x\n- { evil }\u{85}"), "x\\n- { evil }\\u{85}");
        assert_eq!(plain(&"y".repeat(310)).len(), 303);
    }
}
