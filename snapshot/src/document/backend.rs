//! `Backend` (Envoy Gateway): how a folder of documents names an upstream.

use std::path::PathBuf;

use super::Meta;
use super::addresses::address;
use crate::model::{Hostname, Upstream, UpstreamHost};
use crate::reader::{Field, Object, quoted};

/// Envoy Gateway: at most 64 endpoints.
const MAX_ENDPOINTS: usize = 64;
/// Bytes of a path in `sockaddr_un` without its NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, _meta: &Meta) -> Option<Vec<Upstream>> {
    if let Some(field) = spec.optional("type") {
        field.choice(&[("Endpoints", ())]);
    }
    spec.unsupported(&["appProtocols", "fallback", "tls"]);
    let mut upstreams: Vec<Upstream> = Vec::new();
    for item in spec.required("endpoints")?.some_limited_list(MAX_ENDPOINTS) {
        let Some(upstream) = endpoint(&item) else {
            continue;
        };
        if upstreams.contains(&upstream) {
            item.mistake("this endpoint is in the list already");
        } else {
            upstreams.push(upstream);
        }
    }
    Some(upstreams)
}

fn endpoint(field: &Field<'_>) -> Option<Upstream> {
    let mut object = field.object()?;
    let ip = object.optional("ip");
    let fqdn = object.optional("fqdn");
    let unix = object.optional("unix");
    object.unsupported(&["hostname", "zone"]);
    object.finish();
    match (ip, fqdn, unix) {
        (Some(field), None, None) => {
            let mut object = field.object()?;
            let address = object.required("address").and_then(|field| address(&field));
            let port = object.required("port").and_then(|field| field.port());
            object.finish();
            Some(Upstream::Tcp {
                host: UpstreamHost::Address(address?.address),
                port: port?,
                tls: None,
            })
        }
        (None, Some(field), None) => {
            let mut object = field.object()?;
            let host = object
                .required("hostname")
                .and_then(|field| field.parse(Hostname::new));
            let port = object.required("port").and_then(|field| field.port());
            object.finish();
            Some(Upstream::Tcp {
                host: UpstreamHost::Name(host?),
                port: port?,
                tls: None,
            })
        }
        (None, None, Some(field)) => {
            let mut object = field.object()?;
            let path = object.required("path").and_then(|field| {
                let path = field.string()?;
                if !path.starts_with('/') || path.len() > MAX_SOCKET_PATH || path.contains('\0') {
                    field.mistake(format_args!(
                        "expected an absolute path of at most {MAX_SOCKET_PATH} bytes, got {}",
                        quoted(path)
                    ));
                    return None;
                }
                Some(PathBuf::from(path))
            });
            object.finish();
            Some(Upstream::Unix(path?))
        }
        _ => {
            field.mistake("expected exactly one of `ip`, `fqdn` and `unix`");
            None
        }
    }
}
