//! What keys do.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// Leaves of the view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Page {
    #[default]
    Overview,
    Latencies,
    Errors,
    Runs,
}

impl Page {
    pub const ALL: [Page; 4] = [Page::Overview, Page::Latencies, Page::Errors, Page::Runs];

    pub fn title(self) -> &'static str {
        match self {
            Page::Overview => "overview",
            Page::Latencies => "latencies",
            Page::Errors => "errors",
            Page::Runs => "runs",
        }
    }

    fn step(self, by: usize) -> Self {
        Self::ALL[(self as usize + by) % Self::ALL.len()]
    }
}

/// What the viewer chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Choices {
    pub page: Page,
    pub is_frozen: bool,
    pub is_ending: bool,
}

/// What a key asks of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// The first time what runs has its grace, the second time it is cut.
    End,
    MoreUsers,
    FewerUsers,
}

impl Choices {
    /// Follows a key.
    pub fn press(&mut self, key: KeyEvent) -> Option<Deed> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        let is_interrupt = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if is_interrupt => return Some(self.end()),
            _ if is_interrupt => {}
            KeyCode::Char('q') => return Some(self.end()),
            KeyCode::Char('p' | ' ') => self.is_frozen = !self.is_frozen,
            KeyCode::Tab | KeyCode::Right => self.page = self.page.step(1),
            KeyCode::BackTab | KeyCode::Left => self.page = self.page.step(Page::ALL.len() - 1),
            KeyCode::Char(digit @ '1'..='4') => self.page = Page::ALL[digit as usize - '1' as usize],
            KeyCode::Char('+' | '=') => return Some(Deed::MoreUsers),
            KeyCode::Char('-' | '_') => return Some(Deed::FewerUsers),
            _ => {}
        }
        None
    }

    fn end(&mut self) -> Deed {
        self.is_ending = true;
        Deed::End
    }
}

/// One step up or down from `users`: one, or a tenth.
pub(crate) fn stepped(users: usize, deed: Deed) -> usize {
    let step = (users / 10).max(1);
    match deed {
        Deed::MoreUsers => users + step,
        Deed::FewerUsers => users.saturating_sub(step).max(1),
        Deed::End => users,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(choices: &mut Choices, code: KeyCode) -> Option<Deed> {
        choices.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn q_and_the_interrupt_end() {
        let mut choices = Choices::default();
        // A letter alone is no interrupt.
        assert_eq!((press(&mut choices, KeyCode::Char('c')), choices.is_ending), (None, false));
        assert_eq!((press(&mut choices, KeyCode::Char('q')), choices.is_ending), (Some(Deed::End), true));
        assert_eq!(choices.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Some(Deed::End));
    }

    #[test]
    fn pages_go_round_both_ways() {
        let mut choices = Choices::default();
        let mut seen = Vec::new();
        for _ in Page::ALL {
            press(&mut choices, KeyCode::Tab);
            seen.push(choices.page);
        }
        assert_eq!(seen, [Page::Latencies, Page::Errors, Page::Runs, Page::Overview]);
        press(&mut choices, KeyCode::BackTab);
        assert_eq!(choices.page, Page::Runs);
        press(&mut choices, KeyCode::Char('2'));
        assert_eq!(choices.page, Page::Latencies);
    }

    #[test]
    fn users_change_by_one_or_a_tenth_and_never_to_none() {
        let steps =
            [1, 5, 19, 20, 300].map(|users| (stepped(users, Deed::FewerUsers), stepped(users, Deed::MoreUsers)));
        assert_eq!(steps, [(1, 2), (4, 6), (18, 20), (18, 22), (270, 330)]);
    }
}
