//! The floor with TLS: what [`super::floor`] does, by tokio and rustls on one thread.

use std::{cell::RefCell, collections::HashMap, net::SocketAddr, path::PathBuf, rc::Rc, sync::Arc};

use anyhow::{Context as _, Result};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    floor::{BUFFER, Options, table},
    poll,
    wire::{self, Copy},
};

struct Shared {
    table: HashMap<Vec<u8>, SocketAddr>,
    kept: RefCell<Vec<TcpStream>>,
}

/// Serves until it is killed.
pub(crate) fn run(options: &Options, files: &[PathBuf]) -> Result<()> {
    let [chain, key] = files else {
        anyhow::bail!("TLS needs a certificate and its key");
    };
    let chain = CertificateDer::pem_file_iter(chain)?.collect::<Result<Vec<_>, _>>()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let shared = Rc::new(Shared {
        table: table(options.backend),
        kept: RefCell::default(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = tokio::net::TcpListener::from_std(poll::listen(options.listen)?)?;
        loop {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            let (acceptor, shared) = (acceptor.clone(), Rc::clone(&shared));
            tokio::task::spawn_local(async move {
                // Whoever does not get his answer says so.
                if let Ok(stream) = acceptor.accept(socket).await {
                    let _ended = serve(stream, &shared).await;
                }
            });
        }
    })
}

async fn serve(mut client: TlsStream<TcpStream>, shared: &Shared) -> Result<()> {
    let mut input = Vec::with_capacity(BUFFER);
    let mut scratch = vec![0; BUFFER];
    let mut out = Vec::with_capacity(BUFFER);
    loop {
        let head = loop {
            out.clear();
            let copy = Copy {
                more: b"x-forwarded-proto: https\r\n",
                out: &mut out,
            };
            if let Some(head) = wire::request(&input, Some(copy))? {
                break head;
            }
            let count = client.read(&mut scratch).await?;
            if count == 0 {
                return Ok(());
            }
            input.extend_from_slice(&scratch[..count]);
        };
        let key = head.key.context("no routing key")?;
        let to = *shared.table.get(&input[key]).context("no such key")?;
        out.extend_from_slice(&input[head.length..]);
        let mut left = head.length + head.body - input.len();
        let kept = shared.kept.borrow_mut().pop();
        let mut upstream = match kept {
            Some(kept) => kept,
            None => {
                let fresh = TcpStream::connect(to).await?;
                fresh.set_nodelay(true)?;
                fresh
            }
        };
        upstream.write_all(&out).await?;
        while left > 0 {
            let count = client.read(&mut scratch).await?;
            anyhow::ensure!(count > 0, "the client left");
            upstream.write_all(&scratch[..count]).await?;
            left -= count;
        }
        input.clear();
        let head = loop {
            out.clear();
            let copy = Copy {
                more: b"",
                out: &mut out,
            };
            if let Some(head) = wire::answer(&input, Some(copy))? {
                break head;
            }
            let count = upstream.read(&mut scratch).await?;
            anyhow::ensure!(count > 0, "the upstream left");
            input.extend_from_slice(&scratch[..count]);
        };
        out.extend_from_slice(&input[head.length..]);
        let mut left = head.length + head.body - input.len();
        client.write_all(&out).await?;
        while left > 0 {
            let count = upstream.read(&mut scratch).await?;
            anyhow::ensure!(count > 0, "the upstream left");
            client.write_all(&scratch[..count]).await?;
            left -= count;
        }
        client.flush().await?;
        input.clear();
        shared.kept.borrow_mut().push(upstream);
    }
}
