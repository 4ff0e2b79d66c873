//! The maps. Every entry that depends on configuration carries its generation in the key, so that a packet reads the
//! active generation once, from `control`, and then sees one configuration whatever the agent writes meanwhile.
//!
//! | map | writer | readers | when full |
//! | --- | --- | --- | --- |
//! | `control` | agent, at the flip | all programs | cannot be: one entry |
//! | `identities` | agent, before the flip | tc | the generation is refused before the flip |
//! | `policies` | agent, before the flip | tc | the generation is refused before the flip |
//! | `endpoints` | agent, before the flip | tc | the generation is refused before the flip |
//! | `services`, `choices`, `backends` | agent, before the flip | cgroup | the generation is refused before the flip |
//! | `listeners` | agent, before the flip | sk_lookup | the generation is refused before the flip |
//! | `sockets` | agent, when it opens listeners | tc, sk_lookup | the listener is refused |
//! | `flows` | tc | tc, agent (status) | the least recently used flow goes; its next packet is judged as new |
//! | `fragments` | tc | tc | the least recently used goes; its later fragments drop |
//! | `affinities` | cgroup | cgroup | the least recently used goes; that client's next connection is a new choice |
//! | `translations` | cgroup | cgroup | the least recently used goes; answers show the backend's address |
//! | `counters` | tc | agent | the packet is counted in `lost` instead; its verdict stands |
//! | `lost` | all programs | agent | cannot be: one entry per kind |
//! | `events` | tc | agent | the event is counted in `lost` instead; the verdict stands |

use agent_common::{
    Affinity, AffinityKey, Backend, Choice, Control, Counter, CounterKey, Endpoint, EndpointKey,
    Event, FlowKey, FlowValue, FragmentKey, FragmentValue, IdentityValue, Listener, ListenerKey,
    Lost, PolicyKey, Rule, RuleKey, Service, ServiceKey, SocketKey, TranslationKey,
    TranslationValue, Versioned,
};
use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{
        Array, HashMap, HashOfMaps, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf,
        SockHash, lpm_trie::Key,
    },
    macros::btf_map,
};

/// Identities by prefix. The agent makes one per content, sized to it; this type is the template.
pub type Identities = LpmTrie<[u8; 16], IdentityValue, 65536>;
/// Rules of one identity. The agent makes one per content, sized to it; this type is the template.
pub type Rules = HashMap<RuleKey, Rule, 1024>;

/// The agent writes such an array as memory of its own (kernel 5.5).
const MAPPED: usize = BPF_F_MMAPABLE as usize;

/// The active generation. One entry.
#[btf_map(name = "control")]
pub static CONTROL: Array<Control, 1> = Array::new();

/// Who an address is, by generation. Two generations live at a time, a third while one is prepared.
#[btf_map(name = "identities")]
pub static IDENTITIES: HashOfMaps<u32, Identities, 8> = HashOfMaps::new();

/// What a component may do, by generation. Only components with a pod on this node have an entry.
#[btf_map(name = "policies")]
pub static POLICIES: HashOfMaps<PolicyKey, Rules, 4096> = HashOfMaps::new();

/// Local pods by host-side interface and generation.
#[btf_map(name = "endpoints")]
pub static ENDPOINTS: HashMap<EndpointKey, Endpoint, 4096> = HashMap::new();

/// Judged connections, by pod.
#[btf_map(name = "flows")]
pub static FLOWS: LruHashMap<FlowKey, FlowValue, 131072> = LruHashMap::new();

/// Ports of fragmented packets.
#[btf_map(name = "fragments")]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue, 8192> = LruHashMap::new();

/// Service addresses, each as the generation before a flip and the one after it have it.
#[btf_map(name = "services")]
pub static SERVICES: HashMap<ServiceKey, Versioned<Service>, 32768> = HashMap::new();

/// Alias tables of the services, one range each.
#[btf_map(name = "choices")]
pub static CHOICES: Array<Choice, 262144, MAPPED> = Array::new();

/// Backends of the services.
#[btf_map(name = "backends")]
pub static BACKENDS: Array<Backend, 262144, MAPPED> = Array::new();

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

/// Packets and bytes by cell, direction, verdict and reason.
#[btf_map(name = "counters")]
pub static COUNTERS: PerCpuHashMap<CounterKey, Counter, 8192> = PerCpuHashMap::new();

/// What could not be recorded, by [`Lost`].
#[btf_map(name = "lost")]
pub static LOST: PerCpuArray<u64, { Lost::COUNT as usize }> = PerCpuArray::new();

/// New flows and drops, 1 MiB.
#[btf_map(name = "events")]
pub static EVENTS: RingBuf<Event, { 1 << 20 }> = RingBuf::new();

/// The generation that this packet, connection or lookup is judged by; 0 if none is active.
#[inline(always)]
pub fn active_generation() -> u32 {
    CONTROL.get(0).map_or(0, Control::generation)
}

/// Who owns an address, by longest prefix.
#[inline(always)]
pub fn identity(identities: &Identities, address: &[u8; 16]) -> Option<IdentityValue> {
    identities.get(&Key::new(128, *address)).copied()
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
