//! Who may reach an endpoint from outside of its cell, and for which operations.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::document::name;
use crate::document::template::{Parameters, Template};
use crate::model::{ClaimRequirement, ClaimShape, Name, Operation};
use crate::reader::{Field, Object};
use crate::report::Source;

#[derive(Default)]
pub(super) struct Visibility {
    pub(super) public: Option<Section>,
    pub(super) organization: Option<Section>,
}

pub(super) enum Section {
    /// `enabled: false`.
    Off,
    On(ExposureSection),
}

pub(super) struct ExposureSection {
    pub(super) source: Source,
    pub(super) provider: Option<(Name, Source)>,
    pub(super) operations: Vec<(Operation, Template)>,
}

fn section(field: &Field<'_>, layer4: bool) -> Option<Section> {
    let mut object = field.object()?;
    let enabled = match object.optional("enabled") {
        Some(field) => field.boolean(),
        None => Some(true),
    };
    if layer4 {
        object.refused(
            &["jwt", "operations"],
            "a TCP or UDP endpoint has no requests to check; expected no such field",
        );
    }
    let jwt = object.optional("jwt");
    let provider = jwt.as_ref().map(|field| {
        let mut object = field.object()?;
        let provider = object.required("provider");
        object.finish();
        let provider = provider?;
        Some((name(&provider)?, provider.source().clone()))
    });
    let items = object.optional("operations");
    if let Some(items) = &items
        && jwt.is_none()
        && !layer4
    {
        items.mistake("operations need `jwt` beside them: without a token nobody has scopes");
    }
    let mut seen: BTreeMap<(String, String), Arc<str>> = BTreeMap::new();
    let mut operations = Vec::new();
    let items = items.map(|field| field.some_limited_list(MAX_OPERATIONS));
    for item in items.unwrap_or_default() {
        let Some((operation, template)) = operation(&item) else {
            continue;
        };
        // Two spellings of one template are one operation: names of parameters say nothing.
        let key = (operation.method.clone(), anonymous(&template));
        if let Some(first) = seen.get(&key) {
            item.mistake(format_args!(
                "operation {} {} is in {first} already",
                operation.method, operation.path
            ));
            continue;
        }
        seen.insert(key, item.source().field.clone());
        operations.push((operation, template));
    }
    object.finish();
    if !enabled? {
        return Some(Section::Off);
    }
    let provider = match provider {
        Some(provider) => Some(provider?),
        None => None,
    };
    Some(Section::On(ExposureSection {
        source: field.source().clone(),
        provider,
        operations,
    }))
}

/// A template with parameters without their names and without a trailing slash.
fn anonymous(template: &Template) -> String {
    let mut text = String::new();
    let mut rest = template.path.without_slash();
    while let Some((front, behind)) = rest.split_once('{') {
        text.push_str(front);
        text.push_str("{}");
        rest = behind.split_once('}').map_or("", |(_, rest)| rest);
    }
    text.push_str(rest);
    text
}

/// Operations of one visibility: each is a compiled pattern.
const MAX_OPERATIONS: usize = 1000;

/// Methods of operations (RFC 9110, section 9; RFC 5789). `CONNECT` and `TRACE` are for proxies.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

fn operation(field: &Field<'_>) -> Option<(Operation, Template)> {
    let mut object = field.object()?;
    let choices: Vec<_> = METHODS.iter().map(|method| (*method, *method)).collect();
    let method = object
        .required("method")
        .and_then(|field| field.choice(&choices));
    let template = object
        .required("path")
        .and_then(|field| field.parse(|text| Template::new(text, Parameters::Allowed)));
    let scopes = object.list("scopes").iter().filter_map(scope).collect();
    let claims = object
        .optional("claims")
        .map(|field| field.entries())
        .unwrap_or_default()
        .into_iter()
        .map(|(name, values)| ClaimRequirement {
            name: name.to_owned(),
            shape: ClaimShape::Either,
            values: values
                .some_list()
                .iter()
                .filter_map(|field| field.some_string().map(str::to_owned))
                .collect(),
        })
        .collect();
    object.finish();
    let template = template?;
    Some((
        Operation {
            declared: field.source().clone(),
            method: method?.to_owned(),
            path: template.path.as_str().to_owned(),
            scopes,
            claims,
        },
        template,
    ))
}

/// A scope: blanks separate scopes in a token (RFC 6749, section 3.3), so no scope has one.
pub(crate) fn scope(field: &Field<'_>) -> Option<String> {
    let text = field.some_string()?;
    if text.contains(char::is_whitespace) {
        field.expected("one scope without blanks; each scope is an item of the list");
        return None;
    }
    Some(text.to_owned())
}

pub(super) fn visibility(object: &mut Object<'_>, layer4: bool) -> Option<Visibility> {
    let Some(field) = object.optional("visibility") else {
        return Some(Visibility::default());
    };
    let mut sections = field.object()?;
    let public = sections.optional("public").map(|f| section(&f, layer4));
    let organization = sections
        .optional("organization")
        .map(|f| section(&f, layer4));
    // Inside of its cell an endpoint is always visible; the section may say so.
    if let Some(project) = sections.optional("project").and_then(|f| f.object()) {
        project.finish();
    }
    sections.finish();
    Some(Visibility {
        public: public.flatten(),
        organization: organization.flatten(),
    })
}
