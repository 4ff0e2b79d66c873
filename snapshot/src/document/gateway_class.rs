//! `GatewayClass` (Gateway API): which controller gateways of a class are for.

use super::{CARDINAL, Meta, group};
use crate::reader::{Field, Object};

/// The controller that classes of Cardinal name.
pub const CONTROLLER: &str = "cardinal.dev/gateway-controller";

/// A class.
pub(crate) struct ClassDraft {
    pub(crate) controller: String,
    /// The parameters that it names.
    pub(crate) parameters: Option<ParametersDraft>,
}

/// Parameters of a class: the `Platform` that says where addresses of its gateways are from, or something else.
pub(crate) struct ParametersDraft {
    /// The platform's name; none: something else.
    pub(crate) platform: Option<String>,
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
    let parameters = spec
        .optional("parametersRef")
        .map(|field| parameters(&field));
    spec.ignored(&["description"]);
    Some(ClassDraft {
        controller: controller?.to_owned(),
        parameters,
    })
}

fn parameters(field: &Field<'_>) -> ParametersDraft {
    let text = |name| field.value().get(name).and_then(|node| node.value.text());
    let ours = text("group") == Some(group(CARDINAL)) && text("kind") == Some("Platform");
    ParametersDraft {
        platform: text("name").filter(|_| ours).map(str::to_owned),
    }
}
