//! The demo: every promise of the product as rows of a table, each from real traffic against the real agent.
//!
//! Documents (`policies/demo`) and places flow in, rows flow out. A row is judged by what the client got *and* by the reason
//! that kernel or router gave for it, so that nothing passes by accident.

mod cells;
pub mod endurance;
pub mod handover;
mod lifecycle;
mod north;
mod routing;
mod row;
mod rules;
mod scene;
mod south;

use anyhow::Result;

pub use row::{Report, Row};
pub(crate) use scene::copy_documents;
pub use scene::{Demo, Spot};

/// Plays every scenario; each row is shown as soon as it is known. Rows whose scenario lacks the text `only` are left out.
///
/// # Errors
/// The stage itself broke (not a scenario: that is a row), or a signal came.
pub fn play(demo: &mut Demo, only: Option<&str>, show: &mut dyn FnMut(&Row)) -> Result<Report> {
    let mut stage = row::Stage::new(demo, only, show);
    north::play(&mut stage)?;
    cells::play(&mut stage)?;
    south::play(&mut stage)?;
    rules::play(&mut stage)?;
    routing::play(&mut stage)?;
    lifecycle::play(&mut stage)?;
    Ok(stage.report())
}
