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
