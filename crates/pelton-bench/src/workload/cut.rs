//! Cuts real text to an exact number of tokens: a cut may join or split tokens at its edge, so each is counted again and moved until right.

use crate::BenchError;
use crate::workload::count::Count;

/// Most cuts tried at one place. Each at least halves what is left, and the first few usually hit.
const MAX_CUTS: usize = 32;

/// The beginning of `text` for which `dress(beginning)` has exactly `wished` tokens; `None` if no cut tried here has.
///
/// `dress` puts the cut into its final form, whose length must grow with it.
pub async fn exactly(
    counter: &mut impl Count,
    text: &str,
    wished: usize,
    dress: &dyn Fn(&str) -> String,
) -> Result<Option<String>, BenchError> {
    // Where a cut may be: after a token, or after any character.
    let (places, mut places_per_token) = match counter.ends(text) {
        Some(ends) => (ends.into_iter().filter(|&end| text.is_char_boundary(end)).collect::<Vec<_>>(), 1.0),
        None => (text.char_indices().map(|(at, _)| at).skip(1).chain([text.len()]).collect(), 4.0),
    };
    // Cuts at `low` and before have too few tokens, those at `high` and after too many.
    let (mut low, mut high) = (0, places.len() + 1);
    let mut at = (wished as f64 * places_per_token).round() as usize;
    for _ in 0..MAX_CUTS {
        if low + 1 >= high {
            break;
        }
        if at <= low || at >= high {
            at = low.midpoint(high);
        }
        let dressed = dress(&text[..places[at - 1]]);
        let count = counter.count(&dressed).await?;
        match count.cmp(&wished) {
            std::cmp::Ordering::Equal => return Ok(Some(dressed)),
            std::cmp::Ordering::Less => low = at,
            std::cmp::Ordering::Greater => high = at,
        }
        if places_per_token != 1.0 {
            places_per_token = at as f64 / count.max(1) as f64;
        }
        let off = (wished as f64 - count as f64) * places_per_token;
        at = (at as f64 + off).round().max(0.0) as usize;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::count::Local;

    const TEXT: &str = include_str!("cut.rs");

    /// Hides where tokens end.
    struct Blind(Local);
    impl Count for Blind {
        async fn count(&mut self, text: &str) -> Result<usize, BenchError> {
            self.0.count(text).await
        }
    }

    fn demo() -> Local {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        Local::load(&path).expect("the demo model has a tokenizer")
    }

    #[tokio::test(flavor = "current_thread")]
    async fn cuts_have_exactly_the_wished_tokens() {
        let (mut seeing, mut blind) = (demo(), Blind(demo()));
        let dress = |cut: &str| format!("<{cut}>");
        for wished in [5, 17, 64, 200] {
            let one = exactly(&mut seeing, TEXT, wished, &dress).await.expect("counts").expect("some cut fits");
            let other = exactly(&mut blind, TEXT, wished, &dress).await.expect("counts").expect("some cut fits");
            assert_eq!(seeing.count(&one).await.expect("counts"), wished);
            assert_eq!(seeing.count(&other).await.expect("counts"), wished);
            assert!(TEXT.starts_with(one.trim_matches(['<', '>'])), "{one}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_text_that_is_too_short_has_no_cut() {
        let plain = |cut: &str| cut.to_owned();
        assert_eq!(exactly(&mut demo(), "short", 1000, &plain).await.expect("counts"), None);
        assert_eq!(exactly(&mut demo(), "", 1, &plain).await.expect("counts"), None);
    }
}
