//! Rows for people, printed as they come.

use tests::demo::Row;

/// Names of the columns.
pub(crate) fn head() {
    println!(
        "{:<4} {:<42} {:<9} {:<6} {:<14} {:<22} {:<34} {:<34} {:<40} {:>10}",
        "",
        "scenario",
        "direction",
        "family",
        "from",
        "to",
        "expected",
        "actual",
        "reason",
        "latency"
    );
}

/// One row.
pub(crate) fn row(row: &Row) {
    println!(
        "{:<4} {:<42} {:<9} {:<6} {:<14} {:<22} {:<34} {:<34} {:<40} {:>10}",
        if row.ok { "ok" } else { "FAIL" },
        row.scenario,
        row.direction,
        row.family,
        row.from,
        row.to,
        row.expected,
        if row.actual == row.expected {
            "as expected"
        } else {
            &row.actual
        },
        row.reason,
        latency(row.latency_us),
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
