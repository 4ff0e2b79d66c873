//! Requests, and who answers them: backends that say which they are, and a client on one connection.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, Response, header::HOST};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{body::Incoming, client::conn::http1::SendRequest, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Until an answer that does not come is an error.
const ANSWER: Duration = Duration::from_secs(5);

/// What an answer shows of the route that it came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) status: u16,
    /// What the route writes into answers; 0: nothing.
    pub(crate) mark: u32,
    /// Port of the backend; 0: none answered.
    pub(crate) port: u16,
}

/// Answers every request with the port that it came to.
pub(crate) async fn serve(at: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(at)
        .await
        .with_context(|| format!("failed to listen on {at}"))?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(move |_: Request<Incoming>| async move {
                let body = Full::new(Bytes::from(at.port().to_string()));
                Ok::<_, Infallible>(Response::new(body))
            });
            // A connection that ends in an error is the client's to tell.
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    Ok(())
}

/// A client of one host.
pub(crate) struct Asker {
    sender: SendRequest<Empty<Bytes>>,
    host: String,
}

impl Asker {
    pub(crate) async fn new(to: SocketAddr, host: &str) -> Result<Self> {
        let stream = timeout(ANSWER, TcpStream::connect(to)).await??;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Its end is seen at the next request.
        tokio::spawn(connection);
        Ok(Self {
            sender,
            host: host.to_owned(),
        })
    }

    pub(crate) async fn ask(&mut self) -> Result<Shown> {
        let request = Request::get("/")
            .header(HOST, &self.host)
            .body(Empty::new())?;
        timeout(ANSWER, async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let mark = response.headers().get("x-mark");
            let mark = mark.and_then(|mark| mark.to_str().ok()?.parse().ok());
            let status = response.status().as_u16();
            let body = response.into_body().collect().await?.to_bytes();
            let port = std::str::from_utf8(&body)
                .ok()
                .and_then(|body| body.parse().ok());
            Ok(Shown {
                status,
                mark: mark.unwrap_or(0),
                port: port.unwrap_or(0),
            })
        })
        .await?
    }
}
