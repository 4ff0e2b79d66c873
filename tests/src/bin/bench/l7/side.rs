//! The sides of a comparison: each a process that stays on the router's core, with its configuration in a folder.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    time::{ClockId, clock_getcpuclockid},
    unistd::Pid,
};
use tests::{
    interrupt,
    secrets::{Identity, Secrets},
};

use super::{HOST, documents, peers};

/// How long a side may take to start.
const START: Duration = Duration::from_secs(20);

/// Who is between the load generator and the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Setup {
    /// The least that a proxy can do.
    Floor,
    /// The same with TLS.
    FloorTls,
    /// The agent's router with a thousand routing keys.
    Cardinal,
    /// With one route and one routing key.
    CardinalOne,
    /// With ten thousand of both.
    CardinalMany,
    /// nginx.
    Nginx,
    /// HAProxy.
    Haproxy,
    /// Envoy.
    Envoy,
}

impl Setup {
    /// As in the notes.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::FloorTls => "TLS floor",
            Self::Cardinal => "Cardinal",
            Self::CardinalOne => "one route and key",
            Self::CardinalMany => "10,000 routes and keys",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Envoy => "Envoy",
        }
    }
}

/// What every side is made of.
pub(crate) struct Stage {
    /// A folder that is gone afterwards.
    pub(crate) dir: PathBuf,
    /// Where the backend listens.
    pub(crate) backend: SocketAddr,
    /// The core of the routers.
    pub(crate) core: usize,
    /// The agent's program.
    pub(crate) agent: PathBuf,
    /// Envoy's program, where there is one.
    pub(crate) envoy: Option<PathBuf>,
    /// Certificates and tokens.
    pub(crate) secrets: Secrets,
    /// The certificate of [`HOST`].
    pub(crate) identity: Identity,
}

/// Ports of a side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    /// HTTP/1.1.
    pub(crate) plain: SocketAddr,
    /// HTTP/2 without TLS.
    pub(crate) h2c: SocketAddr,
    /// TLS.
    pub(crate) tls: SocketAddr,
}

/// A running side. Dropping it kills it.
pub(crate) struct Side {
    child: Child,
    clock: ClockId,
    pub(crate) ports: Ports,
}

impl Side {
    /// Starts a side and waits until it takes connections.
    pub(crate) fn start(stage: &Stage, setup: Setup) -> Result<Self> {
        let mut ports = Ports {
            plain: free()?,
            h2c: free()?,
            tls: free()?,
        };
        let dir = stage.dir.join(format!("{setup:?}").to_lowercase());
        fs::create_dir_all(&dir)?;
        let arguments = match setup {
            Setup::Floor | Setup::FloorTls => {
                let mut arguments = vec![
                    std::env::current_exe()?.into_os_string(),
                    "floor".into(),
                    "--backend".into(),
                    stage.backend.to_string().into(),
                    "--listen".into(),
                ];
                if setup == Setup::Floor {
                    arguments.push(ports.plain.to_string().into());
                } else {
                    ports.plain = ports.tls;
                    arguments.push(ports.tls.to_string().into());
                    arguments.push("--tls".into());
                    arguments.push(stage.identity.cert.clone().into());
                    arguments.push(stage.identity.key.clone().into());
                }
                arguments
            }
            Setup::Cardinal | Setup::CardinalOne | Setup::CardinalMany => {
                // One port for all that comes without TLS.
                ports.h2c = ports.plain;
                let size = match setup {
                    Setup::CardinalOne => documents::Size { routes: 1, keys: 1 },
                    Setup::CardinalMany => documents::Size {
                        routes: 10_000,
                        keys: 10_000,
                    },
                    _ => documents::Size {
                        routes: 1,
                        keys: 1000,
                    },
                };
                let config = dir.join("config");
                documents::write(&config, stage, &ports, size)?;
                let mut arguments = vec![stage.agent.clone().into_os_string()];
                arguments
                    .extend(["--datapath", "none", "--threads", "1", "--config"].map(Into::into));
                arguments.push(config.into());
                arguments.push("--state".into());
                arguments.push(dir.join("state").into());
                arguments.push("--admin".into());
                arguments.push(dir.join("admin.sock").into());
                arguments
            }
            Setup::Nginx => peers::nginx(stage, &dir, &ports)?,
            Setup::Haproxy => peers::haproxy(stage, &dir, &ports)?,
            Setup::Envoy => peers::envoy(stage, &dir, &ports)?,
        };
        let log = dir.join("log");
        let file = fs::File::create(&log)?;
        let mut child = Command::new("taskset")
            .args(["--cpu-list", &stage.core.to_string()])
            .args(arguments)
            // Of the access log only errors, of which there are none.
            .env("RUST_LOG", "warn,access=off")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("failed to start taskset: is util-linux installed?")?;
        let started = wait(&mut child, &ports, &log);
        if let Err(error) = started {
            end(&mut child);
            return Err(error);
        }
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        let clock = clock_getcpuclockid(pid).context("failed to find a process's clock")?;
        Ok(Self {
            child,
            clock,
            ports,
        })
    }

    /// CPU time that the process has used, in user space and in the kernel, of all its threads.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        Ok(self.clock.now().context("a side ended")?.into())
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // What is killed already cannot be killed; it is waited for all the same.
    let _gone = child.kill();
    let _gone = child.wait();
}

fn wait(child: &mut Child, ports: &Ports, log: &Path) -> Result<()> {
    let start = Instant::now();
    let says = || fs::read_to_string(log).unwrap_or_default();
    while std::net::TcpStream::connect(ports.plain).is_err() {
        interrupt::check()?;
        if let Some(status) = child.try_wait()? {
            bail!("it ended ({status}) and said\n{}", says());
        }
        if start.elapsed() > START {
            bail!("it listens nowhere after {START:?} and said\n{}", says());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A port that nobody uses now.
fn free() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

/// A client's configuration that trusts the stage and shakes hands in full, by P-256.
pub(crate) fn tls(secrets: &Secrets) -> Result<rustls::ClientConfig> {
    use rustls_pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_file(
        secrets.ca(),
    )?)?;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::SECP256R1];
    let mut config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    rustls_pki_types::ServerName::try_from(HOST)?;
    Ok(config)
}
