//! Weights as an alias table: a column for each backend, all of one width, each with room for at most one other.

use agent_common::Choice;

/// The columns of backends, which are (index in `backends`, weight). Weights are above 0. The same input gives the same
/// columns, and column n belongs to backend n.
pub(super) fn columns(backends: &[(u32, u32)]) -> Vec<Choice> {
    let width: u64 = backends.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let count = backends.len() as u64;
    let mut columns: Vec<Choice> = backends
        .iter()
        .map(|(index, _)| Choice::new(*index, *index, u32::MAX))
        .collect();
    // What is left of each backend's share, in units in which a column is `width` wide. It fits: fewer than 2^32
    // backends with a weight below 2^32 each.
    let mut shares: Vec<u64> = backends
        .iter()
        .map(|(_, weight)| u64::from(*weight) * count)
        .collect();
    let (mut short, mut long): (Vec<usize>, Vec<usize>) =
        (0..backends.len()).partition(|&n| shares[n] < width);
    while let (Some(poor), Some(rich)) = (short.pop(), long.pop()) {
        let own = shares[poor];
        // Below 2^32, as the share is below the width.
        let threshold = u32::try_from((u128::from(own) << 32) / u128::from(width));
        columns[poor] = Choice::new(
            backends[poor].0,
            backends[rich].0,
            threshold.unwrap_or(u32::MAX),
        );
        shares[rich] -= width - own;
        match shares[rich] < width {
            true => short.push(rich),
            false => long.push(rich),
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much of 2^32 numbers in each column leads to each backend.
    fn shares(columns: &[Choice], backends: &[(u32, u32)]) -> Vec<f64> {
        backends
            .iter()
            .map(|(index, _)| {
                let mut sum = 0.0;
                for column in columns {
                    // A threshold is where the answer changes; found by halving.
                    let (mut low, mut high) = (0u64, 1 << 32);
                    while low < high {
                        let middle = (low + high) / 2;
                        let number = u32::try_from(middle).expect("below 2^32");
                        match column.backend(number) == column.own() {
                            true => low = middle + 1,
                            false => high = middle,
                        }
                    }
                    let own = low as f64 / 2f64.powi(32);
                    let other = column.backend(u32::MAX);
                    sum += match (column.own() == *index, other == *index) {
                        (true, true) => 1.0,
                        (true, false) => own,
                        (false, true) => 1.0 - own,
                        (false, false) => 0.0,
                    };
                }
                sum / columns.len() as f64
            })
            .collect()
    }

    #[test]
    fn shares_are_the_weights() {
        for weights in [
            vec![1],
            vec![1, 1, 1],
            vec![1, 3],
            vec![5, 1, 1, 1],
            vec![u32::MAX, 1, u32::MAX / 2],
            (1..=200).collect(),
        ] {
            let backends: Vec<(u32, u32)> = (100..).zip(weights.iter().copied()).collect();
            let columns = columns(&backends);
            assert_eq!(columns.len(), backends.len());
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            for (n, (share, weight)) in shares(&columns, &backends).iter().zip(&weights).enumerate()
            {
                assert_eq!(columns[n].own(), backends[n].0);
                let expected = f64::from(*weight) / total;
                assert!(
                    (share - expected).abs() < 1e-6,
                    "{weights:?}, backend {n}: {share} for {expected}"
                );
            }
        }
        assert!(columns(&[]).is_empty());
    }
}
