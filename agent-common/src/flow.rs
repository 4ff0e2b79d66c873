//! Connections that were judged, and the ports of fragmented packets.

use crate::{Action, Direction, Identity, Path};

/// One connection as one pod's gate sees it: the key of the pod's own table of flows.
///
/// Oriented by the pod, not by the packet, so that both directions find the same entry. Aligned, so that addresses are copied
/// by words.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    local: [u8; 16],
    remote: [u8; 16],
    local_port: [u8; 2],
    remote_port: [u8; 2],
    protocol: u8,
    pad: [u8; 3],
}
crate::wire!(FlowKey = 40);

impl FlowKey {
    /// Ports are bytes in network order, zero for protocols without. For an ICMP echo, `local_port` is the echo's
    /// identifier and `remote_port` one plus the [`Direction`] of the request: two pods that ping each other with the same
    /// identifier are two flows.
    #[must_use]
    #[inline(always)]
    pub const fn new(
        local: [u8; 16],
        remote: [u8; 16],
        local_port: [u8; 2],
        remote_port: [u8; 2],
        protocol: u8,
    ) -> Self {
        Self {
            local,
            remote,
            local_port,
            remote_port,
            protocol,
            pad: [0; 3],
        }
    }

    /// The pod's address.
    #[must_use]
    pub const fn local(&self) -> [u8; 16] {
        self.local
    }
    /// The peer's address.
    #[must_use]
    pub const fn remote(&self) -> [u8; 16] {
        self.remote
    }
    /// The pod's port, host order.
    #[must_use]
    pub const fn local_port(&self) -> u16 {
        u16::from_be_bytes(self.local_port)
    }
    /// The peer's port, host order.
    #[must_use]
    pub const fn remote_port(&self) -> u16 {
        u16::from_be_bytes(self.remote_port)
    }
    /// The IP protocol number.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }
}

/// What was seen of a connection, as bits.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowState(u8);

impl FlowState {
    /// Nothing but packets of the opener.
    pub const OPENING: Self = Self(0);
    /// The answering side has sent something.
    pub const REPLIED: Self = Self(1);
    /// The opener has ended its half (TCP FIN).
    pub const FIN_OPENER: Self = Self(2);
    /// The answering side has ended its half.
    pub const FIN_ANSWERER: Self = Self(4);
    /// Either side has aborted (TCP RST).
    pub const RESET: Self = Self(8);
    /// Both halves have ended, the second with an acknowledgement of the first: one more acknowledgement is due.
    pub const LAST: Self = Self(16);

    /// The state after what `other` says was seen too.
    #[must_use]
    #[inline(always)]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether everything that `other` says was seen.
    #[must_use]
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the connection has ended: packets after that do not keep the flow alive.
    #[must_use]
    #[inline(always)]
    pub const fn closed(self) -> bool {
        self.has(Self::RESET) || self.has(Self::FIN_OPENER.with(Self::FIN_ANSWERER))
    }

    /// Seconds without a packet after which a flow of `protocol` (IP protocol number) is forgotten.
    ///
    /// An established TCP connection has the two hours and four minutes of RFC 5382 REQ-5, UDP the three minutes that
    /// RFC 4787 REQ-5 allows from; the others are those of the kernel's own connection tracking.
    #[must_use]
    #[inline(always)]
    pub const fn timeout(self, protocol: u8) -> u32 {
        const ICMP: u8 = 1;
        const TCP: u8 = 6;
        const UDP: u8 = 17;
        const ICMPV6: u8 = 58;
        match protocol {
            TCP if self.has(Self::RESET) => 10,
            TCP if self.closed() || !self.has(Self::REPLIED) => 120,
            TCP => 7440,
            UDP if self.has(Self::REPLIED) => 180,
            UDP | ICMP | ICMPV6 => 30,
            _ => 600,
        }
    }
}

/// The verdict of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowValue {
    seen: u64,
    generation: u32,
    peer: u32,
    rule: u32,
    receiver: u32,
    direction: u8,
    action: u8,
    marked: u8,
    state: u8,
    path: u8,
    /// What the receiver's gate was told: [`FlowState`] bits, and [`TOLD`].
    told: u8,
    /// The border that the flow crosses for the receiver.
    beyond: u8,
    pad: u8,
    /// When the receiver's gate was asked, the low half of its jiffy.
    asked: u32,
    /// The acknowledgement that the last end of a half waits for.
    due: u32,
    /// What the receiver's gate was asked about.
    about: u64,
}
crate::wire!(FlowValue = 48);

/// In `told`: the receiver's gate has passed this flow for this value's generation.
const TOLD: u8 = 0x80;

impl FlowValue {
    /// `direction` is who opened the connection; `marked` tells that the peer's identity came from the router's mark, not
    /// from its address, and so must be kept when judging again; `receiver` is the host-side interface of a local pod
    /// that owns the peer's address, 0 for none; `seen` counts jiffies.
    #[must_use]
    #[inline(always)]
    #[expect(
        clippy::too_many_arguments,
        reason = "one for each field of the layout"
    )]
    pub const fn new(
        generation: u32,
        direction: Direction,
        action: Action,
        rule: u32,
        peer: Identity,
        marked: bool,
        receiver: u32,
        path: Path,
        state: FlowState,
        seen: u64,
    ) -> Self {
        Self {
            seen,
            generation,
            peer: peer.raw(),
            rule,
            receiver,
            direction: direction as u8,
            action: action as u8,
            marked: marked as u8,
            state: state.0,
            path: path as u8,
            told: 0,
            beyond: 0,
            pad: 0,
            asked: 0,
            due: 0,
            about: 0,
        }
    }

    /// When the last packet passed that kept the flow alive, in jiffies.
    #[must_use]
    #[inline(always)]
    pub const fn seen(&self) -> u64 {
        self.seen
    }
    /// Notes a packet: what it says of the connection, and when it came. Nothing else of the value is written.
    #[inline(always)]
    pub const fn touch(&mut self, state: FlowState, now: u64) {
        if !FlowState(self.state).closed() {
            self.seen = now;
        }
        self.state |= state.0;
    }
    /// Notes the end of a half, by a segment whose acknowledgement is `acknowledges` and that is to be acknowledged with
    /// `answer` (RFC 9293 section 3.4: sequence numbers). `second` tells that the other half has ended before.
    ///
    /// Halves that end at once, neither end knowing of the other's, do not make a flow wait for its last acknowledgement: it
    /// goes by its time.
    #[inline(always)]
    pub const fn end(&mut self, second: bool, acknowledges: u32, answer: u32) {
        if second {
            // Sent once more, it is due to the same.
            if self.state().has(FlowState::LAST) || acknowledges != self.due {
                return;
            }
            self.state |= FlowState::LAST.0;
        }
        self.due = answer;
    }
    /// Whether a segment with this acknowledgement is the last of its connection: nothing is left to be told about.
    #[must_use]
    #[inline(always)]
    pub const fn ends_with(&self, acknowledges: u32) -> bool {
        self.state().has(FlowState::LAST) && acknowledges == self.due
    }
    /// What the verdict of a receiver's gate depends on, beside the sender's identity, which the table's pod has: the ports in one
    /// word, the protocol, the receiver's interface, the generation.
    #[must_use]
    #[inline(always)]
    pub const fn about(ports: u32, protocol: u8, receiver: u32, generation: u32) -> u64 {
        let rest = receiver.rotate_left(8) ^ generation ^ (protocol as u32) << 24;
        (ports as u64) << 32 | rest as u64
    }
    /// Notes at jiffy `now` that the gate of the local pod at the other side passes this flow too: there it crosses `beyond`, and
    /// its state is `state`. `about` is [`Self::about`] what was asked.
    #[inline(always)]
    pub const fn agree(&mut self, about: u64, state: FlowState, beyond: Path, now: u64) {
        self.asked = now as u32;
        self.about = about;
        self.beyond = beyond as u8;
        self.told = TOLD | state.0;
    }
    /// The border that the flow crosses for the local pod at the other side, if that pod's gate need not be asked about a packet
    /// that adds `state`: it has passed the flow in this generation, an eighth of a second ago at most, and the packet tells it
    /// nothing new. [`Path::None`] if it is to be asked. It is asked again so soon because a flow that its own table has lost
    /// since must come back to it. `about` is [`Self::about`] what would be asked: an entry that another flow, or the same one of
    /// another generation, took while the note was written does not agree.
    #[must_use]
    #[inline(always)]
    pub const fn agreed(
        &self,
        about: u64,
        state: FlowState,
        now: u64,
        ticks_per_second: u32,
    ) -> Path {
        let news = (TOLD | state.0) & !self.told;
        // Another CPU may have asked after `now`; the difference wraps, and the gate is asked again.
        let age = (now as u32).wrapping_sub(self.asked);
        if news != 0 || age > ticks_per_second >> 3 || about != self.about {
            return Path::None;
        }
        match Path::from_raw(self.beyond) {
            Some(path) => path,
            None => Path::None,
        }
    }
    /// The generation that gave the verdict.
    #[must_use]
    #[inline(always)]
    pub const fn generation(&self) -> u32 {
        self.generation
    }
    /// Who the peer was when judged.
    #[must_use]
    #[inline(always)]
    pub const fn peer(&self) -> Identity {
        Identity::from_raw(self.peer)
    }
    /// The rule that allowed the connection.
    #[must_use]
    #[inline(always)]
    pub const fn rule(&self) -> u32 {
        self.rule
    }
    /// The host-side interface of a local pod that owns the peer's address; 0 for none.
    #[must_use]
    #[inline(always)]
    pub const fn receiver(&self) -> u32 {
        self.receiver
    }
    /// Who opened the connection.
    #[must_use]
    #[inline(always)]
    pub const fn direction(&self) -> Direction {
        match self.direction {
            0 => Direction::Egress,
            _ => Direction::Ingress,
        }
    }
    /// Pass or steer; denied connections have no entry.
    #[must_use]
    #[inline(always)]
    pub const fn action(&self) -> Action {
        Action::from_raw(self.action)
    }
    /// Whether the peer's identity came from the router's mark.
    #[must_use]
    #[inline(always)]
    pub const fn marked(&self) -> bool {
        self.marked != 0
    }
    /// What was seen of the connection.
    #[must_use]
    #[inline(always)]
    pub const fn state(&self) -> FlowState {
        FlowState(self.state)
    }
    /// Which border the connection crosses.
    #[must_use]
    #[inline(always)]
    pub const fn path(&self) -> Path {
        match Path::from_raw(self.path) {
            Some(path) => path,
            None => Path::None,
        }
    }

    /// Whether the flow is still one at jiffy `now`. Another CPU may have seen a packet since `now`; that is not idle.
    #[must_use]
    #[inline(always)]
    pub const fn alive(&self, protocol: u8, now: u64, ticks_per_second: u32) -> bool {
        let timeout = self.state().timeout(protocol) as u64 * ticks_per_second as u64;
        now.saturating_sub(self.seen) < timeout
    }
}

/// A packet that came in fragments: the key of the pod's own table of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentKey {
    source: [u8; 16],
    destination: [u8; 16],
    id: u32,
    protocol: u8,
    direction: u8,
    pad: [u8; 2],
}
crate::wire!(FragmentKey = 40);

impl FragmentKey {
    /// `id` is the IPv4 identification or the IPv6 fragment header's, as it stands in the packet.
    #[must_use]
    #[inline(always)]
    pub const fn new(
        source: [u8; 16],
        destination: [u8; 16],
        id: u32,
        protocol: u8,
        direction: Direction,
    ) -> Self {
        Self {
            source,
            destination,
            id,
            protocol,
            direction: direction as u8,
            pad: [0; 2],
        }
    }
}

/// The ports of the first fragment, so that the others find its flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentValue {
    source_port: [u8; 2],
    destination_port: [u8; 2],
}
crate::wire!(FragmentValue = 4);

impl FragmentValue {
    /// Ports in network order.
    #[must_use]
    #[inline(always)]
    pub const fn new(source_port: [u8; 2], destination_port: [u8; 2]) -> Self {
        Self {
            source_port,
            destination_port,
        }
    }
    /// The first fragment's source port, network order.
    #[must_use]
    #[inline(always)]
    pub const fn source_port(&self) -> [u8; 2] {
        self.source_port
    }
    /// The first fragment's destination port, network order.
    #[must_use]
    #[inline(always)]
    pub const fn destination_port(&self) -> [u8; 2] {
        self.destination_port
    }
}
