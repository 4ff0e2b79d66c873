//! HTTP/1.1 towards clients (RFC 9112): one request at a time over one connection.
//!
//! Flows in: a connection. Flows out: its requests, one after the other, each to [`request::handle`], and their answers.
//! There is no task besides the connection's own: a request's body is read from the socket by whoever wants the next part of
//! it, and an answer is written by whoever woke for it. Nothing here waits by the clock.

use std::cell::Cell;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use http::request::Parts;
use http::{Response, StatusCode};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::head::{Answered, Head, Terms};
use self::line::{Line, NoHead};
use super::aside::Aside;
use super::body::ResponseBody;
use super::connection::Conn;
use super::linger::Lingering;
use super::prefixed::Prefixed;
use super::request;
use super::tunnel::{Duplex, OnUpgrade};
use super::worker::Worker;
use crate::http1::{Framing, Outgoing, Unsent};
use crate::upstream::ClientBody;

mod head;
mod line;

/// What a connection watches besides its requests.
pub(super) struct Watch<'a, F> {
    /// Ready when it idled too long.
    pub(super) idle: Aside<F>,
    /// Whether another request may come.
    pub(super) closing: &'a Cell<Closing>,
}

/// How a connection comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    /// It does not.
    No,
    /// The next answer whose head is not sent yet says that it is the last (RFC 9112, section 9.6). A client that rests may send
    /// one more request: it knows nothing of the end, and a close could meet that request on its way.
    AfterNext,
    /// The same, and at once if nothing is asked.
    AtRest,
}

/// Where a connection is after a request.
enum After {
    /// Ready for the next one.
    Next,
    /// To be closed; true if the client may still send.
    Close(bool),
    /// It speaks another protocol from here on.
    Switch(oneshot::Sender<Box<dyn Duplex>>),
}

/// Serves requests to the end of the connection, of which `ahead` was read before.
pub(super) async fn serve<T, F>(
    worker: &Rc<Worker>,
    stream: T,
    ahead: Bytes,
    conn: &Rc<Conn>,
    watch: &mut Watch<'_, F>,
) where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    F: Future<Output = ()>,
{
    let line = Line::new(stream, ahead, worker.client.arena().clone());
    let unread = loop {
        let head = std::future::poll_fn(|context| {
            if let Poll::Ready(head) = line.poll_head(context) {
                return Poll::Ready(head);
            }
            if watch.idle.poll(context).is_ready()
                || (watch.closing.get() == Closing::AtRest && !line.has_begun())
            {
                return Poll::Ready(Err(NoHead::Gone));
            }
            Poll::Pending
        });
        match head.await {
            Ok(head) => match exchange(worker, &line, conn, head, watch).await {
                After::Next => {}
                After::Close(unread) => break unread,
                After::Switch(handed) => {
                    // Who has a body of the request has not read it: nothing behind it is the other protocol.
                    if let Some((ahead, stream)) = line.into_parts() {
                        // Whoever waited for it may be gone.
                        let _ = handed.send(Box::new(Prefixed::behind(ahead, stream)));
                    }
                    return;
                }
            },
            Err(NoHead::Gone) => break false,
            Err(NoHead::Refused(status)) => {
                tracing::debug!(peer = %conn.peer, %status, "not a request");
                let answer = head::refusal(status, &worker.date());
                conn.unread.note();
                if let Some((_, stream)) = line.into_parts() {
                    close(worker, stream, &answer, conn).await;
                }
                return;
            }
        }
    };
    if unread {
        conn.unread.note();
    }
    if let Some((_, stream)) = line.into_parts() {
        close(worker, stream, &[], conn).await;
    }
}

/// Closes a connection after some last bytes.
async fn close<T>(worker: &Worker, stream: T, last: &[u8], conn: &Conn)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    if !conn.tls && last.is_empty() && !conn.unread.is_noted() {
        // The kernel says goodbye, after what it still has.
        return;
    }
    let mut stream = Lingering::new(stream, conn.unread.clone());
    let closed = async {
        stream.write_all(last).await?;
        stream.shutdown().await
    };
    // A client that reads nothing has had its time.
    if let Ok(Err(error)) = tokio::time::timeout(worker.idle(), closed).await {
        tracing::debug!(peer = %conn.peer, %error, "client is gone");
    }
}

/// One request and its answer.
async fn exchange<T, F>(
    worker: &Rc<Worker>,
    line: &Rc<Line<T>>,
    conn: &Rc<Conn>,
    head: Head,
    watch: &mut Watch<'_, F>,
) -> After
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    F: Future<Output = ()>,
{
    let Head {
        parts,
        terms,
        upgrades,
        ..
    } = head;
    let (mut handed, mut upgrade) = (None, None);
    if upgrades {
        let (sender, receiver) = oneshot::channel();
        handed = Some(sender);
        upgrade = Some(OnUpgrade::Http1(receiver));
    }
    let body = match line.lends() {
        true => ClientBody::http1(Rc::clone(line) as _),
        false => ClientBody::empty(),
    };
    let response = {
        let mut answer = handler(worker, conn, (parts, body), upgrade);
        let answered = std::future::poll_fn(|context| {
            if let Poll::Ready(response) = answer.as_mut().poll(context) {
                return Poll::Ready(Some(response));
            }
            // It does not idle; but that this request is to be the last is noted on the way.
            if watch.idle.poll(context).is_ready() {
                return Poll::Ready(None);
            }
            line.poll_gone(context).map(|()| None)
        });
        match answered.await {
            Some(response) => response,
            None => return After::Close(false),
        }
    };
    let Some(untold) = line.answers() else {
        return After::Close(false);
    };
    let last = untold || watch.closing.get() != Closing::No;
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let (mut outgoing, stays) = outgoing(worker, response, terms, last);
    let mut taken = None;
    let sent = std::future::poll_fn(|context| {
        if let Poll::Ready(sent) = line.poll_send(&mut outgoing, context) {
            return Poll::Ready(Some(sent));
        }
        if outgoing.held() != taken {
            taken = outgoing.held();
            conn.held.set(taken.map(|_| Instant::now()));
        }
        if watch.idle.poll(context).is_ready() {
            return Poll::Ready(None);
        }
        line.poll_gone(context).map(|()| None)
    });
    let sent = sent.await;
    conn.held.set(None);
    match sent {
        Some(Ok(())) => {}
        Some(Err(Unsent::Io(error))) => {
            tracing::debug!(peer = %conn.peer, %error, "client is gone");
            return After::Close(false);
        }
        Some(Err(error)) => {
            // The answer has no good end, and its client is to see that.
            tracing::debug!(peer = %conn.peer, %error, "answer broke off");
            return After::Close(false);
        }
        None => return After::Close(false),
    }
    drop(outgoing);
    if switches {
        return handed.map_or(After::Close(false), After::Switch);
    }
    let free = std::future::poll_fn(|context| {
        if let Poll::Ready(free) = line.poll_free(context) {
            return Poll::Ready(free);
        }
        watch.idle.poll(context).map(|()| false)
    });
    match free.await {
        true if stays && watch.closing.get() != Closing::AtRest => After::Next,
        free => After::Close(!free),
    }
}

/// The stages of a request. Connections that wait for their next one have no memory for them.
fn handler(
    worker: &Rc<Worker>,
    conn: &Rc<Conn>,
    request: (Box<Parts>, ClientBody),
    upgrade: Option<OnUpgrade>,
) -> std::pin::Pin<Box<impl Future<Output = Response<ResponseBody>> + use<>>> {
    // Of several kilobytes few are written before they are used, as long as they are not made elsewhere and moved here.
    Box::into_pin(Box::write(
        Box::new_uninit(),
        request::handle(Rc::clone(worker), Rc::clone(conn), request, upgrade),
    ))
}

/// An answer on its way, and whether its connection stays open behind it.
fn outgoing(
    worker: &Worker,
    response: Response<ResponseBody>,
    terms: Terms,
    last: bool,
) -> (Outgoing<ResponseBody>, bool) {
    let (parts, body) = response.into_parts();
    let terms = Terms {
        stays: terms.stays && !last,
        ..terms
    };
    let arena = worker.client.arena();
    let mut answered = Answered {
        framing: None,
        stays: false,
    };
    let head = arena.written(head::ROOM, |out| {
        let date = || worker.date();
        answered = head::write(parts.status, &parts.headers, &body, terms, date, out);
    });
    arena.give(parts.headers);
    let body = Some(body).filter(|body| !body.is_end_stream());
    let outgoing = match answered.framing {
        Some(framing) => Outgoing::new(head, body, framing),
        None => Outgoing::new(head, None, Framing::Length(0)),
    };
    (outgoing, answered.stays)
}
