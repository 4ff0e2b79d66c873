//! The verdict without the packet: programs that the agent runs by `BPF_PROG_TEST_RUN` and never attaches.
//!
//! They read the maps that the gates read, by the same code, and write none: no flow, no note of a fragment, no counter, no
//! event. Asked for is the generation in the first word of the control block (0: the active one); the answer is in all five:
//! verdict, reason, direction and path; the rule; the peer's identity; the generation; the pod's identity.

use agent_common::{Direction, Verdict};
use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::bpf_jiffies64,
    programs::TcContext,
};

use crate::{
    deliver,
    verdict::{self, Case, DRY},
};

/// Judges a packet at one gate and says how.
#[inline(always)]
pub fn gate(ctx: &TcContext, way: Direction) -> i32 {
    let Some(case) = Case::at::<DRY>(ctx, way) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: the context's `skb` pointer is the program's argument; tc programs may read and write the control block, four
    // bytes at a time, which volatile keeps whole.
    let asked = unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).cb[0]) };
    if asked != 0 {
        case.generation = asked;
    }
    let judged = verdict::judge::<DRY>(ctx, case, way, &mut None);
    let (verdict, reason) = verdict::enact::<DRY>(ctx, case, way, judged);
    answer(
        ctx,
        [
            u32::from_le_bytes([
                verdict as u8,
                reason as u8,
                case.direction as u8,
                case.path as u8,
            ]),
            case.rule,
            case.peer.raw(),
            case.generation,
            case.local.raw(),
        ],
    );
    match verdict {
        Verdict::Drop => TC_ACT_SHOT,
        Verdict::Pass
            if way == Direction::Egress && deliver::possible(case) && case.at_receiver() =>
        {
            TC_ACT_REDIRECT
        }
        Verdict::Pass | Verdict::Steer => TC_ACT_UNSPEC,
    }
}

/// Tells the time that flows are stamped with.
#[inline(always)]
pub fn clock(ctx: &TcContext) -> i32 {
    // SAFETY: the helper takes no argument and cannot fail.
    let now = unsafe { bpf_jiffies64() };
    answer(ctx, [now as u32, (now >> 32) as u32, 0, 0, 0]);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn answer(ctx: &TcContext, words: [u32; 5]) {
    for (index, word) in words.into_iter().enumerate() {
        // SAFETY: as in `gate`; the control block has five words.
        unsafe { core::ptr::write_volatile(&raw mut (*ctx.skb.skb).cb[index], word) };
    }
}
