//! The verdict on one packet at one pod's gate.
//!
//! Every way to end is a [`Reason`], and every `Err` below is a drop:
//!
//! | step | drops with |
//! | --- | --- |
//! | which generation, whose interface | `no_generation`, `no_endpoint` |
//! | parse | `truncated`, `malformed`, `ethertype`, `vlan`, `extension_header`, `protocol`, `source_route`, `tcp_flags` |
//! | the pod's own hardware address | `mac_spoofed` |
//! | ARP, neighbour discovery | `arp_spoofed`, `neighbour_spoofed`, `router_claim` |
//! | group addresses | `multicast` |
//! | fragments | `fragment`, `fragment_table` |
//! | the pod's own address | `source_spoofed`, `wrong_destination` |
//! | ICMP | `icmp_untracked`, `icmp_type` |
//! | a connection that nobody opened | `tcp_state` |
//! | who is the peer, what is declared | `unknown_peer`, `no_policy`, `not_declared`, `protocol`, `tunnel`, `denied` |
//! | remember | `flow_table` |
//! | steer | `steer_protocol`, `listener_missing`, `steer_failed` |
//!
//! A packet of a flow that this generation has judged already skips everything between the fragments and the steering:
//! the flow's making went through it.

use core::hint::cold_path;

use agent_common::{
    Action, Direction, EndpointKey, FlowKey, FlowState, FlowValue, Identity, IdentityValue, Mark,
    Path, Reason, RuleKey, Verdict,
};
use aya_ebpf::{
    btf_maps::PerCpuArray, helpers::bpf_jiffies64, macros::btf_map, programs::TcContext,
};

use crate::{
    address::Address,
    flow, fragment,
    frame::Frame,
    maps::{self, CONTROL, ENDPOINTS, FLOWS, POLICIES, Rules},
    neighbour,
    packet::{self, Fragmented, Icmp, Layer, Packet, protocol},
    record, steer,
};

/// What became known about a packet while it was judged; events show it.
///
/// It lives in a map of one element per CPU, not on the stack: there is room, and the verifier does not follow every value
/// through it, which would multiply the paths that it walks. Programs of tc run with soft interrupts off, so that none finds
/// another's case half-way.
#[repr(C)]
pub struct Case {
    /// Its headers.
    pub packet: Packet,
    /// The first bytes of the frame, as far as they were read.
    pub frame: Frame,
    /// The headers that an ICMP error quotes.
    quoted: Packet,
    /// The flow that it belongs to.
    pub key: Key,
    /// What is remembered of it from an earlier generation.
    stale: FlowValue,
    /// Now, in jiffies.
    pub now: u64,
    /// Until which jiffy connections may be picked up in their middle.
    pick_up_until: u64,
    /// The pod's hardware address, as it lies in memory.
    pub hardware: u64,
    /// The generation that judges.
    pub generation: u32,
    /// How many jiffies a second has.
    pub ticks_per_second: u32,
    /// The number of the pod's cell.
    pub cell: u32,
    /// The pod's component.
    pub local: Identity,
    /// Where the component's rules are.
    policy: u32,
    /// Where the pod's flows are, and its notes of fragments.
    pub flows: u32,
    /// The pod's host-side interface.
    pub ifindex: u32,
    /// The rule that decided.
    pub rule: u32,
    /// Who opened the flow, or which way the packet goes while that is not known.
    pub direction: Direction,
    /// What the rule says.
    action: Action,
    /// Whether `Frame::glance` has read the packet.
    pub ordinary: bool,
    /// The border that the connection crosses.
    pub path: Path,
    /// The other side's identity.
    pub peer: Identity,
    /// Whether the flow was not known before.
    pub fresh: bool,
    /// The host-side interface of the local pod that has the other side's address; 0 if none has.
    pub receiver: u32,
    /// The border that the flow crosses for the receiver, if its gate need not be asked about this packet.
    pub agreed: Path,
    /// Whether the gate has judged a connection that this generation did not know. If so, `owner` is who has the pod's own address.
    looked: bool,
    owner: IdentityValue,
}

/// A [`FlowKey`] in words, which are copied at once.
#[repr(C)]
pub struct Key {
    local: Address,
    remote: Address,
    local_port: u16,
    remote_port: u16,
    /// The protocol, and three bytes of zero.
    protocol: u32,
}
const _: () = assert!(size_of::<Key>() == size_of::<FlowKey>());

impl Key {
    /// As the map has it.
    #[inline(always)]
    pub const fn wire(&self) -> &FlowKey {
        // SAFETY: the same bytes at the same places, and `FlowKey` takes any.
        unsafe { &*core::ptr::from_ref(self).cast::<FlowKey>() }
    }
}

/// How a program runs: the attached ones leave traces (flows, counters, events), those that only explain leave none.
pub type Dry = bool;
/// An attached program's way.
pub const WET: Dry = false;
/// An explaining program's way.
pub const DRY: Dry = true;

/// This CPU's cases: one for packets, one for explanations, which a packet may interrupt.
#[btf_map(name = "cases")]
static CASES: PerCpuArray<Case, 2> = PerCpuArray::new();

impl Case {
    /// Nothing but where the packet is seen.
    #[inline(always)]
    pub fn at<const MODE: Dry>(ctx: &TcContext, way: Direction) -> Option<&'static mut Self> {
        let control = CONTROL.get(0)?;
        let case = CASES.get_ptr_mut(MODE as u32)?;
        // SAFETY: the pointer is this CPU's element, which nobody else uses while the program runs (see above). Zero is a value
        // of every field, and so is everything that a program leaves there.
        let case = unsafe { &mut *case };
        case.generation = control.generation();
        case.ticks_per_second = control.ticks_per_second();
        case.pick_up_until = control.pick_up_until();
        // SAFETY: the helper takes no argument and cannot fail.
        case.now = unsafe { bpf_jiffies64() };
        // SAFETY: the context's `skb` pointer is the program's argument; the field is readable by every tc program.
        case.ifindex = unsafe { (*ctx.skb.skb).ifindex };
        case.forget(way);
        case.agreed = Path::None;
        case.looked = false;
        Some(case)
    }

    /// A packet that ends before anything is known of it.
    #[inline(always)]
    fn unknown(&mut self) {
        self.cell = 0;
        self.local = Identity::NONE;
        self.packet.clear();
    }

    /// Forgets what another gate said. The fields do not lie side by side: the compiler would call a function that clears them
    /// byte by byte.
    #[inline(always)]
    fn forget(&mut self, way: Direction) {
        self.rule = 0;
        self.peer = Identity::NONE;
        self.receiver = 0;
        self.action = Action::Deny;
        self.direction = way;
        self.path = Path::None;
        self.fresh = false;
    }

    /// Notes whose interface it is; `false` if nobody's in this generation.
    #[inline(always)]
    fn settle(&mut self, ifindex: u32) -> bool {
        // SAFETY: entries of an active generation are not changed by the agent. One that it removes because its pod has ended
        // may be reused meanwhile, for another pod of a generation to come: nothing that is looked up with the mixture belongs
        // to this packet's addresses.
        let endpoint = unsafe { ENDPOINTS.get(EndpointKey::new(self.generation, ifindex)) };
        let Some(endpoint) = endpoint else {
            return false;
        };
        self.ifindex = ifindex;
        self.cell = endpoint.cell();
        self.local = endpoint.identity();
        self.policy = endpoint.policy();
        self.flows = endpoint.flows();
        // SAFETY: an endpoint is six words; the hardware address, and two bytes of zero, are the last two of them.
        let words = unsafe { &*core::ptr::from_ref(endpoint).cast::<[u32; 6]>() };
        self.hardware = u64::from(words[4]) | u64::from(words[5]) << 32;
        true
    }

    /// What a receiver's gate is asked about this packet.
    #[inline(always)]
    fn about(&self, receiver: u32) -> u64 {
        let packet = &self.packet;
        FlowValue::about(packet.ports(), packet.protocol, receiver, self.generation)
    }

    /// The same packet at the gate of the local pod that it goes to; `false` if no cell's pod is there.
    #[inline(always)]
    pub fn at_receiver(&mut self) -> bool {
        let receiver = self.receiver;
        if !self.settle(receiver) {
            return false;
        }
        self.forget(Direction::Ingress);
        true
    }
}

/// Judges a packet that comes in at this program's interface. `Err` is a drop. `flow` becomes the packet's, if this generation
/// knew it.
#[inline(always)]
pub fn judge<const MODE: Dry>(
    ctx: &TcContext,
    case: &mut Case,
    way: Direction,
    flow: &mut Option<&'static mut FlowValue>,
) -> Result<(Action, Reason), Reason> {
    if case.generation == 0 {
        cold_path();
        case.unknown();
        return Err(Reason::NoGeneration);
    }
    if !case.settle(case.ifindex) {
        cold_path();
        case.unknown();
        return Err(Reason::NoEndpoint);
    }
    case.ordinary = case.frame.glance(ctx, &mut case.packet);
    if !case.ordinary {
        cold_path();
        case.packet.clear();
        case.frame.ethernet(ctx)?;
    }
    // A pod sends from its own interface only: another source address on the wire is somebody else's.
    if way == Direction::Egress && case.frame.from() != case.hardware {
        return Err(Reason::MacSpoofed);
    }
    if !case.ordinary {
        cold_path();
        if packet::parse(ctx, &mut case.packet)? == Layer::Arp {
            return neighbour::arp(ctx, case, way).map(|reason| (Action::Pass, reason));
        }
        match case.packet.icmp {
            Icmp::Neighbour => {
                return neighbour::discovery(ctx, case, way).map(|reason| (Action::Pass, reason));
            }
            Icmp::RouterClaim => return Err(Reason::RouterClaim),
            _ => {}
        }
    }
    if case.packet.destination.is_group(case.packet.v4) {
        return Err(Reason::Multicast);
    }
    fragment::follow(case, way)?;
    let gate = gate_mark(ctx, way);
    let judged = match case.packet.icmp {
        Icmp::Error => {
            cold_path();
            owns(case, way)?;
            let judged = icmp_error(ctx, case, way);
            // The connection that it is about is not its own: whether that had to be judged again is not to be seen.
            case.forget(way);
            judged.map(|()| (Action::Pass, Reason::IcmpError))
        }
        Icmp::Other => owns(case, way).and(Err(Reason::IcmpType)),
        _ => connection::<MODE, false>(ctx, case, way, gate, flow),
    };
    if MODE == WET && case.packet.fragmented == Fragmented::First && judged.is_ok() {
        cold_path();
        fragment::note(case, way)?;
    }
    judged
}

/// What an action means to a packet that goes `way`.
#[inline(always)]
pub fn enact<const MODE: Dry>(
    ctx: &TcContext,
    case: &Case,
    way: Direction,
    judged: Result<(Action, Reason), Reason>,
) -> (Verdict, Reason) {
    // No closure: the compiler would make it a function, and each return from one costs as much as a lookup.
    let (action, reason) = match judged {
        Ok(judged) => judged,
        Err(reason) => {
            cold_path();
            return (Verdict::Drop, reason);
        }
    };
    match (action, way) {
        (Action::Deny, _) => (Verdict::Drop, Reason::Denied),
        (Action::Pass, _) | (Action::Steer, Direction::Ingress) => (Verdict::Pass, reason),
        (Action::Steer, Direction::Egress) => match steer::assign::<MODE>(ctx, &case.packet) {
            Ok(()) => (Verdict::Steer, reason),
            Err(refused) => (Verdict::Drop, refused),
        },
    }
}

/// The pod's own address must be the pod's.
#[inline(always)]
fn owns(case: &Case, way: Direction) -> Result<(), Reason> {
    let own = match way {
        Direction::Egress => case.packet.source,
        Direction::Ingress => case.packet.destination,
    };
    if neighbour::owns(case, own) {
        return Ok(());
    }
    Err(foreign(way))
}

/// Why a packet drops whose end at the pod is not the pod's.
#[inline(always)]
const fn foreign(way: Direction) -> Reason {
    match way {
        Direction::Egress => Reason::Spoofed,
        Direction::Ingress => Reason::WrongDestination,
    }
}

/// The flow that a packet going `way` belongs to.
#[inline(always)]
fn flow_key(packet: &Packet, way: Direction) -> Key {
    let (local, remote, local_port, remote_port) = match way {
        Direction::Egress => (
            packet.source,
            packet.destination,
            packet.source_port,
            packet.destination_port,
        ),
        Direction::Ingress => (
            packet.destination,
            packet.source,
            packet.destination_port,
            packet.source_port,
        ),
    };
    let protocol = u32::from_ne_bytes([packet.protocol, 0, 0, 0]);
    if packet.icmp == Icmp::None {
        return Key {
            local,
            remote,
            local_port,
            remote_port,
            protocol,
        };
    }
    let opener = match (packet.icmp, way) {
        (Icmp::Request, way) => way as u8,
        (_, Direction::Egress) => Direction::Ingress as u8,
        (_, Direction::Ingress) => Direction::Egress as u8,
    };
    Key {
        local,
        remote,
        local_port: packet.source_port,
        remote_port: u16::from_ne_bytes([0, 1 + opener]),
        protocol,
    }
}

/// An ICMP error passes if the packet that it quotes belongs to a flow that this generation allows.
#[inline(always)]
fn icmp_error(ctx: &TcContext, case: &mut Case, way: Direction) -> Result<(), Reason> {
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

/// The identity of a flow's peer that came from the router's mark.
#[inline(always)]
fn kept(flow: &FlowValue) -> Option<Identity> {
    if flow.marked() {
        Some(flow.peer())
    } else {
        None
    }
}

/// The port that a connection was opened to: what its opener sends goes there, what it gets comes from there.
#[inline(always)]
fn opened_port(packet: &Packet, from_opener: bool) -> u16 {
    u16::from_be(match (from_opener, packet.icmp) {
        (_, Icmp::Request | Icmp::Reply) => 0,
        (true, _) => packet.destination_port,
        (false, _) => packet.source_port,
    })
}

/// Known flow, stale flow, or new one. `SECOND` tells that the sender's gate was judged before, in the same run.
#[inline(always)]
fn connection<const MODE: Dry, const SECOND: bool>(
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
            if MODE == WET && known {
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

/// Bytes that the router sends to a pod carry the gate that it is in the mark; a pod cannot set one, because a mark
/// does not survive the way out of a network namespace (`skb_scrub_packet`).
#[inline(always)]
fn gate_mark(ctx: &TcContext, way: Direction) -> Option<Identity> {
    if way == Direction::Egress {
        return None;
    }
    // SAFETY: the context's `skb` pointer is the program's argument; the field is readable by every tc program.
    match Mark::from_raw(unsafe { (*ctx.skb.skb).mark }) {
        Some(Mark::NorthGate) => Some(Identity::NORTH_GATE),
        Some(Mark::WestGate) => Some(Identity::WEST_GATE),
        _ => None,
    }
}

/// Judges at the gate of the local pod that a packet goes to, in the program of the pod that sends it.
#[inline(always)]
pub fn judge_receiver(
    ctx: &TcContext,
    case: &mut Case,
    flow: &mut Option<&'static mut FlowValue>,
) -> Result<(Action, Reason), Reason> {
    connection::<WET, true>(ctx, case, Direction::Ingress, None, flow)
}

/// Notes in the sender's flow that the receiver's gate, which has just been asked, passes it as a flow of its own.
#[inline(always)]
pub fn agree(case: &Case, senders: &mut FlowValue, receivers: &FlowValue) {
    let about = case.about(case.ifindex);
    senders.agree(about, receivers.state(), case.path, case.now);
}

/// Notes who is at the other side: `met` tells that it is the one whom the gate before this one has noted as the owner.
#[inline(always)]
fn meet(
    case: &mut Case,
    address: Address,
    opener: Direction,
    mark: Option<Identity>,
    met: bool,
) -> Result<(), Reason> {
    case.direction = opener;
    case.receiver = 0;
    let mut cell = 0;
    if let Some(gate) = mark {
        // The router answers for the address, whosever it is.
        case.peer = gate;
    } else {
        let owner = if met {
            case.owner
        } else {
            maps::identity(case.generation, address).ok_or(Reason::UnknownPeer)?
        };
        if opener == Direction::Ingress && owner.ifindex() == IdentityValue::THIS_NODE {
            // A gate's address is the gate to whoever calls it. Who calls from it without the router's mark is the node.
            case.peer = Identity::NODE;
        } else {
            if owner.identity() == Identity::NONE {
                return Err(Reason::UnknownPeer);
            }
            case.peer = owner.identity();
            case.receiver = owner.local_pod().unwrap_or(0);
            cell = owner.cell();
        }
    }
    case.path = case.peer.path(opener, cell == case.cell);
    Ok(())
}

/// What a rule is looked up by, besides the peer.
struct Asked {
    protocol: u8,
    port: u16,
    opener: Direction,
}

impl Asked {
    #[inline(always)]
    fn by(packet: &Packet, from_opener: bool, opener: Direction) -> Self {
        Self {
            protocol: packet.protocol,
            port: opened_port(packet, from_opener),
            opener,
        }
    }
}

/// Notes the rule for a connection: the exact port, else any port of the protocol, else anything.
#[inline(always)]
fn declared(case: &mut Case, asked: &Asked) -> Result<(), Reason> {
    let Some(rules) = POLICIES.get(case.policy) else {
        return Err(Reason::NoPolicy);
    };
    let (peer, opener, protocol) = (case.peer, asked.opener, asked.protocol);
    if !packet::has_ports(protocol) {
        // 0 is a protocol of IPv4's too, but in a rule it means any.
        return match protocol != 0 && rule(case, rules, RuleKey::new(peer, 0, protocol, opener)) {
            true => Ok(()),
            false => Err(Reason::Protocol),
        };
    }
    if rule(
        case,
        rules,
        RuleKey::new(peer, asked.port, protocol, opener),
    ) {
        return Ok(());
    }
    if packet::is_tunnel(protocol, asked.port) {
        return Err(Reason::Tunnel);
    }
    if rule(case, rules, RuleKey::new(peer, 0, protocol, opener))
        || rule(case, rules, RuleKey::new(peer, 0, 0, opener))
    {
        return Ok(());
    }
    Err(Reason::NotDeclared)
}

#[inline(always)]
fn rule(case: &mut Case, rules: &Rules, key: RuleKey) -> bool {
    // SAFETY: a table of rules is not written any more once a generation names it, and lives at least as long as the
    // program runs (RCU).
    match unsafe { rules.get(&key) } {
        Some(rule) => {
            case.rule = rule.id();
            case.action = rule.action();
            true
        }
        None => false,
    }
}
