//! Instructions of the kernel's virtual machine with names: just those that the programs of `splice` are made of.
//! Encodings: RFC 9669, sections 3 to 5.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

/// A register. The first five are a helper's arguments and do not survive its call.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Reg {
    /// A helper's result, and the program's.
    R0,
    R1,
    R2,
    R3,
    R4,
    R6 = 6,
    R7,
    R8,
    R9,
    /// The end of the stack, which is below it.
    Stack,
}

/// One instruction, as the kernel reads it (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const _: () = assert!(size_of::<Instruction>() == 8);

impl Instruction {
    fn new(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Self {
        // Two bit fields, which compilers begin at different ends.
        let registers = if cfg!(target_endian = "little") {
            from << 4 | to
        } else {
            to << 4 | from
        };
        Self {
            code,
            registers,
            offset,
            immediate,
        }
    }
}

/// A place that a jump leads to.
type Label = &'static str;

/// A program in the making.
#[derive(Debug, Default)]
pub(super) struct Code {
    instructions: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
    places: BTreeMap<Label, usize>,
}

impl Code {
    fn push(mut self, code: u8, to: Reg, from: Reg, offset: i16, immediate: i32) -> Self {
        let instruction = Instruction::new(code, to as u8, from as u8, offset, immediate);
        self.instructions.push(instruction);
        self
    }

    /// `to = from`
    pub(super) fn copy(self, to: Reg, from: Reg) -> Self {
        self.push(0xbf, to, from, 0, 0)
    }

    /// `to = number`
    pub(super) fn set(self, to: Reg, number: i32) -> Self {
        self.push(0xb7, to, Reg::R0, 0, number)
    }

    /// `to = Stack + offset`
    pub(super) fn on_stack(self, to: Reg, offset: i16) -> Self {
        self.copy(to, Reg::Stack)
            .push(0x07, to, Reg::R0, 0, offset.into())
    }

    /// `to = *(u32 *)(from + offset)`
    pub(super) fn load(self, to: Reg, from: Reg, offset: i16) -> Self {
        self.push(0x61, to, from, offset, 0)
    }

    /// `*(u32 *)(Stack + offset) = from`
    pub(super) fn store(self, offset: i16, from: Reg) -> Self {
        self.push(0x63, Reg::Stack, from, offset, 0)
    }

    /// Turns 32 bits from network order to the machine's.
    pub(super) fn host_order(self, of: Reg) -> Self {
        self.push(0xdc, of, Reg::R0, 0, 32)
    }

    /// `lock *(u64 *)to += from`
    pub(super) fn add_atomically(self, to: Reg, from: Reg) -> Self {
        self.push(0xdb, to, from, 0, 0)
    }

    /// `to` = the map with this descriptor
    pub(super) fn map(mut self, to: Reg, descriptor: i32) -> Self {
        // 64 bits of which the second instruction has the upper half; source 1 says that they are a map's descriptor.
        let wide = Instruction::new(0x18, to as u8, 1, 0, descriptor);
        self.instructions
            .extend([wide, Instruction::new(0, 0, 0, 0, 0)]);
        self
    }

    /// `R0 = helper(R1, …)`
    pub(super) fn call(self, helper: i32) -> Self {
        self.push(0x85, Reg::R0, Reg::R0, 0, helper)
    }

    /// Ends the program with `R0`.
    pub(super) fn exit(self) -> Self {
        self.push(0x95, Reg::R0, Reg::R0, 0, 0)
    }

    /// Where jumps to a label go on.
    pub(super) fn label(mut self, label: Label) -> Self {
        self.places.insert(label, self.instructions.len());
        self
    }

    fn jumping(mut self, code: u8, of: Reg, number: i32, to: Label) -> Self {
        self.jumps.push((self.instructions.len(), to));
        self.push(code, of, Reg::R0, 0, number)
    }

    /// Jumps.
    pub(super) fn jump(self, to: Label) -> Self {
        self.jumping(0x05, Reg::R0, 0, to)
    }

    /// Jumps if the lower 32 bits are this number.
    pub(super) fn jump_if(self, of: Reg, number: u32, to: Label) -> Self {
        self.jumping(0x16, of, number.cast_signed(), to)
    }

    /// Jumps unless the lower 32 bits are this number.
    pub(super) fn jump_unless(self, of: Reg, number: u32, to: Label) -> Self {
        self.jumping(0x56, of, number.cast_signed(), to)
    }

    /// Jumps if all 64 bits are 0: a helper found nothing.
    pub(super) fn jump_if_null(self, of: Reg, to: Label) -> Self {
        self.jumping(0x15, of, 0, to)
    }

    /// The program, with jumps that know how far they lead.
    ///
    /// # Errors
    /// A label is nowhere.
    pub(super) fn finish(mut self) -> Result<Vec<Instruction>> {
        for (at, label) in self.jumps {
            let place = self
                .places
                .get(label)
                .with_context(|| format!("no place is called `{label}`"))?;
            // Relative to the instruction after the jump.
            let distance = i64::try_from(*place)? - i64::try_from(at)? - 1;
            self.instructions[at].offset = i16::try_from(distance)?;
        }
        Ok(self.instructions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_lead_to_their_labels_over_wide_instructions() {
        let code = Code::default()
            .label("back")
            .jump_if(Reg::R2, u32::MAX, "end")
            .map(Reg::R1, 7)
            .jump("back")
            .label("end")
            .exit()
            .finish()
            .expect("both labels are there");
        let offsets: Vec<i16> = code.iter().map(|each| each.offset).collect();
        assert_eq!(offsets, [3, 0, 0, -4, 0]);
        assert_eq!((code[0].code, code[0].immediate), (0x16, -1));
    }

    #[test]
    fn a_jump_to_nowhere_is_an_error() {
        assert!(Code::default().jump("nowhere").finish().is_err());
    }
}
