//! A row of the table, and how one comes about.

use std::net::IpAddr;

use anyhow::Result;
use serde::Serialize;

use super::scene::Demo;
use crate::{interrupt, world::Family};

/// A row of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What is tried, in a few words.
    pub scenario: &'static str,
    /// `north`, `west`, `intra`, `east`, `south` or `node`.
    pub direction: &'static str,
    /// Who tries.
    pub from: String,
    /// What is tried for.
    pub to: String,
    /// `ipv4`, `ipv6` or `-`.
    pub family: &'static str,
    /// What should happen.
    pub expected: String,
    /// What the reason should say; nothing if any will do.
    pub because: String,
    /// What happened.
    pub actual: String,
    /// Why, in the words of the kernel and the router.
    pub reason: String,
    /// From the client's first step to the outcome.
    pub latency_us: u64,
    /// Whether it happened, for the right reason.
    pub ok: bool,
}

/// All rows.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The rows in the order played.
    pub rows: Vec<Row>,
    /// How many are as expected.
    pub passed: usize,
    /// How many are not.
    pub failed: usize,
}

/// What is to be tried, and what should come of it.
pub(super) struct Case<'a> {
    pub(super) scenario: &'static str,
    pub(super) direction: &'static str,
    pub(super) from: &'a str,
    pub(super) to: &'a str,
    pub(super) family: Option<Family>,
    pub(super) expected: &'a str,
    /// Must be part of the reason; nothing if any will do.
    pub(super) because: &'a str,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) actual: String,
    pub(super) reason: String,
    pub(super) latency_us: u64,
}

/// A packet's way, by which its event is found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) port: u16,
}

/// The demo while it is played.
pub(super) struct Stage<'a> {
    pub(super) demo: &'a mut Demo,
    only: Option<&'a str>,
    show: &'a mut dyn FnMut(&Row),
    rows: Vec<Row>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(
        demo: &'a mut Demo,
        only: Option<&'a str>,
        show: &'a mut dyn FnMut(&Row),
    ) -> Self {
        Self {
            demo,
            only,
            show,
            rows: Vec::new(),
        }
    }

    /// Whether a scenario is to be played.
    pub(super) fn wants(&self, scenario: &str) -> bool {
        self.only.is_none_or(|only| scenario.contains(only))
    }

    /// Tries, judges and shows. Only a signal is an error; whatever else goes wrong is the row's outcome.
    pub(super) fn row(
        &mut self,
        case: &Case<'_>,
        attempt: impl FnOnce(&mut Demo) -> Result<Seen>,
    ) -> Result<()> {
        interrupt::check()?;
        if !self.wants(case.scenario) {
            return Ok(());
        }
        self.demo.expect(case);
        let seen = attempt(self.demo).unwrap_or_else(|error| Seen {
            actual: format!("error: {error:#}"),
            ..Seen::default()
        });
        interrupt::check()?;
        let row = Row {
            scenario: case.scenario,
            direction: case.direction,
            from: case.from.to_owned(),
            to: case.to.to_owned(),
            family: case.family.map_or("-", Family::name),
            expected: case.expected.to_owned(),
            because: case.because.to_owned(),
            ok: seen.actual == case.expected && seen.reason.contains(case.because),
            actual: seen.actual,
            reason: seen.reason,
            latency_us: seen.latency_us,
        };
        (self.show)(&row);
        self.rows.push(row);
        Ok(())
    }

    pub(super) fn report(self) -> Report {
        let passed = self.rows.iter().filter(|row| row.ok).count();
        Report {
            failed: self.rows.len() - passed,
            passed,
            rows: self.rows,
        }
    }
}
