//! Clients of HTTP/3 that do what they may not, and those beside them.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cardinal_agent::proxy::Reason;
use http::StatusCode;
use quinn::{ReadError, ReadToEndError, VarInt};

use super::client::{Raw, frame, head, number, plain, status, surely};
use super::{HOST, World, url};
use crate::support::echo;

const FRAME_UNEXPECTED: u64 = 0x105;
const FRAME_ERROR: u64 = 0x106;
const EXCESSIVE_LOAD: u64 = 0x107;
const MESSAGE_ERROR: u32 = 0x10e;

async fn world() -> World {
    World::new("http3: {}", echo("up").await)
}

async fn raw(world: &World) -> Raw {
    Raw::new(&world.authority, world.at, HOST).await
}

#[tokio::test]
async fn proxy_http3_malformed_requests_end_their_stream_alone() {
    let world = world().await;
    let raw = raw(&world).await;
    let with = |more: &[(&'static str, &'static str)]| [&plain("POST", HOST)[..], more].concat();
    let mut twice = plain("GET", HOST).to_vec();
    twice.push((":path", "/other"));
    let rows = [
        head(&twice),
        head(&plain("GET", HOST)[..3]),
        head(&with(&[("transfer-encoding", "chunked")])),
        head(&with(&[("Upper", "case")])),
        head(&[&with(&[("x", "y")])[..], &[(":scheme", "https")]].concat()),
        [head(&with(&[("content-length", "5")])), frame(0, b"four")].concat(),
        [head(&with(&[("content-length", "3")])), frame(0, b"four")].concat(),
        [head(&with(&[])), frame(0, b"four"), head(&[(":path", "/")])].concat(),
    ];
    for row in rows {
        let (_send, mut recv) = raw.say(&row, true).await;
        let read = surely(recv.read_to_end(1 << 20)).await;
        let expected = ReadToEndError::Read(ReadError::Reset(VarInt::from_u32(MESSAGE_ERROR)));
        assert_eq!(read, Err(expected), "{}", String::from_utf8_lossy(&row));
        // The next one on the connection is served.
        let (_send, mut recv) = raw.say(&head(&plain("GET", HOST)), true).await;
        assert_eq!(status(&mut recv).await, 200);
    }
    // What is well-formed and not served is answered.
    let connect = head(&[(":method", "CONNECT"), (":authority", "a.example.com:443")]);
    let extended = [
        &[(":method", "CONNECT"), (":protocol", "websocket")],
        &plain("", HOST)[1..],
    ];
    for (row, expected) in [(connect, 501), (head(&extended.concat()), 501)] {
        let (_send, mut recv) = raw.say(&row, true).await;
        assert_eq!(status(&mut recv).await, expected);
    }
    let host = [&plain("GET", HOST)[..], &[("host", "b.example.com")]].concat();
    let (_send, mut recv) = raw.say(&head(&host), true).await;
    assert_eq!(status(&mut recv).await, 400);
    assert_eq!(raw.quic.close_reason(), None);
}

#[tokio::test]
async fn proxy_http3_heads_have_a_bound() {
    let world = world().await;
    let raw = raw(&world).await;
    let long = "v".repeat(61 * 1024);
    let longer = "v".repeat(200 * 1024);
    let many: Vec<(String, String)> = (0..101)
        .map(|at| (format!("x-{at}"), String::new()))
        .collect();
    let many = many
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    for more in [
        vec![("x", long.as_str())],
        vec![("x", &longer)],
        many.collect(),
    ] {
        let fields = [&plain("GET", HOST)[..], &more].concat();
        // The longest is never read to its end.
        let sent = head(&fields);
        let (mut send, mut recv) = surely(raw.quic.open_bi()).await.expect("a stream");
        let sending = tokio::spawn(async move {
            // It is told to stop.
            let _stopped = send.write_all(&sent).await;
            send
        });
        assert_eq!(status(&mut recv).await, 431);
        surely(sending).await.expect("it ends");
    }
    let (_send, mut recv) = raw.say(&head(&plain("GET", HOST)), true).await;
    assert_eq!(status(&mut recv).await, 200);
}

#[tokio::test]
async fn proxy_http3_frames_out_of_place_end_the_connection() {
    let world = world().await;
    let request = head(&plain("POST", HOST));
    let rows = [
        (frame(0, b"body"), FRAME_UNEXPECTED),
        ([&request[..], &frame(4, b"")].concat(), FRAME_UNEXPECTED),
        (frame(2, b""), FRAME_UNEXPECTED),
        (frame(5, b"\0"), FRAME_UNEXPECTED),
        (
            [&request[..], &head(&[("x", "y")]), &frame(0, b"x")].concat(),
            FRAME_UNEXPECTED,
        ),
        (request[..request.len() - 1].to_vec(), FRAME_ERROR),
        ([&request[..], &[0, 5, b'x']].concat(), FRAME_ERROR),
        // Fields that refer to what was never said.
        (frame(1, &[2, 0, 0x80]), 0x200),
    ];
    for (row, code) in rows {
        let raw = raw(&world).await;
        let (_send, _recv) = raw.say(&row, true).await;
        assert_eq!(raw.closed().await, code, "{row:?}");
    }
    // On streams of one direction.
    let rows: [(&[u8], u64); 9] = [
        (&[0, 7, 1, 0], 0x10a),
        (&[0, 4, 2, 3, 0], 0x109),
        (&[0, 4, 4, 6, 1, 6, 1], 0x109),
        (&[0, 4, 0, 4, 0], FRAME_UNEXPECTED),
        (&[0, 4, 0, 0, 1, 0], FRAME_UNEXPECTED),
        (&[0, 4, 0, 3, 1, 0], 0x108),
        (&[0, 4, 0, 7, 2, 0, 0], FRAME_ERROR),
        (&[1], 0x103),
        // An insert into a table of no size.
        (&[2, 0x3f, 0xe1, 0x1f], 0x201),
    ];
    for (said, code) in rows {
        let raw = Raw::saying(&world.authority, world.at, HOST, said).await;
        assert_eq!(raw.closed().await, code, "{said:?}");
    }
    let raw = raw(&world).await;
    let mut second = surely(raw.quic.open_uni()).await.expect("a stream");
    second.write_all(&[0, 4, 0]).await.expect("it is taken");
    assert_eq!(raw.closed().await, 0x103);
    // What is not known is passed over.
    let grease = [
        &[0, 4, 2, 0x21, 5][..],
        &frame(0x21, b"grease"),
        &frame(13, &[5]),
    ]
    .concat();
    let raw = Raw::saying(&world.authority, world.at, HOST, &grease).await;
    let mut other = surely(raw.quic.open_uni()).await.expect("a stream");
    other.write_all(&number(0x21)).await.expect("it is taken");
    let asked = [
        frame(0x21, &[7; 5000]),
        request,
        frame(0x40, b""),
        frame(0, b"x"),
    ]
    .concat();
    let (_send, mut recv) = raw.say(&asked, true).await;
    assert_eq!(status(&mut recv).await, 200);
}

#[tokio::test]
async fn proxy_http3_clients_that_only_give_up_are_sent_away() {
    let world = world().await;
    let raw = raw(&world).await;
    let other = world.client().await;
    let mut closed = false;
    for _ in 0..2000 {
        let Ok((mut send, mut recv)) = raw.quic.open_bi().await else {
            closed = true;
            break;
        };
        // Whether it comes to be a request or not.
        let _sent = send.write_all(&head(&plain("GET", HOST))).await;
        let _reset = send.reset(VarInt::from_u32(0x10c));
        let _stopped = recv.stop(VarInt::from_u32(0x10c));
    }
    assert!(closed, "it is too much");
    assert_eq!(raw.closed().await, EXCESSIVE_LOAD);
    assert_eq!(other.get(&url("/")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn proxy_http3_waits_for_nothing_but_a_body_that_is_wanted() {
    let world = world().await;
    let raw = raw(&world).await;
    let expecting = [&plain("POST", HOST)[..], &[("expect", "100-continue")]].concat();
    let (mut send, mut recv) = raw.say(&head(&expecting), false).await;
    assert_eq!(status(&mut recv).await, 100);
    send.write_all(&frame(0, b"body"))
        .await
        .expect("it is taken");
    send.finish().expect("it is open");
    assert_eq!(status(&mut recv).await, 200);
    // Nobody wants the body of what is not served.
    let ambiguous = [("expect", "100-continue"), ("x_y", "z")];
    let ambiguous = [&plain("POST", HOST)[..], &ambiguous].concat();
    let (_send, mut recv) = raw.say(&head(&ambiguous), false).await;
    assert_eq!(status(&mut recv).await, 400);
}

#[tokio::test]
async fn proxy_http3_garbage_stops_nobody() {
    let world = world().await;
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU64::new(0));
    let (stopped, count, at) = (Arc::clone(&stop), Arc::clone(&sent), world.at);
    let throwing = std::thread::spawn(move || {
        // Seeded, so that what fails once fails again (xorshift).
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        while !stopped.load(Ordering::Relaxed) {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
            for _ in 0..50 {
                let length = match random() % 3 {
                    0 => random() % 40,
                    1 => 1200,
                    _ => random() % 1500,
                };
                let mut bytes: Vec<u8> = (0..length).map(|_| random() as u8).collect();
                if random() % 2 == 0 && bytes.len() > 8 {
                    // Long heads of the version that is spoken, whatever is behind them.
                    bytes[0] = 0xc0 | (random() % 64) as u8;
                    bytes[1..5].copy_from_slice(&[0, 0, 0, 1]);
                    bytes[5] = (random() % 24) as u8;
                }
                // A full queue takes none.
                let _full = socket.send_to(&bytes, at);
            }
            count.fetch_add(50, Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
    let kept = world.client().await;
    let mut turn = 0;
    while turn < 20 || sent.load(Ordering::Relaxed) < 5000 {
        assert_eq!(kept.get(&url("/")).await.status, StatusCode::OK);
        assert_eq!(
            world.client().await.get(&url("/")).await.status,
            StatusCode::OK
        );
        turn += 1;
    }
    stop.store(true, Ordering::Relaxed);
    throwing.join().expect("it threw to the end");
    let records = world.router.proxy.log().since(0);
    assert!(records.iter().any(|one| one.reason == Reason::Ok));
}
