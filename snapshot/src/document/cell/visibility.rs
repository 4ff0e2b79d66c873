//! Who may reach an endpoint from outside of its cell, and for which operations.
//!
//! Sections as they were written come in, what is exposed at each gate comes out: [`Visibility::exposed`]. By the strict
//! rules that is what the sections say; a cell with `compat` exposes what OpenChoreo would expose.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::derive;
use crate::document::name;
use crate::document::template::{Parameters, Template};
use crate::model::{ClaimRequirement, ClaimShape, ComponentKind, Name, Operation};
use crate::reader::{Field, Object, Sink};
use crate::report::Source;

/// By whose rules a cell's endpoints are exposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// By ours.
    Strict,
    /// By OpenChoreo's, open doors included: `compat` of a cell.
    Compat,
}

pub(super) struct Visibility {
    /// Whether the field is there at all, be it empty.
    declared: bool,
    public: Option<Section>,
    organization: Option<Section>,
}

/// What one visibility says.
pub(super) struct Section {
    pub(super) source: Source,
    enabled: bool,
    pub(super) provider: Option<(Name, Source)>,
    pub(super) operations: Vec<(Operation, Template)>,
}

impl Section {
    /// Everybody may send everything.
    fn open(source: Source) -> Self {
        Self {
            source,
            enabled: true,
            provider: None,
            operations: Vec::new(),
        }
    }
}

/// What decides about an endpoint's exposure beside its sections.
pub(super) struct Exposed<'a> {
    pub(super) component_kind: ComponentKind,
    pub(super) http: bool,
    pub(super) strictness: Strictness,
    pub(super) endpoint: &'a Source,
    pub(super) sink: &'a Sink,
}

impl Visibility {
    /// The sections of the external and of the internal gate that expose something.
    pub(super) fn exposed(self, to: &Exposed<'_>) -> (Option<Section>, Option<Section>) {
        let compat = to.http && to.strictness == Strictness::Compat;
        let web = to.component_kind == ComponentKind::WebApplication;
        let opened = |source: Source, why: &str| {
            to.sink
                .warning(source.clone(), format_args!("`compat` {why}"));
            Some(Section::open(source))
        };
        let organization = self.organization.filter(|section| section.enabled);
        let organization = match &self.public {
            Some(public) if compat => {
                organization.map(|section| without_token_of(section, public, to.sink))
            }
            // OpenChoreo crashes here; what the section says holds.
            _ => organization,
        };
        let public = match self.public {
            Some(section) if section.enabled => Some(section),
            Some(section) if compat && web => opened(
                section.source,
                "keeps a web application public that is switched off, and asks for no token",
            ),
            Some(_) => None,
            // A web application is there to be seen: without a word it is public.
            None if to.http && web => Some(Section::open(to.endpoint.clone())),
            None if compat && !self.declared => opened(
                to.endpoint.clone(),
                "makes an endpoint without `visibility` public",
            ),
            None => None,
        };
        if compat {
            for section in public.iter().chain(&organization) {
                if !section.operations.is_empty() {
                    to.sink.warning(
                        section.source.clone(),
                        "`compat` forwards what no operation matches, and asks for no token",
                    );
                }
            }
        }
        (public, organization)
    }
}

/// OpenChoreo asks for tokens of the organization's operations if the public section has operations.
fn without_token_of(organization: Section, public: &Section, sink: &Sink) -> Section {
    if organization.operations.is_empty() || !public.operations.is_empty() {
        return organization;
    }
    sink.warning(
        organization.source.clone(),
        "`compat` asks for no token here, as `public` is there and has no operations",
    );
    Section {
        provider: None,
        ..organization
    }
}

fn section(field: &Field<'_>, layer4: bool, strictness: Strictness) -> Option<Section> {
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
        let Some((operation, template)) = operation(&item, strictness) else {
            continue;
        };
        // Two spellings of one template are one operation: names of parameters say nothing.
        let pattern = derive::expand(template.path.without_slash(), strictness);
        let key = (operation.method.clone(), pattern);
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
    let provider = match provider {
        Some(provider) => Some(provider?),
        None => None,
    };
    Some(Section {
        source: field.source().clone(),
        enabled: enabled?,
        provider,
        operations,
    })
}

/// Operations of one visibility: each is a compiled pattern.
const MAX_OPERATIONS: usize = 1000;

/// Methods of operations (RFC 9110, section 9; RFC 5789). `CONNECT` and `TRACE` are for proxies.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

fn operation(field: &Field<'_>, strictness: Strictness) -> Option<(Operation, Template)> {
    let parameters = match strictness {
        Strictness::Strict => Parameters::Allowed,
        Strictness::Compat => Parameters::Unchecked,
    };
    let mut object = field.object()?;
    let choices: Vec<_> = METHODS.iter().map(|method| (*method, *method)).collect();
    let method = object
        .required("method")
        .and_then(|field| field.choice(&choices));
    let template = object
        .required("path")
        .and_then(|field| field.parse(|text| Template::new(text, parameters)));
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

pub(super) fn visibility(
    object: &mut Object<'_>,
    layer4: bool,
    strictness: Strictness,
) -> Option<Visibility> {
    let Some(field) = object.optional("visibility") else {
        return Some(Visibility {
            declared: false,
            public: None,
            organization: None,
        });
    };
    let mut sections = field.object()?;
    let section = |field: Field<'_>| section(&field, layer4, strictness);
    let public = sections.optional("public").map(section);
    let organization = sections.optional("organization").map(section);
    // Inside of its cell an endpoint is always visible; the section may say so.
    if let Some(project) = sections.optional("project").and_then(|f| f.object()) {
        project.finish();
    }
    sections.finish();
    Some(Visibility {
        declared: true,
        public: public.flatten(),
        organization: organization.flatten(),
    })
}
