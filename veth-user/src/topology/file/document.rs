//! The file as it is written. The only place that documents its fields: the comments here become the JSON schema,
//! and with it the hints of messages and of editors.

use std::{collections::BTreeMap, fmt, ops::Range};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};
use toml::Spanned;

use crate::{
    datapath::Place,
    topology::model::{HookWish, LogLevel, RedirectWish},
};

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(transparent)]
pub(super) struct At<T>(Spanned<T>);

impl<T> At<T> {
    pub(super) fn new(span: Range<usize>, value: T) -> Self {
        Self(Spanned::new(span, value))
    }

    pub(super) fn get(&self) -> &T {
        self.0.get_ref()
    }

    pub(super) fn span(&self) -> Range<usize> {
        self.0.span()
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A value for which the file allows several types. The schema says which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mixed {
    Truth(bool),
    Number(i64),
    Text(String),
    List(Vec<At<String>>),
}

impl<'de> Deserialize<'de> for Mixed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Mixed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, a number, true, false or a list of texts")
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Mixed, E> {
                Ok(Mixed::Truth(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Mixed, E> {
                Ok(Mixed::Number(value))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Mixed, E> {
                Ok(Mixed::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Mixed, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Mixed::List(list))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// One text or several.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
#[expect(dead_code, reason = "only its schema is used")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// A number of pods, or their names.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
#[expect(dead_code, reason = "only its schema is used")]
enum Pods {
    Number(#[schemars(range(min = 1, max = 10_000))] u32),
    Names(Vec<String>),
}

/// Whether there is one, or which.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
#[expect(dead_code, reason = "only its schema is used")]
enum Gateway {
    Usual(bool),
    One(String),
    More(Vec<String>),
}

/// The value of a kernel parameter.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
#[expect(dead_code, reason = "only its schema is used")]
enum Scalar {
    Text(String),
    Number(i64),
    Truth(bool),
}

pub(super) type Named<T> = BTreeMap<At<String>, T>;

/// A topology of pods and what connects them, for `veth up FILE`.
///
/// Names of topologies, paths, pods and links are 1 to 32 of a-z, 0-9 and `-`, beginning with a letter or digit.
/// `host` is no name: it stands for the machine itself.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "veth topology", rename = "Topology")]
pub(super) struct Document {
    /// The topology's name, unique on a machine. Without it: the file's name without `.toml`.
    pub(super) name: Option<At<String>>,
    /// Where programs are attached. Usually the fastest place that is safe on the kernel.
    #[schemars(with = "HookWish")]
    pub(super) hook: Option<HookWish>,
    /// How frames are handed over. Usually the fastest way that is safe on the kernel.
    #[schemars(with = "RedirectWish")]
    pub(super) redirect: Option<RedirectWish>,
    /// Where programs stand among those of others on a link.
    #[schemars(with = "Place")]
    pub(super) place: Option<Place>,
    /// What the programs log. Usually nothing, which costs nothing.
    #[schemars(with = "LogLevel")]
    pub(super) ebpf_log: Option<LogLevel>,
    /// The MTU of every path that does not say its own, in bytes. Usually 1500.
    #[schemars(range(min = 1_280, max = 65_535))]
    pub(super) mtu: Option<u32>,
    /// Queues for each direction of every port, on every path that does not say its own. Usually 1.
    #[schemars(range(min = 1, max = 4_096))]
    pub(super) queues: Option<u32>,
    /// What is changed for speed, on every path that does not say its own.
    #[schemars(with = "Tune")]
    pub(super) tune: Tune,
    /// Switches accelerated by eBPF, with a Linux bridge as the slow path: `[switch.NAME]`.
    pub(super) switch: Named<Path>,
    /// Plain Linux bridges: `[bridge.NAME]`.
    pub(super) bridge: Named<Path>,
    /// Open vSwitches of the topology's own: `[ovs.NAME]`.
    pub(super) ovs: Named<Path>,
    /// Routed point-to-point links: `[route.NAME]`. Every pod has addresses of full length (/32 and /128), and
    /// reaches everything by the gateways 169.254.1.1 and `fe80::1`.
    pub(super) route: Named<Path>,
    /// Cables between two pods, two veth pairs that eBPF cross-connects: `[wire.NAME]`.
    pub(super) wire: Named<Path>,
    /// Single veth pairs with an end in each of two pods: `[direct.NAME]`.
    pub(super) direct: Named<Path>,
    /// Cables between two switches, bridges or Open vSwitches, or from one of them to the host: `[link.NAME]`.
    pub(super) link: Named<Link>,
    /// What is to be said of single pods: `[pod.NAME]`. A pod exists by being named in a path; most need no table.
    pub(super) pod: Named<Pod>,
}

/// What connects pods. The same for all kinds; what makes no sense for a kind is refused.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Path {
    /// The network of the addresses, as `10.1.0.0/24`, or a list of several, IPv4 or IPv6. Without it, one of each
    /// that is free in the topology: for the first path of the file 10.200.0.0/16 and `fd00:200::/64`, for the second
    /// 10.201.0.0/16 and `fd00:201::/64`, and so on. Switches that are linked share it.
    #[schemars(with = "OneOrMore")]
    pub(super) subnet: Option<At<Mixed>>,
    /// The pods, a list of names. The n-th gets the n-th address of each subnet, not counting the gateway's, the
    /// network's, the broadcast address and those given explicitly; so a pod that is appended moves no other. A pod
    /// named in several paths has a port on each: eth0, eth1 and so on, in the order of the file.
    ///
    /// A number N stands for the list pod1 to podN on the first path of the file with a number, and for NAME-1 to
    /// NAME-N on others.
    #[schemars(with = "Pods")]
    pub(super) pods: Option<At<Mixed>>,
    /// The MTU of every port, in bytes. Usually the file's.
    #[schemars(range(min = 1_280, max = 65_535))]
    pub(super) mtu: Option<u32>,
    /// Queues for each direction of every port. Usually the file's.
    #[schemars(range(min = 1, max = 4_096))]
    pub(super) queues: Option<u32>,
    /// The host's address on the path, by which pods reach what is not on it: `true` for the first address of each
    /// subnet, so that pods begin at the second; or an address, or a list. Usually there is none. Not on wires and
    /// direct pairs; a routed path always has its own.
    #[schemars(with = "Gateway")]
    pub(super) gateway: Option<At<Mixed>>,
    /// Whether pods reach what is beyond the host, by address translation. Brings `gateway = true` with it.
    pub(super) outside: Option<At<bool>>,
    /// Whether frames with a source address that is not their port's are dropped. Only on switches and wires, where
    /// programs of ours see every frame.
    pub(super) spoof_check: Option<At<bool>>,
    /// Whether `veth stats` shows what every port sends and receives. On switches and wires it always does; on other
    /// paths a program is attached for it that leaves every frame alone. Changing it makes the ports anew.
    pub(super) counters: Option<At<bool>>,
    /// Whether pods know each other's Ethernet addresses without asking: no ARP, no neighbour discovery. Not on a
    /// routed path, where pods are no neighbours.
    pub(super) neighbours: Option<At<bool>>,
    /// What is changed for speed. Usually the file's.
    #[schemars(with = "Tune")]
    pub(super) tune: Tune,
}

/// What is changed for speed.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tune {
    /// Merged frames of up to 192 KiB instead of 64 (BIG TCP).
    pub(super) big_tcp: Option<bool>,
    /// GRO in the pods: small frames are merged before the stack sees them.
    pub(super) gro: Option<bool>,
}

/// A veth pair between two switches, or between a switch and the host.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Link {
    /// Its two ends: names of a switch, a bridge or an Open vSwitch; one may be `host`. Linked switches are one
    /// network: pods need addresses of the same subnet to talk.
    #[schemars(length(equal = 2))]
    pub(super) between: Option<At<Vec<At<String>>>>,
    /// The addresses of the end at the host, one or a list, out of the switch's subnets. Usually the next that are
    /// free.
    #[schemars(with = "OneOrMore")]
    pub(super) address: Option<At<Mixed>>,
    /// The MTU of both ends, in bytes. Usually the smaller of those of what it connects.
    #[schemars(range(min = 1_280, max = 65_535))]
    pub(super) mtu: Option<u32>,
}

/// What is to be said of a single pod.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Pod {
    /// Its network namespace, as `ip netns` shows it. Usually TOPOLOGY-POD.
    pub(super) namespace: Option<At<String>>,
    /// Kernel parameters inside it, below `net.`: `{ "net.ipv4.tcp_congestion_control" = "cubic" }`. The names need
    /// quotes because of their dots.
    #[schemars(with = "BTreeMap<String, Scalar>")]
    pub(super) sysctl: Named<At<Mixed>>,
    /// Routes inside it, beside those that its addresses and gateways bring.
    pub(super) routes: Vec<Route>,
    /// What is to be said of its ports, by the path that each is on: `[pod.NAME.port.PATH]`.
    pub(super) port: Named<Port>,
}

/// A route inside a pod.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["to"]))]
pub(super) struct Route {
    /// Where to: a network as `10.9.0.0/16`, a single address, or `default`.
    pub(super) to: Option<At<String>>,
    /// By which neighbour, an address out of a subnet of one of the pod's ports. Without it all of the network is
    /// taken to be on the link.
    pub(super) via: Option<At<String>>,
    /// By which port, named by its path. Usually the one whose subnet `via` is in.
    pub(super) port: Option<At<String>>,
}

/// What is to be said of a single port.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Port {
    /// The interface's name in the pod, 1 to 15 characters. Usually eth0, eth1 and so on.
    pub(super) name: Option<At<String>>,
    /// Its address, or a list: out of the path's subnets, with or without the length of the prefix. A subnet that
    /// none is out of gives one as usual.
    #[schemars(with = "OneOrMore")]
    pub(super) address: Option<At<Mixed>>,
    /// Its Ethernet address, as `02:00:00:00:00:01`. Usually derived from the names.
    pub(super) mac: Option<At<String>>,
}
