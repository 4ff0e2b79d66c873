use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::*;
use crate::http1::Names;
use crate::upstream::Progress;

/// A connection, its other side, and where it goes when it is free.
fn connection() -> (Box<Idle>, UnixStream, Rc<Shelf>) {
    let (near, far) = UnixStream::pair().expect("a pair of sockets");
    let idle = Idle::new(Stream::Unix(near), Arena::default(), "far".into());
    (idle, far, Rc::default())
}

/// A connection that nobody uses, if there is one.
async fn taken(shelf: &Shelf) -> Option<Box<Idle>> {
    std::future::poll_fn(|context| Poll::Ready(shelf.take(Instant::now(), context))).await
}

fn request(method: Method, body: Vec<Bytes>) -> Box<UpstreamRequest> {
    let progress = Rc::<Progress>::default();
    let body = match body.is_empty() {
        true => RequestBody::empty(progress),
        false => RequestBody::copied(body, progress),
    };
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = method;
    parts.uri = http::Uri::from_static("/a?b");
    let parts = Box::new(parts);
    let more = Vec::new();
    Box::new(UpstreamRequest { parts, more, body })
}

/// Status, body, and names of the trailers.
type Read = (u16, String, Vec<String>);

async fn read(head: Head) -> Result<Read, Http1Error> {
    let (parts, mut rest) = head.response.into_parts();
    let (mut body, mut trailers) = (Vec::new(), Vec::new());
    while !rest.is_end_stream() {
        let frame = std::future::poll_fn(|context| rest.poll_frame(context)).await;
        let Some(frame) = frame.transpose()? else {
            break;
        };
        match frame.into_data() {
            Ok(data) => body.extend_from_slice(&data),
            Err(frame) => {
                let fields = frame.into_trailers().expect("what is no data is trailers");
                trailers.extend(fields.keys().map(ToString::to_string));
            }
        }
    }
    let body = String::from_utf8(body).expect("text");
    Ok((parts.status.as_u16(), body, trailers))
}

/// Sends a request, and answers it with `answer` in pieces of so many bytes. Gives what was read, and whether the
/// connection can be used again.
async fn exchange(
    method: Method,
    answer: &[u8],
    piece: usize,
    close: bool,
) -> (Result<Read, Http1Error>, bool) {
    let (idle, mut far, shelf) = connection();
    let asked = request(method, Vec::new());
    let told = async {
        let head = send(idle, asked, &shelf).await?;
        read(head).await
    };
    let tell = async {
        let mut heard = [0; 256];
        assert!(far.read(&mut heard).await.expect("a request") > 0);
        for piece in answer.chunks(piece) {
            // The other side may have heard enough.
            if far.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        if close {
            drop(far);
            return None;
        }
        Some(far)
    };
    let both = async { tokio::join!(told, tell) };
    let both = tokio::time::timeout(Duration::from_secs(60), both).await;
    let (told, _far) = both.expect("an answer, or an error");
    let again = taken(&shelf).await.is_some();
    (told, again)
}

#[tokio::test]
async fn an_answer_has_one_reading_in_whatever_pieces_it_comes() {
    let ok = |body: &str| Some((200, body.to_owned(), Vec::new()));
    let get = Method::GET;
    for (method, answer, close, expected, reusable) in [
        (
            &get,
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            false,
            ok("ok"),
            true,
        ),
        (
            &get,
            "\r\nHTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
            false,
            ok("ok"),
            true,
        ),
        (
            &get,
            "\r\n\r\n\n\r\nHTTP/1.1 103 x\r\n\r\n\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            false,
            ok("ok"),
            true,
        ),
        (
            &get,
            "\r\n\rHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\nContent-Length: 2\r\n\r\nok",
            false,
            ok("ok"),
            true,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            false,
            ok(""),
            true,
        ),
        (
            &Method::HEAD,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            false,
            ok(""),
            true,
        ),
        (
            &get,
            "HTTP/1.1 204 x\r\nContent-Length: 5\r\n\r\n",
            false,
            Some((204, String::new(), Vec::new())),
            false,
        ),
        (
            &get,
            "HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n",
            false,
            Some((304, String::new(), Vec::new())),
            true,
        ),
        (
            &get,
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nLink: <a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            false,
            ok("ok"),
            true,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n\r\nok",
            false,
            ok("ok"),
            false,
        ),
        (
            &get,
            "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
            false,
            ok("ok"),
            false,
        ),
        (
            &get,
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
            false,
            ok("ok"),
            true,
        ),
        // Until it is closed.
        (&get, "HTTP/1.1 200 OK\r\n\r\nok", true, ok("ok"), false),
        (
            &get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\nok",
            true,
            ok("ok"),
            false,
        ),
        // Chunks.
        (
            &get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            false,
            ok("ok"),
            true,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\no\r\n001 \r\nk\r\n0\r\n\r\n",
            false,
            ok("ok"),
            true,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n",
            false,
            Some((200, "ok".to_owned(), vec!["a".to_owned()])),
            true,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            false,
            ok("ok"),
            false,
        ),
        // None, or several.
        (&get, "", true, None, false),
        (
            &get,
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
            true,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok!",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nok",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nX: 1\r\n folded: 2\r\nContent-Length: 2\r\n\r\nok",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
            true,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok!\r\n0\r\n\r\n",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\nok\r\n0\r\n\r\n",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n;x\r\nok\r\n0\r\n\r\n",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a\nb\r\nok\r\n0\r\n\r\n",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nok\n0\n\n",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nok\r\n0\r\n\r\n",
            false,
            None,
            false,
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA b: c\r\n\r\n",
            false,
            None,
            false,
        ),
    ] {
        for piece in [1, 7, usize::MAX] {
            let (told, again) = exchange(method.clone(), answer.as_bytes(), piece, close).await;
            match (&told, &expected) {
                (Ok(told), Some(expected)) => assert_eq!(told, expected, "{answer:?} by {piece}"),
                (Err(_), None) => {}
                _ => panic!("{answer:?} by {piece} gave {told:?}"),
            }
            assert_eq!(again, reusable, "{answer:?} by {piece}");
        }
    }
}

#[tokio::test]
async fn heads_and_extensions_without_end_are_refused() {
    let head = format!("HTTP/1.1 200 OK\r\n{}", "x: y\r\n".repeat(MAX_HEAD));
    let lines = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(101));
    let long = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(2 * MAX_HEAD));
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let extension = format!("{chunked}1;{}\r\n", "x".repeat(1 << 20));
    let extensions = chunked.to_owned() + &format!("1;{}\r\no\r\n", "x".repeat(1000)).repeat(1000);
    let trailers = format!("{chunked}0\r\nx: {}", "y".repeat(1 << 20));
    let blank = "\r\n".repeat(MAX_HEAD);
    for answer in [head, lines, long, blank, extension, extensions, trailers] {
        let (told, again) = exchange(Method::GET, answer.as_bytes(), 1 << 16, false).await;
        assert!(told.is_err() && !again, "{:?}", &answer[..100]);
    }
}

#[test]
fn empty_lines_are_looked_at_once() {
    let mut input = Bytes::from("\r\n\n\r\nHTTP/1.1 200 OK\r\n\r\n\r\n");
    assert_eq!(crate::http1::skip_blank(&mut input), 5);
    assert_eq!(crate::http1::skip_blank(&mut input), 0);
    assert_eq!(&input[..8], b"HTTP/1.1");
    // The rest of a line may be to come.
    let mut input = Bytes::from("\n\r");
    assert_eq!(crate::http1::skip_blank(&mut input), 1);
    assert_eq!(&input[..], b"\r");
}

#[test]
fn what_is_too_long_is_refused_although_it_is_whole() {
    let line = format!("x: {}\r\n", "y".repeat(MAX_HEAD));
    let mut answer = Bytes::from(format!("HTTP/1.1 200 OK\r\n{line}\r\n"));
    let read = head::read(
        &mut answer,
        0,
        &Method::GET,
        &Arena::default(),
        &mut Names::default(),
    );
    assert!(matches!(read, Err(Http1Error::TooLong)));
}

#[tokio::test]
async fn who_waits_for_an_answer_holds_none_of_the_shared_memory() {
    let (idle, mut far, shelf) = connection();
    let arena = idle.reader.arena().clone();
    let beginning = || arena.written(1, |out| out.extend_from_slice(b"x")).as_ptr();
    let first = beginning();
    let authority = arena.written(4, |out| out.extend_from_slice(b"host"));
    let mut asked = request(Method::GET, Vec::new());
    let authority = HeaderValue::from_maybe_shared(authority).expect("a value");
    asked.more = vec![(HeaderName::from_static("x-forwarded-host"), authority)];
    assert_ne!(beginning(), first, "a part of it is in use");
    let mut answer = std::pin::pin!(send(idle, asked, &shelf));
    let waits = |context: &mut Context<'_>| Poll::Ready(answer.as_mut().poll(context).is_pending());
    assert!(std::future::poll_fn(waits).await);
    let mut head = [0; 256];
    let count = far.read(&mut head).await.expect("a request");
    assert!(head[..count].ends_with(b"x-forwarded-host: host\r\n\r\n"));
    assert_eq!(beginning(), first);
    let answered = b"HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n";
    far.write_all(answered).await.expect("it reads");
    drop(answer.await.expect("an answer"));
    let _kept = taken(&shelf).await.expect("it can be used again");
    assert_eq!(beginning(), first);
}

#[tokio::test]
async fn a_request_is_written_once_and_framed_once() {
    let (idle, mut far, shelf) = connection();
    let mut asked = request(Method::POST, vec!["ab".into(), "c".into()]);
    for (name, value) in [("content-length", "7"), ("x-a", "1"), ("x-a", "2")] {
        let value = http::HeaderValue::from_static(value);
        asked.parts.headers.append(name, value);
    }
    let told = async {
        let head = send(idle, asked, &shelf).await?;
        read(head).await
    };
    let heard = async {
        let mut heard = vec![0; 256];
        let count = far.read(&mut heard).await.expect("a request");
        heard.truncate(count);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        far.write_all(answer).await.expect("somebody listens");
        String::from_utf8(heard).expect("text")
    };
    let (told, heard) = tokio::join!(told, heard);
    assert_eq!(told.expect("an answer").0, 200);
    assert_eq!(
        heard,
        "POST /a?b HTTP/1.1\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: 3\r\n\r\nabc"
    );
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_is_passed_on_and_the_rest_is_sent() {
    const LENGTH: usize = 4 << 20;
    tokio::task::LocalSet::new()
        .run_until(async {
            let (idle, mut far, shelf) = connection();
            let asked = request(Method::POST, vec![Bytes::from(vec![b'x'; LENGTH])]);
            let answer = b"HTTP/1.1 413 no\r\ncontent-length: 2\r\n\r\nno";
            far.write_all(answer).await.expect("somebody listens");
            let head = send(idle, asked, &shelf).await;
            let told = read(head.expect("a head")).await.expect("an answer");
            assert_eq!((told.0, told.1.as_str()), (413, "no"));
            // In use as long as the request is not sent.
            assert!(taken(&shelf).await.is_none());
            let mut heard = vec![0; 1 << 16];
            let mut bytes = 0;
            while bytes < LENGTH {
                let count = far.read(&mut heard).await.expect("the rest");
                assert!(count > 0, "it broke off after {bytes} bytes");
                bytes += heard[..count].iter().filter(|byte| **byte == b'x').count();
            }
            while taken(&shelf).await.is_none() {
                tokio::task::yield_now().await;
            }
        })
        .await;
}

#[tokio::test]
async fn an_answer_counts_although_its_upstream_reads_no_more() {
    let (idle, mut far, shelf) = connection();
    let asked = request(Method::POST, vec![Bytes::from(vec![b'x'; 4 << 20])]);
    let answer = b"HTTP/1.1 413 no\r\ncontent-length: 2\r\n\r\nno";
    far.write_all(answer).await.expect("somebody listens");
    drop(far);
    let head = send(idle, asked, &shelf).await;
    let told = read(head.expect("a head")).await.expect("an answer");
    assert_eq!((told.0, told.1.as_str()), (413, "no"));
    assert!(taken(&shelf).await.is_none());
}

#[tokio::test]
async fn connections_that_the_other_side_left_are_not_used_again() {
    for last in [None, Some(b"?")] {
        let (idle, mut far, shelf) = connection();
        shelf.keep(idle);
        let (other, _other_far, _) = connection();
        shelf.keep(other);
        if let Some(byte) = last {
            far.write_all(byte).await.expect("somebody listens");
        } else {
            drop(far);
        }
        // The reactor hears of it when the runtime has nothing to do.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(taken(&shelf).await.is_some());
        assert!(taken(&shelf).await.is_none());
    }
    let (idle, _far, shelf) = connection();
    shelf.keep(idle);
    assert!(shelf.expire(Instant::now() + Duration::from_secs(9)));
    drop(_far);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!shelf.expire(Instant::now()));
}

#[tokio::test]
async fn answers_of_one_size_are_soon_read_in_one_piece() {
    let (mut idle, mut far, _) = connection();
    let mut pieces = Vec::new();
    for _ in 0..10 {
        let sent = vec![b'x'; 66_000];
        far.write_all(&sent).await.expect("somebody listens");
        let (mut count, mut left) = (0, sent.len());
        while left > 0 {
            let read =
                std::future::poll_fn(|context| idle.reader.poll_more(&mut idle.stream, context));
            left -= read.await.expect("bytes");
            count += 1;
            idle.reader.input.clear();
        }
        pieces.push(count);
    }
    assert!(pieces.ends_with(&[1, 1, 1]), "{pieces:?}");
}
