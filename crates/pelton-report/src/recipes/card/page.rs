//! The card itself: a page of Markdown with the structure of the suite's.

use std::fmt::Write as _;

/// What stands on the card.
#[derive(Debug)]
pub struct Card<'a> {
    /// The model's name.
    pub model: &'a str,
    /// The machine, as the reader shall see it.
    pub machine: &'a str,
    /// Tokens per second, from the regression.
    pub ingestion: Option<u64>,
    /// Median tokens per second of each of ten parallel requests of 1024 tokens in and 128 out.
    pub ten_parallel: Option<f64>,
    /// Tokens that fit the KV cache.
    pub kv_tokens: Option<f64>,
    /// Couples of lengths whose graphs are shown, longest first.
    pub graphs: &'a [(u32, u32)],
    /// Whether there is a graph of total speeds.
    pub has_totals: bool,
    /// Names and values.
    pub parameters: &'a [(String, String)],
    /// What the reader should know.
    pub notes: &'a [String],
}

impl Card<'_> {
    /// The page.
    pub fn to_markdown(&self) -> String {
        let title = format!("Model card for {} on {}", self.model, self.machine);
        let mut page = format!("\n{title}\n{}\n\n", "=".repeat(title.chars().count()));
        page.push_str("# Main metrics\n\nThree numbers that sum the server up:\n\n");
        page.push_str("|Metric|Value|\n| :---: | :---: |\n");
        let rows = [
            ("Prompt ingestion speed", self.ingestion.map(ingestion)),
            (
                "Mean generation speed for 10 parallel requests with a prompt of 1024 tokens and 128 tokens generated",
                self.ten_parallel.map(|speed| format!("~{} t/s for each request", speed as u64)),
            ),
            ("Estimate of the max nb of tokens in KV cache", self.kv_tokens.map(kv_tokens)),
        ];
        for (metric, value) in rows {
            let _ = writeln!(page, "|{metric}|{}|", value.unwrap_or_else(|| "NA".to_owned()));
        }
        if self.has_totals {
            page.push_str(
                "\n# Total generation speed\n\nTokens per second of all parallel requests together, one line for each couple of \
                 lengths:\n\n<img src=\"./total_speed_generation_graph.png\" width=\"800\"/>  \n",
            );
        }
        if !self.graphs.is_empty() {
            page.push_str(
                "\n# Generation speed and latency\n\nTokens per second of each request, its time to first token, and the share of the KV \
                 cache in use, by the number of parallel requests. Lines are medians, bars reach to the 25th and 75th percentile.\n",
            );
        }
        for (input, output) in self.graphs {
            let _ = write!(
                page,
                "\nPrompts of about {input} tokens, answers of {output}:\n\n<img \
                 src=\"./speed_generation/speed_generation_graph_input_{input}_output_{output}.png\" width=\"800\"/>\n\n"
            );
        }
        page.push_str("\n# Parameters\n\nHow the load was made, then how the server was launched:\n\n");
        page.push_str("|Parameter|Value|\n| :---: | :---: |\n");
        for (name, value) in self.parameters {
            let _ = writeln!(page, "|{name}|{}|", value.replace('|', "\\|"));
        }
        if !self.notes.is_empty() {
            page.push_str("\n# How to read it\n\n");
            for note in self.notes {
                let _ = writeln!(page, "- {note}");
            }
        }
        page
    }
}

/// In steps of 250 as the suite rounds; smaller speeds as they are.
fn ingestion(speed: u64) -> String {
    format!("~{}t/s ", if speed < 250 { speed } else { speed / 250 * 250 })
}

/// In steps of 25 thousand as the suite rounds; fewer as they are.
fn kv_tokens(tokens: f64) -> String {
    if tokens < 25_000.0 {
        format!("~{tokens:.0} tokens")
    } else {
        format!("~{}k tokens", 25 * (tokens / 25_000.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_metrics_stand_as_on_the_original_card() {
        let parameters = [("model".to_owned(), "m".to_owned()), ("gpu_name".to_owned(), "A100-80g".to_owned())];
        let card = Card {
            model: "CodeLlama-7b-Instruct-hf",
            machine: "A100-80g",
            ingestion: Some(13_611),
            ten_parallel: Some(41.9),
            kv_tokens: Some(104_000.0),
            graphs: &[(4096, 128)],
            has_totals: true,
            parameters: &parameters,
            notes: &[],
        };
        let page = card.to_markdown();
        for line in [
            "Model card for CodeLlama-7b-Instruct-hf on A100-80g\n===================================================\n",
            "|Prompt ingestion speed|~13500t/s |\n",
            "|Mean generation speed for 10 parallel requests with a prompt of 1024 tokens and 128 tokens generated|~41 t/s for each request|\n",
            "|Estimate of the max nb of tokens in KV cache|~100k tokens|\n",
            "speed_generation_graph_input_4096_output_128.png",
            "|gpu_name|A100-80g|\n",
        ] {
            assert!(page.contains(line), "{line:?} is not in\n{page}");
        }
        let slow = Card { ingestion: Some(240), kv_tokens: None, ..card }.to_markdown();
        assert!(slow.contains("|Prompt ingestion speed|~240t/s |") && slow.contains("KV cache|NA|"), "{slow}");
    }
}
