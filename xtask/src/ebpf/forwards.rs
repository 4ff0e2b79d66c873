//! Puts forward declarations of an object's type information (BTF) into the order of their names.
//!
//! LLVM appends them last, in an order that depends on where the linker's memory happened to be, so that one object of several has
//! others' bytes. Format: Linux, `Documentation/bpf/btf.rst`.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSection as _};

const MAGIC: u16 = 0xeb9f;
/// Bytes of a type before what its kind adds.
const TYPE: usize = 12;

/// Kinds of types (`BTF_KIND_…`).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// A type: where it is, and of which kind.
struct Type {
    at: usize,
    kind: u32,
}

/// Orders the forward declarations of an object.
///
/// # Errors
/// Its type information is not as LLVM writes it.
pub(super) fn order(object: &mut [u8]) -> Result<()> {
    let range = {
        let file = object::File::parse(&*object).context("the object is no ELF file")?;
        let section = file.section_by_name(".BTF");
        let range = section.and_then(|section| section.file_range());
        let (start, length) = range.context("the object has no section .BTF")?;
        usize::try_from(start)?..usize::try_from(start + length)?
    };
    let section = object.get_mut(range).context("section .BTF is cut off")?;
    order_section(section)
}

fn order_section(section: &mut [u8]) -> Result<()> {
    let (types, strings) = parts(section)?;
    let types = read(section, types)?;
    // Types are counted from 1; 0 is `void`.
    let forwards: Vec<(u32, usize)> = (1..)
        .zip(&types)
        .filter(|(_, of)| of.kind == kind::FWD)
        .map(|(number, of)| (number, of.at))
        .collect();
    let mut named = Vec::new();
    for (number, at) in forwards.iter().copied() {
        let name = word(section, at)?;
        let text = text(section, &strings, name)?.to_vec();
        named.push((text, number, name, section[at..at + TYPE].to_vec()));
    }
    // Where their names are, one behind the other.
    let mut places: Vec<usize> = named
        .iter()
        .map(|(_, _, name, _)| *name as usize + strings.start)
        .collect();
    places.sort_unstable();
    let Some(first) = places.first().copied() else {
        return Ok(());
    };
    named.sort();
    let mut tail = Vec::new();
    let mut renumbered = BTreeMap::new();
    for ((number, at), (name, before, _, bytes)) in forwards.iter().zip(&named) {
        renumbered.insert(*before, *number);
        section[*at..at + TYPE].copy_from_slice(bytes);
        let place = u32::try_from(first - strings.start + tail.len())?;
        section[*at..at + 4].copy_from_slice(&place.to_le_bytes());
        tail.extend_from_slice(name);
        tail.push(0);
    }
    // Each name once, and nothing between: then they are where they were, in another order.
    ensure!(
        first + tail.len() == strings.end,
        "names of forward declarations are not the last ones of section .BTF"
    );
    section[first..strings.end].copy_from_slice(&tail);
    for of in types {
        let refers = matches!(
            of.kind,
            kind::PTR | kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT
        );
        let to = word(section, of.at + 8)?;
        if let Some(number) = renumbered.get(&to).filter(|_| refers) {
            section[of.at + 8..of.at + TYPE].copy_from_slice(&number.to_le_bytes());
        }
    }
    Ok(())
}

/// Where types and strings are.
fn parts(section: &[u8]) -> Result<(Range<usize>, Range<usize>)> {
    let magic = section.get(..2).context("section .BTF is cut off")?;
    ensure!(
        magic == MAGIC.to_le_bytes(),
        "section .BTF does not begin as it should"
    );
    let number = |at| -> Result<usize> { Ok(word(section, at)? as usize) };
    let head = number(4)?;
    let part = |at| -> Result<Range<usize>> {
        let start = head + number(at)?;
        let range = start..start + number(at + 4)?;
        ensure!(range.end <= section.len(), "section .BTF is cut off");
        Ok(range)
    };
    Ok((part(8)?, part(16)?))
}

/// All types.
fn read(section: &[u8], range: Range<usize>) -> Result<Vec<Type>> {
    let (mut types, mut at) = (Vec::new(), range.start);
    while at < range.end {
        let info = word(section, at + 4)?;
        let (kind, items) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
        let more = match kind {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * items,
            kind::ENUM | kind::FUNC_PROTO => 8 * items,
            kind::PTR
            | kind::FWD
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::FUNC
            | kind::FLOAT
            | kind::TYPE_TAG => 0,
            other => anyhow::bail!("section .BTF has a type of kind {other}"),
        };
        types.push(Type { at, kind });
        at += TYPE + more;
    }
    ensure!(at == range.end, "the last type of section .BTF is cut off");
    Ok(types)
}

fn word(section: &[u8], at: usize) -> Result<u32> {
    let bytes = section.get(at..at + 4).context("section .BTF is cut off")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

fn text<'a>(section: &'a [u8], strings: &Range<usize>, at: u32) -> Result<&'a [u8]> {
    let rest = section.get(strings.start + at as usize..strings.end);
    let rest = rest.context("a name is behind the end of section .BTF")?;
    let end = rest.iter().position(|byte| *byte == 0);
    Ok(&rest[..end.context("a name has no end")?])
}

#[cfg(test)]
mod tests {
    use super::{kind, order_section, word};

    /// Two pointers, and what they point to, declared in some order; a name that is no declaration's stands before.
    fn section(names: [&str; 2], pointers: [u32; 2]) -> Vec<u8> {
        let strings = format!("\0int\0{}\0{}\0", names[0], names[1]);
        let second = 5 + names[0].len() + 1;
        let mut types: Vec<u32> = Vec::new();
        types.extend([1, kind::INT << 24, 4, 32]);
        types.extend(pointers.map(|to| [0, kind::PTR << 24, to]).concat());
        types.extend([5, kind::FWD << 24, 0]);
        types.extend([
            u32::try_from(second).expect("it is short"),
            kind::FWD << 24,
            0,
        ]);
        let length = u32::try_from(types.len() * 4).expect("it is short");
        let head = [
            24,
            0,
            length,
            length,
            u32::try_from(strings.len()).expect("it is short"),
        ];
        let mut section = vec![0x9f, 0xeb, 1, 0];
        for number in head.iter().chain(&types) {
            section.extend_from_slice(&number.to_le_bytes());
        }
        section.extend_from_slice(strings.as_bytes());
        section
    }

    #[test]
    fn whatever_order_they_were_in_the_bytes_are_the_same() {
        // The first pointer is to `keys`, the second to `sock`.
        let ordered = section(["keys", "sock"], [4, 5]);
        let mut other = section(["sock", "keys"], [5, 4]);
        assert_ne!(other, ordered);
        order_section(&mut other).expect("it is as LLVM writes it");
        assert_eq!(other, ordered);
        let mut same = ordered.clone();
        order_section(&mut same).expect("it is as LLVM writes it");
        assert_eq!(same, ordered);
    }

    #[test]
    fn names_of_another_length_move() {
        let mut one = section(["longer", "a"], [4, 5]);
        let mut two = section(["a", "longer"], [5, 4]);
        order_section(&mut one).expect("it is as LLVM writes it");
        order_section(&mut two).expect("it is as LLVM writes it");
        assert_eq!(one, two);
        assert!(one.ends_with(b"\0int\0a\0longer\0"));
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let whole = section(["keys", "sock"], [4, 5]);
        for length in 0..whole.len() {
            let mut part = whole[..length].to_vec();
            assert!(order_section(&mut part).is_err(), "{length}");
        }
        let mut unknown = whole;
        let kind = 24 + 4;
        assert_eq!(word(&unknown, kind).expect("it is there") >> 24, 1);
        unknown[kind + 3] = 31;
        assert!(order_section(&mut unknown).is_err());
    }
}
