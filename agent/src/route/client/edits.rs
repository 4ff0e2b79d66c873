//! Edits of all messages of a listener: by how names look, by name, and of what is not there.

use http::{HeaderMap, HeaderName, HeaderValue};
use snapshot::model::MessageEdits;

use crate::route::Edits;

/// Ready to be applied.
#[derive(Debug, Default)]
pub struct ListenerEdits {
    said: MessageEdits,
    edits: Edits,
    absent: Vec<(HeaderName, HeaderValue)>,
}

impl ListenerEdits {
    /// Joins what a policy says with what was made of its headers.
    pub(crate) fn new(
        said: &MessageEdits,
        edits: Edits,
        absent: Vec<(HeaderName, HeaderValue)>,
    ) -> Self {
        Self {
            said: said.clone(),
            edits,
            absent,
        }
    }

    /// Applies the edits.
    pub fn apply(&self, headers: &mut HeaderMap) {
        if !self.said.remove_matching.is_empty() {
            let names = headers.keys();
            let names = names.filter(|name| self.said.removes(name.as_str()));
            let names: Vec<HeaderName> = names.cloned().collect();
            for name in names {
                headers.remove(name);
            }
        }
        self.edits.apply(headers);
        for (name, value) in &self.absent {
            if !headers.contains_key(name) {
                headers.insert(name.clone(), value.clone());
            }
        }
    }
}
