//! One probe: asking an endpoint how it is.

use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use prost::Message;
use snapshot::model::Question;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::outbound::Outbound;
use crate::causes::chain;
use crate::route::RouteTable;
use crate::upstream::resolve::Resolver;
use crate::upstream::{
    AnswerBody, Client, Destination, Patience, Progress, RequestBody, Settings, connect,
};

/// Bytes of an answer that are looked at.
const MAX_ANSWER: usize = 64 * 1024;

/// What asks: its own connections and names.
pub(super) struct Asker {
    client: Client,
    settings: Settings,
    resolver: Resolver,
}

impl Asker {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            client: Client::new(settings.clone()),
            settings,
            resolver: Resolver::default(),
        }
    }

    /// Asks. Both results say what was found.
    pub(super) async fn ask(
        &self,
        question: &Question,
        destination: &Destination,
        host: &HeaderValue,
        table: &RouteTable,
    ) -> Result<String, String> {
        match question {
            Question::Http {
                method,
                path,
                statuses,
                body,
                ..
            } => {
                let method = Method::from_bytes(method.as_bytes());
                let method = method.map_err(|error| error.to_string())?;
                let head = head(method)?;
                let response = self
                    .send(head, Bytes::new(), path, destination, host, table)
                    .await?;
                let status = response.status().as_u16();
                // Redirects are not followed.
                if !statuses.contains(&status) {
                    return Err(format!("status_code_{status}"));
                }
                if let Some(wanted) = body {
                    let answer = read(response).await?.0;
                    if !has(&answer, wanted) {
                        return Err(format!("status_code_{status}, and another body"));
                    }
                }
                Ok(format!("status_code_{status}"))
            }
            Question::Tcp { send, receive } => self.bytes(send, receive, destination, table).await,
            Question::Grpc { service } => self.grpc(service, destination, host, table).await,
        }
    }

    async fn send(
        &self,
        head: Parts,
        body: Bytes,
        target: &str,
        destination: &Destination,
        host: &HeaderValue,
        table: &RouteTable,
    ) -> Result<Response<AnswerBody>, String> {
        let progress = Rc::<Progress>::default();
        let outbound = Outbound {
            target: Some(target),
            host: host.clone(),
            tls: destination.tls.is_some(),
            http2: destination.http2,
            trailers: destination.http2,
            websocket: false,
        };
        let body = match body.is_empty() {
            true => RequestBody::empty(Rc::clone(&progress)),
            false => RequestBody::copied(vec![body], Rc::clone(&progress)),
        };
        let request = outbound
            .request(Box::new(head), body)
            .map_err(|refusal| refusal.detail)?;
        let destinations = std::slice::from_ref(destination);
        let answer = self
            .client
            .send(destinations, request, &progress, Patience::Usual, table)
            .await
            .map_err(|error| format!("request_failed: {}", chain(&error)))?;
        Ok(answer.into_response())
    }

    async fn bytes(
        &self,
        send: &[u8],
        receive: &[u8],
        destination: &Destination,
        table: &RouteTable,
    ) -> Result<String, String> {
        let failed = |error: &dyn std::error::Error| format!("request_failed: {}", chain(error));
        let connected = connect(destination, &self.settings, &self.resolver, table).await;
        let mut stream = connected.map_err(|error| failed(&error))?.stream;
        stream
            .write_all(send)
            .await
            .map_err(|error| failed(&error))?;
        let mut answer = BytesMut::new();
        while !has(&answer, receive) {
            let read = stream.read_buf(&mut answer).await;
            if read.map_err(|error| failed(&error))? == 0 || answer.len() > MAX_ANSWER {
                return Err("another answer".to_owned());
            }
        }
        Ok("connected".to_owned())
    }

    /// gRPC health checking protocol, `Check`.
    async fn grpc(
        &self,
        service: &str,
        destination: &Destination,
        host: &HeaderValue,
        table: &RouteTable,
    ) -> Result<String, String> {
        let mut head = head(Method::POST)?;
        let grpc = HeaderValue::from_static("application/grpc");
        head.headers.insert(header::CONTENT_TYPE, grpc);
        let asked = HealthCheckRequest {
            service: service.to_owned(),
        }
        .encode_to_vec();
        let mut body = BytesMut::with_capacity(PREFIX + asked.len());
        body.put_u8(0);
        body.put_u32(u32::try_from(asked.len()).map_err(|error| error.to_string())?);
        body.put_slice(&asked);
        let path = "/grpc.health.v1.Health/Check";
        let response = self
            .send(head, body.freeze(), path, destination, host, table)
            .await?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(format!("status_code_{status}"));
        }
        // An answer without a message has its status in the head.
        let early = grpc_status(response.headers());
        let (answer, trailers) = read(response).await?;
        match early.or_else(|| grpc_status(trailers.as_ref()?)) {
            Some(0) => {}
            Some(code) => return Err(format!("grpc_status_{code}")),
            None => return Err("no grpc-status".to_owned()),
        }
        let message = answer.get(PREFIX..).ok_or("no message")?;
        let told = HealthCheckResponse::decode(message).map_err(|error| error.to_string())?;
        match told.status {
            SERVING => Ok("serving".to_owned()),
            other => Err(format!("serving_status_{other}")),
        }
    }
}

/// Before a message: whether it is compressed, and its length (gRPC over HTTP/2, `Length-Prefixed-Message`).
const PREFIX: usize = 5;

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: i32 = 1;

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

fn head(method: Method) -> Result<Parts, String> {
    let head = Request::builder().method(method).body(());
    let (mut head, ()) = head.map_err(|error| error.to_string())?.into_parts();
    let agent = concat!("cardinal-agent/", env!("CARGO_PKG_VERSION"), " health");
    let agent = HeaderValue::from_static(agent);
    head.headers.insert(header::USER_AGENT, agent);
    Ok(head)
}

fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// The body of an answer, and its trailers.
async fn read(response: Response<AnswerBody>) -> Result<(BytesMut, Option<HeaderMap>), String> {
    let mut body = response.into_body();
    let mut bytes = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| chain(&error))?;
        match frame.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if bytes.len() > MAX_ANSWER {
            return Err("too long an answer".to_owned());
        }
    }
    Ok((bytes, trailers))
}

fn has(bytes: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() || bytes.windows(wanted.len()).any(|part| part == wanted)
}
