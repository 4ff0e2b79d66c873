//! The maps. What depends on configuration carries its generation, in the key or in the value, so that a packet reads the
//! active generation once, from `control`, and then sees one configuration whatever the agent writes meanwhile.
//!
//! | map | writer | readers | when full |
//! | --- | --- | --- | --- |
//! | `control` | agent, at the flip | all programs | cannot be: one entry |
//! | `identities` | agent, before the flip | tc | the generation is refused before the flip |
//! | `policies` | agent, before the flip | tc | the generation is refused before the flip |
//! | `endpoints` | agent, before the flip | tc | the generation is refused before the flip |
//! | `services`, `choices`, `backends` | agent, before the flip | cgroup | the generation is refused before the flip |
//! | `ports` | agent, before what has the port | cgroup | cannot be: a bit per port |
//! | `listeners` | agent, before the flip | sk_lookup | the generation is refused before the flip |
//! | `sockets` | agent, when it opens listeners | tc, sk_lookup | the listener is refused |
//! | `flows` | tc | tc, agent (status) | the pod's own least recently used flow goes; its next packet is judged as new |
//! | `unassured` | tc | tc, agent (status) | the same, of those that are not assured |
//! | `fragments` | tc | tc | the pod's own least recently used note goes; the later fragments of that packet drop |
//! | `affinities` | cgroup | cgroup | the least recently used goes; that client's next connection is a new choice |
//! | `translations` | cgroup | cgroup | the least recently used goes; answers show the backend's address |
//! | `tallies` | tc | agent | cannot be: what has no place in it is in `counters` |
//! | `counters`, `hits` | tc | agent | what comes is counted in `lost` instead; verdicts stand |
//! | `limits` | tc | tc | the least recently used goes; its cell may tell more for a second |
//! | `lost` | all programs | agent | cannot be: one entry per kind |
//! | `events` | tc | agent | the event is counted in `lost` instead; the verdict stands |

use agent_common::{
    Affinity, AffinityKey, Backend, Choice, Control, Counter, CounterKey, Endpoint, EndpointKey,
    Event, FlowKey, FlowValue, FragmentKey, FragmentValue, IdentityValue, Limit, LimitKey,
    Listener, ListenerKey, Lost, Ports, Rule, RuleKey, Service, ServiceKey, SocketKey, Tally,
    TranslationKey, TranslationValue, Versioned,
};
use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{
        Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf,
        SockHash,
    },
    macros::btf_map,
};

use crate::address::Address;

/// Rules of one component. The agent makes one per content, sized to it; this type is the template.
pub type Rules = HashMap<RuleKey, Rule, 1024>;
/// Flows of one pod. The agent makes one per pod; this type is the template.
pub type Flows = LruHashMap<FlowKey, FlowValue, 8192>;
/// Packets of one pod that came in fragments. The agent makes one per pod; this type is the template.
pub type Fragments = LruHashMap<FragmentKey, FragmentValue, 256>;

/// The agent writes such an array as memory of its own (kernel 5.5).
const MAPPED: usize = BPF_F_MMAPABLE as usize;

/// The active generation. One entry.
#[btf_map(name = "control")]
pub static CONTROL: Array<Control, 1> = Array::new();

/// Who an address is, by longest prefix, in the active and the next generation.
#[btf_map(name = "identities")]
pub static IDENTITIES: LpmTrie<[u8; 16], Versioned<IdentityValue>, 1048576> = LpmTrie::new();

/// What a component may do, by the slot that its endpoints name.
#[btf_map(name = "policies")]
pub static POLICIES: ArrayOfMaps<Rules, 8192> = ArrayOfMaps::new();

/// Local pods by host-side interface and generation.
#[btf_map(name = "endpoints")]
pub static ENDPOINTS: HashMap<EndpointKey, Endpoint, 12288> = HashMap::new();

/// Judged TCP connections that the pod opened, or whose opener has answered the pod's answer, by the slot that the pod's
/// endpoint names.
#[btf_map(name = "flows")]
pub static FLOWS: ArrayOfMaps<Flows, 8192> = ArrayOfMaps::new();

/// All other judged connections, at the slot of the pod's flows; the agent makes these tables half as large. Whoever opens many
/// to a pod without meaning any of them pushes out none that lasts (connection tracking of netfilter calls the others assured).
#[btf_map(name = "unassured")]
pub static UNASSURED: ArrayOfMaps<Flows, 8192> = ArrayOfMaps::new();

/// Ports of fragmented packets, by the slot of the pod's flows.
#[btf_map(name = "fragments")]
pub static FRAGMENTS: ArrayOfMaps<Fragments, 8192> = ArrayOfMaps::new();

/// Service addresses, each as the generation before a flip and the one after it have it: room for two generations that have none
/// in common.
#[btf_map(name = "services")]
pub static SERVICES: HashMap<ServiceKey, Versioned<Service>, 65536> = HashMap::new();

/// Alias tables of the services, one range each.
#[btf_map(name = "choices")]
pub static CHOICES: Array<Choice, 262144, MAPPED> = Array::new();

/// Backends of the services.
#[btf_map(name = "backends")]
pub static BACKENDS: Array<Backend, 262144, MAPPED> = Array::new();

/// Which ports services and backends have had.
#[btf_map(name = "ports")]
pub static PORTS: Array<Ports, { Ports::COUNT as usize }, MAPPED> = Array::new();

/// The backend that a client of a service had last.
#[btf_map(name = "affinities")]
pub static AFFINITIES: LruHashMap<AffinityKey, Affinity, 65536> = LruHashMap::new();

/// From a socket's backend to the service address that it asked for.
#[btf_map(name = "translations")]
pub static TRANSLATIONS: LruHashMap<TranslationKey, TranslationValue, 65536> = LruHashMap::new();

/// Gateway addresses by generation.
#[btf_map(name = "listeners")]
pub static LISTENERS: HashMap<ListenerKey, Listener, 4096> = HashMap::new();

/// The router's sockets. A socket that closes leaves by itself.
#[btf_map(name = "sockets")]
pub static SOCKETS: SockHash<SocketKey, 4096> = SockHash::new();

/// Packets and bytes of nearly all keys: a place is computed, not searched.
#[btf_map(name = "tallies")]
pub static TALLIES: PerCpuArray<Tally, { Tally::PLACES as usize }> = PerCpuArray::new();

/// Packets and bytes by cell, way, border, verdict and reason, of keys whose place in `tallies` is another's.
#[btf_map(name = "counters")]
pub static COUNTERS: PerCpuHashMap<CounterKey, Counter, 16384> = PerCpuHashMap::new();

/// Connections that a rule decided, by the rule's number.
#[btf_map(name = "hits")]
pub static HITS: PerCpuHashMap<u32, u64, 16384> = PerCpuHashMap::new();

/// How many events a cell caused in the running second.
#[btf_map(name = "limits")]
pub static LIMITS: LruHashMap<LimitKey, Limit, 4096> = LruHashMap::new();

/// What could not be recorded, by [`Lost`].
#[btf_map(name = "lost")]
pub static LOST: PerCpuArray<u64, { Lost::COUNT as usize }> = PerCpuArray::new();

/// New flows and drops, 512 KiB: more than the agent keeps of them. The reader has it mapped twice.
#[btf_map(name = "events")]
pub static EVENTS: RingBuf<Event, { 1 << 19 }> = RingBuf::new();

/// The generation that this connection or lookup is judged by; 0 if none is active.
#[inline(always)]
pub fn active_generation() -> u32 {
    CONTROL.get(0).map_or(0, Control::generation)
}

/// Who owns an address in a generation.
#[inline(always)]
pub fn identity(generation: u32, address: Address) -> Option<IdentityValue> {
    IDENTITIES
        .get(&address.prefix())
        .and_then(|value| value.at(generation))
        .copied()
}

/// Counts something that could not be recorded.
#[inline(always)]
pub fn count_lost(kind: Lost) {
    if let Some(count) = LOST.get_ptr_mut(kind as u32) {
        // SAFETY: the pointer is this CPU's element. At a cgroup hook another task on the same CPU may come between
        // (programs there are preemptible since 5.11), which loses one of a diagnostic count.
        unsafe { *count = (*count).wrapping_add(1) };
    }
}
