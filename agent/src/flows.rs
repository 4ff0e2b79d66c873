//! `cardinal-agent flows`: new flows and drops of this node's cells, as they happen.
//!
//! Flows in: the agent's log of the kernel's events. Flows out, to each reader, one line of JSON per event that it asked for, and
//! notices of what was lost on the way: in the kernel's ring, by the limit of a cell, or because the reader was slow.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use agent_common::{Lost, Path, Reason, Verdict};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{MissedTickBehavior, interval};

use crate::admin;
use crate::config::FlowsArgs;
use crate::datapath::Datapath;
use crate::packets::EventRecord;
use crate::recent::Recent;

/// Chunks that wait for a reader; behind them the agent's log holds its events back, up to its size.
const CHUNKS: usize = 16;
/// How often a reader is told what the kernel lost.
const NOTICES: Duration = Duration::from_secs(1);

/// Which events a reader wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Of this cell, organization/project/environment.
    pub cell: Option<String>,
    /// With this verdict.
    pub verdict: Option<String>,
    /// For this reason.
    pub reason: Option<String>,
    /// At this border.
    pub direction: Option<String>,
    /// How many of those that are kept.
    pub last: usize,
    /// Whether those that come are wanted too.
    pub follow: bool,
}

/// What was lost on the way to a reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// `reader` (it was too slow), `kernel` (nobody emptied the ring in time) or `limit` (more than a cell may cause in a second;
    /// the next event of the cell says how many of its own).
    pub lost: String,
    /// How many events.
    pub events: u64,
}

impl Wanted {
    /// Reads the query of a request: `cell=acme/shop/prod&verdict=drop&last=20&follow=1`.
    ///
    /// # Errors
    ///
    /// What is not known, with what there is.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut wanted = Self {
            last: 20,
            ..Self::default()
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let word = || Some(value.to_owned());
            match name {
                "cell" => wanted.cell = word(),
                "verdict" => wanted.verdict = word(),
                "reason" => wanted.reason = word(),
                "direction" => wanted.direction = word(),
                "last" => {
                    wanted.last = value
                        .parse()
                        .map_err(|_| format!("expected `last=<number>`, got `{pair}`"))?;
                }
                "follow" => wanted.follow = !matches!(value, "0" | "false"),
                _ => {
                    return Err(format!(
                        "`{name}` is not known; there are cell, verdict, reason, direction, last and follow"
                    ));
                }
            }
        }
        Ok(wanted)
    }

    /// The same, as a query.
    #[must_use]
    pub fn query(&self) -> String {
        let mut text = format!("last={}&follow={}", self.last, u8::from(self.follow));
        for (name, value) in [
            ("cell", &self.cell),
            ("verdict", &self.verdict),
            ("reason", &self.reason),
            ("direction", &self.direction),
        ] {
            if let Some(value) = value {
                text.push_str(&format!("&{name}={value}"));
            }
        }
        text
    }

    fn fits(&self, event: &EventRecord) -> bool {
        let is = |wanted: &Option<String>, value: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == value)
        };
        is(&self.cell, &event.cell)
            && is(&self.verdict, event.verdict)
            && is(&self.reason, event.reason)
            && is(&self.direction, event.direction)
    }
}

/// The two ends of what a reader gets.
pub(crate) fn reader() -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
    mpsc::channel(CHUNKS)
}

/// Sends a reader what it wants, until it goes or has all that is kept.
pub(crate) async fn serve(
    wanted: Wanted,
    events: Arc<Recent<EventRecord>>,
    datapath: Option<Datapath>,
    reader: mpsc::Sender<Bytes>,
) {
    // Of all that is kept, since what does not fit must not count.
    let (kept, mut coming) = events.follow(usize::MAX);
    let fitting: Vec<_> = kept
        .iter()
        .filter(|event| wanted.fits(&event.record))
        .collect();
    for event in &fitting[fitting.len().saturating_sub(wanted.last)..] {
        if send(&reader, event).await.is_err() {
            return;
        }
    }
    drop(kept);
    if !wanted.follow {
        return;
    }
    let lost = |kind| {
        let datapath = datapath.as_ref()?;
        let lost = datapath.lost(kind).inspect_err(|error| {
            tracing::error!(
                error = error as &dyn std::error::Error,
                "failed to read how many events were lost; this reader is not told"
            );
        });
        lost.ok()
    };
    let kinds = [(Lost::Event, "kernel"), (Lost::Suppressed, "limit")];
    let mut known = kinds.map(|(kind, _)| lost(kind));
    let mut notices = interval(NOTICES);
    notices.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let sent = tokio::select! {
            () = reader.closed() => return,
            event = coming.recv() => match event {
                Ok(event) if wanted.fits(&event.record) => send(&reader, &event).await,
                Ok(_) => Ok(()),
                Err(broadcast::error::RecvError::Lagged(events)) => {
                    send(&reader, &Notice { lost: "reader".to_owned(), events }).await
                }
                Err(broadcast::error::RecvError::Closed) => return,
            },
            _ = notices.tick() => {
                let mut sent = Ok(());
                for ((kind, name), known) in kinds.into_iter().zip(&mut known) {
                    let now = lost(kind);
                    if let (Some(before), Some(now)) = (*known, now)
                        && now > before
                        && sent.is_ok()
                    {
                        let notice = Notice { lost: name.to_owned(), events: now - before };
                        sent = send(&reader, &notice).await;
                    }
                    *known = now.or(*known);
                }
                sent
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

/// One line. An error says that the reader is gone.
async fn send(reader: &mpsc::Sender<Bytes>, line: &impl Serialize) -> Result<(), ()> {
    let mut text = serde_json::to_vec(line).map_err(|error| {
        tracing::error!(%error, "an event is no JSON");
    })?;
    text.push(b'\n');
    reader.send(text.into()).await.map_err(drop)
}

/// Shows events until there are no more, or for ever.
///
/// # Errors
///
/// No agent answers, or it does not know the question, or output fails.
pub fn run(args: &FlowsArgs) -> anyhow::Result<()> {
    let wanted = args.wanted();
    let path = format!("/debug/flows?{}", wanted.query());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut out = io::stdout().lock();
    let mut show = |line: &[u8]| -> anyhow::Result<()> {
        if args.json {
            out.write_all(line)?;
            out.write_all(b"\n")?;
        } else {
            writeln!(out, "{}", text(&serde_json::from_slice(line)?))?;
        }
        out.flush()?;
        Ok(())
    };
    runtime.block_on(admin::lines(&args.admin, &path, &mut show))
}

/// An event or a notice for people: columns that stay in place.
fn text(line: &Value) -> String {
    let word = |name: &str| line[name].as_str().unwrap_or("-");
    if let (Some(lost), Some(events)) = (line["lost"].as_str(), line["events"].as_u64()) {
        return match lost {
            "reader" => {
                format!("! {events} events are missing here: they came faster than they were read")
            }
            "kernel" => format!("! {events} events were lost in the kernel's ring"),
            _ => format!("! {events} events were not told: more than a cell may cause in a second"),
        };
    }
    let number = |name: &str| line[name].as_u64().unwrap_or(0);
    let end = |address: &str, port: &str| match (word(address), number(port)) {
        (address, 0) => address.to_owned(),
        (address, port) if address.contains(':') => format!("[{address}]:{port}"),
        (address, port) => format!("{address}:{port}"),
    };
    // `2026-01-01T12:34:56.789Z`: the day is today's, mostly.
    let time = word("time");
    let time = time.get(11..).unwrap_or(time).trim_end_matches('Z');
    let way = match word("hook") {
        "cell_egress" => "out",
        _ => "in",
    };
    let cell = match word("cell") {
        "" => "-",
        cell => cell,
    };
    let protocol = u8::try_from(number("proto")).unwrap_or(0);
    let protocol = match protocol {
        58 => "icmp".to_owned(),
        other => crate::explain::Protocol(other).to_string(),
    };
    let mut text = format!(
        "{time:<12}  {:<5} {:<17} {:<8} {way:<3} {cell:<24} {:<21} → {:<21} {protocol:<5} {}",
        word("verdict"),
        word("reason"),
        word("direction"),
        end("src", "sport"),
        end("dst", "dport"),
        word("peer"),
    );
    if let Some(rule) = line["rule"].as_str().filter(|rule| !rule.is_empty()) {
        text.push_str(&format!(" · {rule}"));
    }
    match number("suppressed") {
        0 => {}
        suppressed => text.push_str(&format!(" · {suppressed} before it not told")),
    }
    text
}

/// Values of `--verdict`.
#[must_use]
pub fn verdicts() -> Vec<&'static str> {
    Verdict::ALL.iter().map(|verdict| verdict.name()).collect()
}

/// Values of `--reason`.
#[must_use]
pub fn reasons() -> Vec<&'static str> {
    Reason::ALL.iter().map(|reason| reason.name()).collect()
}

/// Values of `--direction`.
#[must_use]
pub fn directions() -> Vec<&'static str> {
    Path::ALL.iter().map(|path| path.name()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wanted_survives_its_query() {
        let wanted = Wanted {
            cell: Some("acme/shop/prod".into()),
            verdict: Some("drop".into()),
            reason: None,
            direction: Some("east".into()),
            last: 7,
            follow: true,
        };
        assert_eq!(Wanted::parse(&wanted.query()), Ok(wanted));
        let all = Wanted::parse("").expect("everything");
        assert_eq!((all.last, all.follow, all.cell), (20, false, None));
        for (query, part) in [
            ("since=5", "`since` is not known; there are cell"),
            ("last=x", "expected `last=<number>`"),
        ] {
            let error = Wanted::parse(query).expect_err(query);
            assert!(error.contains(part), "{error}");
        }
    }

    fn event(dport: u16) -> EventRecord {
        EventRecord {
            time: String::new(),
            verdict: "drop",
            reason: "not_declared",
            direction: "east",
            hook: "cell_egress",
            cell: "acme/shop/prod".into(),
            rule: String::new(),
            document: String::new(),
            field: String::new(),
            peer: String::new(),
            src: String::new(),
            sport: 0,
            dst: String::new(),
            dport,
            proto: 6,
            ifindex: 1,
            generation: 1,
            suppressed: 0,
        }
    }

    #[tokio::test]
    async fn a_slow_reader_loses_events_and_is_told_how_many() {
        let events = Arc::new(Recent::new(8));
        let (sender, mut lines) = mpsc::channel(1);
        let wanted = Wanted {
            follow: true,
            last: 1,
            ..Wanted::default()
        };
        events.push(event(1));
        let server = tokio::spawn(serve(wanted, Arc::clone(&events), None, sender));
        let next = async |lines: &mut mpsc::Receiver<Bytes>| -> Value {
            let line = lines.recv().await.expect("a line");
            serde_json::from_slice(&line).expect("JSON")
        };
        assert_eq!(next(&mut lines).await["dport"], 1, "what is kept");
        for dport in 2..=40 {
            events.push(event(dport));
        }
        let (mut seen, mut lost) = (0, 0);
        loop {
            let line = next(&mut lines).await;
            match line["lost"].as_str() {
                Some("reader") => lost += line["events"].as_u64().expect("a number"),
                Some(other) => panic!("{other}"),
                None => seen += 1,
            }
            if line["dport"] == 40 {
                break;
            }
        }
        assert!(lost >= 30, "{lost} lost, {seen} seen");
        assert_eq!(seen + lost, 39);
        drop(lines);
        server.await.expect("it ends with its reader");
    }

    #[test]
    fn events_are_lines_with_columns() {
        let event = json!({
            "seq": 9, "time": "2026-01-01T12:34:56.789Z", "verdict": "drop", "reason": "not_declared", "direction": "east",
            "hook": "cell_egress", "cell": "acme/shop/prod", "rule": "", "peer": "acme/bank/prod/ledger", "src": "10.0.0.1",
            "sport": 40000, "dst": "fd00::7", "dport": 443, "proto": 6, "suppressed": 12
        });
        let line = text(&event);
        for part in [
            "12:34:56.789  drop  not_declared      east     out acme/shop/prod ",
            " 10.0.0.1:40000 ",
            "→ [fd00::7]:443 ",
            " tcp   acme/bank/prod/ledger · 12 before it not told",
        ] {
            assert!(line.contains(part), "{part} is missing in `{line}`");
        }
        let notice = json!({"lost": "reader", "events": 3});
        assert!(text(&notice).starts_with("! 3 events are missing here"));
    }
}
