//! TCP connections that others opened to a pod and that are not assured yet, or are aborted.
//!
//! An array with a computed place for each: whoever floods a pod with openings overwrites other openings, which their openers
//! repeat, and costs the gate no more than others do. Elements are written without a lock, as those of an LRU hash are reused: two
//! CPUs at once may mix two values of the same layout and pod, each of which allowed its flow.

use agent_common::{FlowValue, Opening};

use crate::{maps::OPENINGS, verdict::Key};

/// An [`Opening`] in words. Zero in the last word of the key, which has the protocol, is nobody's.
#[repr(C)]
struct Place {
    key: [u64; 5],
    flow: FlowValue,
}
const _: () = assert!(size_of::<Place>() == size_of::<Opening>());

#[inline(always)]
fn place(slot: u32, key: &Key) -> Option<&'static mut Place> {
    let element = OPENINGS
        .get(slot)?
        .get_ptr_mut(Opening::place(key.words()))?;
    // SAFETY: the pointer is an element of the map, of the same bytes at the same places; any bytes are a value.
    Some(unsafe { &mut *element.cast::<Place>() })
}

impl Place {
    #[inline(always)]
    fn is_of(&self, key: &Key) -> bool {
        let (own, key) = (&self.key, key.words());
        // Ports and protocol differ most.
        own[4] == key[4]
            && own[3] == key[3]
            && own[1] == key[1]
            && own[2] == key[2]
            && own[0] == key[0]
    }
}

/// The flow of a key, if it is among a pod's openings.
#[inline(always)]
pub fn find(slot: u32, key: &Key) -> Option<&'static mut FlowValue> {
    let place = place(slot, key)?;
    if place.is_of(key) {
        Some(&mut place.flow)
    } else {
        None
    }
}

/// Puts a flow to its place; `false` if the pod has no openings.
#[inline(always)]
pub fn put(slot: u32, key: &Key, flow: &FlowValue) -> bool {
    let Some(place) = place(slot, key) else {
        return false;
    };
    place.key[4] = 0;
    place.flow = *flow;
    place.key = *key.words();
    true
}

/// Takes the flow of a key out of a pod's openings, if it is there.
#[inline(always)]
pub fn forget(slot: u32, key: &Key) {
    if let Some(place) = place(slot, key)
        && place.is_of(key)
    {
        place.key[4] = 0;
    }
}
