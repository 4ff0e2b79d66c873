//! The layouts that the kernel side reads, and the names that people read.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_common::*;

fn bytes<T: Wire>(value: &T) -> Vec<u8> {
    let start = std::ptr::from_ref(value).cast::<u8>();
    // SAFETY: `Wire` types have no padding, so all their bytes are initialised.
    unsafe { std::slice::from_raw_parts(start, size_of::<T>()) }.to_vec()
}

#[test]
fn addresses_survive_the_way_there_and_back() {
    for text in [
        "10.1.0.5",
        "0.0.0.0",
        "255.255.255.255",
        "fd00::5",
        "::",
        "fe80::1",
    ] {
        let address: IpAddr = text.parse().expect("an address of the table");
        assert_eq!(address_ip(address_bytes(address)), address, "{text}");
        assert_eq!(is_v4(&address_bytes(address)), address.is_ipv4(), "{text}");
    }
    assert_eq!(
        address_bytes(IpAddr::V4(Ipv4Addr::new(10, 1, 0, 5))),
        Ipv4Addr::new(10, 1, 0, 5).to_ipv6_mapped().octets()
    );
    assert_eq!(address_bytes(IpAddr::V6(Ipv6Addr::LOCALHOST))[15], 1);
}

#[test]
fn keys_have_the_bytes_that_the_programs_compare() {
    let key = RuleKey::new(Identity::component(3), 8080, 6, Direction::Ingress);
    assert_eq!(bytes(&key), [3, 0, 0, 1, 0x1f, 0x90, 6, 1]);
    let range = RuleKey::range(Identity::component(3), 8085, 1, 6, Direction::Ingress);
    assert_eq!(bytes(&range), [3, 0, 0, 1, 0x1f, 0x90, 6, 3]);
    assert_eq!((range.port(), range.width()), (8080, 1));
    assert_eq!(range.direction(), Some(Direction::Ingress));
    let range = RuleKey::range(RuleKey::ANYBODY, 65535, 3, 17, Direction::Egress);
    assert_eq!(bytes(&range), [0, 0, 0, 0, 0xf0, 0, 17, 6]);
    let key = EndpointKey::new(7, 9);
    assert_eq!(bytes(&key), [7, 0, 0, 0, 9, 0, 0, 0]);
    let local = address_bytes(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    let remote = address_bytes(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)));
    let key = FlowKey::new(local, remote, [0x1f, 0x90], [0xc0, 0x00], 17);
    let mut expected = local.to_vec();
    expected.extend(remote);
    expected.extend([0x1f, 0x90, 0xc0, 0x00, 17, 0, 0, 0]);
    assert_eq!(bytes(&key), expected);
    assert_eq!((key.local_port(), key.remote_port()), (8080, 0xc000));
}

#[test]
fn an_event_is_read_back_from_its_bytes_and_from_no_others() {
    let event = Event {
        time: 1,
        source: [1; 16],
        destination: [2; 16],
        ifindex: 3,
        cell: 4,
        local: Identity::component(5).raw(),
        peer: Identity::WORLD.raw(),
        rule: 6,
        generation: 7,
        source_port: [0, 80],
        destination_port: [1, 0],
        protocol: 6,
        direction: Direction::Ingress as u8,
        verdict: Verdict::Drop as u8,
        reason: Reason::NotDeclared as u8,
        hook: Hook::CellIngress as u8,
        path: Path::West as u8,
        pad: [0; 2],
        suppressed: 8,
    };
    assert_eq!(Event::from_bytes(&bytes(&event)), Some(event));
    assert_eq!(Event::from_bytes(&bytes(&event)[1..]), None);
    assert_eq!(event.reason(), Some(Reason::NotDeclared));
}

#[test]
fn reasons_have_one_name_each_and_come_back_from_their_byte() {
    let mut names = BTreeSet::new();
    for reason in Reason::ALL {
        assert!(names.insert(reason.name()), "{} twice", reason.name());
        assert_eq!(Reason::from_raw(*reason as u8), Some(*reason));
    }
    assert!(
        Reason::ALL
            .iter()
            .filter(|reason| !reason.is_drop())
            .count()
            == 4
    );
    assert_eq!(Reason::from_raw(0), None);
}

#[test]
fn a_flow_ends_when_its_state_says_so() {
    let opening = FlowState::OPENING;
    let open = opening.with(FlowState::REPLIED);
    let half = open.with(FlowState::FIN_OPENER);
    let closed = half.with(FlowState::FIN_ANSWERER);
    let reset = open.with(FlowState::RESET);
    for (state, protocol, seconds) in [
        (opening, 6, 120),
        (open, 6, 7440),
        (half, 6, 7440),
        (closed, 6, 120),
        (reset, 6, 10),
        (opening, 17, 30),
        (open, 17, 180),
        (open, 1, 30),
        (open, 58, 30),
        (open, 132, 600),
    ] {
        assert_eq!(state.timeout(protocol), seconds, "{state:?} {protocol}");
        let flow = |seen| {
            let peer = Identity::WORLD;
            let (way, path) = (Direction::Egress, Path::South);
            FlowValue::new(1, way, Action::Pass, 0, peer, false, 0, path, state, seen)
        };
        let ticks = u64::from(seconds) * 250;
        assert!(flow(1000).alive(protocol, 1000 + ticks - 1, 250));
        assert!(!flow(1000).alive(protocol, 1000 + ticks, 250));
        assert!(flow(1000).alive(protocol, 999, 250), "another CPU's clock");
    }
    let mut flow = FlowValue::new(
        1,
        Direction::Egress,
        Action::Pass,
        0,
        Identity::WORLD,
        false,
        0,
        Path::South,
        half,
        10,
    );
    flow.touch(FlowState::FIN_ANSWERER, 20);
    assert_eq!((flow.seen(), flow.state().closed()), (20, true));
    flow.touch(FlowState::REPLIED, 30);
    assert_eq!(
        flow.seen(),
        20,
        "what comes after the end keeps nothing alive"
    );
}

fn a_flow() -> FlowValue {
    let (way, path) = (Direction::Egress, Path::East);
    let (peer, state) = (Identity::component(7), FlowState::OPENING);
    FlowValue::new(3, way, Action::Pass, 0, peer, false, 9, path, state, 1000)
}

#[test]
fn a_gate_that_agreed_is_not_asked_for_an_eighth_of_a_second() {
    const ABOUT: u64 = FlowValue::about(0x5000_9c40, 6, 9, 3);
    const NOW: u64 = (7 << 32) - 3;
    let (open, ended) = (FlowState::REPLIED, FlowState::FIN_OPENER);
    let mut flow = a_flow();
    assert_eq!(flow.agreed(ABOUT, FlowState::OPENING, 5, 250), Path::None);
    flow.agree(ABOUT, open, Path::West, NOW);
    for (about, adds, now, path) in [
        (ABOUT, FlowState::OPENING, NOW, Path::West),
        (ABOUT, open, NOW + 31, Path::West),
        (ABOUT, open, NOW + 32, Path::None),
        (ABOUT, ended, NOW, Path::None),
        (ABOUT, FlowState::RESET, NOW, Path::None),
        (
            FlowValue::about(0x5000_9c41, 6, 9, 3),
            open,
            NOW,
            Path::None,
        ),
        (
            FlowValue::about(0x5000_9c40, 17, 9, 3),
            open,
            NOW,
            Path::None,
        ),
        (
            FlowValue::about(0x5000_9c40, 6, 10, 3),
            open,
            NOW,
            Path::None,
        ),
        (
            FlowValue::about(0x5000_9c40, 6, 9, 4),
            open,
            NOW,
            Path::None,
        ),
        // Another CPU has asked meanwhile.
        (ABOUT, open, NOW - 1, Path::None),
    ] {
        assert_eq!(flow.agreed(about, adds, now, 250), path, "{adds:?} {now}");
    }
    flow.agree(ABOUT, open.with(ended), Path::West, NOW);
    assert_eq!(flow.agreed(ABOUT, ended, NOW, 250), Path::West);
}

#[test]
fn a_connection_is_over_with_the_acknowledgement_of_its_second_end() {
    // The second end knows of the first one.
    let mut flow = a_flow();
    flow.end(false, 500, 101);
    assert!(!flow.ends_with(101), "one half is open");
    flow.end(true, 101, 501);
    assert!(flow.ends_with(501));
    assert!(!flow.ends_with(500) && !flow.ends_with(101));
    flow.end(true, 501, 101);
    flow.end(true, 101, 501);
    assert!(flow.ends_with(501), "sent again");

    // Both ends at once.
    let mut flow = a_flow();
    flow.end(false, 500, 101);
    flow.end(true, 100, 501);
    assert!(!flow.ends_with(501) && !flow.ends_with(101));
}

#[test]
fn a_tally_is_of_the_first_key_that_it_counted() {
    let key =
        |cell, reason| CounterKey::new(cell, Direction::Ingress, Path::West, Verdict::Pass, reason);
    let (first, second) = (key(7, Reason::Policy), key(u32::MAX, Reason::Established));
    let mut tally = Tally::default();
    assert_eq!(tally.read(), None);
    assert!(tally.add(&first, 60));
    assert!(!tally.add(&second, 60), "the place is another's");
    assert!(tally.add(&first, 40));
    assert_eq!(tally.read(), Some((first, Counter::new(2, 100))));

    let mut places = BTreeSet::new();
    for cell in 0..64 {
        for reason in [Reason::Policy, Reason::Established] {
            let key = key(cell, reason);
            assert_eq!(CounterKey::unpacked(key.packed()), key);
            assert!(Tally::place(&key) < Tally::PLACES);
            places.insert(Tally::place(&key));
        }
    }
    assert!(
        places.len() > 112,
        "128 keys have only {} places",
        places.len()
    );
}

#[test]
fn a_cell_tells_so_many_events_in_a_second_and_how_many_it_did_not() {
    let mut limit = Limit::starting(1000);
    for _ in 1..Limit::PER_SECOND {
        assert_eq!(limit.admit(1100, 250), Some(0));
    }
    assert_eq!(limit.admit(1200, 250), None);
    assert_eq!(limit.admit(1249, 250), None);
    assert_eq!(limit.admit(1250, 250), Some(2));
    assert_eq!(limit.admit(1250, 250), Some(0));
}

#[test]
fn the_border_of_a_connection_follows_from_who_opened_it_and_who_is_there() {
    let component = Identity::component(5);
    let (out, back) = (Direction::Egress, Direction::Ingress);
    for (opener, peer, same, path) in [
        (back, Identity::NORTH_GATE, false, Path::North),
        (back, Identity::WEST_GATE, false, Path::West),
        (out, Identity::WEST_GATE, false, Path::East),
        (out, component, true, Path::Intra),
        (back, component, true, Path::Intra),
        (out, component, false, Path::East),
        (back, component, false, Path::West),
        (out, Identity::WORLD, false, Path::South),
        (back, Identity::WORLD, false, Path::North),
        (out, Identity::external(1), false, Path::South),
        (out, Identity::METADATA, false, Path::South),
        (out, Identity::DNS, false, Path::Platform),
        (back, Identity::platform(1), false, Path::Platform),
        (back, Identity::NODE, false, Path::Platform),
    ] {
        assert_eq!(peer.path(opener, same), path, "{opener} {peer}");
    }
}

#[test]
fn marks_leave_the_low_half_to_others() {
    for mark in [Mark::Steer, Mark::NorthGate, Mark::WestGate, Mark::Upstream] {
        assert_eq!(Mark::from_raw(mark.raw() | 0x1234), Some(mark));
        assert_eq!(mark.raw() & 0xfff0_0000, 0xca50_0000);
    }
    assert_eq!(Mark::from_raw(0), None);
    assert_eq!(Mark::from_raw(0xca5f_0000), None);
}

#[test]
fn identities_of_two_kinds_never_meet() {
    let all = [
        Identity::WORLD,
        Identity::METADATA,
        Identity::component(1),
        Identity::external(1),
        Identity::platform(1),
        Identity::component(Identity::MAX_NUMBER),
    ];
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    assert_eq!(Identity::component(7).to_string(), "component:7");
    assert_eq!(Identity::WEST_GATE.to_string(), "west-gate");
}

#[test]
fn a_versioned_entry_says_to_each_generation_what_was_said_to_it() {
    let entry = Versioned::new(5, Some(11u32), None);
    assert_eq!(
        (entry.at(4), entry.at(5), entry.at(9)),
        (None, Some(&11), Some(&11))
    );
    assert_eq!(
        bytes(&entry),
        [5, 0, 0, 0, 1, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0]
    );
    let changed = entry.then(5, 6, Some(22));
    assert_eq!((changed.at(5), changed.at(6)), (Some(&11), Some(&22)));
    assert_eq!(
        bytes(&changed),
        [6, 0, 0, 0, 3, 0, 0, 0, 22, 0, 0, 0, 11, 0, 0, 0]
    );
    // What `previous` says is of no generation that lives when the entry changes again.
    let removed = changed.then(6, 8, None);
    assert_eq!(
        (removed.at(6), removed.at(7), removed.at(8)),
        (Some(&22), Some(&22), None)
    );
    assert_eq!(bytes(&Versioned::new(1, Some(1u64), Some(2))).len(), 24);
}

#[test]
fn a_random_number_falls_on_one_choice_and_one_of_its_two_backends() {
    let service = Service::new(100, 3, 0);
    assert_eq!(service.pick(0), (100, 0));
    assert_eq!(service.pick(u32::MAX), (102, u32::MAX - 2));
    let (column, _) = service.pick(1 << 31);
    assert_eq!(column, 101);
    let choice = Choice::new(7, 9, 1 << 30);
    assert_eq!(
        (choice.backend((1 << 30) - 1), choice.backend(1 << 30)),
        (7, 9)
    );
}

#[test]
fn what_is_remembered_holds_for_a_time_and_for_generations_that_have_the_backend() {
    let service = Service::new(0, 1, 10);
    let second = 1_000_000_000;
    let known = Affinity::new(2, 3, 5 * second);
    assert!(known.holds(&service, 14 * second) && !known.holds(&service, 15 * second));
    assert!(
        known.holds(&service, 4 * second),
        "seen by another CPU a moment ago"
    );
    assert!(!known.holds(&Service::new(0, 1, 0), 5 * second));
    let backend = Backend::new([1; 16], [0, 80], 3);
    assert!(backend.serves(3, 3) && !backend.serves(3, 2) && !backend.serves(2, 3));
    let ending = backend.until(6);
    assert!(ending.ends() && ending.serves(3, 5) && !ending.serves(3, 6));
    assert_eq!(ending.until(u32::MAX), backend);
}

#[test]
fn every_port_has_a_bit_of_its_own() {
    let places: BTreeSet<_> = (0..=u16::MAX)
        .map(|port| Ports::place(port.to_be_bytes()))
        .collect();
    assert_eq!(places.len(), 1 << 16);
    assert!(
        places
            .iter()
            .all(|(index, bit)| *index < Ports::COUNT && bit.count_ones() == 1)
    );
    let (_, bit) = Ports::place(80u16.to_be_bytes());
    let (mut service, mut backend) = (Ports::default(), Ports::default());
    service.add_service(bit);
    backend.add_backend(bit);
    assert!(service.has_service(bit) && !service.has_backend(bit));
    assert!(backend.has_backend(bit) && !backend.has_service(bit));
    let both = service.with(backend);
    assert!(both.has_service(bit) && both.has_backend(bit) && !both.has_service(bit << 1));
}
