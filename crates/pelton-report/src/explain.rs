//! The formula of each number, for a terminal.

use pelton_bench::Metric;

/// Lines of at most about 100 columns: name, unit and formula of each metric.
pub fn explain(metrics: &[Metric]) -> String {
    let mut out = String::new();
    for (n, metric) in metrics.iter().enumerate() {
        if n > 0 {
            out.push('\n');
        }
        let unit = match metric.unit() {
            "" => "a share, 0 to 1",
            unit => unit,
        };
        out.push_str(&format!("{}: {}, {unit}\n", metric.name(), metric.title()));
        let mut line = String::from("   ");
        for word in metric.formula().split_whitespace() {
            if line.chars().count() + 1 + word.chars().count() > 100 {
                out.push_str(&line);
                out.push('\n');
                line = String::from("   ");
            }
            line.push(' ');
            line.push_str(word);
        }
        out.push_str(&line);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_a_formula_is_there_and_no_line_is_long() {
        let text = explain(&Metric::ALL);
        assert!(text.lines().all(|line| line.chars().count() <= 100));
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        for metric in Metric::ALL {
            assert!(words(&text).contains(&words(metric.formula())), "{metric:?}");
        }
    }
}
