//! Guessing how a sequence goes on, so that a step can verify several of its tokens at once.
//!
//! Text repeats itself: what followed the last few tokens when they stood there before may follow again (prompt lookup, Saxena 2023).
//! `ngrams` finds where they stood; a [`Drafter`] follows that place and learns how often it is right; [`StepCost`] learns what a row
//! more costs. The scheduler drafts while a row is worth its time. Nothing here changes what a sequence says, only when
//! (docs/decisions/0018).
mod cost;
mod drafter;
mod ngrams;

pub(crate) use cost::StepCost;
pub(crate) use drafter::Drafter;
