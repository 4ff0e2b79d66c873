//! What stays for as long as an object is there, in little memory: there may be thousands of it, and each object that is read
//! leaves some.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

/// Texts that a thread remembers at most.
const TEXTS: usize = 4_096;

/// A list without room for more items.
///
/// It is moved to a place of its own size: asked to give back a part of its place, an allocator keeps what is less than half of it.
pub fn exact<T>(list: Vec<T>) -> Vec<T> {
    if list.len() == list.capacity() {
        return list;
    }
    let mut exact = Vec::with_capacity(list.len());
    exact.extend(list);
    exact
}

thread_local! {
    static KNOWN: RefCell<HashSet<Arc<str>>> = RefCell::default();
}

/// A text that many objects have, such as a namespace or the path of a field: one place for all of them.
pub fn common(text: &str) -> Arc<str> {
    KNOWN.with_borrow_mut(|known| {
        if let Some(known) = known.get(text) {
            return Arc::clone(known);
        }
        if known.len() >= TEXTS {
            // Of those that nobody else has any more some are there by now; if not, what is remembered is not common.
            known.retain(|text| Arc::strong_count(text) > 1);
            if known.len() >= TEXTS {
                known.clear();
            }
        }
        let text: Arc<str> = text.into();
        known.insert(Arc::clone(&text));
        text
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{TEXTS, common, exact};

    #[test]
    fn an_exact_list_has_the_same_items_and_no_room() {
        let mut list = Vec::with_capacity(16);
        list.extend([1, 2, 3]);
        let exact = exact(list);
        assert_eq!((exact.as_slice(), exact.capacity()), (&[1, 2, 3][..], 3));
    }

    #[test]
    fn common_texts_have_one_place_and_do_not_pile_up() {
        let first = common("shop");
        assert!(Arc::ptr_eq(&first, &common("shop")));
        let weak = Arc::downgrade(&common("passing"));
        for number in 0..2 * TEXTS {
            assert_eq!(&*common(&number.to_string()), number.to_string());
        }
        assert_eq!(weak.upgrade(), None, "nobody has it any more");
        assert!(
            Arc::ptr_eq(&first, &common("shop")),
            "somebody has it still"
        );
    }
}
