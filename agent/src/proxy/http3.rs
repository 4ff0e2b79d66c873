//! HTTP/3 towards clients (RFC 9114): the requests of one connection of QUIC, side by side, each in a task of its own.
//!
//! Flows in: a connection whose handshake is over. Flows out: its requests, each to [`request::handle`], and their answers. A
//! request's body is read from its stream by whoever wants the next part of it, and an answer goes on as its client takes it.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use quinn::{RecvStream, SendStream, VarInt, WriteError};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::body::ResponseBody;
use super::connection::{self, Conn, MAX_HEAD};
use super::worker::Worker;
use super::{normalise, request};
use crate::http3::{self, Code, Control, Frames, Link, RequestBody, Wrong};
use crate::upstream::ClientBody;

/// Requests that a client may have given up, beyond those that it took the answers of. One that goes on asks for work and does
/// not want what comes of it.
const GIVEN_UP: u32 = 128;

/// Heads of a connection that are read at a time. What others have sent of theirs waits in QUIC's windows.
const HEADS: usize = 16;

/// Streams that a client opens have every fourth number (RFC 9000, section 2.1).
const STEP: u64 = 4;

/// Who holds [`Conn`] besides requests: whoever serves it.
const AT_REST: usize = 1;

/// Serves requests until the client leaves, the worker drains, or `leaving` is over: the listener goes then.
pub(super) async fn serve(
    worker: &Rc<Worker>,
    quic: quinn::Connection,
    conn: Conn,
    leaving: impl Future<Output = ()>,
) {
    let limit = conn.timeouts().idle.unwrap_or_else(|| worker.idle());
    let conn = Rc::new(conn);
    let opened = async {
        let mut own = quic.open_uni().await?;
        own.write_all(&http3::opening(MAX_HEAD)).await?;
        Ok::<_, WriteError>(own)
    };
    // A client that grants no stream has said that it does not speak HTTP/3 (RFC 9114, section 6.2).
    let mut own = match tokio::time::timeout(limit, opened).await {
        Ok(Ok(own)) => own,
        Ok(Err(_)) => return,
        Err(_) => return quic.close(Code::STREAM_CREATION_ERROR.into(), b"no stream is granted"),
    };
    let control = Rc::new(Control::default());
    let given_up = Rc::new(Cell::new(0));
    let heads = Rc::new(Semaphore::new(HEADS));
    let (mut requests, mut others) = (JoinSet::new(), JoinSet::new());
    let mut drain = worker.drain();
    let besides = async {
        tokio::select! {
            () = drain.begun() => {}
            () = leaving => {}
            () = connection::idle(&conn, AT_REST, (limit, worker.idle())) => {}
            () = conn.spent.notified() => {}
            () = conn.old() => {}
        }
    };
    tokio::pin!(besides);
    // The first stream that nobody has opened yet, and the one from which on none is served.
    let (mut next, mut refused) = (0, None);
    loop {
        tokio::select! {
            biased;
            Some(_) = requests.join_next() => {
                if refused.is_some() && requests.is_empty() {
                    break;
                }
            }
            Some(_) = others.join_next() => {}
            accepted = quic.accept_bi() => match accepted {
                Ok((mut send, mut recv)) => {
                    let stream = VarInt::from(send.id()).into_inner();
                    if refused.is_some_and(|from| stream >= from) {
                        // Whoever opened it may ask elsewhere (RFC 9114, section 5.2).
                        give_up(&mut send, Code::REQUEST_REJECTED);
                        let _over = recv.stop(Code::REQUEST_REJECTED.into());
                        continue;
                    }
                    next = next.max(stream + STEP);
                    let asked = Asked {
                        worker: Rc::clone(worker),
                        conn: Rc::downgrade(&conn),
                        quic: quic.clone(),
                        given_up: Rc::clone(&given_up),
                        heads: Rc::clone(&heads),
                        limit,
                    };
                    requests.spawn_local(asked.served(send, recv));
                }
                Err(error) => {
                    tracing::debug!(peer = %conn.peer, %error, "connection ended");
                    return;
                }
            },
            accepted = quic.accept_uni() => match accepted {
                Ok(recv) => {
                    let (control, quic) = (Rc::clone(&control), quic.clone());
                    others.spawn_local(async move {
                        if let Err(wrong) = control.read(recv).await {
                            close(&quic, &wrong);
                        }
                    });
                }
                Err(_) => return,
            },
            () = &mut besides, if refused.is_none() => {
                refused = Some(next);
                if own.write_all(&http3::goaway(next)).await.is_err() {
                    return;
                }
                if requests.is_empty() {
                    break;
                }
            }
        }
    }
    quic.close(Code::NO_ERROR.into(), b"");
    // The connection says so before its core goes on with anything else, and before it ends.
    tokio::task::yield_now().await;
}

/// Ends a connection that cannot be trusted.
fn close(quic: &quinn::Connection, wrong: &Wrong) {
    if let Wrong::Connection(code, why) = wrong {
        tracing::debug!(peer = %quic.remote_address(), why, "connection ends");
        quic.close((*code).into(), why.as_bytes());
    }
}

fn give_up(send: &mut SendStream, code: Code) {
    // A stream that is over needs no word.
    let _over = send.reset(code.into());
}

/// Why an answer does not reach its end.
enum Unsent {
    /// Its client does not want it any more, or is gone.
    Unwanted,
    /// Its client takes nothing of it.
    Stuck,
    /// It broke off.
    Broken,
}

/// A stream on which a request may come.
struct Asked {
    worker: Rc<Worker>,
    /// A stream is no request before its head is there.
    conn: Weak<Conn>,
    quic: quinn::Connection,
    given_up: Rc<Cell<u32>>,
    heads: Rc<Semaphore>,
    /// How long its head is waited for.
    limit: Duration,
}

impl Asked {
    /// From the first byte to the end of the answer.
    async fn served(self, mut send: SendStream, recv: RecvStream) {
        let mut frames = Frames::new(recv);
        let head = async {
            // Nobody closes it.
            let _turn = self.heads.acquire().await;
            http3::head(&mut frames, MAX_HEAD).await
        };
        let head = tokio::time::timeout(self.limit, head).await;
        let http3::Head { parts, length } = match head {
            Ok(Ok(head)) => head,
            Ok(Err(wrong)) => return self.not_served(wrong, send, frames).await,
            Err(_) => {
                frames.stop(Code::REQUEST_CANCELLED);
                return give_up(&mut send, Code::REQUEST_CANCELLED);
            }
        };
        let Some(conn) = self.conn.upgrade() else {
            // The connection is over, and this task with it.
            return;
        };
        let link = Rc::new(Link::default());
        let headless = parts.method == Method::HEAD;
        let mut expects = false;
        let body = match frames.is_ended() {
            true => ClientBody::empty(),
            false => {
                expects = continues(&parts.headers);
                let body = RequestBody::new(frames, self.quic.clone(), &link, length, MAX_HEAD);
                ClientBody::http3(Box::new(body), normalise::strip_trailers)
            }
        };
        let stopped = send.stopped();
        tokio::pin!(stopped);
        let response = {
            // As for the other versions, the stages are made where they stay.
            let mut answer = Box::into_pin(Box::write(
                Box::new_uninit(),
                request::handle(Rc::clone(&self.worker), conn, (parts, body), None),
            ));
            loop {
                tokio::select! {
                    biased;
                    response = &mut answer => break response,
                    () = link.wanted.notified(), if expects => {
                        expects = false;
                        let head = http3::response(StatusCode::CONTINUE, &HeaderMap::new());
                        // Whoever is gone is noticed below.
                        let _gone = send.write_all(&head).await;
                    }
                    _ = &mut stopped => return self.unwanted(),
                }
            }
        };
        if link.malformed.get() {
            return give_up(&mut send, Code::MESSAGE_ERROR);
        }
        let patience = self.worker.idle();
        let sent = tokio::select! {
            biased;
            sent = answer(&self.worker, &mut send, response, headless) => sent,
            _ = &mut stopped => Err(Unsent::Unwanted),
        };
        match sent {
            Ok(()) => {
                self.given_up.set(self.given_up.get().saturating_sub(1));
                let _over = send.finish();
                // It is on its way until the client has it: what closes the connection waits for it.
                let _taken = tokio::time::timeout(patience, stopped).await;
            }
            Err(Unsent::Unwanted) => {
                give_up(&mut send, Code::REQUEST_CANCELLED);
                self.unwanted();
            }
            Err(Unsent::Stuck) => give_up(&mut send, Code::REQUEST_CANCELLED),
            // The answer has no good end, and its client is to see that.
            Err(Unsent::Broken) => give_up(&mut send, Code::INTERNAL_ERROR),
        }
    }

    /// A client gave up its request.
    fn unwanted(&self) {
        let count = self.given_up.get() + 1;
        self.given_up.set(count);
        if count > GIVEN_UP {
            tracing::debug!(peer = %self.quic.remote_address(), "client gives up too many requests");
            let why = b"too many requests are given up";
            self.quic.close(Code::EXCESSIVE_LOAD.into(), why);
        }
    }

    /// What came is no request.
    async fn not_served(&self, wrong: Wrong, mut send: SendStream, mut frames: Frames) {
        tracing::debug!(peer = %self.quic.remote_address(), %wrong, "not a request");
        match wrong {
            Wrong::Connection(..) => close(&self.quic, &wrong),
            Wrong::Message(_) => {
                give_up(&mut send, Code::MESSAGE_ERROR);
                frames.stop(Code::MESSAGE_ERROR);
            }
            Wrong::TooLarge => {
                let mut head = Response::new(ResponseBody::empty());
                *head.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                let zero = HeaderValue::from_static("0");
                head.headers_mut().insert(header::CONTENT_LENGTH, zero);
                if answer(&self.worker, &mut send, head, false).await.is_ok() {
                    let _over = send.finish();
                }
                frames.stop(Code::NO_ERROR);
            }
            Wrong::Incomplete => give_up(&mut send, Code::REQUEST_INCOMPLETE),
            Wrong::Gone(_) => {
                give_up(&mut send, Code::REQUEST_CANCELLED);
                self.unwanted();
            }
        }
    }
}

/// Whether a client waits for `100 Continue` before it sends the body.
fn continues(headers: &HeaderMap) -> bool {
    let expected = headers.get(header::EXPECT);
    expected.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Sends an answer as far as its stream takes it. `headless`: it is one to `HEAD`, and has no body whatever its head says.
async fn answer(
    worker: &Worker,
    send: &mut SendStream,
    response: Response<ResponseBody>,
    headless: bool,
) -> Result<(), Unsent> {
    let patience = worker.idle();
    let (mut parts, mut body) = response.into_parts();
    let headers = &mut parts.headers;
    if !headers.contains_key(header::DATE) {
        headers.insert(header::DATE, worker.date());
    }
    if !body.is_end_stream()
        && !headers.contains_key(header::CONTENT_LENGTH)
        && let Some(length) = body.size_hint().exact()
    {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let head = http3::response(parts.status, headers);
    write(send, patience, &mut [head]).await?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            tracing::debug!(%error, "answer broke off");
            Unsent::Broken
        })?;
        if headless {
            continue;
        }
        match frame.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => {
                let mut frame = [http3::data_head(data.len()), data];
                write(send, patience, &mut frame).await?;
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    write(send, patience, &mut [http3::ending(&trailers)]).await?;
                }
            }
        }
    }
    Ok(())
}

/// Writes pieces; each part that the stream takes may be waited for so long.
async fn write(
    send: &mut SendStream,
    patience: Duration,
    mut pieces: &mut [Bytes],
) -> Result<(), Unsent> {
    while !pieces.is_empty() {
        let written = tokio::time::timeout(patience, send.write_chunks(pieces)).await;
        let written = written.map_err(|_| Unsent::Stuck)?;
        let written = written.map_err(|_| Unsent::Unwanted)?;
        pieces = &mut pieces[written.chunks..];
    }
    Ok(())
}
