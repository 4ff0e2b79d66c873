//! `Namespace`: what counts are its labels.

use super::Meta;
use super::labels::Labels;
use crate::reader::Object;

/// Labels of the namespace.
pub(crate) fn read(object: &mut Object<'_>, meta: &Meta) -> Option<Labels> {
    object.ignored(&["spec"]);
    Some(meta.labels.clone())
}
