//! The peers and how each is tuned: one thread, connections kept on both sides, no log.

use std::{ffi::OsString, fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::side::{Ports, Stage};

/// nginx: nothing is buffered that need not be, and what has to be fits into few large buffers.
pub(crate) fn nginx(stage: &Stage, dir: &Path, ports: &Ports) -> Result<Vec<OsString>> {
    let file = dir.join("nginx.conf");
    let (cert, key) = (stage.identity.cert.display(), stage.identity.key.display());
    let (here, backend) = (dir.display(), stage.backend);
    let Ports { plain, h2c, tls } = ports;
    let text = format!(
        "daemon off; master_process off; worker_processes 1; user root;
pid {here}/pid; error_log stderr crit;
events {{ worker_connections 16384; }}
http {{
  access_log off; server_tokens off; tcp_nodelay on;
  client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/f; uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;
  keepalive_timeout 1h; keepalive_requests 1000000000; client_max_body_size 0; client_body_buffer_size 128k;
  http2_max_requests 1000000000; http2_max_concurrent_streams 256;
  upstream backend {{ server {backend}; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 1h; }}
  server {{
    listen {plain}; listen {h2c} http2; listen {tls} ssl http2;
    ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets on;
    location / {{
      proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host;
      proxy_buffering off; proxy_request_buffering off; proxy_buffer_size 128k; proxy_buffers 8 64k; proxy_busy_buffers_size 192k;
    }}
  }}
}}
"
    );
    fs::write(&file, text)?;
    Ok([
        "nginx".into(),
        "-p".into(),
        dir.into(),
        "-c".into(),
        file.into(),
    ]
    .into())
}

/// HAProxy: bodies are spliced, connections to the backend are shared by all clients.
pub(crate) fn haproxy(stage: &Stage, dir: &Path, ports: &Ports) -> Result<Vec<OsString>> {
    // It reads the certificate and its key from one file.
    let pem = dir.join("both.pem");
    let both =
        fs::read_to_string(&stage.identity.cert)? + &fs::read_to_string(&stage.identity.key)?;
    fs::write(&pem, both)?;
    let file = dir.join("haproxy.cfg");
    let (pem, backend) = (pem.display(), stage.backend);
    let Ports { plain, h2c, tls } = ports;
    let text = format!(
        "global
  nbthread 1
  maxconn 4096
  tune.h2.max-concurrent-streams 256
defaults
  mode http
  option splice-auto
  option http-keep-alive
  http-reuse always
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h
frontend front
  bind {plain}
  bind {h2c} proto h2
  bind {tls} ssl crt {pem} alpn h2,http/1.1
  default_backend back
backend back
  server one {backend} pool-max-conn -1 pool-purge-delay 1h
"
    );
    fs::write(&file, text)?;
    Ok(["haproxy".into(), "-db".into(), "-f".into(), file.into()].into())
}

/// Envoy: one worker, circuit breakers out of the way.
pub(crate) fn envoy(stage: &Stage, dir: &Path, ports: &Ports) -> Result<Vec<OsString>> {
    let program = stage.envoy.as_ref().context("no Envoy was given")?;
    let at = |address: std::net::SocketAddr| json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
    let listener = |name: &str, address, codec: &str, transport: Option<serde_json::Value>| {
        let mut chain = json!({"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": name, "codec_type": codec, "generate_request_id": false,
                "route_config": {"virtual_hosts": [{
                    "name": "all", "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "backend", "timeout": "0s"}}],
                }]},
                "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router", "suppress_envoy_headers": true,
                }}],
            },
        }]});
        if let Some(transport) = transport {
            chain["transport_socket"] = transport;
        }
        json!({"name": name, "address": at(address), "filter_chains": [chain]})
    };
    let transport = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [{
                "certificate_chain": {"filename": stage.identity.cert}, "private_key": {"filename": stage.identity.key},
            }],
        },
    }});
    let most = json!({"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000});
    let config = json!({"static_resources": {
        "listeners": [
            listener("plain", ports.plain, "HTTP1", None),
            listener("h2c", ports.h2c, "HTTP2", None),
            listener("tls", ports.tls, "AUTO", Some(transport)),
        ],
        "clusters": [{
            "name": "backend", "type": "STATIC", "circuit_breakers": {"thresholds": [most]},
            "load_assignment": {"cluster_name": "backend", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(stage.backend)}}]}]},
        }],
    }});
    let file = dir.join("envoy.json");
    fs::write(&file, serde_json::to_vec_pretty(&config)?)?;
    let words = [
        "--concurrency",
        "1",
        "--log-level",
        "error",
        "--disable-hot-restart",
        "-c",
    ];
    let mut arguments: Vec<OsString> = vec![program.into()];
    arguments.extend(words.map(Into::into));
    arguments.push(file.into());
    Ok(arguments)
}

/// What the peers say of themselves.
pub(crate) fn versions(envoy: Option<&Path>) -> Result<String> {
    let said = |program: &Path, argument: &str| -> Result<String> {
        let output = Command::new(program)
            .arg(argument)
            .output()
            .with_context(|| format!("failed to start {}: is it installed?", program.display()))?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let line = text.lines().find(|line| !line.trim().is_empty());
        Ok(line.unwrap_or("unknown version").trim().to_owned())
    };
    let mut all = vec![
        said(Path::new("nginx"), "-v")?,
        said(Path::new("haproxy"), "-v")?,
    ];
    if let Some(envoy) = envoy {
        all.push(said(envoy, "--version")?);
    }
    Ok(all.join(", "))
}
