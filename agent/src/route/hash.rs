//! Hashes that are the same on every node and in every version: who shares an endpoint with whom must
//! not change with either.

use std::cmp::Reverse;

/// FNV-1a over the parts, each with its length, then the finaliser of SplitMix64, since FNV's upper
/// bits depend too little on the last bytes.
pub fn stable(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut byte = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    for part in parts {
        (part.len() as u64)
            .to_le_bytes()
            .into_iter()
            .for_each(&mut byte);
        part.iter().copied().for_each(&mut byte);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Positions of the `size` names with the highest weight for a key, best first (rendezvous hashing,
/// Thaler and Ravishankar 1998): a name that comes or goes moves nobody between the others.
pub fn rendezvous<'a>(
    key: &[u8],
    names: impl Iterator<Item = &'a [u8]>,
    size: usize,
) -> Vec<usize> {
    let mut weighed: Vec<(Reverse<u64>, usize)> = names
        .enumerate()
        .map(|(at, name)| (Reverse(stable(&[key, name])), at))
        .collect();
    weighed.sort_unstable();
    weighed.into_iter().take(size).map(|(_, at)| at).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::{rendezvous, stable};

    #[test]
    fn hashes_are_those_of_every_other_node() {
        assert_eq!(stable(&[]), 0xf52a_15e9_a9b5_e89b);
        assert_ne!(stable(&[b"ab", b"c"]), stable(&[b"a", b"bc"]));
    }

    fn shard(key: usize, names: &[String]) -> BTreeSet<String> {
        let bytes = names.iter().map(String::as_bytes);
        rendezvous(key.to_string().as_bytes(), bytes, 2)
            .into_iter()
            .map(|at| names[at].clone())
            .collect()
    }

    #[test]
    fn shards_are_spread_and_move_only_with_what_leaves() {
        let names: Vec<String> = (0..8).map(|at| format!("10.0.0.{at}:80")).collect();
        let mut shared: BTreeMap<BTreeSet<String>, usize> = BTreeMap::new();
        for key in 0..2800 {
            *shared.entry(shard(key, &names)).or_default() += 1;
        }
        // 28 pairs of 8, about 100 keys each.
        assert_eq!(shared.len(), 28);
        assert!(
            shared.values().all(|count| (50..=160).contains(count)),
            "{shared:?}"
        );
        let fewer = &names[..7];
        for key in 0..2800 {
            let (before, after) = (shard(key, &names), shard(key, fewer));
            let kept = before.intersection(&after).count();
            assert_eq!(
                kept,
                if before.contains(&names[7]) { 1 } else { 2 },
                "{key}"
            );
        }
    }
}
