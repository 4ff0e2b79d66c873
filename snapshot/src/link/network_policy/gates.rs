//! Gates as network policies know them: policies are written for gateways that are pods, so each gate is taken for a pod of its
//! gateway, in the gateway's namespace and with the labels that such pods have.

use crate::document::Table;
use crate::document::gateway::GatewayDraft;
use crate::document::labels::Labels;
use crate::model::{Gate, GateRef, ObjectName, Platform};

/// The Gateway API's label of what is made for a gateway (GEP-1762).
const NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Those that Envoy Gateway puts on its pods.
const OWNING_NAME: &str = "gateway.envoyproxy.io/owning-gateway-name";
const OWNING_NAMESPACE: &str = "gateway.envoyproxy.io/owning-gateway-namespace";
/// The one that OpenChoreo puts on pods of a data plane's gateways; its policies ask only whether it is there.
const SYSTEM_COMPONENT: &str = "openchoreo.dev/system-component";

/// A gate in the form of a pod.
pub(super) struct GatePod<'a> {
    pub(super) gate: Gate,
    pub(super) namespace: &'a str,
    pub(super) labels: Labels,
}

/// The gates of the platform.
pub(super) fn of<'a>(platform: &'a Platform, gateways: &Table<GatewayDraft>) -> Vec<GatePod<'a>> {
    let external = platform.external.iter().map(|gate| (Gate::External, gate));
    let internal = platform.internal.iter().map(|gate| (Gate::Internal, gate));
    let gates = external.chain(internal);
    gates
        .map(|(gate, GateRef { gateway, .. })| GatePod {
            gate,
            namespace: gateway.namespace(),
            labels: labels(gateway, gateways),
        })
        .collect()
}

fn labels(gateway: &ObjectName, gateways: &Table<GatewayDraft>) -> Labels {
    let draft = gateways
        .get(gateway)
        .and_then(|(_, draft)| draft.as_deref());
    let given: Labels = draft
        .into_iter()
        .flat_map(|draft| &draft.infrastructure.labels)
        .collect();
    given.with([
        (NAME, gateway.name()),
        (OWNING_NAME, gateway.name()),
        (OWNING_NAMESPACE, gateway.namespace()),
        (SYSTEM_COMPONENT, "gateway"),
    ])
}
