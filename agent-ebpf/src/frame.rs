//! The first bytes of a frame, in words: what nearly every packet is judged by, read and written where it lies.

use core::arch::asm;

use agent_common::Reason;
use aya_ebpf::{
    bindings::BPF_F_RECOMPUTE_CSUM,
    cty::c_void,
    helpers::{bpf_csum_update, bpf_skb_load_bytes, bpf_skb_store_bytes},
    programs::TcContext,
};

use crate::{
    address::Address,
    packet::{ETHER_IPV4, ETHER_IPV6, ETHERNET, Fragmented, Icmp, Packet, plausible, protocol},
};

/// Ethernet, and of an IPv4 or IPv6 header what forwarding changes. Two bytes before the frame put the network header at a
/// multiple of eight, so that what is read is whole words. Words are as they lie in memory; the programs are little-endian.
#[repr(C)]
pub struct Frame {
    words: [u64; 4],
}

const PAD: usize = 2;
const MAC: u64 = 0x0000_ffff_ffff_ffff;
/// A whole header of UDP.
const UDP: usize = 8;
/// TCP as far as its flags.
const TCP: usize = 14;
/// The words of which forwarding changes something; the shortest packet of IPv4 has them.
const ROUTED: usize = 30;
/// Ethernet and IPv4 as far as the checksum.
const ROUTED_V4: u32 = ETHERNET + 12;
/// Ethernet and IPv6 as far as the hop limit.
const ROUTED_V6: u32 = ETHERNET + 8;

impl Frame {
    /// Copies bytes `FROM..TO` of the frame to their place; `false` if it is shorter.
    #[inline(always)]
    fn fill<const FROM: usize, const TO: usize>(&mut self, ctx: &TcContext) -> bool {
        const { assert!(PAD + TO <= size_of::<Self>()) };
        // SAFETY: the assertion above holds the copy inside `words`.
        unsafe {
            let place = self.words.as_mut_ptr().cast::<u8>().add(PAD + FROM);
            bpf_skb_load_bytes(
                ctx.skb.skb.cast::<c_void>().cast_const(),
                FROM as u32,
                place.cast(),
                (TO - FROM) as u32,
            ) == 0
        }
    }

    /// Puts the first `TO` bytes into the frame.
    #[inline(always)]
    fn put<const TO: u32>(&self, ctx: &TcContext) -> bool {
        const { assert!(PAD + TO as usize <= size_of::<Self>()) };
        // SAFETY: the assertion above holds the copy inside `words`.
        unsafe {
            let place = self.words.as_ptr().cast::<u8>().add(PAD);
            bpf_skb_store_bytes(
                ctx.skb.skb.cast(),
                0,
                place.cast(),
                TO,
                BPF_F_RECOMPUTE_CSUM as u64,
            ) == 0
        }
    }

    /// The Ethernet source address, as `Case::hardware` has the pod's.
    #[inline(always)]
    pub fn from(&self) -> u64 {
        self.words[1] & MAC
    }

    /// Whether it is sent to all or many on the link (IEEE 802: the first bit on the wire).
    #[inline(always)]
    pub fn is_for_a_group(&self) -> bool {
        (self.words[0] >> 16) & 1 != 0
    }

    /// Reads the Ethernet header alone.
    #[inline(always)]
    pub fn ethernet(&mut self, ctx: &TcContext) -> Result<(), Reason> {
        if self.fill::<0, { ETHERNET as usize }>(ctx) {
            Ok(())
        } else {
            Err(Reason::Truncated)
        }
    }

    /// Reads the headers of an ordinary packet: TCP or UDP, whole, in IPv4 without options or IPv6 without extension headers.
    /// Nearly every packet is one. `false`: `packet::parse` has to look at it. It says of a packet what `parse` would say.
    #[inline(always)]
    pub fn glance(&mut self, ctx: &TcContext, packet: &mut Packet) -> bool {
        // SAFETY: the context's `skb` pointer is the program's argument; the field is readable by every tc program.
        if unsafe { (*ctx.skb.skb).vlan_present } != 0 {
            return false;
        }
        let Some(head) = Piece::of::<{ ETHERNET as usize + 20 + UDP }>(ctx) else {
            return false;
        };
        let w = &mut self.words;
        w[0] = head.word::<0>() << 16;
        w[1] = head.word::<6>();
        w[2] = head.word::<14>();
        w[3] = head.word::<22>();
        let (ports, kind, at);
        match u16::from_be((w[1] >> 48) as u16) {
            ETHER_IPV4 => {
                // Version 4, no options; neither more fragments nor an offset.
                if w[2] as u8 != 0x45 || (w[2] >> 48) & 0xff3f != 0 {
                    return false;
                }
                packet.v4 = true;
                packet.source = Address::v4((w[3] >> 32) as u32);
                let last = head.word::<30>();
                packet.destination = Address::v4(last as u32);
                packet.hops = w[3] as u8;
                kind = (w[3] >> 8) as u8;
                ports = (last >> 32) as u32;
                at = ETHERNET + 20;
                packet.tcp_flags = 0;
                if kind == protocol::TCP {
                    let Some(all) = Piece::of::<{ ETHERNET as usize + 20 + TCP }>(ctx) else {
                        return false;
                    };
                    packet.tcp_flags = (all.word::<40>() >> 56) as u8;
                }
            }
            ETHER_IPV6 => {
                let Some(head) = Piece::of::<{ ETHERNET as usize + 40 + UDP }>(ctx) else {
                    return false;
                };
                if w[2] as u8 >> 4 != 6 {
                    return false;
                }
                packet.v4 = false;
                packet.source = Address::v6(w[3], head.word::<30>());
                packet.destination = Address::v6(head.word::<38>(), head.word::<46>());
                if packet.source.is_v4() || packet.destination.is_v4() {
                    return false;
                }
                packet.hops = (w[2] >> 56) as u8;
                kind = (w[2] >> 48) as u8;
                ports = head.word::<54>() as u32;
                at = ETHERNET + 40;
                packet.tcp_flags = 0;
                if kind == protocol::TCP {
                    let Some(all) = Piece::of::<{ ETHERNET as usize + 40 + TCP }>(ctx) else {
                        return false;
                    };
                    packet.tcp_flags = (all.word::<60>() >> 56) as u8;
                }
            }
            _ => return false,
        }
        match kind {
            protocol::TCP if plausible(packet.tcp_flags).is_ok() => {}
            protocol::UDP => {}
            _ => return false,
        }
        packet.protocol = kind;
        packet.source_port = ports as u16;
        packet.destination_port = (ports >> 16) as u16;
        packet.transport = at;
        packet.icmp = Icmp::None;
        packet.icmp_type = 0;
        packet.fragmented = Fragmented::No;
        true
    }

    /// Changes what forwarding changes (RFC 1812 section 5.3.1): hop count, its checksum, hardware addresses. `read` tells
    /// whether `glance` has read the frame; `to` is the receiver's hardware address.
    #[inline(always)]
    pub fn route(&mut self, ctx: &TcContext, read: bool, v4: bool, to: u64) -> bool {
        if !read && !self.fill::<0, ROUTED>(ctx) {
            return false;
        }
        let w = &mut self.words;
        w[1] = w[1] & !MAC | w[0] >> 16;
        w[0] = to << 16;
        if v4 {
            let head = w[3] as u32;
            let [hops, kind, high, low] = head.to_ne_bytes();
            // One less in the high byte of a word is one more in the complement's. Zero is written as 0, never as 0xffff (RFC
            // 1624 section 3): who recomputes a checksum instead of adding it up takes the other zero for an error.
            let sum = u32::from(u16::from_be_bytes([high, low])) + 0x0100;
            let [high, low] = ((sum + u32::from(sum >= 0xffff)) as u16).to_be_bytes();
            let head = u32::from_ne_bytes([hops.wrapping_sub(1), kind, high, low]);
            w[3] = w[3] & 0xffff_ffff_0000_0000 | u64::from(head);
        } else {
            w[2] = w[2].wrapping_sub(1 << 56);
        }
        match Piece::of::<ROUTED>(ctx) {
            Some(mut head) => {
                let w = &self.words;
                head.set::<0>(w[0] >> 16 | w[1] << 48);
                head.set::<6>(w[1]);
                if v4 {
                    head.set::<22>(w[3]);
                } else {
                    head.set::<14>(w[2]);
                    // A sum over the whole packet that a device has made is one of the hop limit too; of an IPv4 header, which
                    // has a sum of its own, it stays as it is.
                    // SAFETY: the context's `skb` pointer is the program's argument. What the helper says is whether there is
                    // such a sum.
                    let _ = unsafe { bpf_csum_update(ctx.skb.skb, HOP_LESS) };
                }
                true
            }
            None if v4 => self.put::<ROUTED_V4>(ctx),
            None => self.put::<ROUTED_V6>(ctx),
        }
    }
}

/// What one hop less adds to a sum over the packet (RFC 1071): the complement of the second byte's one.
const HOP_LESS: u32 = !(u16::from_ne_bytes([0, 1]) as u32);

/// The first bytes of a packet, in place: a helper's call and copy take longer than all that is done with the bytes.
struct Piece<const LENGTH: usize>(*mut u8);

impl Piece<0> {
    /// The first `LENGTH` bytes; `None` if there are fewer, or they do not lie in one piece (which is seldom so).
    #[inline(always)]
    fn of<const LENGTH: usize>(ctx: &TcContext) -> Option<Piece<LENGTH>> {
        let (start, end) = (ctx.data(), ctx.data_end());
        if start + LENGTH > end {
            return None;
        }
        Some(Piece(start as *mut u8))
    }
}

impl<const LENGTH: usize> Piece<LENGTH> {
    /// Writes the eight bytes at `AT`.
    #[inline(always)]
    fn set<const AT: usize>(&mut self, word: u64) {
        const { assert!(AT + 8 <= LENGTH) };
        // SAFETY: the assertion above holds the write inside the piece, whose end `of` has checked. The kernel makes packets
        // writable before a program that writes into them runs.
        unsafe {
            asm!(
                "*(u64 *)({piece} + {at}) = {word}",
                word = in(reg) word,
                piece = in(reg) self.0,
                at = const AT,
                options(nostack, preserves_flags),
            );
        }
    }

    /// The eight bytes at `AT`, as they lie in memory.
    #[inline(always)]
    fn word<const AT: usize>(&self) -> u64 {
        const { assert!(AT + 8 <= LENGTH) };
        let word: u64;
        // The compiler reads byte by byte what need not be aligned; a packet's words may be read at once all the same.
        // SAFETY: the assertion above holds the read inside the piece, whose end `of` has checked. It changes nothing.
        unsafe {
            asm!(
                "{word} = *(u64 *)({piece} + {at})",
                word = lateout(reg) word,
                piece = in(reg) self.0,
                at = const AT,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        word
    }
}
