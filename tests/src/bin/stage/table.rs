//! Rows for people, printed as they come.

use tests::demo::Row;

/// Names of the columns.
pub(crate) fn head() {
    line(
        [
            "",
            "scenario",
            "direction",
            "family",
            "from → to",
            "outcome",
            "latency",
        ],
        "reason",
    );
}

/// One row, and below it what was expected where that is something else.
pub(crate) fn row(row: &Row) {
    let verdict = if row.ok { "ok" } else { "FAIL" };
    let way = format!("{} → {}", row.from, row.to);
    line(
        [
            verdict,
            row.scenario,
            row.direction,
            row.family,
            &way,
            &row.actual,
            &latency(row.latency_us),
        ],
        &row.reason,
    );
    if !row.ok {
        let because = match row.because.as_str() {
            "" => String::new(),
            because => format!(", because of `{because}`"),
        };
        println!("     expected: {}{because}", row.expected);
    }
}

/// Wide enough for what is as expected; whatever is longer pushes the rest of its line, and is never cut.
fn line([verdict, scenario, direction, family, way, outcome, latency]: [&str; 7], reason: &str) {
    println!(
        "{verdict:<4} {scenario:<43} {direction:<9} {family:<6} {way:<36} {outcome:<31} {latency:>9}  {reason}"
    );
}

fn latency(us: u64) -> String {
    match us {
        0 => "-".to_owned(),
        1..1000 => format!("{us} µs"),
        1000..1_000_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        _ => format!("{}.{} s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}
