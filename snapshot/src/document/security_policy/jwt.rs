//! `spec.jwt`: providers of tokens.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::credentials::{cookie_name, own_header, query_name};
use crate::document::http_route::headers::header_name;
use crate::document::{jwks, name};
use crate::model::{ClaimHeader, CredentialPlace, JwtProvider, Leniency, Name, Tokens};
use crate::reader::{Field, Object};

/// Envoy Gateway: at most 16 providers and 8 audiences.
const MAX_PROVIDERS: usize = 16;
const MAX_AUDIENCES: usize = 8;

/// Places of one provider; each is looked at for every request.
const MAX_PLACES: usize = 16;

/// Names of providers, also of those that have mistakes, and what was read.
pub(super) fn read(field: &Field<'_>) -> (Vec<Name>, Option<Tokens>) {
    let Some(mut jwt) = field.object() else {
        return (Vec::new(), None);
    };
    let mut switch = |name| match jwt.optional(name) {
        Some(field) => Some((field.boolean()?, field)),
        None => None,
    };
    let optional = switch("optional");
    let fail_open = switch("failOpen");
    let leniency = match (&optional, &fail_open) {
        (Some((true, _)), Some((true, field))) => {
            field.mistake("expected either `optional` or `failOpen`, got both");
            Leniency::None
        }
        (Some((true, _)), _) => Leniency::Optional,
        (_, Some((true, _))) => Leniency::FailOpen,
        _ => Leniency::None,
    };
    let list = jwt.required("providers");
    jwt.finish();
    let mut names: Vec<Name> = Vec::new();
    let mut providers = Vec::new();
    let items = list
        .map(|field| field.some_limited_list(MAX_PROVIDERS))
        .unwrap_or_default();
    for item in &items {
        let Some(mut object) = item.object() else {
            continue;
        };
        let name_field = object.required("name");
        let name = name_field.as_ref().and_then(name);
        let provider = provider(&mut object, name.as_ref());
        object.finish();
        let (Some(name), Some(field)) = (name, name_field) else {
            continue;
        };
        if names.contains(&name) {
            field.mistake(format_args!("provider `{name}` is in the list already"));
            continue;
        }
        names.push(name);
        providers.extend(provider.map(Arc::new));
    }
    let complete = !providers.is_empty() && providers.len() == items.len();
    (
        names,
        complete.then_some(Tokens {
            providers,
            leniency,
        }),
    )
}

fn provider(object: &mut Object<'_>, name: Option<&Name>) -> Option<JwtProvider> {
    let declared = object.field().source().clone();
    let issuer = object
        .optional("issuer")
        .and_then(|field| field.some_string().map(str::to_owned));
    let audiences = match object.optional("audiences") {
        Some(field) => field
            .limited_list(MAX_AUDIENCES)
            .iter()
            .filter_map(|field| field.some_string().map(str::to_owned))
            .collect(),
        None => Vec::new(),
    };
    let places = match object.optional("extractFrom") {
        Some(field) => places(&field),
        None => Some(JwtProvider::usual_places()),
    };
    let claim_headers = claim_headers(object);
    let recompute_route = match object.optional("recomputeRoute") {
        Some(field) => {
            let recompute = field.boolean()?;
            if recompute && claim_headers.is_empty() {
                field.mistake("needs `claimToHeaders`: nothing else could change the route");
            }
            recompute
        }
        None => false,
    };
    let keys = jwks::key_source(object, jwks::RemoteOptions::Gateway);
    let (keys, algorithms) = jwks::agree(keys?, None, object)?;
    Some(JwtProvider {
        declared,
        name: name?.clone(),
        issuer,
        audiences,
        algorithms,
        keys,
        places: places?,
        claim_headers,
        recompute_route,
    })
}

/// `extractFrom` of a provider of tokens.
fn places(field: &Field<'_>) -> Option<Vec<CredentialPlace>> {
    let mut object = field.object()?;
    let mut places = Vec::new();
    for item in object.list("headers") {
        let Some(mut header) = item.object() else {
            continue;
        };
        let name = header
            .required("name")
            .and_then(|field| field.parse(header_name));
        let prefix = match header.optional("valuePrefix") {
            Some(field) => field.string().map(str::to_owned),
            None => Some(String::new()),
        };
        header.finish();
        if let (Some(name), Some(prefix)) = (name, prefix) {
            places.push(CredentialPlace::Header { name, prefix });
        }
    }
    let cookies = object.list("cookies");
    places.extend(cookies.iter().filter_map(cookie_name));
    let params = object.list("params");
    places.extend(params.iter().filter_map(query_name));
    object.finish();
    if !(1..=MAX_PLACES).contains(&places.len()) {
        field.mistake(format_args!(
            "expected 1 to {MAX_PLACES} `headers`, `cookies` and `params` together, got {}",
            places.len()
        ));
        return None;
    }
    Some(places)
}

fn claim_headers(object: &mut Object<'_>) -> Vec<ClaimHeader> {
    let mut seen = BTreeSet::new();
    let mut headers = Vec::new();
    for item in object.list("claimToHeaders") {
        let Some(mut entry) = item.object() else {
            continue;
        };
        let header = entry.required("header").and_then(|field| {
            let header = own_header(&field)?;
            if !seen.insert(header.clone()) {
                field.mistake(format_args!("header `{header}` is in the list already"));
                return None;
            }
            Some(header)
        });
        let claim = entry
            .required("claim")
            .and_then(|field| field.some_string().map(str::to_owned));
        entry.finish();
        if let (Some(header), Some(claim)) = (header, claim) {
            headers.push(ClaimHeader { header, claim });
        }
    }
    headers
}
