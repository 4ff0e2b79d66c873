//! Cells whose borders are open, and who calls them.

use snapshot::model::{Border, Borders, OtherNodes};

use super::*;

/// The tables of the world in which this is a cell's border.
fn tables(project: &str, borders: Borders) -> KernelTables {
    let (mut snapshot, discovery) = world();
    let cell = snapshot.cells.get_mut(&cell_id(project));
    cell.expect("the cell is there").borders = borders;
    compile(&snapshot, &discovery, 1)
}

/// Whether anything may pass for the pod with an address.
fn anything(tables: &KernelTables, own: &str, way: Direction) -> bool {
    verdict(tables, own, RuleKey::ANYBODY, 0, 0, way) == Action::Pass
}

#[test]
fn an_open_border_lets_everything_pass_in_its_direction_only() {
    let (web, ledger) = ("10.1.0.1", "10.2.0.1");
    for (ingress, egress) in [
        (Border::Declared, Border::Declared),
        (Border::Open, Border::Declared),
        (Border::Declared, Border::Open),
        (Border::Open, Border::Open),
    ] {
        let tables = tables("shop", Borders { ingress, egress });
        let open = [Direction::Ingress, Direction::Egress].map(|way| anything(&tables, web, way));
        assert_eq!(open, [ingress == Border::Open, egress == Border::Open]);
        // Another cell's is its own.
        assert!(!anything(&tables, ledger, Direction::Ingress));
        assert!(!anything(&tables, ledger, Direction::Egress));
    }
}

#[test]
fn other_nodes_reach_nobody_or_what_gates_may() {
    let reached = |other_nodes| {
        let (mut snapshot, discovery) = world();
        let mut platform = (*snapshot.platform).clone();
        platform.other_nodes = other_nodes;
        snapshot.platform = platform.into();
        let tables = compile(&snapshot, &discovery, 1);
        let of = |own, port| {
            let node = Identity::OTHER_NODE;
            verdict(&tables, own, node, port, TCP, Direction::Ingress)
        };
        let (web, ledger) = ("10.1.0.1", "10.2.0.1");
        // One that is public, one of the organization, and one that no gate leads to.
        [of(web, 8080), of(ledger, 8080), of(ledger, 7000)]
    };
    let nobody = [Action::Deny, Action::Deny, Action::Deny];
    assert_eq!(reached(OtherNodes::Programs), nobody);
    let gates = [Action::Pass, Action::Pass, Action::Deny];
    assert_eq!(reached(OtherNodes::Gateways), gates);
}

#[test]
fn who_calls_a_port_of_a_cell_of_labels_may_come_by_the_west_gate_too() {
    let gate = |borders| {
        let (mut snapshot, discovery) = world();
        // Of the calls only that to the TCP endpoint is left.
        let shop = snapshot
            .cells
            .get_mut(&cell_id("shop"))
            .expect("it is there");
        shop.east.retain(|east| east.to.endpoint.as_str() == "feed");
        let bank = snapshot
            .cells
            .get_mut(&cell_id("bank"))
            .expect("it is there");
        bank.borders = borders;
        let tables = compile(&snapshot, &discovery, 1);
        let west = Identity::WEST_GATE;
        verdict(&tables, "10.1.0.1", west, 443, TCP, Direction::Egress)
    };
    assert_eq!(gate(Borders::default()), Action::Deny);
    let open = Borders {
        ingress: Border::Open,
        egress: Border::Declared,
    };
    assert_eq!(gate(open), Action::Pass);
}
