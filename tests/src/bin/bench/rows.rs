//! The table: one ratio per row, for people and for machines.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// What a row is held to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bar {
    /// Nothing: it is there to compare with.
    None,
    /// The ratio may be this at most.
    AtMost(f64),
    /// The ratio must be this at least; of throughputs.
    AtLeast(f64),
}

impl Bar {
    /// Whether a figure meets it.
    pub(crate) fn holds(self, figure: f64) -> bool {
        match self {
            Self::None => true,
            Self::AtMost(most) => figure <= most,
            Self::AtLeast(least) => figure >= least,
        }
    }

    /// Rounds without which its median says nothing.
    pub(crate) fn rounds(self) -> usize {
        match self {
            Self::AtMost(most) if most > 1.0 && most <= 1.02 => 31,
            _ => 11,
        }
    }

    fn figure(self) -> Option<f64> {
        match self {
            Self::None => None,
            Self::AtMost(figure) | Self::AtLeast(figure) => Some(figure),
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::None => String::new(),
            Self::AtMost(most) => format!("≤ {most}"),
            Self::AtLeast(least) => format!("≥ {least}"),
        };
        f.pad(&text)
    }
}

/// One comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// What was compared.
    pub(crate) scenario: String,
    /// Median over the rounds.
    pub(crate) ratio: f64,
    /// Lower quartile over the rounds.
    pub(crate) low: f64,
    /// Upper quartile over the rounds.
    pub(crate) high: f64,
    /// The bar; null for rows without one.
    pub(crate) target: Option<f64>,
    /// Whether the median meets the bar; true for rows without one.
    pub(crate) ok: bool,
    /// `at most`, `at least` or null.
    bound: Option<&'static str>,
    /// `ratio`, or what the figure is of.
    pub(crate) unit: &'static str,
    /// How many rounds the median is of.
    pub(crate) rounds: usize,
    /// The figures behind the ratio, and where the time goes.
    pub(crate) notes: String,
    #[serde(skip)]
    bar: Bar,
}

impl Row {
    /// The row of some rounds' figures.
    pub(crate) fn new(scenario: &str, figures: &[f64], bar: Bar, notes: String) -> Self {
        let spread = Spread::of(figures);
        Self {
            scenario: scenario.to_owned(),
            ratio: rounded(spread.median),
            low: rounded(spread.low),
            high: rounded(spread.high),
            target: bar.figure(),
            ok: bar.holds(spread.median),
            bound: match bar {
                Bar::None => None,
                Bar::AtMost(_) => Some("at most"),
                Bar::AtLeast(_) => Some("at least"),
            },
            unit: "ratio",
            rounds: figures.len(),
            notes,
            bar,
        }
    }

    /// The same, of seconds.
    pub(crate) fn seconds(self) -> Self {
        self.of("seconds")
    }

    /// The same, of something else than a ratio.
    pub(crate) fn of(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }
}

/// Median and quartiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// Of at least one figure; of none it is not a number.
    pub(crate) fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| match sorted.len() {
            0 => f64::NAN,
            length => {
                let place = part * (length - 1) as f64;
                let (below, above) = (place.floor() as usize, place.ceil() as usize);
                sorted[below] + (sorted[above] - sorted[below]) * place.fract()
            }
        };
        Self {
            low: at(0.25),
            median: at(0.5),
            high: at(0.75),
        }
    }
}

/// Four digits behind the point are more than a round can tell.
fn rounded(figure: f64) -> f64 {
    (figure * 10_000.0).round() / 10_000.0
}

/// All rows of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// What it was measured on.
    pub(crate) machine: String,
    /// The rows, in the order in which they were played.
    pub(crate) rows: Vec<Row>,
}

impl Report {
    /// Writes the report as one JSON document.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        fs::write(file, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("failed to write {}", file.display()))
    }
}

/// Names of the columns.
pub(crate) fn head() {
    println!(
        "{:<6} {:<52} {:>8} {:>8} {:>8}  {:<8} notes",
        "", "scenario", "ratio", "low", "high", "bar"
    );
}

/// One row.
pub(crate) fn show(row: &Row) {
    let verdict = match (row.target, row.ok) {
        (None, _) => "",
        (_, true) => "ok",
        (_, false) => "MISSED",
    };
    println!(
        "{verdict:<6} {:<52} {:>8.3} {:>8.3} {:>8.3}  {:<8} {}",
        row.scenario, row.ratio, row.low, row.high, row.bar, row.notes
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_their_neighbours() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.low, spread.median, spread.high), (1.75, 2.5, 3.25));
        let one = Spread::of(&[5.0]);
        assert_eq!((one.low, one.median, one.high), (5.0, 5.0, 5.0));
    }

    #[test]
    fn a_bar_is_met_from_its_own_side() {
        assert!(Bar::AtMost(0.91).holds(0.91) && !Bar::AtMost(0.91).holds(0.92));
        assert!(Bar::AtLeast(0.98).holds(1.2) && !Bar::AtLeast(0.98).holds(0.97));
        let missed = Row::new("x", &[1.1, 1.1, 1.1], Bar::AtMost(1.05), String::new());
        assert!(!missed.ok && missed.target == Some(1.05));
        let shown = Row::new("x", &[9.0], Bar::None, String::new());
        assert!(shown.ok && shown.target.is_none());
    }
}
