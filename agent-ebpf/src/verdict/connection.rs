//! Connections, and the errors that are about one: the flow that a packet belongs to, judged where this generation has not
//! judged it yet.

use core::hint::cold_path;

use agent_common::{Action, Direction, FlowState, FlowValue, Identity, Path, Reason};
use aya_ebpf::programs::TcContext;

use super::{
    case::{Case, DRY, Dry, WET, flow_key},
    foreign,
    rules::{Asked, declared, kept, meet},
};
use crate::{
    flow,
    maps::{self, FLOWS},
    packet::{self, Icmp, protocol},
    record,
};

/// Known flow, stale flow, or new one. `SECOND` tells that the sender's gate was judged before, in the same run.
#[inline(always)]
pub(super) fn connection<const MODE: Dry, const SECOND: bool>(
    ctx: &TcContext,
    case: &mut Case,
    way: Direction,
    gate: Option<Identity>,
    current: &mut Option<&'static mut FlowValue>,
) -> Result<(Action, Reason), Reason> {
    case.key = flow_key(&case.packet, way);
    let tcp = case.packet.protocol == protocol::TCP;
    let opens = case.packet.opens_tcp();
    let (slot, assured) = flow::find(case.flows, &case.key, tcp, opens);
    let mut known = false;
    // A new TCP connection is judged for itself: the entry may be an older connection's, or of the other direction.
    if let Some(slot) = slot
        && !opens
    {
        // SAFETY: the slot is memory of the map. A slot that another CPU reuses meanwhile (an LRU map reuses at once) mixes two
        // values of the same layout and pod, each of which allowed its flow.
        let flow = unsafe { &mut *slot };
        let from_opener = flow.direction() == way;
        let before = flow.state();
        if flow.alive(case.packet.protocol, case.now, case.ticks_per_second)
            && !(from_opener && before.has(FlowState::RESET))
        {
            if flow.generation() == case.generation {
                case.direction = flow.direction();
                case.peer = flow.peer();
                case.rule = flow.rule();
                case.path = flow.path();
                case.receiver = flow.receiver();
                let action = flow.action();
                if MODE == WET {
                    let adds = case.packet.state(from_opener);
                    if way == Direction::Egress {
                        let about = case.about(case.receiver);
                        case.agreed = flow.agreed(about, adds, case.now, case.ticks_per_second);
                    }
                    // A flow that took the slot meanwhile is then a little younger, and its verdict stays its own.
                    flow.touch(adds, case.now);
                    if tcp && flow::moves(ctx, case, way, flow, assured, from_opener, before) {
                        case.agreed = Path::None;
                    } else {
                        *current = Some(flow);
                    }
                }
                return Ok((action, Reason::Established));
            }
            cold_path();
            case.stale = *flow;
            known = true;
        }
    }
    // What the sender's gate has just looked up need not be looked up again. It has not where it knew the flow.
    let met = SECOND && case.looked;
    if !met {
        let own = match way {
            Direction::Egress => case.packet.source,
            Direction::Ingress => case.packet.destination,
        };
        match maps::identity(case.generation, own) {
            Some(owner) if owner.ifindex() == case.ifindex => case.owner = owner,
            _ => return Err(foreign(way)),
        }
        case.looked = true;
    }
    let judged = decide::<MODE>(case, way, gate, known, met);
    let (action, flow) = match judged {
        Ok(decided) => decided,
        Err(reason) => {
            // While connections are picked up in their middle, the side that called must not be forgotten: the other one may be free
            // to call, and the next packet would pass for its answer.
            if MODE == WET && known && case.now >= case.pick_up_until {
                // It frees a place. Should it stay, it is of an earlier generation, and whatever finds it is judged again.
                flow::forget(case.flows, &case.key, assured);
            }
            return Err(reason);
        }
    };
    // What follows an abort belongs to no connection any more.
    if known || !case.packet.resets_tcp() {
        let stale = &case.stale;
        let assures = tcp
            && match known {
                true => flow::is_assured(
                    assured,
                    stale.direction() == way,
                    stale.state(),
                    flow.state(),
                ),
                false => flow.direction() == Direction::Egress,
            };
        if MODE == DRY {
            // As far as can be told without writing.
            FLOWS.get(case.flows).ok_or(Reason::FlowTable)?;
        } else if !flow::insert(case.flows, &case.key, assures, &flow) {
            return Err(Reason::FlowTable);
        } else if assures != assured && slot.is_some() {
            // What the other table has of an older connection must not be taken for this one.
            flow::forget(case.flows, &case.key, assured);
        }
    }
    Ok((
        action,
        if known {
            Reason::Established
        } else {
            Reason::Policy
        },
    ))
}

/// What this generation says of a flow that it has not judged yet.
#[inline(always)]
fn decide<const MODE: Dry>(
    case: &mut Case,
    way: Direction,
    gate: Option<Identity>,
    known: bool,
    met: bool,
) -> Result<(Action, FlowValue), Reason> {
    let mut direction = way;
    let mut mark = gate;
    let mut picks_up = false;
    match known {
        true => {
            direction = case.stale.direction();
            mark = kept(&case.stale);
        }
        false if case.packet.icmp == Icmp::Reply => return Err(Reason::IcmpUntracked),
        false if case.packet.accepts_tcp() => return Err(Reason::TcpState),
        false => {
            case.fresh = true;
            picks_up = case.packet.protocol == protocol::TCP
                && !case.packet.opens_tcp()
                && case.now < case.pick_up_until;
        }
    }
    let remote = match way {
        Direction::Egress => case.packet.destination,
        Direction::Ingress => case.packet.source,
    };
    meet(case, remote, direction, mark, met)?;
    let mut found = declared(case, &Asked::by(&case.packet, direction == way, direction));
    if picks_up && found.is_err() && mark.is_none() {
        // The gates may be younger than the connection, and this packet of the side that was called.
        direction = match way {
            Direction::Egress => Direction::Ingress,
            Direction::Ingress => Direction::Egress,
        };
        meet(case, remote, direction, None, met)?;
        found = declared(case, &Asked::by(&case.packet, false, direction));
    }
    found?;
    if MODE == WET {
        record::hit(case.rule);
    }
    match case.action {
        Action::Deny => return Err(Reason::Denied),
        // Before it is remembered: the other side's packets would find the flow and pass.
        Action::Steer if way == Direction::Egress && case.packet.protocol != protocol::TCP => {
            return Err(Reason::SteerProtocol);
        }
        _ => {}
    }
    let state = case.packet.state(direction == way);
    let flow = FlowValue::new(
        case.generation,
        direction,
        case.action,
        case.rule,
        case.peer,
        mark.is_some(),
        case.receiver,
        case.path,
        match known {
            true => case.stale.state().with(state),
            false => state,
        },
        // A flow that has ended is not kept alive by judging it again.
        match known {
            true if case.stale.state().closed() => case.stale.seen(),
            _ => case.now,
        },
    );
    Ok((case.action, flow))
}

/// An ICMP error passes if the packet that it quotes belongs to a flow that this generation allows.
#[inline(always)]
pub(super) fn icmp_error(ctx: &TcContext, case: &mut Case, way: Direction) -> Result<(), Reason> {
    packet::quoted(ctx, &case.packet, &mut case.quoted)?;
    let inner = &case.quoted;
    // The quoted packet went the other way.
    let (own, back, claimed) = match way {
        Direction::Egress => (case.packet.source, Direction::Ingress, inner.destination),
        Direction::Ingress => (case.packet.destination, Direction::Egress, inner.source),
    };
    if !own.is(claimed) {
        return Err(Reason::IcmpUntracked);
    }
    // What the pod sends must go to whom it is about; what it receives may come from any router on the way.
    if way == Direction::Egress && !case.packet.destination.is(inner.source) {
        return Err(Reason::IcmpUntracked);
    }
    let key = flow_key(inner, back);
    let (slot, _) = flow::find(case.flows, &key, inner.protocol == protocol::TCP, false);
    let flow = slot
        // SAFETY: the slot is memory of the map, copied at once; a reused one belongs to a flow that was judged too.
        .map(|slot| unsafe { *slot })
        .filter(|flow| flow.alive(inner.protocol, case.now, case.ticks_per_second))
        .ok_or(Reason::IcmpUntracked)?;
    if flow.generation() == case.generation {
        return Ok(());
    }
    // The error came between a flip and the connection's next packet: what that packet would be told holds here too.
    let remote = match back {
        Direction::Egress => inner.destination,
        Direction::Ingress => inner.source,
    };
    let opener = flow.direction();
    let asked = Asked::by(inner, opener == back, opener);
    meet(case, remote, opener, kept(&flow), false).map_err(|_| Reason::IcmpUntracked)?;
    match declared(case, &asked) {
        Ok(()) if case.action != Action::Deny => Ok(()),
        _ => Err(Reason::IcmpUntracked),
    }
}
