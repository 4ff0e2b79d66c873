//! Names and values of headers.

use crate::reader::{Object, quoted};

pub(super) fn header(object: &mut Object<'_>) -> Option<(String, String)> {
    let name = object
        .required("name")
        .and_then(|field| field.parse(header_name));
    let value = object
        .required("value")
        .and_then(|field| field.parse(header_value));
    Some((name?, value?))
}

/// A header's name in lower case (RFC 9110, section 5.1).
pub(crate) fn header_name(text: &str) -> Result<String, String> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || text.len() > 256 || !text.bytes().all(token) {
        return Err(format!(
            "expected the name of a header, got {}",
            quoted(text)
        ));
    }
    Ok(text.to_ascii_lowercase())
}

/// A header's value (RFC 9110, section 5.5), ASCII.
pub(crate) fn header_value(text: &str) -> Result<String, String> {
    let valid = text
        .bytes()
        .all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\t');
    if !valid || text.trim() != text || text.len() > 4096 {
        return Err(format!(
            "expected the value of a header: printable ASCII without blanks around it, got {}",
            quoted(text)
        ));
    }
    Ok(text.to_owned())
}
