//! What the router is to the kernel: a listener that gateways' and steered connections are handed to, and that has an
//! address of its own beside.

use std::{
    net::{SocketAddr, TcpListener},
    sync::mpsc::sync_channel,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use cardinal_agent::datapath::Datapath;
use nix::unistd::gettid;
use socket2::{Domain, Socket, Type};
use tests::world::{NODE, Place};

use crate::{
    load::{answer_once, connections, pin, port},
    side::on,
    tables,
    traffic::hurry,
};

/// A listener with its thread. Dropping it ends both.
pub(crate) struct Router {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Router {
    /// Listens at the node's own address, gives the socket to the kernel, and answers from a thread on one core.
    pub(crate) fn start(node: &Place, datapath: &Datapath, core: usize) -> Result<Self> {
        let listener = on(node, || {
            let address: SocketAddr = (NODE.v4, port::CRR).into();
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_ip_transparent_v4(true)?;
            socket
                .bind(&address.into())
                .with_context(|| format!("failed to bind {address}"))?;
            socket.listen(1024)?;
            Ok(TcpListener::from(socket))
        })?;
        for key in tables::router_keys() {
            datapath.set_socket(key, &listener)?;
        }
        let (serving, (tell, told)) = (listener.try_clone()?, sync_channel(1));
        let thread = thread::Builder::new()
            .name("router".to_owned())
            .spawn(move || {
                let pinned = pin(core).map(|()| gettid());
                let ready = pinned.is_ok();
                // Whoever started this thread waits for the word.
                let _gone = tell.send(pinned);
                if ready {
                    connections(&serving, |mut stream| answer_once(&mut stream));
                }
            })?;
        let router = Self {
            listener,
            thread: Some(thread),
        };
        let number = told.recv().context("the router's thread ended")??;
        // As the generators, which share its core.
        hurry(number)?;
        Ok(router)
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        if let Err(error) =
            socket2::SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both)
        {
            eprintln!("bench: the router's listener cannot be shut down: {error}");
            return;
        }
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _panicked = thread.join();
        }
    }
}
