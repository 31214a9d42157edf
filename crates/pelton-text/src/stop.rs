//! Stop strings: found anywhere in a growing text, with as little text as possible held back.
//!
//! The strings form one automaton (Aho and Corasick 1975) over bytes. Its state after some text is the longest end of that text that begins a
//! stop string, which is just what must be held back. One byte costs constant time on average, however many strings there are.

use std::collections::VecDeque;

/// Finds the first of several stop strings in a stream of text.
///
/// The match that is complete first wins, so the result does not depend on how the text is cut. Of several that are complete at the same
/// character the longest wins, and of equal ones the first listed. Empty strings never match.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    /// The automaton; state 0 is the empty beginning.
    states: Vec<State>,
    state: usize,
    /// Text that is not released yet: it ends in the beginning of a stop string.
    held: String,
    matched: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// Sorted by byte.
    next: Vec<(u8, usize)>,
    /// The state of the longest proper end of this one.
    fallback: usize,
    /// Length in bytes.
    depth: usize,
    /// The longest stop string that ends here: its index and its length in bytes.
    stop: Option<(usize, usize)>,
}

/// What a piece of text led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStep {
    /// Text that is safe to send: no stop string can begin in it any more. After a match: all text before it.
    pub text: String,
    /// Index of the stop string that was found. Stays once set; nothing comes after it.
    pub matched: Option<usize>,
}

impl StopMatcher {
    /// A matcher for `stops`, counted from 0 in this order. Cost and memory grow with their total length.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        let mut states = vec![State::default()];
        for (index, stop) in stops.into_iter().enumerate().filter(|(_, stop)| !stop.is_empty()) {
            let mut state = 0;
            for &byte in stop.as_bytes() {
                state = match states[state].next.binary_search_by_key(&byte, |&(byte, _)| byte) {
                    Ok(place) => states[state].next[place].1,
                    Err(place) => {
                        let new = states.len();
                        let depth = states[state].depth + 1;
                        states.push(State { depth, ..State::default() });
                        states[state].next.insert(place, (byte, new));
                        new
                    }
                };
            }
            states[state].stop.get_or_insert((index, stop.len()));
        }
        link(&mut states);
        Self { states, state: 0, held: String::new(), matched: None }
    }

    /// Adds text; returns what may be sent now and whether a stop string was found.
    pub fn push(&mut self, text: &str) -> StopStep {
        if self.matched.is_some() {
            return StopStep { text: String::new(), matched: self.matched };
        }
        let old = self.held.len();
        self.held.push_str(text);
        for (offset, &byte) in text.as_bytes().iter().enumerate() {
            self.state = step(&self.states, self.state, byte);
            if let Some((index, length)) = self.states[self.state].stop {
                self.matched = Some(index);
                self.held.truncate(old + offset + 1 - length);
                return StopStep { text: std::mem::take(&mut self.held), matched: self.matched };
            }
        }
        // The state is a beginning of a stop string and an end of the text, so both cuts are between characters.
        let kept = self.held.split_off(self.held.len() - self.states[self.state].depth);
        StopStep { text: std::mem::replace(&mut self.held, kept), matched: None }
    }

    /// Ends the text: returns what was held back, as it will not become a stop string.
    pub fn finish(&mut self) -> String {
        self.state = 0;
        std::mem::take(&mut self.held)
    }
}

/// Sets fallbacks, and passes on the stops of ends, from short states to long.
fn link(states: &mut [State]) {
    let mut queue = VecDeque::from([0]);
    while let Some(state) = queue.pop_front() {
        for (byte, child) in states[state].next.clone() {
            let fallback = if state == 0 { 0 } else { step(states, states[state].fallback, byte) };
            states[child].fallback = fallback;
            states[child].stop = states[child].stop.or(states[fallback].stop);
            queue.push_back(child);
        }
    }
}

fn step(states: &[State], mut state: usize, byte: u8) -> usize {
    loop {
        let next = &states[state].next;
        if let Ok(place) = next.binary_search_by_key(&byte, |&(byte, _)| byte) {
            return next[place].1;
        }
        if state == 0 {
            return 0;
        }
        state = states[state].fallback;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(stops.iter().map(|&stop| stop.to_owned()))
    }

    fn step(text: &str, matched: Option<usize>) -> StopStep {
        StopStep { text: text.to_owned(), matched }
    }

    #[test]
    fn a_stop_across_pieces_is_cut_out_of_the_middle_of_a_piece() {
        let mut stops = matcher(&["###", "\nEND\n"]);
        assert_eq!(stops.push("code\nE"), step("code", None));
        assert_eq!(stops.push("N"), step("", None));
        assert_eq!(stops.push("D\nmore"), step("", Some(1)));
        assert_eq!(stops.push("even more"), step("", Some(1)));
        assert_eq!(stops.finish(), "");
    }

    #[test]
    fn text_that_does_not_become_a_stop_is_released() {
        let mut stops = matcher(&["aab"]);
        assert_eq!(stops.push("aaa"), step("a", None));
        assert_eq!(stops.push("c"), step("aac", None));
        assert_eq!(stops.push("xa"), step("x", None));
        assert_eq!(stops.finish(), "a");
    }

    #[test]
    fn the_first_complete_stop_wins_and_then_the_longest() {
        assert_eq!(matcher(&["abcd", "bc"]).push("abcd"), step("a", Some(1)));
        assert_eq!(matcher(&["c", "abc", "bc"]).push("xabc"), step("x", Some(1)));
        assert_eq!(matcher(&["b", "b"]).push("b"), step("", Some(0)));
    }

    #[test]
    fn stops_with_a_common_first_byte_cut_between_characters() {
        // é and è share their first byte.
        let mut stops = matcher(&["éa", "€"]);
        assert_eq!(stops.push("xè"), step("xè", None));
        assert_eq!(stops.push("é"), step("", None));
        assert_eq!(stops.push("€"), step("é", Some(1)));
    }

    #[test]
    fn empty_stops_never_match() {
        let mut stops = matcher(&["", ""]);
        assert_eq!(stops.push("a"), step("a", None));
        assert_eq!(matcher(&["", "a"]).push("a"), step("", Some(1)));
    }

    #[test]
    fn ten_thousand_stops_cost_no_more_than_their_length() {
        let stops: Vec<String> = (0..10_000).map(|index| format!("stop {index:05}")).collect();
        let mut matcher = StopMatcher::new(stops);
        assert!(matcher.states.len() < 20_000);
        for _ in 0..1000 {
            assert_eq!(matcher.push("stop 0999 stop x").matched, None);
        }
        assert_eq!(matcher.push("stop 09999").matched, Some(9_999));
    }

    /// The definition: the least end of any occurrence, the longest there, the first listed.
    fn search(stops: &[String], text: &str) -> Option<(usize, usize)> {
        let ends = (0..=text.len()).filter(|&end| text.is_char_boundary(end));
        ends.filter_map(|end| {
            let found =
                stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty() && text[..end].ends_with(stop.as_str()));
            let (index, stop) = found.reduce(|best, next| if next.1.len() > best.1.len() { next } else { best })?;
            Some((end - stop.len(), index))
        })
        .next()
    }

    proptest! {
        #[test]
        fn matches_are_those_of_a_search_in_the_whole_text(
            stops in prop::collection::vec("[abé]{0,4}", 0..5),
            pieces in prop::collection::vec("[abéc]{0,5}", 0..12),
        ) {
            let whole = pieces.concat();
            let expected = search(&stops, &whole);
            let mut matcher = StopMatcher::new(stops.iter().cloned());
            let (mut sent, mut seen, mut matched) = (String::new(), String::new(), None);
            for piece in &pieces {
                let step = matcher.push(piece);
                sent.push_str(&step.text);
                seen.push_str(piece);
                matched = step.matched;
                if matched.is_none() {
                    // Exactly the longest end that may begin a stop is held back.
                    let held = (0..=seen.len()).filter(|&start| seen.is_char_boundary(start)).map(|start| &seen[start..])
                        .find(|end| stops.iter().any(|stop| stop.starts_with(end)) || end.is_empty());
                    prop_assert_eq!(Some(&seen[sent.len()..]), held);
                }
            }
            sent.push_str(&matcher.finish());
            prop_assert_eq!(matched, expected.map(|(_, index)| index));
            prop_assert_eq!(sent, &whole[..expected.map_or(whole.len(), |(start, _)| start)]);
        }
    }
}
