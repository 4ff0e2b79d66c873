//! `headers` (Envoy Gateway, `HeaderSettings`): what all messages of a listener say.

use super::super::http_route::EditLists;
use super::super::string_match::lower_case_match;
use super::settled;
use crate::model::{
    CertificateDetails, MessageEdits, RequestIds, StringMatch, ToldCertificate, Underscores,
};
use crate::reader::{Field, Object};

/// How names of headers look that go: every name of a message is looked at.
const MAX_MATCHES: usize = 16;

pub(super) struct Headers {
    pub(super) underscores: Underscores,
    pub(super) request_id: RequestIds,
    pub(super) early: MessageEdits,
    pub(super) late: MessageEdits,
    pub(super) rate_headers: bool,
    pub(super) told_certificate: ToldCertificate,
    pub(super) strip_host_dot: bool,
}

impl Default for Headers {
    fn default() -> Self {
        Self {
            underscores: Underscores::default(),
            request_id: RequestIds::default(),
            early: MessageEdits::default(),
            late: MessageEdits::default(),
            rate_headers: true,
            told_certificate: ToldCertificate::default(),
            strip_host_dot: false,
        }
    }
}

pub(super) fn read(field: &Field<'_>) -> Option<Headers> {
    let mut object = field.object()?;
    let foreign = object.optional("enableEnvoyHeaders");
    let sound = foreign.is_none_or(|field| no_envoy_headers(&field).is_some());
    let certificate = object.optional("xForwardedClientCert");
    let certificate = certificate.map(|field| told_certificate(&field));
    let silent = object
        .optional("disableRateLimitHeaders")
        .map(|field| field.boolean());
    let request_id = request_ids(&mut object);
    let early = object.optional("earlyRequestHeaders");
    let early = early.map(|field| edits(&field));
    let late = object.optional("lateResponseHeaders");
    let late = late.map(|field| edits(&field));
    let action = object.optional("withUnderscoresAction").map(|field| {
        field.choice(&[
            ("RejectRequest", Underscores::Reject),
            ("Allow", Underscores::Allow),
            ("DropHeader", Underscores::Drop),
        ])
    });
    let host = object.optional("host").map(|field| host(&field));
    object.finish();
    let headers = Headers {
        underscores: settled(action)?.unwrap_or_default(),
        request_id: request_id?,
        early: settled(early)?.unwrap_or_default(),
        late: settled(late)?.unwrap_or_default(),
        rate_headers: !settled(silent)?.unwrap_or_default(),
        told_certificate: settled(certificate)?.unwrap_or_default(),
        strip_host_dot: settled(host)?.unwrap_or_default(),
    };
    sound.then_some(headers)
}

fn no_envoy_headers(field: &Field<'_>) -> Option<()> {
    if field.boolean()? {
        field.mistake("`X-Envoy-` headers tell of Envoy; expected `false`");
        return None;
    }
    Some(())
}

/// `xForwardedClientCert` (Envoy Gateway).
fn told_certificate(field: &Field<'_>) -> Option<ToldCertificate> {
    type Told = fn(CertificateDetails) -> ToldCertificate;
    const MODES: [(&str, Told); 5] = [
        ("Sanitize", |_| ToldCertificate::Nothing),
        ("ForwardOnly", |_| ToldCertificate::AsSaid),
        ("AlwaysForwardOnly", |_| ToldCertificate::AsAnybodySays),
        ("AppendForward", ToldCertificate::Added),
        ("SanitizeSet", ToldCertificate::Own),
    ];
    let mut object = field.object()?;
    let mode = match object.optional("mode") {
        Some(field) => field.choice(&MODES),
        None => Some(MODES[0].1),
    };
    let list = object.optional("certDetailsToAdd");
    let details = list.as_ref().map(details);
    object.finish();
    let details = settled(details)?.unwrap_or_default();
    let told = mode?(details);
    if let Some(list) = list
        && told.details().is_none()
        && details != CertificateDetails::default()
    {
        list.mistake("is for the modes `AppendForward` and `SanitizeSet`");
        return None;
    }
    Some(told)
}

fn details(field: &Field<'_>) -> Option<CertificateDetails> {
    type Place = fn(&mut CertificateDetails) -> &mut bool;
    const DETAILS: [(&str, Place); 5] = [
        ("Subject", |details| &mut details.subject),
        ("Cert", |details| &mut details.certificate),
        ("Chain", |details| &mut details.chain),
        ("DNS", |details| &mut details.hosts),
        ("URI", |details| &mut details.uris),
    ];
    let mut details = CertificateDetails::default();
    let mut sound = true;
    for item in field.list() {
        match item.choice(&DETAILS) {
            Some(place) => *place(&mut details) = true,
            None => sound = false,
        }
    }
    sound.then_some(details)
}

/// `requestID`, or what came before it.
fn request_ids(object: &mut Object<'_>) -> Option<RequestIds> {
    let action = object.optional("requestID");
    let preserve = object.optional("preserveXRequestID");
    match (action, preserve) {
        (Some(_), Some(field)) => {
            field.mistake("expected either `requestID` or `preserveXRequestID`, got both");
            None
        }
        (Some(field), None) => field.choice(&[
            ("PreserveOrGenerate", RequestIds::PreserveOrGenerate),
            ("Preserve", RequestIds::Preserve),
            ("Generate", RequestIds::Generate),
            ("Disable", RequestIds::Disable),
        ]),
        (None, Some(field)) => Some(match field.boolean()? {
            true => RequestIds::PreserveOrGenerate,
            false => RequestIds::Generate,
        }),
        (None, None) => Some(RequestIds::default()),
    }
}

/// `earlyRequestHeaders` and `lateResponseHeaders` (Envoy Gateway, `HTTPHeaderFilter`).
fn edits(field: &Field<'_>) -> Option<MessageEdits> {
    let mut object = field.object()?;
    let mut lists = EditLists::default();
    let edits = lists.edits(&mut object);
    let add_if_absent = lists.pairs(&mut object, "addIfAbsent");
    let matches = object.optional("removeOnMatch");
    let remove_matching = matches.map(|field| matching(&field));
    object.finish();
    Some(MessageEdits {
        remove_matching: settled(remove_matching)?.unwrap_or_default(),
        edits,
        add_if_absent,
    })
}

fn matching(field: &Field<'_>) -> Option<Vec<StringMatch>> {
    let items = field.limited_list(MAX_MATCHES);
    items.iter().map(lower_case_match).collect()
}

/// `host`.
fn host(field: &Field<'_>) -> Option<bool> {
    let mut object = field.object()?;
    let strip = object
        .optional("stripTrailingHostDot")
        .map(|field| field.boolean());
    object.finish();
    Some(settled(strip)?.unwrap_or_default())
}
