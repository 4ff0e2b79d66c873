//! Parameters of a query as a server reads them.

use std::borrow::Cow;

/// The first value of a parameter, decoded as forms are (WHATWG URL, section 5.1): `+` is a blank and
/// percent-encoding is taken away, from names too. An encoding that is broken stands for itself. So
/// no spelling of a value goes around a rule that asks for it.
pub fn first<'a>(query: Option<&'a str>, name: &str) -> Option<Cow<'a, [u8]>> {
    query?
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(given, _)| *decoded(given) == *name.as_bytes())
        .map(|(_, value)| decoded(value))
}

fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.bytes().any(|byte| byte == b'%' || byte == b'+') {
        return text.as_bytes().into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => match hexadecimal(behind) {
                Some(value) => {
                    rest = &behind[2..];
                    value
                }
                None => b'%',
            },
            other => *other,
        });
    }
    bytes.into()
}

fn hexadecimal(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
    u8::try_from(digit(0)? << 4 | digit(1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::first;

    #[test]
    fn parameters_are_found_by_name_and_decoded() {
        for (query, name, expected) in [
            ("a=1&b=2", "b", Some("2")),
            ("a=1&a=2", "a", Some("1")),
            ("A=1", "a", None),
            ("a", "a", Some("")),
            ("a=b=c", "a", Some("b=c")),
            ("%61=%62+c%2B", "a", Some("b c+")),
            ("a=%zz%4", "a", Some("%zz%4")),
            ("&&=x&a=1", "a", Some("1")),
            ("", "a", None),
            ("ab=1", "a", None),
        ] {
            let found = first(Some(query), name);
            assert_eq!(
                found.as_deref(),
                expected.map(str::as_bytes),
                "{query} {name}"
            );
        }
        assert_eq!(first(None, "a"), None);
    }
}
