//! An API server for tests, which answers by the first line of each request.

use std::sync::{Arc, Mutex, PoisonError};

use kube::{Client, Config};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What it answers.
pub(crate) enum Answer {
    /// A status and a body.
    Json(u16, Value),
    /// Lines, after which it says nothing more and leaves the connection open.
    Lines(Vec<Value>),
}

/// The first lines of the requests that it was sent.
#[derive(Clone, Default)]
pub(crate) struct Asked(Arc<Mutex<Vec<String>>>);

impl Asked {
    /// All so far.
    pub(crate) fn all(&self) -> Vec<String> {
        let asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.clone()
    }
}

/// A client of a new one.
pub(crate) async fn server(
    answer: impl Fn(&str) -> Answer + Send + Sync + 'static,
) -> (Client, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it has one");
    let asked = Asked::default();
    let (answer, told) = (Arc::new(answer), asked.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&answer), told.clone()));
        }
    });
    let url = format!("http://{address}").parse().expect("a URL");
    let client = Client::try_from(Config::new(url)).expect("a client");
    (client, asked)
}

async fn serve(
    stream: TcpStream,
    answer: Arc<impl Fn(&str) -> Answer>,
    asked: Asked,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if stream.read_line(&mut request).await? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).await?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a number");
            }
        }
        stream.read_exact(&mut vec![0; length]).await?;
        let request = request.trim_end().to_owned();
        let answer = answer(&request);
        asked
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(request);
        match answer {
            Answer::Json(status, body) => {
                let body = body.to_string();
                let head = format!(
                    "HTTP/1.1 {status} Told\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(body.as_bytes()).await?;
            }
            Answer::Lines(lines) => {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
                stream.write_all(head.as_bytes()).await?;
                for line in lines {
                    let line = format!("{line}\n");
                    let chunk = format!("{:x}\r\n{line}\r\n", line.len());
                    stream.write_all(chunk.as_bytes()).await?;
                }
                std::future::pending::<()>().await;
            }
        }
    }
}
