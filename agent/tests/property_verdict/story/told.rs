//! A difference, told with as few steps as it needs.

use std::fmt::Write as _;

use agent_common::Identity;

use super::{Stage, Step, Tally};
use crate::kernel::now;
use crate::model::SECOND;
use crate::parse::{Parsed, parse, quoted};
use crate::tables::Tables;

impl Stage {
    /// Whether these steps end in a difference.
    fn differs(&mut self, steps: &[Step]) -> Option<String> {
        let mut tally = Tally::default();
        self.forget();
        // Nothing is left of the generation before.
        let nothing = [Step::Prepare(Tables::default()), Step::Flip];
        for step in nothing.iter().chain(steps) {
            if let Err(difference) = self.take(step, &mut tally) {
                return Some(difference);
            }
        }
        self.compare_all().err()
    }

    /// Leaves out what the difference does not need, and shows the rest.
    pub(super) fn fail(&mut self, seed: u64, steps: Vec<Step>, first: String) -> ! {
        let end = now() + 120 * SECOND;
        let (mut kept, mut shown) = (steps, first);
        // Most frames are of others and have nothing to do with it.
        let last = kept.last().and_then(ends);
        let related = |step: &&Step| ends(step).is_none_or(|ends| Some(ends) == last);
        let fewer: Vec<Step> = kept.iter().filter(related).cloned().collect();
        if let Some(difference) = self.differs(&fewer) {
            (kept, shown) = (fewer, difference);
        }
        let mut size = kept.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < kept.len() && now() < end {
                let mut fewer = kept.clone();
                fewer.drain(at..(at + size).min(kept.len()));
                match self.differs(&fewer) {
                    Some(difference) => (kept, shown) = (fewer, difference),
                    None => at += size,
                }
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
        let mut text = String::new();
        for step in &kept {
            text += &self.told(step, &kept);
        }
        panic!(
            "CARDINAL_SEED={seed}: after {} steps\n{text}\n{shown}",
            kept.len()
        );
    }

    fn told(&self, step: &Step, all: &[Step]) -> String {
        match step {
            Step::Idle(key, idle) => format!("flow {key:x?} idles {} s more\n", idle / SECOND),
            Step::Listeners(v4, v6) => format!("listeners: {v4} for IPv4, {v6} for IPv6\n"),
            Step::Connection(ends) => format!("the router has {ends:x?}\n"),
            Step::Frame(asked) => format!(
                "gate {} {} mark {:#x}\n  {}\n  {}\n",
                asked.gate,
                asked.way,
                asked.mark,
                hex(&asked.frame),
                match parse(&asked.frame) {
                    Ok(Parsed::Ip(packet)) => format!("{packet:x?}"),
                    other => format!("{other:x?}"),
                }
            ),
            Step::Prepare(tables) => told_tables(tables, all),
            Step::Abandon => "that generation is undone\n".to_owned(),
            Step::Flip => "that generation becomes active\n".to_owned(),
        }
    }
}

/// The addresses that a step is about, the lower one first.
fn ends(step: &Step) -> Option<(u128, u128)> {
    let (a, b) = match step {
        Step::Idle((_, id), _) => (id.local, id.remote),
        Step::Connection(ends) => (ends.pod, ends.remote),
        Step::Frame(asked) => match parse(&asked.frame) {
            Ok(Parsed::Ip(packet)) => (packet.source, packet.destination),
            _ => (0, 0),
        },
        Step::Prepare(_) | Step::Abandon | Step::Flip | Step::Listeners(..) => return None,
    };
    Some((a.min(b), a.max(b)))
}

/// The bytes of a frame, and of a long one how many more there are.
pub(super) fn hex(frame: &[u8]) -> String {
    const SHOWN: usize = 160;
    let mut text = String::new();
    for byte in frame.iter().take(SHOWN) {
        let _ = write!(text, "{byte:02x}");
    }
    match frame.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => text + &format!(" and {more} bytes"),
        _ => text,
    }
}

/// What of a generation concerns the frames of a story.
fn told_tables(tables: &Tables, all: &[Step]) -> String {
    let mut text = "a new generation\n".to_owned();
    let mut addresses = Vec::new();
    let mut protocols = vec![0];
    for step in all {
        if let Step::Frame(asked) = step
            && let Ok(Parsed::Ip(packet)) = parse(&asked.frame)
        {
            addresses.extend([packet.source, packet.destination]);
            let about = quoted(&asked.frame, &packet).map(|quoted| quoted.protocol);
            protocols.extend([packet.protocol, about.unwrap_or(0)]);
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    for (ifindex, pod) in &tables.pods {
        let _ = writeln!(text, "  pod {ifindex}: {pod:x?}");
    }
    let mut identities = vec![Identity::NODE, Identity::NORTH_GATE, Identity::WEST_GATE];
    for address in addresses {
        let owner = tables.owner(address);
        identities.extend(owner.map(|owner| owner.identity));
        let _ = writeln!(text, "  {address:x}: {owner:x?}");
    }
    for (of, rules) in &tables.rules {
        for (key, rule) in rules {
            if identities.contains(of)
                && identities.contains(&key.peer())
                && protocols.contains(&key.protocol())
            {
                let _ = writeln!(
                    text,
                    "  {of}: {} port {} width {} protocol {} {:?} -> {:?} {}",
                    key.peer(),
                    key.port(),
                    key.width(),
                    key.protocol(),
                    key.direction(),
                    rule.action(),
                    rule.id()
                );
            }
        }
    }
    text
}
