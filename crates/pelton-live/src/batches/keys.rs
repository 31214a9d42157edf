//! What keys do.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::state::State;

/// Most times that the histograms' span is halved.
const MAX_ZOOM: u32 = 8;

/// What the viewer chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Choices {
    /// Index of the size that is shown; `None` follows the one that is measured.
    tab: Option<usize>,
    /// How often the histograms' span is halved.
    pub zoom: u32,
}

impl Choices {
    /// Index of the size to show.
    pub fn tab(&self, state: &State) -> usize {
        self.tab.unwrap_or_else(|| state.current())
    }

    /// Follows a key; true if it quits.
    pub fn press(&mut self, key: KeyEvent, state: &State) -> bool {
        if key.kind == KeyEventKind::Release {
            return false;
        }
        let num_tabs = state.batches.sizes.len().max(1);
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if is_control => return true,
            _ if is_control => {}
            KeyCode::Char('q') => return true,
            KeyCode::Right | KeyCode::Tab => self.tab = Some((self.tab(state) + 1) % num_tabs),
            KeyCode::Left | KeyCode::BackTab => self.tab = Some((self.tab(state) + num_tabs - 1) % num_tabs),
            KeyCode::Char('+' | '=') => self.zoom = (self.zoom + 1).min(MAX_ZOOM),
            KeyCode::Char('-' | '_') => self.zoom = self.zoom.saturating_sub(1),
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batches::state::{Told, sample};

    fn press(choices: &mut Choices, code: KeyCode, state: &State) -> bool {
        choices.press(KeyEvent::new(code, KeyModifiers::NONE), state)
    }

    #[test]
    fn tabs_follow_the_measurement_until_one_is_chosen() {
        let mut state = sample::measured();
        let mut choices = Choices::default();
        assert_eq!(choices.tab(&state), 1);
        state.take(Told::Begins(4));
        assert_eq!(choices.tab(&state), 2);
        press(&mut choices, KeyCode::Left, &state);
        assert_eq!(choices.tab(&state), 1);
        state.take(Told::Begins(1));
        assert_eq!(choices.tab(&state), 1);
        for (key, tab) in [(KeyCode::Tab, 2), (KeyCode::Right, 0), (KeyCode::Left, 2)] {
            press(&mut choices, key, &state);
            assert_eq!(choices.tab(&state), tab);
        }
    }

    #[test]
    fn zoom_has_ends() {
        let (mut choices, state) = (Choices::default(), sample::measured());
        press(&mut choices, KeyCode::Char('-'), &state);
        assert_eq!(choices.zoom, 0);
        for _ in 0..20 {
            press(&mut choices, KeyCode::Char('+'), &state);
        }
        assert_eq!(choices.zoom, MAX_ZOOM);
    }

    #[test]
    fn q_and_the_interrupt_quit() {
        let (mut choices, state) = (Choices::default(), sample::measured());
        assert!(press(&mut choices, KeyCode::Char('q'), &state));
        assert!(!press(&mut choices, KeyCode::Char('c'), &state), "a letter alone is no interrupt");
        assert!(choices.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL), &state));
    }
}
