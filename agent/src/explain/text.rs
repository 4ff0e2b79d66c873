//! Answers as people read them.

use std::fmt;

use super::answer::{End, Explanation, GateAnswer};

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.who, self.address)?;
        if let Some(interface) = &self.interface {
            write!(f, " behind {interface}")?;
        }
        f.write_str(")")
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.active {
            "active"
        } else {
            "NOT active: written, asked and taken back"
        };
        writeln!(f, "generation  {} ({state})", self.generation)?;
        if let (Some(from), Some(to)) = (&self.from, &self.to) {
            writeln!(f, "from        {from}")?;
            writeln!(f, "to          {to}")?;
        }
        match (&self.protocol, self.sport, self.dport) {
            (Some(protocol), Some(from), Some(to)) => {
                writeln!(f, "opens       {protocol} to port {to} from port {from}")?;
            }
            (Some(protocol), ..) => writeln!(f, "opens       {protocol}")?,
            (None, ..) => writeln!(f, "frame       as given")?,
        }
        for gate in &self.gates {
            write!(f, "{gate}")?;
        }
        let verdict = self.verdict.to_uppercase().replace('_', " ");
        match self.gates.iter().find(|gate| gate.verdict == self.verdict) {
            Some(gate) if self.verdict == "drop" => {
                writeln!(
                    f,
                    "verdict     {verdict} at the {}'s gate: {}",
                    gate.gate, gate.reason
                )?;
            }
            _ => writeln!(f, "verdict     {verdict}")?,
        }
        for note in &self.notes {
            writeln!(f, "note        {note}")?;
        }
        Ok(())
    }
}

impl fmt::Display for GateAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match self.gate.as_str() {
            "sender" => "sender's gate",
            _ => "receiver's gate",
        };
        let reached = if self.reached {
            ""
        } else {
            " (not reached; it would say)"
        };
        writeln!(
            f,
            "{of} of {} at {}{reached}",
            self.component, self.interface
        )?;
        writeln!(
            f,
            "            {} {} · {} · opened {}",
            self.verdict,
            self.reason,
            self.direction,
            if self.opened == "egress" {
                "by this pod"
            } else {
                "to this pod"
            }
        )?;
        write!(f, "            peer {}", self.peer)?;
        if let Some(router) = &self.router_as {
            write!(f, ", as the router speaks ({router})")?;
        }
        writeln!(f)?;
        match (self.rule, self.declared.as_str()) {
            (0, _) => writeln!(f, "            no rule decided"),
            (number, "") => writeln!(f, "            rule {number}"),
            (number, declared) => {
                writeln!(f, "            rule {number}: {declared}")?;
                writeln!(f, "            {} {}", self.document, self.field)
            }
        }
    }
}
