//! The rest of a request whose answer has begun: sent by a task of its own, so that neither direction waits for the other.
//!
//! A client may read nothing of its answer before it has sent everything, and an upstream may answer the rest only when it
//! has it. Both tasks are of one core and use the connection in turns. The one that ends last gives it back.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::task::AbortHandle;

use super::rest::Reading;
use super::{BodyError, Http1Error, Idle};
use crate::http1::{Outgoing, Unsent};
use crate::upstream::RequestBody;

/// The reading side of a connection whose other side is still written to. Dropping it ends both.
pub(super) struct Upload {
    line: Rc<RefCell<Line>>,
    pump: Pump,
}

struct Line {
    idle: Box<Idle>,
    /// Whether the request was sent to its end.
    sent: bool,
    /// The client broke off; the answer is to break off as well.
    failed: Option<BodyError>,
    /// Who waits for the answer.
    reader: Option<Waker>,
    /// The answer, when it was read to its end.
    read: Option<Reading>,
}

/// The task that writes. It ends with its owner.
struct Pump(Option<AbortHandle>);

impl Drop for Pump {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl Upload {
    /// Goes on to send.
    pub(super) fn start(idle: Box<Idle>, mut sending: Outgoing<RequestBody>) -> Self {
        let line = Rc::new(RefCell::new(Line {
            idle,
            sent: false,
            failed: None,
            reader: None,
            read: None,
        }));
        let shared = Rc::clone(&line);
        let task = tokio::task::spawn_local(async move {
            let sent = std::future::poll_fn(|context| {
                sending.poll(&mut shared.borrow_mut().idle.stream, context)
            });
            let sent = sent.await;
            shared.borrow_mut().written(sent);
            give_back(shared);
        });
        let pump = Pump(Some(task.abort_handle()));
        Self { line, pump }
    }

    /// Lets `read` read, unless the request broke off.
    pub(super) fn poll_read<T>(
        &self,
        context: &mut Context<'_>,
        read: impl FnOnce(&mut Idle, &mut Context<'_>) -> Poll<Option<Result<T, Http1Error>>>,
    ) -> Poll<Option<Result<T, Http1Error>>> {
        let line = &mut *self.line.borrow_mut();
        if let Some(error) = line.failed.take() {
            return Poll::Ready(Some(Err(Http1Error::Body(error))));
        }
        let answer = read(&mut line.idle, context);
        line.reader = answer.is_pending().then(|| context.waker().clone());
        answer
    }

    /// The answer was read to its end. A request that was not sent to its end goes on without anybody waiting: the upstream
    /// may want it, and the client's next request is behind it.
    pub(super) fn read(mut self, reading: Reading) {
        self.line.borrow_mut().read = Some(reading);
        self.pump.0 = None;
        give_back(self.line);
    }
}

impl Line {
    fn written(&mut self, sent: Result<(), Unsent<BodyError>>) {
        let error = match sent {
            Ok(()) => {
                self.sent = true;
                return;
            }
            // The answer is on its way all the same.
            Err(Unsent::Io(error)) => {
                tracing::debug!(%error, "request was answered and not read to its end");
                return;
            }
            Err(Unsent::Body(error)) => error,
            Err(Unsent::Length) => BodyError::Length,
        };
        tracing::debug!(%error, "request was answered and broke off");
        self.failed = Some(error);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// Lets go of a connection.
fn give_back(line: Rc<RefCell<Line>>) {
    if let Some(line) = Rc::into_inner(line).map(RefCell::into_inner)
        && let Some(reading) = line.read.filter(|_| line.sent)
    {
        reading.give_back(line.idle);
    }
}
