//! What tells an object from others that had or will have its name (`metadata.uid`).

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

/// The `uid` of an object. Kubernetes gives UUIDs and promises a text only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Uid(Form);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Form {
    /// One as it is usually written: there is one of each object that is known, and its text is longer than it is.
    Uuid(Uuid),
    /// Anything else.
    Text(Arc<str>),
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        let mut written = Uuid::encode_buffer();
        Self(match Uuid::try_parse(text) {
            Ok(uuid) if uuid.hyphenated().encode_lower(&mut written) == text => Form::Uuid(uuid),
            _ => Form::Text(text.into()),
        })
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Uuid(uuid) => fmt::Display::fmt(uuid, f),
            Form::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::{Form, Uid};

    #[test]
    fn a_uid_says_what_it_was_read_from() {
        for (text, number) in [
            ("0870005f-e45f-4261-a392-635a94d27d5e", true),
            ("00000000-0000-0000-0000-000000000000", true),
            ("ffffffff-ffff-ffff-ffff-ffffffffffff", true),
            // Nothing that would be written in another way.
            ("0870005F-e45f-4261-a392-635a94d27d5e", false),
            ("0870005fe-45f-4261-a392-635a94d27d5e", false),
            ("0870005fe45f4261a392635a94d27d5e----", false),
            ("0870005f-e45f-4261-a392-635a94d27d5", false),
            ("0870005f-e45f-4261-a392-635a94d27d5é", false),
            ("", false),
            ("u", false),
        ] {
            let uid = Uid::from(text);
            assert_eq!(uid.to_string(), text);
            assert_eq!(matches!(uid.0, Form::Uuid(_)), number, "{text}");
            assert_eq!(uid, Uid::from(text));
        }
        assert_ne!(
            Uid::from("0870005f-e45f-4261-a392-635a94d27d5e"),
            Uid::from("0870005f-e45f-4261-a392-635a94d27d5f")
        );
    }
}
