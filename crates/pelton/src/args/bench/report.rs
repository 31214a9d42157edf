//! Flags of `pelton bench report`, `compare` and `explain`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pelton_bench::Metric;

#[derive(Debug, Args)]
#[command(after_long_help = REPORT_EXAMPLES)]
pub struct ReportArgs {
    /// Files written by `pelton bench --output`. Several are told together and set side by side.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,

    #[command(flatten)]
    pub form: FormArgs,
}

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Files written by `pelton bench --output`, two or more: of other servers, settings or versions. Changes are against the first.
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    pub runs: Vec<PathBuf>,

    #[command(flatten)]
    pub form: FormArgs,
}

/// What comes out, and where.
#[derive(Debug, Args)]
pub struct FormArgs {
    /// What to write. Default: as the end of --output says (.html, .md, .csv, .json, .svg, .png), else console.
    #[arg(long, short, value_enum)]
    pub format: Option<FormatArg>,

    /// File to write, or a folder for forms of several files: pictures, and Markdown with its pictures. Default: the terminal.
    #[arg(long, short, value_name = "FILE|DIR")]
    pub output: Option<PathBuf>,

    /// With csv: one line for each request instead of one for each run.
    #[arg(long)]
    pub rows: bool,

    /// With svg and png: only this chart. An unknown name is refused with the list of all.
    #[arg(long, value_name = "NAME")]
    pub chart: Option<String>,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Names of metrics, such as ttft. Default: all.
    #[arg(value_name = "METRIC")]
    pub metrics: Vec<Metric>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// Text for a terminal
    Console,
    /// Tables to paste; with a folder as --output, links to charts beside them
    Markdown,
    /// One line for each run, units in the heads; see --rows
    Csv,
    /// Everything but the requests one by one, with formulas
    Json,
    /// One page with interactive charts, which opens without a network
    Html,
    /// The charts as vector pictures
    Svg,
    /// The same charts as pixels, twice as sharp
    Png,
}

impl FormatArg {
    /// What a file of this name holds.
    pub fn of(path: &std::path::Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "txt" => Some(FormatArg::Console),
            "md" => Some(FormatArg::Markdown),
            "csv" => Some(FormatArg::Csv),
            "json" => Some(FormatArg::Json),
            "html" => Some(FormatArg::Html),
            "svg" => Some(FormatArg::Svg),
            "png" => Some(FormatArg::Png),
            _ => None,
        }
    }
}

const REPORT_EXAMPLES: &str = "\
Examples:
  pelton bench report run.json
  pelton bench report run.json -o report.html
  pelton bench report monday.json tuesday.json --format markdown -o report/
  pelton bench report run.json --format csv --rows -o requests.csv
  pelton bench report run.json --chart throughput-users -o throughput.png";
