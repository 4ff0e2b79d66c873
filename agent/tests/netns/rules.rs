//! Rules of components in tables, and what the gates counted by them.

use std::net::{IpAddr, SocketAddr};

use agent_common::{Action, Direction, Identity, Reason, Rule, RuleKey};
use cardinal_agent::datapath::{Datapath, KernelTables};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Lets `from` call `to` on a port (0: any): the egress rule of the one and the ingress rule of the other.
pub(crate) fn allow(tables: &mut KernelTables, from: u32, to: u32, port: u16, protocol: u8) {
    let (from, to) = (Identity::component(from), Identity::component(to));
    rule(
        tables,
        from,
        RuleKey::new(to, port, protocol, Direction::Egress),
        Action::Pass,
    );
    rule(
        tables,
        to,
        RuleKey::new(from, port, protocol, Direction::Ingress),
        Action::Pass,
    );
}

/// Gives the component a rule; its id is the port plus one.
pub(crate) fn rule(tables: &mut KernelTables, of: Identity, key: RuleKey, action: Action) {
    let id = u32::from(key.port()) + 1;
    tables
        .policies
        .get_mut(&of)
        .expect("the component has a pod")
        .insert(key, Rule::new(action, id));
}

pub(crate) fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// The sum of packets of one cell, direction and reason.
pub(crate) fn packets(datapath: &Datapath, cell: u32, direction: Direction, reason: Reason) -> u64 {
    let rows = datapath.counters().expect("counters can be read");
    rows.iter()
        .filter(|row| row.cell == cell && row.way == direction && row.reason == reason)
        .map(|row| row.packets)
        .sum()
}
