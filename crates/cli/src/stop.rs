//! Stop texts, found in text and not in tokens.

/// Lets text through up to the first stop text, holding back what could become one.
#[derive(Debug)]
pub(crate) struct StopTexts<'s> {
    texts: &'s [String],
    held: String,
    found: bool,
}

impl<'s> StopTexts<'s> {
    /// Watches for any of `texts`, none of which is empty.
    pub(crate) fn new(texts: &'s [String]) -> Self {
        Self { texts, held: String::new(), found: false }
    }

    /// Whether a stop text has come.
    pub(crate) fn found(&self) -> bool {
        self.found
    }

    /// Takes more text and gives what is certain to come before any stop text.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if self.found {
            return String::new();
        }
        self.held.push_str(text);
        let first = self.texts.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(place) = first {
            self.found = true;
            self.held.truncate(place);
            return std::mem::take(&mut self.held);
        }
        let keep = self.texts.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, held)
    }

    /// What was held back, when no more text comes.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` that are the beginning of `stop`, at most.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(place, _)| place)
        .filter(|&place| place > 0 && text.ends_with(&stop[..place]))
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is let through, piece by piece, and whether a stop text was found.
    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut texts = StopTexts::new(&stops);
        let mut out: Vec<String> = pieces.iter().map(|piece| texts.push(piece)).collect();
        out.push(texts.finish());
        (out, texts.found())
    }

    #[test]
    fn text_is_cut_before_a_stop_text_however_it_arrives() {
        for pieces in [vec!["one END two"], vec!["one E", "N", "D", " two"], vec!["one ", "END"]] {
            let (out, found) = run(&["END"], &pieces);
            assert_eq!((out.concat().as_str(), found), ("one ", true), "{pieces:?}");
        }
    }

    #[test]
    fn only_what_could_become_a_stop_text_is_held_back() {
        let (out, found) = run(&["\n\n"], &["a\n", "b", "\n"]);
        assert_eq!(out, ["a", "\nb", "", "\n"]);
        assert!(!found);
    }

    #[test]
    fn the_earliest_of_several_stop_texts_counts() {
        let (out, found) = run(&["world", "o w"], &["hello w", "orld"]);
        assert_eq!((out.concat().as_str(), found), ("hell", true));
    }

    #[test]
    fn stop_texts_may_have_characters_of_several_bytes() {
        let (out, found) = run(&["né"], &["caf", "é n", "o n", "é"]);
        assert_eq!((out.concat().as_str(), found), ("café no ", true));
    }
}
