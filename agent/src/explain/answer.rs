//! Questions and answers, as the admin socket and `--json` carry them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::target::{Gate, Place, Target};
use crate::datapath::Error;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// The first packet of a connection.
    Connection {
        /// Who opens it.
        from: Place,
        /// Where to.
        to: Target,
        /// From which port; a free one if absent.
        sport: Option<u16>,
        /// Over which IP version; what both ends have, version 4 first, if absent.
        family: Option<Family>,
    },
    /// A frame as it is.
    Frame {
        /// Its bytes.
        bytes: Vec<u8>,
        /// The pod at whose gate it is seen.
        at: Place,
        /// Whether the pod sends it, or gets it.
        sent: bool,
        /// The router's mark on a frame that the pod gets.
        mark: Option<Gate>,
    },
}

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Version 4.
    V4,
    /// Version 6.
    V6,
}

impl Family {
    pub(super) fn of(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// What one generation says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The generation that was asked.
    pub generation: u32,
    /// Whether packets are judged by it.
    pub active: bool,
    /// `pass`, `drop`, `steer`, or `not_judged` when neither end is a cell's pod of this node.
    pub verdict: String,
    /// Who opens the connection; absent for a frame that is not plain IP.
    pub from: Option<End>,
    /// Who is called.
    pub to: Option<End>,
    /// What is spoken; absent for a frame.
    pub protocol: Option<String>,
    /// Source port; absent without ports.
    pub sport: Option<u16>,
    /// Destination port; absent without ports.
    pub dport: Option<u16>,
    /// The gates on the way, in order.
    pub gates: Vec<GateAnswer>,
    /// What else is to be known.
    pub notes: Vec<String>,
}

/// One end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Its address.
    pub address: IpAddr,
    /// Who that is.
    pub who: String,
    /// The host-side interface of a pod of this node.
    pub interface: Option<String>,
}

/// What one gate says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateAnswer {
    /// `sender` or `receiver`.
    pub gate: String,
    /// The pod's host-side interface.
    pub interface: String,
    /// Its number.
    pub ifindex: u32,
    /// Whose gate it is.
    pub component: String,
    /// Whether the packet gets there.
    pub reached: bool,
    /// The gate that the router speaks as, if the packet is the router's.
    pub router_as: Option<String>,
    /// `pass`, `drop` or `steer`.
    pub verdict: String,
    /// Why.
    pub reason: String,
    /// The border: `north`, `west`, `south`, `east`, `intra`, `platform`; `none` if nobody got so far as to ask.
    pub direction: String,
    /// `egress` if the pod opens the connection, `ingress` if it is called.
    pub opened: String,
    /// The other side.
    pub peer: String,
    /// The number of the rule that decided; 0 if none did.
    pub rule: u32,
    /// What the rule was made from; empty if none decided, or without an agent.
    pub declared: String,
    /// File, line and document of that.
    pub document: String,
    /// Its field, such as `spec.egress.south[2]`.
    pub field: String,
    /// The generation that judged.
    pub generation: u32,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The question makes no sense here.
    #[error("{0}")]
    Question(String),
    /// The kernel does not answer.
    #[error(transparent)]
    Kernel(#[from] Error),
}
