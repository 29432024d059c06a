//! Search for many texts at once, in one text or in a stream of chunks.

use aho_corasick::{AhoCorasick, MatchKind};

/// A set of texts to search for. Each has a tag.
#[derive(Debug)]
pub struct TextSearch<T> {
    automaton: Option<AhoCorasick>,
    tags: Vec<T>,
    longest: usize,
}

/// An occurrence of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occurrence<T> {
    /// Position of its first byte.
    pub start: usize,
    /// Position behind its last byte.
    pub end: usize,
    /// Tag of the text.
    pub tag: T,
}

impl<T: Copy> TextSearch<T> {
    /// Creates a search for texts that are not empty.
    pub fn new(texts: Vec<(Vec<u8>, T)>) -> TextSearch<T> {
        let (texts, tags): (Vec<Vec<u8>>, Vec<T>) = texts.into_iter().unzip();
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        let kind = MatchKind::LeftmostLongest;
        // Building fails only beyond 2^31 states, and the texts are limited.
        let automaton = (longest > 0)
            .then(|| AhoCorasick::builder().match_kind(kind).build(&texts).ok())
            .flatten();
        TextSearch { automaton, tags, longest }
    }

    /// Returns whether nothing is searched for.
    pub fn is_empty(&self) -> bool {
        self.automaton.is_none()
    }

    /// Returns all occurrences that do not overlap, the longest where several begin.
    pub fn find<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = Occurrence<T>> + 'a {
        let found = self.automaton.iter().flat_map(move |automaton| automaton.find_iter(text));
        found.map(|found| Occurrence {
            start: found.start(),
            end: found.end(),
            tag: self.tags[found.pattern().as_usize()],
        })
    }
}

/// A search in a stream: occurrences may lie across chunks. It keeps the end of the last chunks,
/// shorter than the longest text.
#[derive(Debug, Default)]
pub struct StreamSearch {
    tail: Vec<u8>,
}

impl StreamSearch {
    /// Searches the next chunk. Returns the tags of texts that are complete in it. A text is
    /// reported with the chunk that holds its last byte, or, if a longer one may follow, with a
    /// later one when `eager` is false.
    pub fn push<T: Copy>(&mut self, search: &TextSearch<T>, chunk: &[u8], eager: bool) -> Vec<T> {
        if search.is_empty() || chunk.is_empty() {
            return Vec::new();
        }
        let mut window = std::mem::take(&mut self.tail);
        window.extend_from_slice(chunk);
        let kept = search.longest - 1;
        // What begins behind this position may become longer.
        let open = window.len().saturating_sub(kept);
        let (mut found, mut consumed) = (Vec::new(), 0);
        for occurrence in search.find(&window) {
            if occurrence.start >= open && !eager {
                break;
            }
            consumed = occurrence.end;
            found.push(occurrence.tag);
        }
        self.tail = window.split_off(open.max(consumed.min(window.len())));
        found
    }

    /// Ends the stream: returns the tags of texts in its last bytes.
    pub fn finish<T: Copy>(&mut self, search: &TextSearch<T>) -> Vec<T> {
        let tail = std::mem::take(&mut self.tail);
        search.find(&tail).map(|occurrence| occurrence.tag).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search() -> TextSearch<usize> {
        let texts = ["$MSB_API", "$MSB_API_KEY", "%24MSB_API"];
        TextSearch::new(
            texts.iter().enumerate().map(|(at, text)| (text.as_bytes().to_vec(), at)).collect(),
        )
    }

    #[test]
    fn the_longest_text_is_found() {
        let search = search();
        let tags: Vec<usize> = search
            .find(b"$MSB_API $MSB_API_KEY$MSB_API_K%24MSB_API")
            .map(|found| found.tag)
            .collect();
        assert_eq!(tags, [0, 1, 0, 2]);
    }

    #[test]
    fn a_stream_gives_what_the_whole_text_gives_however_it_is_cut() {
        let search = search();
        let text = b"x$MSB_API_KEY y$MSB_API_KE$MSB_API$MSB_API%24MSB_API$MSB_AP";
        let whole: Vec<usize> = search.find(text).map(|found| found.tag).collect();
        for size in 1..=text.len() {
            let mut stream = StreamSearch::default();
            let mut tags = Vec::new();
            for chunk in text.chunks(size) {
                tags.extend(stream.push(&search, chunk, false));
            }
            tags.extend(stream.finish(&search));
            assert_eq!(tags, whole, "{size}");
        }
    }

    #[test]
    fn an_eager_search_reports_a_text_with_its_last_byte() {
        let search = search();
        for size in 1..12 {
            let (mut stream, mut seen) = (StreamSearch::default(), 0);
            for chunk in b"ab$MSB_API".chunks(size) {
                assert_eq!(
                    stream.push(&search, chunk, true).len(),
                    usize::from(seen + chunk.len() == 10)
                );
                seen += chunk.len();
            }
        }
    }
}
