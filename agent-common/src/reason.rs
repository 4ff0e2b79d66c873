//! Verdicts and their reasons, one byte each on the wire, with names for people.

macro_rules! wire_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $value:literal => $text:literal,)+ }) => {
        $(#[$meta])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vmeta])* $variant = $value,)+ }

        impl $name {
            /// All values, in wire order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The value with this byte, if there is one.
            #[must_use]
            pub const fn from_raw(raw: u8) -> Option<Self> {
                match raw { $($value => Some(Self::$variant),)+ _ => None }
            }

            /// The name in logs, metrics and events.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

wire_enum! {
    /// Seen from the pod: who opened the connection, or which way a packet goes.
    Direction {
        /// From the pod.
        Egress = 0 => "egress",
        /// To the pod.
        Ingress = 1 => "ingress",
    }
}

wire_enum! {
    /// Which of a cell's borders a connection crosses, seen from the pod's cell.
    Path {
        /// Not known: the packet ended before anybody asked who the other side is, or it is no connection's.
        None = 0 => "none",
        /// From outside the platform, through the external gateway.
        North = 1 => "north",
        /// From another cell, through the internal gateway or directly.
        West = 2 => "west",
        /// To outside the platform.
        South = 3 => "south",
        /// To another cell.
        East = 4 => "east",
        /// Within the cell.
        Intra = 5 => "intra",
        /// To or from the platform: name servers, nodes, monitoring.
        Platform = 6 => "platform",
    }
}

wire_enum! {
    /// What becomes of a packet.
    Verdict {
        /// It ends here.
        Drop = 0 => "drop",
        /// It goes its way.
        Pass = 1 => "pass",
        /// It goes to the router.
        Steer = 2 => "steer",
    }
}

wire_enum! {
    /// Why. Values below 32 let a packet live, the others end it.
    Reason {
        /// A rule allows the connection.
        Policy = 1 => "policy",
        /// The connection was allowed before, by this generation.
        Established = 2 => "established",
        /// An ICMP error about a connection that is allowed.
        IcmpError = 3 => "icmp_error",
        /// ARP or neighbour discovery for an address that the pod owns.
        Neighbour = 4 => "neighbour",
        /// No generation is active.
        NoGeneration = 32 => "no_generation",
        /// The generation knows no pod behind the interface.
        NoEndpoint = 33 => "no_endpoint",
        /// The pod's component has no policy table in the generation.
        NoPolicy = 35 => "no_policy",
        /// The source address is not the pod's.
        Spoofed = 36 => "source_spoofed",
        /// The destination address is not the pod's.
        WrongDestination = 37 => "wrong_destination",
        /// The peer's address has no identity.
        UnknownPeer = 38 => "unknown_peer",
        /// Nothing declares the connection.
        NotDeclared = 39 => "not_declared",
        /// A rule forbids the connection.
        Denied = 40 => "denied",
        /// A header ends after the packet does.
        Truncated = 41 => "truncated",
        /// A header contradicts itself (version, header length), or an option of neighbour discovery does.
        Malformed = 42 => "malformed",
        /// Neither IPv4, IPv6 nor ARP.
        EtherType = 43 => "ethertype",
        /// A VLAN tag on a pod's packet.
        Vlan = 44 => "vlan",
        /// More IPv6 extension headers, IPv4 options or options of neighbour discovery than are read, or an extension header
        /// that is never read.
        ExtensionHeader = 45 => "extension_header",
        /// Neither TCP, UDP nor ICMP, and no rule names the protocol.
        Protocol = 46 => "protocol",
        /// A later fragment whose first was not seen.
        Fragment = 47 => "fragment",
        /// The pod has no table of fragments, or it refused an entry.
        FragmentTable = 48 => "fragment_table",
        /// The table of flows refused an entry.
        FlowTable = 49 => "flow_table",
        /// A group or broadcast destination.
        Multicast = 50 => "multicast",
        /// An ARP packet that claims or asks what is not the pod's to claim.
        ArpSpoofed = 51 => "arp_spoofed",
        /// A neighbour discovery message that claims what is not the pod's, an address or a hardware address, or that would
        /// leave the link.
        NeighbourSpoofed = 52 => "neighbour_spoofed",
        /// A router advertisement or redirect from a pod.
        RouterClaim = 53 => "router_claim",
        /// An ICMP error about no connection of the pod's.
        IcmpUntracked = 54 => "icmp_untracked",
        /// An ICMP message that is neither echo, error nor neighbour discovery.
        IcmpType = 55 => "icmp_type",
        /// The rule says steer, but the connection is not TCP.
        SteerProtocol = 56 => "steer_protocol",
        /// The router's transparent listener is not there.
        ListenerMissing = 57 => "listener_missing",
        /// The kernel refused to hand the packet to the listener.
        SteerFailed = 58 => "steer_failed",
        /// An IPv6 routing header or an IPv4 source route: a packet that chooses its own way.
        SourceRoute = 59 => "source_route",
        /// The Ethernet source address is not the pod's.
        MacSpoofed = 60 => "mac_spoofed",
        /// TCP flags that no connection sends (RFC 9293 section 3.5): SYN with FIN or RST, none at all, FIN alone.
        TcpFlags = 61 => "tcp_flags",
        /// An answer to a TCP connection that nobody was seen to open.
        TcpState = 62 => "tcp_state",
        /// UDP to a port of VXLAN or Geneve that no rule names.
        Tunnel = 63 => "tunnel",
    }
}

impl Reason {
    /// Whether the packet ends.
    #[must_use]
    pub const fn is_drop(self) -> bool {
        self as u8 >= 32
    }
}
