//! "Did you mean": the known word that is most like an unknown one.

/// The candidate most like `word`, if any is like it at all.
pub(crate) fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= limit(word, candidate))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Up to a third of the longer word may differ.
fn limit(word: &str, candidate: &str) -> usize {
    word.len().max(candidate.len()).div_ceil(3).min(4)
}

/// `did you mean `x`?`, or nothing.
pub(super) fn did_you_mean(suggestion: Option<impl AsRef<str>>) -> Option<String> {
    suggestion.map(|suggestion| format!("did you mean `{}`?", suggestion.as_ref()))
}

/// `` `a`, `b` and `c` ``, with `word` before the last.
pub(super) fn listed(words: &[&str], word: &str) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} {word} {last}", rest.join(", ")),
    }
}
