//! Temporary.
use pelton_bench::results::Results;
use pelton_report::{Report, charts};
fn main() {
    let mut args = std::env::args().skip(1);
    let out = args.next().unwrap();
    let report = Report::new(args.map(|path| {
        let results = Results::read_json(std::fs::File::open(&path).unwrap()).unwrap();
        (std::path::Path::new(&path).file_stem().unwrap().to_string_lossy().into_owned(), results)
    }));
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(format!("{out}/page.html"), pelton_report::html(&report)).unwrap();
    for chart in charts::Charts::of(&report).all() {
        let svg = charts::svg(&chart.figures);
        std::fs::write(format!("{out}/{}.svg", chart.name), &svg).unwrap();
        std::fs::write(format!("{out}/{}.png", chart.name), charts::png(&svg, 1.0).unwrap()).unwrap();
        println!("{}", chart.name);
    }
}
