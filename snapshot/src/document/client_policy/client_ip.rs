//! `clientIPDetection`: who tells the address of a client.

use std::num::NonZeroU32;

use super::{header_name, network, settled};
use crate::model::ClientIp;
use crate::reader::Field;

/// Trusted proxies in front of the gateway, and networks of them: as much as anybody has.
const MAX_HOPS: i64 = 100;
const MAX_NETWORKS: usize = 256;

/// What is said of it.
pub(super) struct Detection {
    /// None: no proxy is trusted.
    pub(super) by: Option<ClientIp>,
    /// Whether the client is put behind the way so far.
    pub(super) tell_client: bool,
}

impl Default for Detection {
    fn default() -> Self {
        Self {
            by: None,
            tell_client: true,
        }
    }
}

pub(super) fn read(field: &Field<'_>) -> Option<Detection> {
    let mut object = field.object()?;
    let forwarded = object.optional("xForwardedFor");
    let custom = object.optional("customHeader");
    let direct = object.optional("directSourceIP");
    object.finish();
    match (forwarded, custom, direct) {
        (Some(field), None, None) => forwarded_for(&field),
        (None, Some(field), None) => Some(Detection {
            by: Some(header(&field)?),
            ..Detection::default()
        }),
        (None, None, Some(field)) => {
            field.object()?.finish();
            Some(Detection::default())
        }
        _ => {
            field.mistake(
                "expected exactly one of `xForwardedFor`, `customHeader` and `directSourceIP`",
            );
            None
        }
    }
}

fn forwarded_for(field: &Field<'_>) -> Option<Detection> {
    let mut object = field.object()?;
    let hops = object.optional("numTrustedHops");
    let networks = object.optional("trustedCIDRs");
    let as_it_is = object
        .optional("disableXForwardedForAppend")
        .map(|field| field.boolean());
    object.finish();
    let by = match (hops, networks) {
        (Some(field), None) => {
            let hops = u32::try_from(field.integer(0..=MAX_HOPS)?).ok()?;
            NonZeroU32::new(hops).map(ClientIp::Hops)
        }
        (None, Some(field)) => {
            let items = field.some_limited_list(MAX_NETWORKS);
            let networks = items.iter().filter_map(network).collect();
            Some(ClientIp::Trusted(networks))
        }
        _ => {
            field.mistake("expected exactly one of `numTrustedHops` and `trustedCIDRs`");
            return None;
        }
    };
    Some(Detection {
        by,
        tell_client: !settled(as_it_is)?.unwrap_or_default(),
    })
}

fn header(field: &Field<'_>) -> Option<ClientIp> {
    let mut object = field.object()?;
    let name = object
        .required("name")
        .and_then(|field| field.parse(header_name));
    let fail_closed = object.optional("failClosed").map(|field| field.boolean());
    object.finish();
    Some(ClientIp::Header {
        name: name?,
        fail_closed: settled(fail_closed)?.unwrap_or_default(),
    })
}
