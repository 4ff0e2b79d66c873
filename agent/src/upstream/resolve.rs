//! Names of upstreams, asked from the platform's name servers or the node's.
//!
//! Hickory keeps answers for their TTL in a cache of bounded size; nothing else is kept here.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use snapshot::model::Hostname;

use super::UpstreamError;

/// Answers kept at most, per core.
const CACHE: u64 = 4096;

/// Longest wait for one name server, and tries.
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;

/// The resolver of one core.
#[derive(Default)]
pub struct Resolver {
    /// The servers that the present resolver asks, and the resolver. Replaced when the table names others.
    current: RefCell<Option<(Vec<IpAddr>, Rc<TokioResolver>)>>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    /// Addresses of a name in the order to try them; never empty. `servers` empty: the node's own.
    pub async fn resolve(
        &self,
        name: &Hostname,
        port: u16,
        servers: &[IpAddr],
    ) -> Result<Vec<SocketAddr>, UpstreamError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| UpstreamError::Resolve {
            name: name.to_string(),
            source,
        };
        let resolver = self.resolver(servers).map_err(failed)?;
        // The trailing dot keeps search domains out: a declared name means itself.
        let answer = resolver
            .lookup_ip(format!("{name}."))
            .await
            .map_err(|error| failed(error.into()))?;
        let addresses: Vec<_> = answer
            .iter()
            .map(|address| SocketAddr::new(address, port))
            .collect();
        if addresses.is_empty() {
            return Err(failed("the name has no address".into()));
        }
        Ok(addresses)
    }

    fn resolver(
        &self,
        servers: &[IpAddr],
    ) -> Result<Rc<TokioResolver>, Box<dyn std::error::Error + Send + Sync>> {
        if let Some((known, resolver)) = &*self.current.borrow()
            && known == servers
        {
            return Ok(Rc::clone(resolver));
        }
        let mut builder = if servers.is_empty() {
            TokioResolver::builder_tokio()?
        } else {
            let servers = servers
                .iter()
                .map(|server| NameServerConfig::udp_and_tcp(*server))
                .collect();
            TokioResolver::builder_with_config(
                ResolverConfig::from_name_servers(servers),
                TokioRuntimeProvider::default(),
            )
        };
        let options: &mut ResolverOpts = builder.options_mut();
        options.cache_size = CACHE;
        options.timeout = TIMEOUT;
        options.attempts = ATTEMPTS;
        let resolver = Rc::new(builder.build()?);
        *self.current.borrow_mut() = Some((servers.to_vec(), Rc::clone(&resolver)));
        Ok(resolver)
    }
}
