//! Names of parts of objects.

use std::fmt;
use std::sync::Arc;

use super::{DOTTED, NameError, ObjectName, check};
use crate::tree::shortened;

/// Name of a listener or of a rule (Gateway API, `SectionName`): a DNS subdomain of at most 253 characters. That of a
/// listener which a `ListenerSet` brings into its gateway is `namespace/set/name`, so that it is unique there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionName(Arc<str>);

impl SectionName {
    /// Checks and takes a name, as it is written.
    pub fn new(text: &str) -> Result<Self, NameError> {
        check(text, 253, true).map_err(|_| NameError {
            given: shortened(text),
            limit: 253,
            marks: DOTTED,
        })?;
        Ok(Self(text.into()))
    }

    /// Name in its gateway of a listener of a set.
    pub(crate) fn of_set(set: &ObjectName, listener: &Self) -> Self {
        Self(format!("{set}/{listener}").into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
