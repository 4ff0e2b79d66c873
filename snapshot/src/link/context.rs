//! What all linkers look things up in.

use super::authorities::Holders;
use super::collect::Taking;
use super::grants::{Grants, Namespaces};
use crate::reader::Sink;
use crate::status::{Condition, ConditionKind, Reason};

/// The surroundings of a reference.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) taking: Taking,
    pub(super) grants: &'a Grants,
    pub(super) namespaces: &'a Namespaces,
    pub(super) holders: &'a Holders<'a>,
    pub(super) sink: &'a Sink,
}

/// Why something is not as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reason: Reason,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// A condition that holds for `usual` unless there is a fault.
pub(super) fn condition(kind: ConditionKind, usual: Reason, fault: Option<&Fault>) -> Condition {
    match fault {
        None => Condition::holds(kind, usual, ""),
        Some(fault) => Condition::fails(kind, fault.reason, &fault.message),
    }
}
