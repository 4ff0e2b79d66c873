//! `spec.authorization`: rules in order.

use std::collections::BTreeSet;

use crate::document::addresses::network;
use crate::document::cell::scope;
use crate::document::http_route::headers::header_name;
use crate::document::name;
use crate::document::string_match::string_match;
use crate::model::{
    AuthRule, Authorization, Cidr, ClaimRequirement, ClaimShape, Decision, HeaderRequirement, Name,
    ScopeClaims, StringMatch, TokenRequirement,
};
use crate::reader::{Field, Object};

const DECISIONS: [(&str, Decision); 2] = [("Allow", Decision::Allow), ("Deny", Decision::Deny)];

/// Methods that a rule may name (RFC 9110, section 9; RFC 5789).
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];

/// `providers`: names of the token providers; none: the policy has no `jwt`.
pub(super) fn read(field: &Field<'_>, providers: Option<&[Name]>) -> Option<Authorization> {
    let mut object = field.object()?;
    let default = match object.optional("defaultAction") {
        Some(field) => field.choice(&DECISIONS),
        None => Some(Decision::Deny),
    };
    let mut names = BTreeSet::new();
    let mut rules = Vec::new();
    let items = object.list("rules");
    for item in &items {
        let Some(mut rule) = item.object() else {
            continue;
        };
        if let Some(field) = rule.optional("name")
            && let Some(name) = field.some_string()
            && !names.insert(name)
        {
            field.mistake("a rule before has this name");
        }
        let decision = rule
            .required("action")
            .and_then(|field| field.choice(&DECISIONS));
        rule.unsupported(&["cel", "when"]);
        let operation = rule.optional("operation");
        let principal = if operation.is_some() {
            rule.optional("principal")
        } else {
            rule.required("principal")
        };
        rule.finish();
        let (methods, path) = match &operation {
            Some(field) => match self::operation(field) {
                Some(read) => read,
                None => continue,
            },
            None => (Vec::new(), None),
        };
        let principal = match &principal {
            Some(field) => match self::principal(field, providers) {
                Some(read) => read,
                None => continue,
            },
            None => Principal::default(),
        };
        if let Some(decision) = decision {
            rules.push(AuthRule {
                decision,
                methods,
                path,
                clients: principal.clients,
                headers: principal.headers,
                token: principal.token,
            });
        }
    }
    object.finish();
    // With one rule less another would decide.
    (rules.len() == items.len()).then_some(Authorization {
        rules,
        default: default?,
    })
}

/// Methods and path of a rule.
fn operation(field: &Field<'_>) -> Option<(Vec<String>, Option<StringMatch>)> {
    let mut object = field.object()?;
    let choices: Vec<_> = METHODS.iter().map(|method| (*method, *method)).collect();
    let methods: Vec<String> = match object.optional("methods") {
        Some(field) => field
            .some_list()
            .iter()
            .map(|field| field.choice(&choices).map(str::to_owned))
            .collect::<Option<_>>()?,
        None => Vec::new(),
    };
    let path = object.optional("path");
    object.finish();
    let path = match path {
        Some(field) => Some(string_match(&field)?),
        None => None,
    };
    if methods.is_empty() && path.is_none() {
        field.mistake("expected `methods`, `path` or both");
        return None;
    }
    Some((methods, path))
}

#[derive(Default)]
struct Principal {
    clients: Vec<Cidr>,
    headers: Vec<HeaderRequirement>,
    token: Option<TokenRequirement>,
}

fn principal(field: &Field<'_>, providers: Option<&[Name]>) -> Option<Principal> {
    let mut object = field.object()?;
    object.unsupported(&["sourceCIDR", "sourceCIDRs", "clientIPGeoLocations"]);
    let clients = object.optional("clientCIDRs");
    let headers = object.optional("headers");
    let jwt = object.optional("jwt");
    object.finish();
    if clients.is_none() && headers.is_none() && jwt.is_none() {
        field.mistake("expected at least one of `clientCIDRs`, `headers` and `jwt`");
        return None;
    }
    let clients = match clients {
        Some(field) => field
            .some_list()
            .iter()
            .map(network)
            .collect::<Option<Vec<_>>>()?,
        None => Vec::new(),
    };
    let headers = match headers {
        Some(field) => field
            .some_list()
            .iter()
            .map(header)
            .collect::<Option<Vec<_>>>()?,
        None => Vec::new(),
    };
    let token = match jwt {
        Some(field) => Some(token(&field, providers)?),
        None => None,
    };
    Some(Principal {
        clients,
        headers,
        token,
    })
}

fn header(field: &Field<'_>) -> Option<HeaderRequirement> {
    let mut object = field.object()?;
    let name = object
        .required("name")
        .and_then(|field| field.parse(header_name));
    let values = texts(&mut object, "values");
    object.finish();
    Some(HeaderRequirement {
        name: name?,
        values: values?,
    })
}

fn texts(object: &mut Object<'_>, name: &'static str) -> Option<Vec<String>> {
    let list = object.required(name)?.some_list();
    list.iter()
        .map(|field| field.some_string().map(str::to_owned))
        .collect()
}

fn token(field: &Field<'_>, providers: Option<&[Name]>) -> Option<TokenRequirement> {
    let Some(providers) = providers else {
        field.mistake("needs `spec.jwt`: without providers no token is read");
        return None;
    };
    let mut jwt = field.object()?;
    let provider = jwt.required("provider").and_then(|field| {
        let name = name(&field)?;
        if !providers.contains(&name) {
            field.mistake(format_args!("no provider `{name}` in `jwt.providers`"));
            return None;
        }
        Some(name)
    });
    let scopes: Option<Vec<String>> = jwt.list("scopes").iter().map(scope).collect();
    let claims: Option<Vec<ClaimRequirement>> = jwt.list("claims").iter().map(claim).collect();
    jwt.finish();
    Some(TokenRequirement {
        provider: provider?,
        scopes: scopes?,
        scope_claims: ScopeClaims::ScopeAndScp,
        claims: claims?,
    })
}

fn claim(field: &Field<'_>) -> Option<ClaimRequirement> {
    let mut object = field.object()?;
    let name = object
        .required("name")
        .and_then(|field| field.some_string().map(str::to_owned));
    let shape = match object.optional("valueType") {
        Some(field) => field.choice(&[
            ("String", ClaimShape::Text),
            ("StringArray", ClaimShape::List),
        ]),
        None => Some(ClaimShape::Text),
    };
    let values = texts(&mut object, "values");
    object.finish();
    Some(ClaimRequirement {
        name: name?,
        shape: shape?,
        values: values?,
    })
}
