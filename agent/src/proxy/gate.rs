//! Which listener and which rule a request is for, and whether its caller may ask for that.

use std::net::SocketAddr;
use std::sync::Arc;

use snapshot::model::{Border, EndpointId, Gate, Origin, Upstream, UpstreamHost};
use snapshot::path::CanonicalPath;

use super::exchange::Exchange;
use super::inbound::Inbound;
use super::log::Reason;
use super::request::Stage;
use super::respond::Refusal;
use crate::route::cors;
use crate::route::matching::Subject;
use crate::route::{
    Caller, HostRules, Listener, Matched, RouteRule, RouteTable, RouteUpstream, Steered,
    TargetKind, Wire,
};

/// The listener of a request by its host; under TLS the server name must lead to the same one.
pub(super) fn listener<'a>(
    stage: &Stage<'a>,
    exchange: &mut Exchange,
    inbound: &Inbound,
) -> Result<&'a Arc<Listener>, Refusal> {
    let none = || Refusal::new(Reason::NoListener, "no listener takes this host");
    let bind = stage.table.bind(stage.conn.local).ok_or_else(none)?;
    let wire = if stage.conn.tls {
        Wire::Tls
    } else {
        Wire::Http
    };
    if bind.wire != wire {
        // The connection was accepted before the port changed to, or from, TLS or TCP.
        return Err(Refusal::new(
            Reason::Misdirected,
            "the listener's protocol is no longer that of this connection",
        ));
    }
    let by_host = bind.listener(&inbound.normal.host);
    if stage.conn.tls {
        let by_name = match &stage.conn.sni {
            Some(name) => bind.listener(name),
            None => bind.default_listener(),
        };
        let same = by_name.map(|one| &one.name) == by_host.map(|one| &one.name);
        if !same {
            return Err(Refusal::new(
                Reason::Misdirected,
                format!(
                    "server name {} and host {} belong to two listeners",
                    stage.conn.sni.as_deref().unwrap_or("none"),
                    inbound.normal.host
                ),
            ));
        }
    }
    let listener = by_host.ok_or_else(none)?;
    exchange.listener(&listener.name);
    if stage.conn.clients != listener.clients {
        // Who the client is was asked when it connected, and not as it is asked now.
        return Err(Refusal::new(
            Reason::Misdirected,
            "the listener asks for another certificate than this connection was made with",
        ));
    }
    Ok(listener)
}

/// The rule of a request. A preflight asks about another request: if the rule of that one has permissions
/// to give, it answers, whatever method it takes itself.
pub(super) fn find<'a>(rules: &'a HostRules, inbound: &Inbound) -> Option<Matched<'a>> {
    let subject = inbound.subject();
    let asked = cors::preflight(&inbound.parts.method, &inbound.parts.headers);
    asked
        .and_then(|method| {
            rules.find(Subject {
                method: &method,
                ..subject
            })
        })
        .filter(|matched| matched.rule.filters.cors.is_some())
        .or_else(|| rules.find(subject))
}

pub(super) fn note(exchange: &mut Exchange, matched: &Matched<'_>) {
    exchange.record.route = Some(Arc::clone(&matched.rule.route));
    exchange.record.rule = Some(matched.rule.index);
    exchange.record.cell.clone_from(&matched.rule.cell);
}

/// Whether a component may use a gate: the north one never; the west one for endpoints that it
/// declared, and those of its own cell if that is open. Clients that are no component pass by the
/// route's rules, and so do components of a cell that declares nothing about its egress.
pub(super) fn admit(
    table: &RouteTable,
    caller: Option<&Arc<Caller>>,
    listener: &Listener,
    rule: &RouteRule,
) -> Result<(), Refusal> {
    let Some(caller) = caller.filter(|caller| caller.egress == Border::Declared) else {
        return Ok(());
    };
    if listener.gate == Some(Gate::External) {
        return Err(Refusal::new(
            Reason::NorthFromCell,
            format!("component {} came to the north gate", caller.name),
        ));
    }
    let undeclared = || {
        let detail = format!(
            "{} leads {} to what no cell declares",
            rule.route, caller.name
        );
        Refusal::new(Reason::EastNotDeclared, detail)
    };
    match &rule.origin {
        Origin::Endpoint { endpoint, .. } => declared(caller, endpoint),
        Origin::Document if listener.gate.is_none() => Ok(()),
        // A route of a document on the west gate: what it leads to has to be declared all the same.
        Origin::Document => rule
            .destinations()
            .try_for_each(|target| match &target.kind {
                TargetKind::Endpoint { endpoint, .. } => declared(caller, endpoint),
                TargetKind::Upstreams(list) => match behind(table, list) {
                    Some(endpoints) => endpoints
                        .into_iter()
                        .try_for_each(|endpoint| declared(caller, endpoint)),
                    None => Err(undeclared()),
                },
                _ => Err(undeclared()),
            }),
    }
}

/// The endpoints of cells of labels that a backend consists of; none: of something else too.
fn behind<'a>(table: &'a RouteTable, list: &[RouteUpstream]) -> Option<Vec<&'a EndpointId>> {
    let one = |one: &RouteUpstream| match &one.upstream {
        Upstream::Tcp {
            host: UpstreamHost::Address(address),
            port,
            ..
        } => table.labelled.get(&SocketAddr::new(*address, port.get())),
        _ => None,
    };
    list.iter().map(one).collect()
}

pub(super) fn declared(caller: &Caller, endpoint: &EndpointId) -> Result<(), Refusal> {
    if caller.may_call(endpoint) {
        return Ok(());
    }
    Err(Refusal::new(
        Reason::EastNotDeclared,
        format!("{} did not declare a call to {endpoint}", caller.name),
    ))
}

pub(super) fn prefixed(steered: &Steered, path: &CanonicalPath) -> Result<CanonicalPath, Refusal> {
    CanonicalPath::new(&format!("{}{path}", steered.prefix))
        .map_err(|error| Refusal::new(Reason::Rewrite, error.to_string()))
}
