//! Suggestions for mistyped names.

/// Returns the candidates nearest to a word by edit distance, nearest first; none if all are far.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Vec<&'a str> {
    // A word this long is not a typing error.
    if word.len() > 32 {
        return Vec::new();
    }
    let limit = 1 + word.len() / 4;
    let rate = |name: &'a str| {
        let distance = distance(word, name);
        let starts = word.len() >= 2 && name.starts_with(word);
        (distance <= limit || starts).then_some((if starts { 0 } else { distance }, name))
    };
    let mut near: Vec<(usize, &str)> = candidates.into_iter().filter_map(rate).collect();
    near.sort_unstable();
    near.dedup();
    let best = near.first().map_or(0, |(distance, _)| *distance);
    near.into_iter()
        .take_while(|(distance, _)| *distance <= best)
        .take(3)
        .map(|(_, name)| name)
        .collect()
}

/// Returns the edit distance between two words: insertions, deletions, replacements and swaps of
/// neighbors.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut cost = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                cost = cost.min(rows[i - 2][j - 2] + 1);
            }
            row.push(cost);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 6] = ["run", "exec", "list", "stop", "image", "images"];

    #[test]
    fn a_typo_leads_to_what_was_meant() {
        assert_eq!(nearest("imgae", NAMES), ["image"]);
        assert_eq!(nearest("rnu", NAMES), ["run"]);
        assert_eq!(nearest("stpo", NAMES), ["stop"]);
        assert_eq!(nearest("im", NAMES), ["image", "images"]);
    }

    #[test]
    fn a_word_far_from_all_leads_nowhere() {
        assert!(nearest("frobnicate", NAMES).is_empty());
        assert!(nearest(&"x".repeat(100_000), NAMES).is_empty());
    }
}
