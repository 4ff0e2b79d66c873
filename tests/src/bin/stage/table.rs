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
            "expected",
            "actual",
            "reason",
        ],
        "latency",
    );
}

/// One row.
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
            &row.expected,
            &row.actual,
            &row.reason,
        ],
        &latency(row.latency_us),
    );
}

/// Wide enough for what is as expected; whatever is longer pushes the rest of its line, and is never cut.
fn line(
    [
        verdict,
        scenario,
        direction,
        family,
        way,
        expected,
        actual,
        reason,
    ]: [&str; 8],
    latency: &str,
) {
    println!(
        "{verdict:<4} {scenario:<43} {direction:<9} {family:<6} {way:<36} {expected:<31} {actual:<31} {reason:<36} {latency:>9}"
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
