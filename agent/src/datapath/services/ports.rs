//! The ports that the hooks look further at.

use std::collections::BTreeMap;

use agent_common::Ports;

use super::super::error::Error;
use super::super::mapped::Mapped;
use super::book::Writes;

/// What has to be noted before this is written: elements of the map `ports` by their index.
pub(super) fn of(writes: &Writes) -> BTreeMap<u32, Ports> {
    let mut all: BTreeMap<u32, Ports> = BTreeMap::new();
    for (key, _) in &writes.entries {
        let (index, bit) = Ports::place(key.port());
        all.entry(index).or_default().add_service(bit);
    }
    for (_, backend) in &writes.backends {
        let (index, bit) = Ports::place(backend.port());
        all.entry(index).or_default().add_backend(bit);
    }
    all
}

/// Notes ports beside those that are noted already. Gives the number of elements that lacked one.
///
/// # Errors
///
/// When the kernel refuses, and when the map is too short, which no map of this layout is.
pub(super) fn note(map: &mut Mapped<Ports>, wanted: &BTreeMap<u32, Ports>) -> Result<usize, Error> {
    let mut missing = 0;
    for (index, ports) in wanted {
        let noted = map.get(*index)?;
        let noted = noted.ok_or(Error::Contradiction { map: "ports" })?;
        let both = noted.with(*ports);
        if both != noted {
            missing += 1;
            map.set(*index, both)?;
        }
    }
    Ok(missing)
}
