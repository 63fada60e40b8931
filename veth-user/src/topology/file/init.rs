//! Examples of topology files, for `veth init`. They are the files in `examples/`.

/// What an example shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Example {
    /// Two pods and a single veth pair
    Direct,
    /// Two pods and a cable between them, cross-connected by eBPF
    Wire,
    /// Pods on a switch accelerated by eBPF
    Switch,
    /// Pods on a plain Linux bridge
    Bridge,
    /// Pods on routed point-to-point links
    Route,
    /// Pods on an Open vSwitch
    Ovs,
    /// A switch, a bridge and an Open vSwitch joined by cables, and a leg to the host
    Link,
    /// The exercise with ns1, ns2 and one veth pair, as most introductions have it
    Tutorial,
    /// A switch whose pods reach the internet
    Outside,
}

/// The text of an example: a whole file, with a comment on every line that needs one.
#[must_use]
pub const fn example(kind: Example) -> &'static str {
    match kind {
        Example::Direct => include_str!("../../../../examples/direct.toml"),
        Example::Wire => include_str!("../../../../examples/wire.toml"),
        Example::Switch => include_str!("../../../../examples/switch.toml"),
        Example::Bridge => include_str!("../../../../examples/bridge.toml"),
        Example::Route => include_str!("../../../../examples/route.toml"),
        Example::Ovs => include_str!("../../../../examples/ovs.toml"),
        Example::Link => include_str!("../../../../examples/link.toml"),
        Example::Tutorial => include_str!("../../../../examples/tutorial.toml"),
        Example::Outside => include_str!("../../../../examples/outside.toml"),
    }
}
