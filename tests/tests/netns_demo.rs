//! The rows of `cargo xtask demo`, all of them: what is shown is what is tested.

use anyhow::Result;
use tests::{
    demo::{self, Demo},
    programs::Programs,
};

#[test]
fn netns_every_row_of_the_demo_is_as_expected() -> Result<()> {
    let mut demo = Demo::set_up(&Programs::locate()?)?;
    let report = demo::play(&mut demo, None, &mut |row| {
        println!(
            "{} {} {} {} -> {}: {} ({}), expected {} ({})",
            if row.ok { "ok" } else { "FAIL" },
            row.scenario,
            row.family,
            row.from,
            row.to,
            row.actual,
            row.reason,
            row.expected,
            row.because
        );
    })?;
    assert!(
        report.failed == 0 && report.passed > 0,
        "{} of {} rows are not as expected",
        report.failed,
        report.rows.len()
    );
    Ok(())
}
