//! `GatewayClass` (Gateway API): which controller gateways of a class are for.

use super::Meta;
use crate::reader::Object;
use crate::report::Source;

/// The controller that classes of Cardinal name.
pub const CONTROLLER: &str = "cardinal.dev/gateway-controller";

/// A class.
pub(crate) struct ClassDraft {
    pub(crate) controller: String,
    /// Where it has parameters.
    pub(crate) parameters: Option<Source>,
}

impl ClassDraft {
    /// Whether gateways of this class are Cardinal's.
    pub(crate) fn is_ours(&self) -> bool {
        self.controller == CONTROLLER
    }
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, _meta: &Meta) -> Option<ClassDraft> {
    let controller = spec
        .required("controllerName")
        .and_then(|field| field.some_string());
    let parameters = spec.optional("parametersRef");
    spec.ignored(&["description"]);
    Some(ClassDraft {
        controller: controller?.to_owned(),
        parameters: parameters.map(|field| field.source().clone()),
    })
}
