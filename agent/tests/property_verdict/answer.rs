//! Explanations against the model.

use agent_common::Verdict;

use crate::kernel::Ran;
use crate::model::{Asked, Judged, Model, REDIRECT, SHOT, UNSPEC};

/// Whether an explanation is that of the model.
pub(crate) fn explains(
    model: &Model,
    ran: &Ran,
    asked: &Asked,
    judged: &Judged,
) -> Result<(), String> {
    let (verdict, reason) = model.explained(asked, judged);
    let word = u32::from_le_bytes([
        verdict as u8,
        reason as u8,
        judged.direction as u8,
        judged.path as u8,
    ]);
    let control = [
        word,
        judged.rule,
        judged.peer.raw(),
        judged.generation,
        judged.local.raw(),
    ];
    let code = match verdict {
        Verdict::Drop => SHOT,
        Verdict::Pass if model.receiver(asked, judged).is_some() => REDIRECT,
        _ => UNSPEC,
    };
    let should = Ran {
        code,
        mark: asked.mark,
        control,
        frame: asked.frame.clone(),
    };
    if *ran == should {
        return Ok(());
    }
    Err(format!(
        "a gate is explained as\n{ran:x?}\ninstead of\n{should:x?}\nby {judged:x?}"
    ))
}
