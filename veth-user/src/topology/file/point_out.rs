//! What is wrong with a file only on this machine, at its place in the file.

use toml::de::{DeTable, DeValue};

use super::{Diagnostics, Problem};
use crate::topology::{Error, Topology};

/// Points an error out that a machine has with what a file declares: a namespace or a link that somebody else has, a
/// program that is missing. Nothing for errors that no line of the file is to blame for.
#[must_use]
pub fn point_out(name: &str, text: &str, error: &Error) -> Option<Diagnostics> {
    let topology = super::parse(name, text).ok()?;
    let table = DeTable::parse(text).ok()?;
    let table = table.get_ref();
    let problem = match error {
        Error::Taken { what, name, remove, .. } => {
            let pod = pod_of(&topology, name)?;
            let span = find(table, pod).or_else(|| find(table, "pods"))?;
            Problem::new(
                span,
                format!("the {what} {name} of the pod {pod} exists and is somebody else's"),
                format!("remove it (`{remove}`), or choose another name for the pod or the topology"),
            )
        }
        Error::Ovs(missing) => {
            let (_, DeValue::Table(paths)) = entry(table, "ovs")? else { return None };
            let (key, _) = paths.iter().next()?;
            Problem::new(key.span(), "there is no Open vSwitch on this machine", missing.source.to_string())
        }
        _ => return None,
    };
    Some(Diagnostics::new(name, text, vec![problem]))
}

/// The pod that a namespace or a link is of.
fn pod_of<'a>(topology: &'a Topology, name: &str) -> Option<&'a str> {
    let is_it = |pod: &&crate::topology::Pod| {
        pod.namespace == name || pod.ports.iter().any(|port| port.host_link == name)
    };
    topology.pods.iter().find(is_it).map(|pod| pod.name.as_str())
}

type Entry<'a> = (&'a toml::Spanned<std::borrow::Cow<'a, str>>, &'a DeValue<'a>);

fn entry<'a>(table: &'a DeTable<'a>, key: &str) -> Option<Entry<'a>> {
    let (key, value) = table.iter().find(|(name, _)| name.get_ref() == key)?;
    Some((key, value.get_ref()))
}

/// Where a text stands first: in a list of pods, or as a key.
fn find(table: &DeTable<'_>, wanted: &str) -> Option<std::ops::Range<usize>> {
    table.iter().find_map(|(key, value)| match value.get_ref() {
        _ if key.get_ref() == wanted => Some(key.span()),
        DeValue::Table(table) => find(table, wanted),
        DeValue::Array(list) => list
            .iter()
            .find(|item| matches!(item.get_ref(), DeValue::String(text) if text == wanted))
            .map(toml::Spanned::span),
        _ => None,
    })
}
