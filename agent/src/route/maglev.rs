//! The lookup table of Maglev hashing (Eisenbud et al. 2016, section 3.4): every endpoint has nearly the same
//! share of it, and one that comes or goes moves little between the others.

use super::hash::stable;

/// Positions of endpoints by hash. One byte each as long as that is enough: tables are large, and there may
/// be many.
#[derive(Debug)]
pub struct Maglev(Entries);

#[derive(Debug)]
enum Entries {
    Narrow(Box<[u8]>),
    Wide(Box<[u32]>),
}

impl Maglev {
    /// A table of a prime size for endpoints by name; none: there is no endpoint.
    pub fn new(names: &[String], size: u32) -> Option<Self> {
        let filled = fill(names, size)?;
        let narrow: Result<Box<[u8]>, _> = filled.iter().map(|at| u8::try_from(*at)).collect();
        Some(Self(match narrow {
            Ok(narrow) => Entries::Narrow(narrow),
            Err(_) => Entries::Wide(filled.into()),
        }))
    }

    /// Position of the endpoint of a hash.
    pub fn at(&self, hash: u64) -> usize {
        match &self.0 {
            Entries::Narrow(entries) => entries[(hash % entries.len() as u64) as usize].into(),
            Entries::Wide(entries) => entries[(hash % entries.len() as u64) as usize] as usize,
        }
    }
}

/// One endpoint's walk through the table.
struct Walk {
    next: u64,
    skip: u64,
}

fn fill(names: &[String], size: u32) -> Option<Vec<u32>> {
    /// No endpoint has this position.
    const FREE: u32 = u32::MAX;
    let count = u32::try_from(names.len()).ok()?;
    if names.is_empty() {
        return None;
    }
    let size = u64::from(size);
    let mut walks: Vec<Walk> = names
        .iter()
        .map(|name| Walk {
            next: stable(&[b"offset", name.as_bytes()]) % size,
            skip: stable(&[b"skip", name.as_bytes()]) % (size - 1) + 1,
        })
        .collect();
    let mut entries = vec![FREE; size as usize];
    let mut left = entries.len();
    // In turn, each takes the next place of its walk that is free.
    for at in (0..count).cycle() {
        if left == 0 {
            break;
        }
        let walk = &mut walks[at as usize];
        loop {
            let entry = &mut entries[walk.next as usize];
            walk.next = (walk.next + walk.skip) % size;
            if *entry == FREE {
                *entry = at;
                break;
            }
        }
        left -= 1;
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::Maglev;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|at| format!("10.0.0.{at}:80")).collect()
    }

    #[test]
    fn shares_are_equal_and_move_little() {
        const SIZE: u32 = 65_537;
        let (ten, nine) = (names(10), names(9));
        let before = Maglev::new(&ten, SIZE).expect("there are endpoints");
        let after = Maglev::new(&nine, SIZE).expect("there are endpoints");
        let mut counts = [0; 10];
        let mut moved = 0;
        for hash in 0..u64::from(SIZE) {
            let at = before.at(hash);
            counts[at] += 1;
            moved += u32::from(at != 9 && after.at(hash) != at);
        }
        // Shares differ by one entry at most.
        assert!(
            counts.iter().all(|count| (6553..=6554).contains(count)),
            "{counts:?}"
        );
        assert!(moved < SIZE / 20, "{moved} moved that had no need");
    }

    #[test]
    fn small_tables_and_many_endpoints_have_an_answer() {
        assert!(Maglev::new(&[], 7).is_none());
        let two = Maglev::new(&names(2), 2).expect("there are endpoints");
        assert_ne!(two.at(0), two.at(1));
        let many = Maglev::new(&names(1000), 1009).expect("there are endpoints");
        let found: std::collections::BTreeSet<_> = (0..1009).map(|hash| many.at(hash)).collect();
        assert_eq!(found.len(), 1000);
        // More endpoints than entries: some have none.
        let few = Maglev::new(&names(5), 3).expect("there are endpoints");
        assert!((0..9).all(|hash| few.at(hash) < 5));
    }
}
