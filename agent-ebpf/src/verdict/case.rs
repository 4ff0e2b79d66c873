//! What is known of a packet while it is judged, and at whose gate.

use agent_common::{
    Action, Direction, EndpointKey, FlowKey, FlowValue, Identity, IdentityValue, Lookups, Path,
};
use aya_ebpf::{
    btf_maps::PerCpuArray, helpers::bpf_jiffies64, macros::btf_map, programs::TcContext,
};

use crate::{
    address::Address,
    frame::Frame,
    maps::{CONTROL, ENDPOINTS},
    packet::{Icmp, Packet},
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
    pub(super) quoted: Packet,
    /// The flow that it belongs to.
    pub key: Key,
    /// What is remembered of it from an earlier generation.
    pub(super) stale: FlowValue,
    /// Now, in jiffies.
    pub now: u64,
    /// Until which jiffy connections may be picked up in their middle.
    pub(super) pick_up_until: u64,
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
    pub(super) policy: u32,
    /// What these rules need to be found.
    pub(super) lookups: Lookups,
    /// Where the pod's flows are, and its notes of fragments.
    pub flows: u32,
    /// The pod's host-side interface.
    pub ifindex: u32,
    /// The rule that decided.
    pub rule: u32,
    /// Who opened the flow, or which way the packet goes while that is not known.
    pub direction: Direction,
    /// What the rule says.
    pub(super) action: Action,
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
    pub(super) looked: bool,
    pub(super) owner: IdentityValue,
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
    pub(super) fn unknown(&mut self) {
        self.cell = 0;
        self.local = Identity::NONE;
        self.packet.clear();
    }

    /// Forgets what another gate said. The fields do not lie side by side: the compiler would call a function that clears them
    /// byte by byte.
    #[inline(always)]
    pub(super) fn forget(&mut self, way: Direction) {
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
    pub(super) fn settle(&mut self, ifindex: u32) -> bool {
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
        self.lookups = endpoint.lookups();
        // SAFETY: an endpoint is seven words; the hardware address, and two bytes of zero, are the last two of them.
        let words = unsafe { &*core::ptr::from_ref(endpoint).cast::<[u32; 7]>() };
        self.hardware = u64::from(words[5]) | u64::from(words[6]) << 32;
        true
    }

    /// What a receiver's gate is asked about this packet.
    #[inline(always)]
    pub(super) fn about(&self, receiver: u32) -> u64 {
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

/// The flow that a packet going `way` belongs to.
#[inline(always)]
pub(super) fn flow_key(packet: &Packet, way: Direction) -> Key {
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
