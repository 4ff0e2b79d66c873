//! A service of gRPC and its client. Messages are written by hand, so that nothing needs `protoc`.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::client::Grpc as Client;
use tonic::server::{Grpc as Server, ServerStreamingService, StreamingService, UnaryService};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

use crate::tls::Issued;
use crate::upstream_tls::accept;

/// The one message of the service.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Note {
    #[prost(string, tag = "1")]
    pub(crate) text: String,
    #[prost(uint32, tag = "2")]
    pub(crate) count: u32,
}

pub(crate) type Codec = ProstCodec<Note, Note>;
type Notes = Pin<Box<dyn Stream<Item = Result<Note, Status>> + Send>>;
type Answer<T> = Pin<Box<dyn Future<Output = Result<tonic::Response<T>, Status>> + Send>>;

/// `shop.v1.Notes`, and whatever else it is asked as: the last part of the path is what it does.
#[derive(Clone, Copy)]
struct Service {
    name: &'static str,
}

/// Answers with its name, and says in metadata what it saw.
struct Say(Service, String);

impl UnaryService<Note> for Say {
    type Response = Note;
    type Future = Answer<Note>;

    fn call(&mut self, request: tonic::Request<Note>) -> Self::Future {
        let Service { name } = self.0;
        let path = std::mem::take(&mut self.1);
        Box::pin(async move {
            let seen = request.metadata().get("x-set").cloned();
            let note = request.into_inner();
            if note.text == "wait" {
                std::future::pending::<()>().await;
            }
            if note.text == "deny" {
                let mut status = Status::permission_denied("für 100 % of you");
                let value = "because".parse().expect("a value");
                status.metadata_mut().insert("x-why", value);
                return Err(status);
            }
            let mut answer = tonic::Response::new(Note {
                text: name.to_owned(),
                count: note.count + 1,
            });
            let metadata = answer.metadata_mut();
            metadata.insert("x-path", path.parse().expect("a value"));
            metadata.insert("x-gone", "1".parse().expect("a value"));
            if let Some(seen) = seen {
                metadata.insert("x-seen", seen);
            }
            Ok(answer)
        })
    }
}

/// Counts down, one message after the other; a text is how it ends.
struct Count;

impl ServerStreamingService<Note> for Count {
    type Response = Note;
    type ResponseStream = Notes;
    type Future = Answer<Notes>;

    fn call(&mut self, request: tonic::Request<Note>) -> Self::Future {
        let note = request.into_inner();
        Box::pin(async move {
            let (told, notes) = mpsc::channel(1);
            tokio::spawn(async move {
                for count in (0..note.count).rev() {
                    let text = String::new();
                    if told.send(Ok(Note { text, count })).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                if !note.text.is_empty() {
                    let mut status = Status::data_loss(note.text);
                    let value = "trailer".parse().expect("a value");
                    status.metadata_mut().insert("x-end", value);
                    // Whoever hung up knows no end.
                    let _gone = told.send(Err(status)).await;
                }
            });
            Ok(tonic::Response::new(
                Box::pin(ReceiverStream::new(notes)) as Notes
            ))
        })
    }
}

/// Gives back each message as it comes.
struct Talk;

impl StreamingService<Note> for Talk {
    type Response = Note;
    type ResponseStream = Notes;
    type Future = Answer<Notes>;

    fn call(&mut self, request: tonic::Request<Streaming<Note>>) -> Self::Future {
        Box::pin(async move {
            let notes = request.into_inner().map(|note| {
                note.map(|note| Note {
                    count: note.count * 2,
                    ..note
                })
            });
            Ok(tonic::Response::new(Box::pin(notes) as Notes))
        })
    }
}

impl Service {
    async fn serve(self, request: Request<Incoming>) -> Response<tonic::body::Body> {
        let mut server = Server::new(Codec::default());
        let path = request.uri().path().to_owned();
        match path.rsplit('/').next() {
            Some("Count") => server.server_streaming(Count, request).await,
            Some("Talk") => server.streaming(Talk, request).await,
            _ => server.unary(Say(self, path), request).await,
        }
    }
}

/// Starts a server of gRPC: HTTP/2 without TLS, and nothing else.
pub(crate) async fn server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let service = Service { name };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            serve_on(service, stream);
        }
    });
    address
}

/// The same behind TLS.
pub(crate) async fn tls_server(name: &'static str, issued: &Issued) -> SocketAddr {
    let service = Service { name };
    accept(issued, None, move |stream, _| {
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        serve_on(service, stream);
    })
    .await
}

fn serve_on<T>(service: Service, stream: T)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| async move {
        Ok::<_, std::convert::Infallible>(service.serve(request).await)
    });
    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
}

/// A client of gRPC that asks for a host.
pub(crate) async fn client(at: SocketAddr, host: &str) -> Client<Channel> {
    let channel = Endpoint::from_shared(format!("http://{at}"))
        .expect("an address")
        .origin(format!("http://{host}").parse().expect("a host"))
        .connect()
        .await
        .expect("somebody listens");
    Client::new(channel)
}

pub(crate) fn note(text: &str, count: u32) -> Note {
    Note {
        text: text.to_owned(),
        count,
    }
}

pub(crate) fn path(path: &str) -> PathAndQuery {
    path.parse().expect("a path")
}

pub(crate) async fn unary(
    client: &mut Client<Channel>,
    to: &str,
    request: tonic::Request<Note>,
) -> Result<tonic::Response<Note>, Status> {
    client.ready().await.expect("a connection");
    client.unary(request, path(to), Codec::default()).await
}
