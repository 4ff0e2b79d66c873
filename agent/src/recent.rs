//! The last few records of something, numbered, for readers that come by now and then, and for readers that stay.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::broadcast;

/// A bounded log: the oldest record makes room for the newest.
///
/// Writers hold the lock for one push; nothing on a request's or packet's path waits for a reader, who
/// copies out at most the log's capacity.
#[derive(Debug)]
pub struct Recent<T> {
    capacity: usize,
    inner: Mutex<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    next: u64,
    records: VecDeque<T>,
    /// To readers that stay. Each has as much room as the log; one that is slower loses records and is told how many. The room
    /// is made for the first of them and goes with the last: there may never be one.
    readers: Option<broadcast::Sender<Numbered<T>>>,
}

/// A record with its number.
#[derive(Clone, Debug, Serialize)]
pub struct Numbered<T> {
    /// Counts up from 1 since the agent started; a gap means that records were dropped.
    pub seq: u64,
    /// The record.
    #[serde(flatten)]
    pub record: T,
}

impl<T: Clone> Recent<T> {
    /// An empty log that keeps `capacity` records.
    pub fn new(capacity: usize) -> Self {
        let inner = Inner {
            next: 1,
            records: VecDeque::new(),
            readers: None,
        };
        Self {
            capacity,
            inner: Mutex::new(inner),
        }
    }

    /// Adds a record.
    pub fn push(&self, record: T) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.records.len() == self.capacity {
            inner.records.pop_front();
        }
        if let Some(readers) = &inner.readers {
            let numbered = Numbered {
                seq: inner.next,
                record: record.clone(),
            };
            // Sent under the lock, so that readers get the numbers in order.
            if readers.send(numbered).is_err() {
                inner.readers = None;
            }
        }
        inner.records.push_back(record);
        inner.next += 1;
    }

    /// The last `count` records, and all that come after them.
    pub fn follow(&self, count: usize) -> (Vec<Numbered<T>>, broadcast::Receiver<Numbered<T>>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = inner
            .readers
            .get_or_insert_with(|| broadcast::Sender::new(self.capacity))
            .subscribe();
        let skipped = inner.records.len().saturating_sub(count);
        let first = inner.next - inner.records.len() as u64;
        let records = (first..)
            .zip(&inner.records)
            .skip(skipped)
            .map(|(seq, record)| Numbered {
                seq,
                record: record.clone(),
            })
            .collect();
        (records, receiver)
    }

    /// The records from number `seq` on, as far as they are still there, and the number of the next one.
    pub fn since(&self, seq: u64) -> (u64, Vec<Numbered<T>>) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let first = inner.next - inner.records.len() as u64;
        let records = (first..)
            .zip(&inner.records)
            .filter(|(number, _)| *number >= seq)
            .map(|(seq, record)| Numbered {
                seq,
                record: record.clone(),
            })
            .collect();
        (inner.next, records)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::error::TryRecvError;

    use super::Recent;

    #[test]
    fn old_records_make_room_and_numbers_go_on() {
        let recent = Recent::new(3);
        for value in 0..5 {
            recent.push(value);
        }
        let (next, records) = recent.since(0);
        assert_eq!(next, 6);
        let seen: Vec<_> = records
            .iter()
            .map(|entry| (entry.seq, entry.record))
            .collect();
        assert_eq!(seen, [(3, 2), (4, 3), (5, 4)]);
        assert_eq!(recent.since(5).1.len(), 1);
        assert!(recent.since(6).1.is_empty());
    }

    #[test]
    fn a_reader_that_stays_misses_nothing_or_is_told_how_much() {
        let recent = Recent::new(4);
        recent.push('a');
        recent.push('b');
        let (before, mut reader) = recent.follow(1);
        assert_eq!((before[0].seq, before[0].record), (2, 'b'));
        recent.push('c');
        let next = reader.try_recv().expect("a record");
        assert_eq!((next.seq, next.record), (3, 'c'));
        for record in ['d', 'e', 'f', 'g', 'h', 'i'] {
            recent.push(record);
        }
        match reader.try_recv() {
            Err(TryRecvError::Lagged(lost)) => assert_eq!(lost, 2),
            other => panic!("{other:?}"),
        }
        assert_eq!(reader.try_recv().expect("a record").record, 'f');
    }
}
