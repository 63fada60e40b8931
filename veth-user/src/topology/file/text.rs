//! Words for hints.

/// The known word that somebody probably meant.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let close = known.into_iter().map(|known| (strsim::damerau_levenshtein(&word, known), known));
    let longest = (word.chars().count() / 3).max(1);
    close
        .filter(|(distance, _)| *distance <= longest)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// The hint for a word that is not known, where one is near.
pub(super) fn did_you_mean<'a, K: IntoIterator<Item = &'a str>>(word: &str, known: K) -> Option<String> {
    nearest(word, known).map(|known| format!("did you mean `{known}`?"))
}

/// Words in backticks.
pub(super) fn listed(words: &[&str]) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<String> = words.iter().take(SHOWN).map(|word| format!("`{word}`")).collect();
    let shown = if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") };
    if words.len() > SHOWN { format!("{shown} and {} more", words.len() - SHOWN) } else { shown }
}
