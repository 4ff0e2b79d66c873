//! Names of several parts under a limit of length, as OpenChoreo makes them.

use sha2::{Digest, Sha256};

/// Joins parts into a name of at most `limit` bytes that ends with a hash over them. Names are for
/// people and for recognising OpenChoreo's objects; nothing is keyed by one, as the hash joins the
/// parts with a character that they may contain.
pub fn joined(parts: &[&str], limit: usize) -> String {
    let digest = Sha256::digest(parts.join("-").as_bytes());
    let hash: String = digest[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let count = parts.len().max(1);
    let room = limit.saturating_sub(hash.len() + (count - 1) + 1);
    let cut: Vec<String> = parts
        .iter()
        .enumerate()
        .map(|(index, part)| {
            let bytes = room / count + usize::from(index < room % count);
            shorter(&cleaned(part), bytes)
        })
        .collect();
    let name = format!("{}-{hash}", cut.join("-"));
    name.trim_start_matches(|first: char| !first.is_alphanumeric())
        .to_owned()
}

fn cleaned(part: &str) -> String {
    let plain: String = part
        .to_lowercase()
        .chars()
        .map(|character| {
            if character.is_alphanumeric() || matches!(character, '-' | '.') {
                character
            } else {
                '-'
            }
        })
        .collect();
    plain.trim_matches(['-', '.']).to_owned()
}

/// At most `bytes` bytes, cut between characters.
fn shorter(text: &str, bytes: usize) -> String {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
