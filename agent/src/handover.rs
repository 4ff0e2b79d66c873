//! One agent takes the place of another on the same node, and no connection is refused meanwhile.
//!
//! The agent that serves waits at a socket beside the lock of its state folder ([`Door`]). The next one loads its documents and
//! programs first, and then asks ([`ask`]):
//!
//! ```text
//!       next agent                                     agent that serves
//!           │── ask {version} ─────────────────────────────▶│
//!           │                                               │ writes no table any more, and no gate but of new interfaces
//!           │◀────────── give {names} + descriptors ────────│ lock, claim to the node, every socket
//!           │◀──────────────────────────────────── yielded ─│ goes on serving by the table that it has
//!  writes ▸ │ opens the pins, holds new interfaces          │ holds new interfaces, too
//!           │── guarding ──────────────────────────────────▶│ holds those that it has heard of, and no others
//!           │◀─────────────────────────────────── relieved ─│ touches no gate any more
//!           │ takes the gates over, activates its generation, accepts
//!           │── taken ─────────────────────────────────────▶│ closes the admin interface, gives lock and claim up
//!           │◀─────────────────────────────────────── left ─│ accepts no more, drains
//! ```
//!
//! An interface of a new pod is held by one of both, or by both, at every moment: what nobody has classified is denied also while
//! agents change places.
//!
//! Exactly one of both may write tables, and an agreement is not needed to know which: before `yielded` it is the agent that serves, after
//! it the next one. If the line ends before `taken`, the next agent is gone, since it holds its end for as long as it lives; the other
//! one takes the pins anew and goes on. If it ends later, nothing is lost but what drains. Lock and claim are the same open files
//! in both processes, so a third agent never finds them free. The kernel keeps a socket as long as one process has it: what waits
//! in its queue is served by whoever accepts next.

use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::proxy::{SocketKind, Sockets};

mod line;

use line::{DESCRIPTORS, Line, Listener};

/// Of this protocol. Another one is refused, and who asked waits for the end of the agent that serves.
const VERSION: u32 = 2;

/// The socket, in the state folder.
const SOCKET: &str = "handover.sock";

/// Until one who connected must ask.
const QUESTION: Duration = Duration::from_secs(5);

/// Until the agent that serves must have yielded: it may be writing a large generation.
const PATIENCE: Duration = Duration::from_secs(60);

/// Until it must hold no more interfaces, and until it must have left.
const FAREWELL: Duration = Duration::from_secs(10);

/// Wait after an accept that failed.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "camelCase")]
enum Message {
    /// Who asks wants to take the place, and speaks this version.
    Ask { version: u32 },
    /// It does not get it.
    Refused { why: String },
    /// What the descriptors are that come with this.
    Give { names: Vec<Name> },
    /// That was all, and who says so writes nothing any more, except that it holds the interfaces of new pods.
    Yielded,
    /// Who says so holds the interfaces of new pods.
    Guarding,
    /// Who says so holds those that it heard of, and no others.
    Relieved,
    /// Who says so serves.
    Taken,
    /// Who says so has closed all that only one may have.
    Left,
}

/// What a descriptor is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase")]
enum Name {
    Lock,
    Claim,
    Fixed { kind: SocketKind },
    Listener { address: SocketAddr },
    Datagrams { address: SocketAddr },
}

/// All that goes from one agent to the next.
#[derive(Debug)]
pub struct Belongings {
    /// The lock of the state folder.
    pub lock: OwnedFd,
    /// The claim to the node; none without a datapath.
    pub claim: Option<OwnedFd>,
    /// What the router listens on.
    pub sockets: Sockets,
}

impl Belongings {
    fn named(&self) -> Vec<(Name, BorrowedFd<'_>)> {
        let mut all = vec![(Name::Lock, self.lock.as_fd())];
        all.extend(self.claim.iter().map(|one| (Name::Claim, one.as_fd())));
        let Sockets {
            fixed,
            listeners,
            datagrams,
        } = &self.sockets;
        for (kind, sockets) in fixed {
            let named = sockets.iter();
            all.extend(named.map(|one| (Name::Fixed { kind: *kind }, one.as_fd())));
        }
        for (address, sockets) in listeners {
            let name = || Name::Listener { address: *address };
            all.extend(sockets.iter().map(|one| (name(), one.as_fd())));
        }
        for (address, sockets) in datagrams {
            let name = || Name::Datagrams { address: *address };
            all.extend(sockets.iter().map(|one| (name(), one.as_fd())));
        }
        all
    }
}

/// Why no place could be taken.
#[derive(Debug, thiserror::Error)]
pub enum Unasked {
    /// The agent that serves does not hand over, or just began or ended.
    #[error("the agent that has the node does not hand over")]
    Nobody(#[source] io::Error),
    /// It says why not.
    #[error("the agent that has the node refuses to hand over: {0}")]
    Refused(String),
    /// It was asked, and did not do what was agreed. It goes on serving.
    #[error("the agent that has the node did not hand over")]
    Failed(#[source] io::Error),
}

/// Asks the agent that serves for its place. On success it has yielded: it goes on serving requests, and this process writes.
///
/// # Errors
///
/// The other one goes on.
pub async fn ask(folder: &Path) -> Result<(Predecessor, Belongings), Unasked> {
    let line = Line::connect(&folder.join(SOCKET)).map_err(Unasked::Nobody)?;
    line.send(&Message::Ask { version: VERSION }, &[])
        .await
        .map_err(Unasked::Failed)?;
    let (mut lock, mut claim, mut sockets) = (None, None, Sockets::default());
    let given = timeout(PATIENCE, async {
        loop {
            match line.receive().await.map_err(Unasked::Failed)? {
                Some((Message::Give { names }, descriptors))
                    if names.len() == descriptors.len() =>
                {
                    for (name, one) in names.into_iter().zip(descriptors) {
                        match name {
                            Name::Lock => lock = Some(one),
                            Name::Claim => claim = Some(one),
                            Name::Fixed { kind } => {
                                sockets.fixed.entry(kind).or_default().push(one.into());
                            }
                            Name::Listener { address } => {
                                let all = sockets.listeners.entry(address);
                                all.or_default().push(one.into());
                            }
                            Name::Datagrams { address } => {
                                let all = sockets.datagrams.entry(address);
                                all.or_default().push(one.into());
                            }
                        }
                    }
                }
                Some((Message::Yielded, _)) => return Ok(()),
                Some((Message::Refused { why }, _)) => return Err(Unasked::Refused(why)),
                Some((message, _)) => return Err(Unasked::Failed(unexpected(&message))),
                None => return Err(Unasked::Failed(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    });
    let late = |_| Unasked::Failed(io::ErrorKind::TimedOut.into());
    given.await.map_err(late)??;
    let without = || io::Error::new(io::ErrorKind::InvalidData, "it gave no lock");
    let lock = lock.ok_or_else(|| Unasked::Failed(without()))?;
    let predecessor = Predecessor {
        line: ManuallyDrop::new(line),
    };
    let belongings = Belongings {
        lock,
        claim,
        sockets,
    };
    Ok((predecessor, belongings))
}

/// An agent that has yielded to this one.
///
/// Its line is closed by [`Predecessor::taken`] or by the end of this process, and by nothing before: as long as a thread here could
/// write, the other one must not.
#[derive(Debug)]
#[must_use = "the agent that yielded waits for a word"]
pub struct Predecessor {
    line: ManuallyDrop<Line>,
}

impl Predecessor {
    /// Tells that this agent holds the interfaces of new pods, and waits until the other one holds no more. From then on all gates
    /// are this agent's.
    ///
    /// # Errors
    ///
    /// It does not say so in time.
    pub async fn relieve(&self) -> io::Result<()> {
        self.tell(&Message::Guarding, |answer| {
            matches!(answer, Message::Relieved)
        })
        .await
    }

    /// Tells that this agent serves, and waits until the other one has left.
    ///
    /// # Errors
    ///
    /// It does not leave in time.
    pub async fn taken(self) -> io::Result<()> {
        let told = self
            .tell(&Message::Taken, |answer| matches!(answer, Message::Left))
            .await;
        drop(ManuallyDrop::into_inner(self.line));
        told
    }

    /// Says something, and waits for the answer. One that has ended does what it was to do by that.
    async fn tell(&self, message: &Message, answers: fn(&Message) -> bool) -> io::Result<()> {
        match self.line.send(message, &[]).await {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            sent => sent?,
        }
        match timeout(FAREWELL, self.line.receive()).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some((answer, _)))) if answers(&answer) => Ok(()),
            Ok(Ok(Some((answer, _)))) => Err(unexpected(&answer)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Where an agent that serves is asked for its place.
#[derive(Debug)]
pub struct Door {
    asked: mpsc::Receiver<Successor>,
    task: JoinHandle<()>,
}

impl Door {
    /// Opens the socket in the state folder, whose lock this process has.
    ///
    /// # Errors
    ///
    /// It cannot be made there.
    pub fn open(folder: &Path) -> Result<Self, DoorError> {
        let path = folder.join(SOCKET);
        let listener = Listener::open(&path).map_err(|source| DoorError { path, source })?;
        let (sender, asked) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok(line) => {
                        let sender = sender.clone();
                        tokio::spawn(async move { hear(line, sender).await });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "failed to hear of another agent");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        });
        Ok(Self { asked, task })
    }

    /// The next agent that wants the place. Safe to cancel.
    pub async fn asked(&mut self) -> Option<Successor> {
        self.asked.recv().await
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// No other agent can take the place of this one.
#[derive(Debug, thiserror::Error)]
#[error("failed to open socket `{}`, at which another agent asks for the place of this one", path.display())]
pub struct DoorError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Waits for the question of one who connected.
async fn hear(line: Line, sender: mpsc::Sender<Successor>) {
    let why = match timeout(QUESTION, line.receive()).await {
        Ok(Ok(Some((Message::Ask { version: VERSION }, _)))) => {
            // If nobody takes it, this agent is about to end.
            let _ = sender.send(Successor { line }).await;
            return;
        }
        Ok(Ok(Some((Message::Ask { version }, _)))) => {
            format!("it speaks version {VERSION} of the handover, not {version}")
        }
        Ok(Ok(Some((message, _)))) => unexpected(&message).to_string(),
        Ok(Err(error)) => error.to_string(),
        Ok(Ok(None)) | Err(_) => return,
    };
    tracing::warn!(why, "another agent asked for the place of this one");
    if let Err(error) = line.send(&Message::Refused { why }, &[]).await {
        tracing::debug!(%error, "it did not wait for the answer");
    }
}

/// An agent that wants the place of this one.
#[derive(Debug)]
pub struct Successor {
    line: Line,
}

impl Successor {
    /// Gives it everything, and waits until it serves. True once it does; false when it is gone, and this one is to go on. Nothing
    /// here may write from before the call until it returned false, except that new interfaces are held until `relieved` was called and
    /// has ended: the other one holds them then.
    pub async fn takes(&self, belongings: &Belongings, relieved: impl AsyncFnOnce()) -> bool {
        if let Err(error) = self.give(belongings).await {
            tracing::error!(%error, "failed to hand over");
            return false;
        }
        if !self.says(|word| matches!(word, Message::Guarding)).await {
            return false;
        }
        relieved().await;
        if let Err(error) = self.line.send(&Message::Relieved, &[]).await {
            tracing::warn!(%error, "the next agent does not hear that it alone holds new interfaces");
        }
        self.says(|word| matches!(word, Message::Taken)).await
    }

    /// Waits for this word. False when the other process has ended without it.
    async fn says(&self, expected: fn(&Message) -> bool) -> bool {
        match self.line.receive().await {
            Ok(Some((word, _))) if expected(&word) => true,
            Ok(None) => false,
            Ok(Some((message, _))) => {
                tracing::error!(error = %unexpected(&message), "the next agent is not understood");
                self.gone().await;
                false
            }
            Err(error) => {
                tracing::error!(%error, "the next agent is not heard");
                self.gone().await;
                false
            }
        }
    }

    async fn give(&self, belongings: &Belongings) -> io::Result<()> {
        let mut named = belongings.named().into_iter();
        loop {
            let (names, descriptors): (Vec<_>, Vec<_>) = named.by_ref().take(DESCRIPTORS).unzip();
            if names.is_empty() {
                return self.line.send(&Message::Yielded, &[]).await;
            }
            self.line
                .send(&Message::Give { names }, &descriptors)
                .await?;
        }
    }

    /// Waits until the other process has ended, whatever it says until then: it writes.
    async fn gone(&self) {
        loop {
            match self.line.receive().await {
                Ok(None) => return,
                Ok(Some(_)) => {}
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Tells it that all is closed here that only one may have.
    pub async fn left(self) {
        if let Err(error) = self.line.send(&Message::Left, &[]).await {
            tracing::warn!(%error, "the next agent does not hear that this one has left");
        }
    }
}

fn unexpected(message: &Message) -> io::Error {
    let told = format!("unexpected message of the other agent: {message:?}");
    io::Error::new(io::ErrorKind::InvalidData, told)
}

#[cfg(test)]
mod tests;
