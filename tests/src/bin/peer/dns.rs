//! DNS: a server that answers from a table, and a client that asks one question.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use hickory_proto::{
    op::{Message, MessageType, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};
use serde_json::json;
use tests::peer::Outcome;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

use crate::print;

/// Names without the root's dot, and their addresses.
pub(crate) type Zone = BTreeMap<String, Vec<IpAddr>>;

const TTL_SECONDS: u32 = 1;

/// What to ask, and whom.
#[derive(Args)]
pub(crate) struct Options {
    /// The server.
    #[arg(long, value_name = "ADDR:PORT")]
    server: SocketAddr,
    /// The name whose A (or AAAA, with --v6) records are wanted.
    #[arg(long)]
    name: String,
    /// Ask for AAAA.
    #[arg(long)]
    v6: bool,
    /// Ask by TCP.
    #[arg(long)]
    tcp: bool,
    /// How long to wait for the answer.
    #[arg(long, default_value_t = 1500)]
    timeout_ms: u64,
}

/// Answers datagrams.
pub(crate) async fn serve_udp(zone: Arc<Zone>, socket: UdpSocket) -> Result<()> {
    let mut buffer = vec![0; 4096];
    loop {
        let (n, from) = socket.recv_from(&mut buffer).await?;
        match answer(&zone, &buffer[..n], "udp", from) {
            Ok(reply) => {
                socket.send_to(&reply, from).await?;
            }
            Err(error) => print(
                &json!({"event": "dns-failed", "from": from.to_string(), "error": format!("{error:#}")}),
            ),
        }
    }
}

/// Answers connections, each message after its length (RFC 1035, section 4.2.2).
pub(crate) async fn serve_tcp(zone: Arc<Zone>, listener: TcpListener) -> Result<()> {
    loop {
        let (mut stream, from) = listener.accept().await?;
        let zone = zone.clone();
        tokio::spawn(async move {
            // The client ends the connection; that is how this loop ends too.
            while let Ok(query) = read_framed(&mut stream).await {
                let outcome = match answer(&zone, &query, "tcp", from) {
                    Ok(reply) => write_framed(&mut stream, &reply).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = outcome {
                    print(
                        &json!({"event": "dns-failed", "from": from.to_string(), "error": format!("{error:#}")}),
                    );
                    return;
                }
            }
        });
    }
}

fn answer(zone: &Zone, query: &[u8], transport: &str, from: SocketAddr) -> Result<Vec<u8>> {
    let query = Message::from_vec(query).context("the query is not a DNS message")?;
    let question = query
        .queries
        .first()
        .context("the query has no question")?
        .clone();
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    let name = question
        .name()
        .to_ascii()
        .trim_end_matches('.')
        .to_ascii_lowercase();
    print(
        &json!({"event": "dns", "name": name, "type": question.query_type().to_string(), "transport": transport, "from": from.to_string()}),
    );
    match zone.get(&name) {
        None => reply.metadata.response_code = ResponseCode::NXDomain,
        Some(addresses) => {
            for address in addresses {
                let data = match (address, question.query_type()) {
                    (IpAddr::V4(v4), RecordType::A) => RData::A((*v4).into()),
                    (IpAddr::V6(v6), RecordType::AAAA) => RData::AAAA((*v6).into()),
                    _ => continue,
                };
                reply.add_answer(Record::from_rdata(
                    question.name().clone(),
                    TTL_SECONDS,
                    data,
                ));
            }
        }
    }
    reply.add_query(question);
    Ok(reply.to_vec()?)
}

/// Asks, and prints the addresses.
pub(crate) async fn ask(options: Options) -> Result<()> {
    let kind = if options.v6 {
        RecordType::AAAA
    } else {
        RecordType::A
    };
    let name = Name::from_ascii(format!("{}.", options.name.trim_end_matches('.')))
        .context("--name is no domain name")?;
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    let id = message.metadata.id;
    let bytes = message.to_vec()?;

    let start = Instant::now();
    let exchange = async {
        if options.tcp {
            let mut stream = TcpStream::connect(options.server).await?;
            write_framed(&mut stream, &bytes).await?;
            read_framed(&mut stream).await
        } else {
            let any = if options.server.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = UdpSocket::bind(any).await?;
            socket.connect(options.server).await?;
            socket.send(&bytes).await?;
            let mut buffer = vec![0; 4096];
            let n = socket.recv(&mut buffer).await?;
            buffer.truncate(n);
            Ok(buffer)
        }
    };
    let outcome = match timeout(Duration::from_millis(options.timeout_ms), exchange).await {
        Err(_) => Outcome::new("timeout", start.elapsed()),
        Ok(Err(error)) => Outcome::of_error(&error, start.elapsed()),
        Ok(Ok(reply)) => {
            let reply = Message::from_vec(&reply).context("the reply is not a DNS message")?;
            if reply.metadata.id != id || reply.metadata.message_type != MessageType::Response {
                bail!("the reply answers another question");
            }
            let addresses: Vec<String> = reply
                .answers
                .iter()
                .filter_map(|record| match &record.data {
                    RData::A(v4) => Some(v4.0.to_string()),
                    RData::AAAA(v6) => Some(v6.0.to_string()),
                    _ => None,
                })
                .collect();
            let outcome = if reply.metadata.response_code == ResponseCode::NoError {
                "answer"
            } else {
                "no-such-name"
            };
            Outcome::new(outcome, start.elapsed()).with_answer(addresses.join(" "))
        }
    };
    outcome.print()
}

async fn read_framed(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> Result<()> {
    let length = u16::try_from(message.len()).context("a DNS message is shorter than 64 KiB")?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await?;
    Ok(())
}
