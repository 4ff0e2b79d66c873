//! `ConfigMap`: texts and bytes by key, for documents that name one.

use std::collections::BTreeMap;

use super::Meta;
use super::secret::base64;
use crate::reader::Object;

/// Reads the fields of the document beside `metadata`.
pub(crate) fn read(object: &mut Object<'_>, _meta: &Meta) -> Option<BTreeMap<String, Vec<u8>>> {
    object.ignored(&["immutable"]);
    let mut values = BTreeMap::new();
    let mut complete = true;
    let data = object.optional("data").map(|field| field.entries());
    for (key, field) in data.unwrap_or_default() {
        match field.string() {
            Some(text) => {
                values.insert(key.to_owned(), text.as_bytes().to_vec());
            }
            None => complete = false,
        }
    }
    let binary = object.optional("binaryData").map(|field| field.entries());
    for (key, field) in binary.unwrap_or_default() {
        if values.contains_key(key) {
            field.mistake(format_args!("key `{key}` is in `data` already"));
            complete = false;
        } else if let Some(bytes) = base64(&field) {
            values.insert(key.to_owned(), bytes);
        } else {
            complete = false;
        }
    }
    complete.then_some(values)
}
