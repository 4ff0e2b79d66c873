use std::collections::BTreeMap;
use std::net::{TcpListener, UdpSocket};

use super::*;
use crate::lock::StateLock;

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a port")
}

fn belongings(folder: &Path) -> Belongings {
    let lock = StateLock::take(folder).expect("free");
    let one = listener();
    let address = one.local_addr().expect("bound");
    // More than fit into one message.
    let mut listeners = BTreeMap::from([(address, vec![one])]);
    for _ in 0..3 * DESCRIPTORS {
        let again = listeners[&address][0].try_clone().expect("descriptors");
        listeners
            .get_mut(&address)
            .expect("it is there")
            .push(again);
    }
    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let at = datagrams.local_addr().expect("bound");
    Belongings {
        lock: lock.share().expect("descriptors"),
        claim: None,
        sockets: Sockets {
            fixed: BTreeMap::from([(SocketKind::SteeredV4, vec![listener(), listener()])]),
            listeners,
            datagrams: BTreeMap::from([(at, vec![datagrams])]),
        },
    }
}

#[tokio::test]
async fn everything_goes_to_the_next_agent_and_the_lock_is_never_free() {
    let folder = tempfile::tempdir().expect("folder");
    let given = belongings(folder.path());
    let mut door = Door::open(folder.path()).expect("it opens");
    let (asked, got) = tokio::join!(
        async {
            let successor = door.asked().await.expect("somebody asks");
            let mut relieved = false;
            let taken = successor.takes(&given, async || relieved = true).await;
            assert!(relieved, "the other one holds new interfaces");
            StateLock::take(folder.path()).expect_err("both have it");
            successor.left().await;
            taken
        },
        async {
            let (predecessor, got) = ask(folder.path()).await.expect("it is given");
            predecessor.relieve().await.expect("it holds no more");
            predecessor.taken().await.expect("the other one leaves");
            got
        }
    );
    assert!(asked, "it was taken");
    let counts = |sockets: &Sockets| {
        let listeners = sockets.listeners.iter();
        let listeners: Vec<_> = listeners.map(|(at, all)| (*at, all.len())).collect();
        let datagrams: Vec<_> = sockets.datagrams.keys().copied().collect();
        (
            sockets.fixed[&SocketKind::SteeredV4].len(),
            listeners,
            datagrams,
        )
    };
    assert_eq!(counts(&got.sockets), counts(&given.sockets));
    for (at, sockets) in &got.sockets.listeners {
        for socket in sockets {
            assert_eq!(socket.local_addr().expect("a socket"), *at);
        }
    }
    drop(given);
    StateLock::take(folder.path()).expect_err("the next agent has it");
    drop(got);
    StateLock::take(folder.path()).expect("free again");
}

#[tokio::test]
async fn who_is_gone_before_it_serves_has_taken_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let given = belongings(folder.path());
    let mut door = Door::open(folder.path()).expect("it opens");
    let line = Line::connect(&folder.path().join(SOCKET)).expect("it listens");
    let question = Message::Ask { version: VERSION };
    line.send(&question, &[]).await.expect("it is heard");
    let successor = door.asked().await.expect("somebody asks");
    let nobody = async || panic!("nobody holds new interfaces in its place");
    let (taken, ()) = tokio::join!(successor.takes(&given, nobody), async {
        while let Some((message, _)) = line.receive().await.expect("it is said") {
            if matches!(message, Message::Yielded) {
                break;
            }
        }
        drop(line);
    });
    assert!(!taken, "the other end is closed");
}

#[tokio::test]
async fn who_is_gone_while_it_holds_new_interfaces_has_relieved_the_other_one() {
    let folder = tempfile::tempdir().expect("folder");
    let given = belongings(folder.path());
    let mut door = Door::open(folder.path()).expect("it opens");
    let mut relieved = false;
    let (taken, ()) = tokio::join!(
        async {
            let successor = door.asked().await.expect("somebody asks");
            successor.takes(&given, async || relieved = true).await
        },
        async {
            let (predecessor, _) = ask(folder.path()).await.expect("it is given");
            predecessor.relieve().await.expect("it holds no more");
            drop(ManuallyDrop::into_inner(predecessor.line));
        }
    );
    assert!(!taken, "the other end is closed");
    assert!(relieved, "it was told");
}

#[tokio::test]
async fn another_version_is_refused_and_a_dead_socket_is_replaced() {
    let folder = tempfile::tempdir().expect("folder");
    let nobody = ask(folder.path()).await.expect_err("nobody is there");
    assert!(matches!(nobody, Unasked::Nobody(_)), "{nobody}");
    let door = Door::open(folder.path()).expect("it opens");
    let line = Line::connect(&folder.path().join(SOCKET)).expect("it listens");
    let question = Message::Ask {
        version: VERSION + 1,
    };
    line.send(&question, &[]).await.expect("it is heard");
    let answer = line.receive().await.expect("an answer");
    let Some((Message::Refused { why }, _)) = answer else {
        panic!("{answer:?}");
    };
    assert!(why.contains("version 2 of the handover, not 3"), "{why}");
    drop(door);
    // The socket of one that was killed.
    let left = loop {
        match ask(folder.path()).await {
            Err(Unasked::Nobody(error)) => break error,
            // The task of the door ends in its own time.
            _ => tokio::task::yield_now().await,
        }
    };
    assert_eq!(left.kind(), io::ErrorKind::ConnectionRefused);
    Door::open(folder.path()).expect("in its place");
}
