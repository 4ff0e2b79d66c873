//! The lines of `cargo xtask quickstart` answer as they should.

use anyhow::Result;
use tests::{programs::Programs, quickstart::Quickstart};

#[test]
fn proxy_every_line_of_the_quickstart_answers() -> Result<()> {
    let quickstart = Quickstart::start(&Programs::locate()?)?;
    for step in quickstart.steps() {
        Quickstart::check(&step)?;
    }
    Ok(())
}
