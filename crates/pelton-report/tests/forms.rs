//! Every form of a report holds the numbers of the results, and nothing that a stranger's text could break.

mod made;

use made::results;
use pelton_bench::Metric;
use pelton_bench::results::Results;
use pelton_report::charts::{Charts, Data, svg};
use pelton_report::console::{Console, Side};
use pelton_report::{Comparison, Report, digest, html, markdown, sheet};
use resvg::usvg::roxmltree::Document;

fn one() -> Report {
    Report::new([("run".to_owned(), results(&[1, 4], 1, 40))])
}

fn two() -> Report {
    Report::new([("run".to_owned(), results(&[1, 4], 3, 40)), ("run".to_owned(), results(&[4, 8], 3, 80))])
}

/// The figures that a page draws.
fn figures(page: &str) -> serde_json::Value {
    let from = page.find(r#"id="figures">"#).expect("the page has figures") + r#"id="figures">"#.len();
    let to = from + page[from..].find("</script>").expect("they end");
    serde_json::from_str(&page[from..to]).expect("they are JSON")
}

#[test]
fn a_page_asks_for_nothing_outside_of_itself() {
    let page = html(&two());
    for attribute in ["src=", "href=", "@import", "url(", "fetch(", "XMLHttpRequest", "import("] {
        for (at, _) in page.match_indices(attribute) {
            let value = &page[at + attribute.len()..];
            assert!(attribute == "href=" && value.starts_with("\"#"), "{attribute}{:.60}", value);
        }
    }
}

#[test]
fn a_page_is_well_formed_and_has_the_numbers() {
    let page = html(&one());
    // Scripts and styles are no XML; what is left is, once the empty elements are closed.
    let mut markup = String::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("a page says what it is");
    while let Some(at) = [rest.find("<script"), rest.find("<style")].into_iter().flatten().min() {
        let end = if rest[at..].starts_with("<script") { "</script>" } else { "</style>" };
        markup.push_str(&rest[..at]);
        rest = &rest[at + rest[at..].find(end).expect("it ends") + end.len()..];
    }
    markup.push_str(rest);
    let markup = markup.replace(r#"<meta charset="utf-8">"#, "").replace(" open>", r#" open="">"#);
    let markup = markup
        .replace("<br>", "<br/>")
        .replace(" data-last>", ">")
        .replace(r#"initial-scale=1">"#, r#"initial-scale=1"/>"#);
    let tree = Document::parse(&markup).unwrap_or_else(|error| panic!("{error}: {markup}"));
    let texts: Vec<&str> = tree.descendants().filter(|node| node.is_text()).filter_map(|node| node.text()).collect();
    // 35 complete answers of 10 tokens in 9 s; 40, 42, 44 and 46 ms to the first token of four users, fewest of the last.
    for text in [
        "38.89",
        "3.889",
        "42.00",
        "too | <i>busy</i>\nnow",
        "ttft:p50<45ms",
        "12.5 % of a core, waited for it 0.0 %, 12.5 us per event",
    ] {
        assert!(texts.contains(&text), "{text} is not in {texts:?}");
    }
    assert!(texts.iter().any(|text| text.contains("<b>a model</b> at http://example.test:3000")));
    assert!(texts.contains(&Metric::Itl.formula()));
}

#[test]
fn the_charts_of_a_page_hold_the_values() {
    let figures = figures(&html(&one()));
    let figure = |title: &str| {
        let found = figures.as_object().expect("an object").values().find(|figure| figure["title"] == title);
        found.unwrap_or_else(|| panic!("there is no {title}")).clone()
    };
    let throughput = figure("Throughput against users");
    let points = throughput["series"][0]["data"].as_array().expect("points");
    assert_eq!((points[0][0].as_f64(), points[1][0].as_f64()), (Some(1.0), Some(4.0)));
    assert_eq!(points[1][1].as_f64(), Some(38.8889));
    // One run of few requests has an interval too.
    assert!(points[1][2].as_f64() <= points[1][1].as_f64() && points[1][3].as_f64() >= points[1][1].as_f64());
    let requests = figure("Requests one by one, 4 users");
    let failed = requests["series"].as_array().expect("series").iter().find(|series| series["name"] == "failed");
    let failed = failed.expect("a request failed");
    assert_eq!((&failed["colour"], failed["data"].as_array().map(Vec::len)), (&"failure".into(), Some(1)));
    assert_eq!(figure("Tokens over time, 4 users")["greyed"][0], serde_json::json!([0.0, 1.0]));
}

#[test]
fn text_of_strangers_cannot_leave_the_script_element() {
    let mut results = results(&[1, 2], 1, 40);
    results.server.model = "</script><script>alert(1)</script>".to_owned();
    let page =
        html(&Report::new([("</script><script>alert(1)".to_owned(), results.clone()), ("b".to_owned(), results)]));
    assert!(!page.contains("<script>alert"), "a stranger's script is in the page");
    assert!(figures(&page).as_object().is_some_and(|figures| !figures.is_empty()));
}

#[test]
fn tables_in_markdown_keep_their_columns() {
    let text = markdown(&one(), None);
    let mut columns = None;
    for line in text.lines() {
        let bars = line.replace("\\|", "").matches('|').count();
        if line.starts_with('|') {
            assert_eq!(*columns.get_or_insert(bars), bars, "{line}");
        } else {
            columns = None;
        }
    }
    assert!(text.contains(r"too \| \<i>busy\</i> now"), "{text}");
    assert!(text.contains("|      38.89 |") || text.contains(" 38.89 |"), "{text}");
    assert!(!text.contains(".svg"));
    let charts = Charts::of(&one());
    let text = markdown(&one(), Some(&charts));
    for chart in charts.all() {
        assert!(text.contains(&format!("({}.svg)", chart.name)), "{}", chart.name);
    }
}

#[test]
fn sheets_have_a_line_for_each_run_or_request() {
    let read = |text: String| {
        let mut reader = csv::Reader::from_reader(std::io::Cursor::new(text));
        let head = reader.headers().expect("a head").clone();
        let lines: Vec<csv::StringRecord> = reader.records().map(|line| line.expect("a line")).collect();
        (head, lines)
    };
    let (head, lines) = read(sheet::runs(&two()).expect("a sheet"));
    let column =
        |name: &str| head.iter().position(|one| one == name).unwrap_or_else(|| panic!("{name} is not in {head:?}"));
    assert_eq!(lines.len(), 12);
    assert_eq!((&lines[3][column("test")], &lines[6][column("test")]), ("run", "run (2)"));
    assert_eq!((&lines[3][column("level")], &lines[3][column("ttft_p50_ms")]), ("4", "42"));
    assert_eq!(&lines[3][column("error_rate_share")], (1.0f64 / 36.0).to_string());
    let (head, lines) = read(sheet::rows(&one()).expect("a sheet"));
    assert_eq!(lines.len(), 50);
    let column =
        |name: &str| head.iter().position(|one| one == name).unwrap_or_else(|| panic!("{name} is not in {head:?}"));
    assert_eq!((&lines[49][column("error")], &lines[49][column("message")]), ("status 503", "too | <i>busy</i>\nnow"));
    assert_eq!(&lines[11][column("first_token_ms")], "42");
}

#[test]
fn json_has_the_summaries_and_not_the_rows() {
    let text = digest::json(one()).expect("JSON");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let run = &value["tests"][0]["runs"][1];
    assert_eq!(run["summary"]["ttft_ms"]["p50"], 42.0);
    assert!(run.get("rows").is_none() && run.get("case").is_some());
    assert_eq!(value["metrics"]["itl"]["formula"], Metric::Itl.formula());
}

#[test]
fn tests_are_compared_at_the_loads_they_share() {
    let report = two();
    let tables = Comparison::of(&report).tables();
    assert_eq!(tables.iter().map(|table| table.title.as_str()).collect::<Vec<_>>(), ["At 4 users"]);
    let row = tables[0].rows.iter().find(|row| row[0] == "time to first token p50 (ms)").expect("the metric");
    // Each repeat is 1 ms slower than the one before; the second test is 40 ms slower.
    assert_eq!((row[1].as_str(), row[2].as_str()), ("44.00", "84.00"));
    assert!(row[3].starts_with("+90.9 % [") && row[3].ends_with("worse"), "{row:?}");
    let row = tables[0].rows.iter().find(|row| row[0] == "inter-token latency p50 (ms)").expect("the metric");
    assert_eq!(row[3], "equal");
    let one = Report::new([("a".to_owned(), results(&[1], 1, 40)), ("b".to_owned(), results(&[2], 1, 40))]);
    assert_eq!(Comparison::of(&one).tables()[0].title, "Different loads: 1 user, 2 users");
}

#[test]
fn noise_is_no_difference() {
    let report = Report::new([("a".to_owned(), results(&[4], 3, 40)), ("b".to_owned(), results(&[4], 3, 41))]);
    let tables = Comparison::of(&report).tables();
    let row = tables[0].rows.iter().find(|row| row[0] == "time to first token p50 (ms)").expect("the metric");
    assert!(row[3].ends_with("no significant difference"), "{row:?}");
}

#[test]
fn a_terminal_of_100_columns_is_wide_enough() {
    let console = Console(&results(&[1, 16], 2, 40)).to_string();
    let side = Side(&two()).to_string();
    // Sentences may be broken by the terminal; lines of tables may not.
    for line in console.lines().chain(side.lines()) {
        let is_sentence =
            line.starts_with("rates ") || line.starts_with("whole run") || line.contains("confidence of 95 %");
        let is_sentence =
            is_sentence || line.starts_with("server  ") || line.starts_with("note") || line.starts_with("error");
        assert!(line.chars().count() <= 100 || is_sentence, "{line}");
    }
    for text in ["ttft:p50<45ms", "goodput", "With a confidence of 95 %", "KV cache at most 25.0 %"] {
        assert!(console.contains(text), "{text} is not in\n{console}");
    }
}

#[test]
fn large_runs_stay_bounded() {
    let mut results = results(&[500], 1, 40);
    let row = results.runs[0].rows[0].clone();
    results.runs[0].rows.extend((0..50_000).map(|n| {
        let mut row = row.clone();
        (row.start_us, row.intended_us, row.index) = (n * 100, n * 100, n);
        row
    }));
    let report = Report::new([("large".to_owned(), results)]);
    let charts = Charts::of(&report);
    for chart in charts.all() {
        for series in chart.figures.iter().flat_map(|figure| &figure.series) {
            let values = match &series.data {
                Data::Spans(spans) => spans.len(),
                _ => series.points().len(),
            };
            assert!(values <= 1000, "{}: {} has {values}", chart.name, series.name);
        }
        assert!(Document::parse(&svg(&chart.figures)).is_ok(), "{}", chart.name);
    }
    assert!(html(&report).len() < 400_000);
}

#[test]
fn without_requests_quantiles_and_the_server_are_drawn() {
    let mut bare = results(&[4], 1, 40);
    bare.runs[0].rows.clear();
    let charts = Charts::of(&Report::new([("bare".to_owned(), bare)]));
    let ttft = charts.all().find(|chart| chart.name == "distribution-ttft").expect("it has quantiles");
    let points = ttft.figures[0].series[0].points();
    assert!(points.iter().any(|point| (point.x, point.y) == (42.0, 0.5)), "{points:?}");
    let time = charts.all().find(|chart| chart.name == "time-4-users").expect("the server told something");
    let names: Vec<&str> = time.figures.iter().flat_map(|figure| &figure.series).map(|s| s.name.as_str()).collect();
    assert!(names.contains(&"running, server") && !names.iter().any(|name| name.contains("client")), "{names:?}");
}

#[test]
fn results_without_anything_are_told_too() {
    let mut empty: Results = results(&[1], 1, 40);
    empty.runs[0].rows.clear();
    let summary = &mut empty.runs[0].summary;
    (summary.ttft_ms, summary.itl_ms, summary.requests) = (None, None, Default::default());
    let report = Report::new([("empty".to_owned(), empty.clone())]);
    assert!(html(&report).contains("empty") || html(&report).contains("1 user"));
    assert!(Console(&empty).to_string().contains("none measured"));
    empty.runs.clear();
    let report = Report::new([("none".to_owned(), empty)]);
    assert!(markdown(&report, None).contains("# Load test") && Charts::of(&report).all().next().is_none());
    assert!(html(&report).contains("</html>"));
}
