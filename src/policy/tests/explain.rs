//! Every code's explanation: the wrong example has the fault, the right one has not.

use super::*;

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

/// The fenced blocks behind `Wrong:` or `Right:`: kind, file name and text.
fn blocks<'t>(explanation: &'t str, heading: &str) -> Vec<(&'t str, &'t str, String)> {
    let (_, behind) = explanation.split_once(&format!("\n{heading}\n")).unwrap();
    let section = behind.split("\nRight:\n").next().unwrap();
    let mut blocks = Vec::new();
    let mut lines = section.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            assert!(line.is_empty(), "between the examples: {line}");
            continue;
        };
        let (kind, name) = info.split_once(' ').unwrap_or((info, "a.yaml"));
        let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push((kind, name, text.join("\n") + "\n"));
    }
    blocks
}

/// The codes that an example has; of one that is shown as text, nothing.
fn codes_of(explanation: &str, heading: &str) -> Option<BTreeSet<Code>> {
    let blocks = blocks(explanation, heading);
    assert!(!blocks.is_empty(), "{explanation}");
    let mut files = Vec::new();
    for (kind, name, text) in blocks {
        match kind {
            "yaml" => files.push(file(name, text)),
            "text" => return None,
            other => panic!("an example in {other}"),
        }
    }
    let reviewed = review(&files, Vec::new(), now());
    let faults = reviewed.loaded.err().into_iter().flat_map(Faults::into_vec);
    Some(
        faults
            .chain(reviewed.warnings.iter().cloned())
            .map(|fault| fault.code)
            .collect(),
    )
}

#[test]
fn wrong_examples_have_their_code_and_right_ones_have_not() {
    let mut as_text = Vec::new();
    for code in Code::ALL {
        let explanation = code.explanation();
        assert!(explanation.starts_with(&format!("# {code}: ")), "{explanation}");
        let (wrong, right) = (codes_of(explanation, "Wrong:"), codes_of(explanation, "Right:"));
        let (Some(wrong), Some(right)) = (wrong, right) else {
            as_text.push(*code);
            continue;
        };
        assert!(wrong.contains(code), "the wrong example of {code} has {wrong:?}");
        assert!(!right.contains(code), "the right example of {code} has it");
        let faults = right.iter().filter(|code| code.severity() == Severity::Error);
        assert_eq!(faults.count(), 0, "the right example of {code} has {right:?}");
    }
    // These are about files and directories as such: their own tests, here and in `daemon::source`, have the examples.
    assert_eq!(
        as_text,
        [Code::TooLarge, Code::NotUtf8, Code::Link, Code::NoFiles]
    );
}

/// What the two explanations in words say of bytes.
#[test]
fn files_that_cannot_be_shown_have_their_code_too() {
    let codes = |bytes: Vec<u8>| -> Vec<Code> {
        let faults = load(&[file("a.yaml", bytes)]).err();
        let faults = faults.into_iter().flat_map(Faults::into_vec);
        faults.map(|fault| fault.code).collect()
    };
    let padded = |length: usize| {
        let mut text = b"cofferdam: 1\nsegment: shop\n#".to_vec();
        text.resize(length, b' ');
        text
    };
    assert_eq!(codes(padded(MAX_FILE_BYTES + 1)), [Code::TooLarge]);
    assert_eq!(codes(padded(MAX_FILE_BYTES)), []);
    assert_eq!(
        codes(b"cofferdam: 1\nsegment: shop # caf\xe9\n".to_vec()),
        [Code::NotUtf8]
    );
    assert_eq!(codes("cofferdam: 1\nsegment: shop # caf\u{e9}\n".into()), []);
}

#[test]
fn codes_are_found_by_their_text() {
    for code in Code::ALL {
        assert_eq!(code.as_str().parse(), Ok(*code));
        assert_eq!(code.as_str().to_lowercase().parse(), Ok(*code));
        let warning = code.as_str().starts_with("CFD1");
        assert_eq!(code.severity() == Severity::Warning, warning, "{code}");
    }
    assert!("CFD999".parse::<Code>().is_err());
}
