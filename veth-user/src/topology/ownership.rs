//! What is ours: decided by marks, whatever a crash or a person did.

use std::collections::HashSet;

use super::Topology;
use crate::{
    net::link::Link,
    state::{Record, Roots},
};

/// The marks of all that may be there of a topology.
#[derive(Debug)]
pub(super) struct Ownership {
    prefix: String,
    names: HashSet<String>,
    groups: HashSet<u32>,
    /// Whether there is an Open vSwitch of ours, which makes links without a mark.
    has_ovs: bool,
}

impl Ownership {
    pub(super) fn new(roots: &Roots, record: &Record) -> Self {
        Self {
            prefix: record.topology.alias_prefix(),
            names: record.topologies().flat_map(Topology::host_links).map(str::to_owned).collect(),
            groups: record.topologies().flat_map(Topology::groups).collect(),
            has_ovs: roots.ovs_folder(&record.topology.name).exists(),
        }
    }

    /// Whether a link has one of our names, ours or not.
    pub(super) fn has_name(&self, link: &Link) -> bool {
        self.names.contains(&link.name)
    }

    /// The link groups that ours are in.
    pub(super) fn groups(&self) -> impl Iterator<Item = u32> {
        self.groups.iter().copied()
    }

    /// Whether a link of the host's namespace is ours. It has its name and its group from birth, its alias a little
    /// later; what an Open vSwitch makes has no group.
    pub(super) fn has_link(&self, link: &Link) -> bool {
        match (&link.alias, link.kind.as_deref()) {
            (Some(alias), _) => alias.starts_with(&self.prefix),
            (None, Some("veth" | "bridge")) => self.has_name(link) && self.groups.contains(&link.group),
            (None, Some("tun")) => self.has_name(link) && self.has_ovs,
            (None, _) => false,
        }
    }
}
