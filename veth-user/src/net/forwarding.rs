//! What the host forwards for paths that are routed: a table of the packet filter, written whole or not at all.
//!
//! Its chain accepts what a path may do, and drops everything else that comes from the path's links or goes to them.
//! What other tables of the host drop stays dropped: an `accept` ends only the chain that says it.

use std::{collections::BTreeSet, fmt::Write as _, io, net::IpAddr};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};

use super::{
    Error, Result,
    address::Cidr,
    nftables::{
        CHAIN_HOOK, CHAIN_NAME, CHAIN_TABLE, DELTABLE, FORWARD, GETRULE, GETTABLE, HOOK_NUMBER, NEWCHAIN,
        NEWRULE, NEWTABLE, Row, attribute, attributes, dump, is_absent, text, transact,
    },
};

/// `NFPROTO_INET`, and those whose packets it sees.
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// `NF_INET_POST_ROUTING`, and the priorities that `nft` calls `filter` and `srcnat`.
const POSTROUTING: u32 = 4;
const FILTER: u32 = 0;
const SRCNAT: u32 = 100;

/// Attributes of tables, chains, hooks and rules, of `linux/netfilter/nf_tables.h`.
const TABLE_NAME: u16 = 1;
const TABLE_USERDATA: u16 = 6;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// Registers: that of the verdict, and one of 16 bytes.
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;

/// Verdicts of `linux/netfilter.h` and `NFT_JUMP`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const JUMP: u32 = 0_u32.wrapping_sub(3);

/// `enum nft_meta_keys`.
const NFPROTO: u32 = 15;
const IIFGROUP: u32 = 21;
const OIFGROUP: u32 = 22;

/// `NFT_CT_STATE`, and its bits of established and related connections.
const CT_STATE: u32 = 0;
const ESTABLISHED_OR_RELATED: u32 = 1 << 1 | 1 << 2;

/// `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK_HEADER: u32 = 1;

/// `NFTNL_UDATA_TABLE_COMMENT` of libnftnl: what `nft` shows as the table's comment.
const COMMENT: u8 = 0;

/// Our chains.
const FORWARD_CHAIN: &str = "forward";
const OTHERS_CHAIN: &str = "others";
const POSTROUTING_CHAIN: &str = "postrouting";

/// A path that the host forwards for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardPath {
    /// The group of the path's links on the host. Not 0, which every other link has, and no other path's.
    pub group: u32,
    /// Whether the path's pods reach what is beyond the host: everything but the pods of other paths.
    pub outside: bool,
    /// What the path's pods have addresses of. To the outside they are hidden behind the host's.
    pub subnets: Vec<Cidr>,
}

/// Writes the table of the calling thread's namespace, in one transaction: no packet sees half of it, nor none.
///
/// Pods of different paths do not reach each other. Those of a path without [`outside`](ForwardPath::outside) reach
/// nothing beyond the host, those of one with it reach everything else, and only replies reach them.
///
/// Minimum kernel version: 5.7 (`iifgroup` after routing).
///
/// # Errors
///
/// When the kernel has no nftables, or lacks a part of it, which is named. `EPERM` without `CAP_NET_ADMIN`. When paths
/// share a group, or one is 0.
pub fn replace(table: &str, paths: &[ForwardPath]) -> Result<()> {
    check(table, paths)?;
    let changes = changes(table, paths);
    let comment = comment(digest(&changes));
    let rows = changes.iter().enumerate().map(|(number, change)| {
        // The last of the three that make the table has the comment; the first two empty it.
        change.row(if number == 2 { Some(&comment) } else { None })
    });
    transact(rows).map_err(|(number, error)| {
        let change = number.and_then(|number| changes.get(number));
        let action = match change {
            _ if number.is_none() && is_absent(&error) => needs(table, "nftables", "NF_TABLES"),
            Some(Change::Chain { name, nat: true, .. }) => needs(table, name, "NFT_NAT"),
            Some(Change::Chain { name, .. }) => needs(table, name, "NF_TABLES_INET"),
            Some(Change::Rule { chain, needs: Some(option), .. }) => needs(table, chain, option),
            Some(Change::Rule { chain, .. }) => needs(table, chain, "NF_TABLES"),
            Some(Change::Table { .. }) => needs(table, "it", "NF_TABLES_INET"),
            None => format!("write the table {table} of nftables"),
        };
        Error::new(action, error)
    })
}

/// Deletes the table of the calling thread's namespace. Succeeds if there is none.
///
/// # Errors
///
/// `EPERM` without `CAP_NET_ADMIN`.
pub fn delete(table: &str) -> Result<()> {
    let change = Change::Table { kind: DELTABLE, name: table };
    match transact([change.row(None)]) {
        Err((_, error)) if error.raw_os_error() != Some(libc::ENOENT) && !is_absent(&error) => {
            Err(Error::new(format!("delete the table {table} of nftables"), error))
        }
        _ => Ok(()),
    }
}

/// Whether the table of the calling thread's namespace is the one that [`replace`] writes: it was written for the
/// same paths, and has all its rules.
///
/// Minimum kernel version: 5.10 (`NFTA_TABLE_USERDATA`). On older ones it is never current.
///
/// # Errors
///
/// `EPERM` without `CAP_NET_ADMIN`. When paths share a group, or one is 0.
pub fn is_current(table: &str, paths: &[ForwardPath]) -> Result<bool> {
    check(table, paths)?;
    let changes = changes(table, paths);
    let wanted = comment(digest(&changes));
    let failed = |source| Error::new(format!("read the table {table} of nftables"), source);
    let tables = match dump(Row { kind: GETTABLE, family: INET, attributes: Vec::new() }) {
        Err(error) if is_absent(&error) => return Ok(false),
        rows => rows.map_err(failed)?,
    };
    let has_comment = |row: &Row| {
        let of =
            |wanted| attributes(&row.attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        of(TABLE_NAME).is_some_and(|name| text(name) == table) && of(TABLE_USERDATA) == Some(&wanted)
    };
    if !tables.iter().any(has_comment) {
        return Ok(false);
    }
    let question = attribute(RULE_TABLE, &name(table));
    let rules = dump(Row { kind: GETRULE, family: INET, attributes: question }).map_err(failed)?;
    let is_in = |row: &&Row| {
        let mut attributes = attributes(&row.attributes);
        row.kind == NEWRULE && attributes.any(|(kind, value)| kind == RULE_TABLE && text(value) == table)
    };
    let expected = changes.iter().filter(|change| matches!(change, Change::Rule { .. })).count();
    Ok(rules.iter().filter(is_in).count() == expected)
}

fn needs(table: &str, part: &str, option: &str) -> String {
    format!("write the table {table} of nftables: {part} (needs a kernel with CONFIG_{option})")
}

fn check(table: &str, paths: &[ForwardPath]) -> Result<()> {
    let groups: BTreeSet<u32> = paths.iter().map(|path| path.group).collect();
    if groups.len() == paths.len() && !groups.contains(&0) {
        return Ok(());
    }
    Err(Error::new(
        format!("write the table {table} of nftables"),
        io::Error::new(io::ErrorKind::InvalidInput, "each path needs a link group of its own, and not 0"),
    ))
}

/// A part of the table.
#[derive(Debug, PartialEq, Eq)]
enum Change<'a> {
    Table {
        kind: u16,
        name: &'a str,
    },
    /// A chain that packets go through at a hook, or one that is only jumped to.
    Chain {
        table: &'a str,
        name: &'a str,
        hook: Option<(u32, u32)>,
        nat: bool,
    },
    /// A rule, and the option of the kernel that it needs beside nftables itself.
    Rule {
        table: &'a str,
        chain: &'a str,
        expressions: Vec<u8>,
        needs: Option<&'a str>,
    },
}

impl Change<'_> {
    fn row(&self, userdata: Option<&[u8]>) -> (Row, u16) {
        let (kind, attributes, flags) = match self {
            Self::Table { kind, name: table } => {
                let mut attributes = attribute(TABLE_NAME, &name(table));
                attributes.extend(userdata.into_iter().flat_map(|data| attribute(TABLE_USERDATA, data)));
                (*kind, attributes, if *kind == NEWTABLE { NLM_F_CREATE } else { 0 })
            }
            Self::Chain { table, name: chain, hook, nat } => {
                let mut attributes =
                    [attribute(CHAIN_TABLE, &name(table)), attribute(CHAIN_NAME, &name(chain))].concat();
                if let Some((hook, priority)) = hook {
                    let hook = [word(HOOK_NUMBER, *hook), word(HOOK_PRIORITY, *priority)].concat();
                    attributes.extend(attribute(CHAIN_HOOK | NESTED, &hook));
                    attributes.extend(word(CHAIN_POLICY, ACCEPT));
                    attributes.extend(attribute(CHAIN_TYPE, &name(if *nat { "nat" } else { "filter" })));
                }
                (NEWCHAIN, attributes, NLM_F_CREATE)
            }
            Self::Rule { table, chain, expressions, needs: _ } => {
                let attributes = [
                    attribute(RULE_TABLE, &name(table)),
                    attribute(RULE_CHAIN, &name(chain)),
                    attribute(RULE_EXPRESSIONS | NESTED, expressions),
                ];
                (NEWRULE, attributes.concat(), NLM_F_CREATE | NLM_F_APPEND)
            }
        };
        (Row { kind, family: INET, attributes }, flags)
    }
}

/// Everything that makes the table, in order. As `nft` has it, for each path P:
///
/// ```text
/// chain forward {
///     type filter hook forward priority filter; policy accept;
///     iifgroup P oifgroup P accept
///     iifgroup P jump others
///     iifgroup P accept                                # outside
///     iifgroup P counter drop                          # not outside
///     …
///     oifgroup P ct state established,related accept   # outside
///     oifgroup P counter drop
///     …
/// }
/// chain others {
///     oifgroup P counter drop
///     …
/// }
/// chain postrouting {
///     type nat hook postrouting priority srcnat; policy accept;
///     iifgroup P ip saddr SUBNET oifgroup != P masquerade
///     …
/// }
/// ```
///
/// So everything from a path has been decided by the first part, and all that the second sees is from elsewhere. The
/// number of rules grows as that of paths does.
fn changes<'a>(table: &'a str, paths: &[ForwardPath]) -> Vec<Change<'a>> {
    // Made, if it was not there, so that it can be deleted; deleted; and made again.
    let mut changes: Vec<Change<'a>> =
        [NEWTABLE, DELTABLE, NEWTABLE].map(|kind| Change::Table { kind, name: table }).into();
    let chain = |name, hook, nat| Change::Chain { table, name, hook, nat };
    changes.push(chain(OTHERS_CHAIN, None, false));
    changes.push(chain(FORWARD_CHAIN, Some((FORWARD, FILTER)), false));
    let hides = |path: &&ForwardPath| path.outside && !path.subnets.is_empty();
    if paths.iter().any(|path| hides(&path)) {
        changes.push(chain(POSTROUTING_CHAIN, Some((POSTROUTING, SRCNAT)), true));
    }
    let rule = |chain, expressions: &[Vec<u8>], needs| Change::Rule {
        table,
        chain,
        expressions: expressions.concat(),
        needs,
    };
    for path in paths {
        let from = |rest: &[Vec<u8>]| [&meta(IIFGROUP, path.group)[..], rest].concat();
        let to = |rest: &[Vec<u8>]| [&meta(OIFGROUP, path.group)[..], rest].concat();
        changes.push(rule(OTHERS_CHAIN, &to(&dropped()), None));
        changes.push(rule(FORWARD_CHAIN, &from(&to(&[verdict(ACCEPT, None)])), None));
        changes.push(rule(FORWARD_CHAIN, &from(&[verdict(JUMP, Some(OTHERS_CHAIN))]), None));
        let rest = if path.outside { vec![verdict(ACCEPT, None)] } else { dropped().to_vec() };
        changes.push(rule(FORWARD_CHAIN, &from(&rest), None));
    }
    for path in paths {
        let to = |rest: &[Vec<u8>]| [&meta(OIFGROUP, path.group)[..], rest].concat();
        if path.outside {
            let replies = [&ct_replies()[..], &[verdict(ACCEPT, None)]].concat();
            changes.push(rule(FORWARD_CHAIN, &to(&replies), Some("NFT_CT")));
        }
        changes.push(rule(FORWARD_CHAIN, &to(&dropped()), None));
    }
    for path in paths.iter().filter(hides) {
        for subnet in &path.subnets {
            let mut hidden = meta(IIFGROUP, path.group).to_vec();
            hidden.extend(source(*subnet));
            hidden.extend([load(OIFGROUP), compare(NOT_EQUAL, &path.group.to_ne_bytes())]);
            hidden.push(expression("masq", &[]));
            changes.push(rule(POSTROUTING_CHAIN, &hidden, Some("NFT_MASQ")));
        }
    }
    changes
}

/// `enum nft_cmp_ops`.
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// `KEY VALUE`.
fn meta(key: u32, value: u32) -> [Vec<u8>; 2] {
    // A group is a number of the machine's own order, unlike most of what is compared.
    [load(key), compare(EQUAL, &value.to_ne_bytes())]
}

fn load(key: u32) -> Vec<u8> {
    // NFTA_META_DREG, NFTA_META_KEY
    expression("meta", &[word(1, REGISTER), word(2, key)])
}

fn compare(operator: u32, value: &[u8]) -> Vec<u8> {
    // NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA
    expression("cmp", &[word(1, REGISTER), word(2, operator), data(3, value)])
}

/// Keeps only the bits of a mask.
fn keep(mask: &[u8]) -> Vec<u8> {
    let length = u32::try_from(mask.len()).unwrap_or_default();
    // NFTA_BITWISE_SREG, NFTA_BITWISE_DREG, NFTA_BITWISE_LEN, NFTA_BITWISE_MASK, NFTA_BITWISE_XOR
    let parts =
        [word(1, REGISTER), word(2, REGISTER), word(3, length), data(4, mask), data(5, &vec![0; mask.len()])];
    expression("bitwise", &parts)
}

/// `ct state established,related`.
fn ct_replies() -> [Vec<u8>; 3] {
    // NFTA_CT_DREG, NFTA_CT_KEY
    let load = expression("ct", &[word(1, REGISTER), word(2, CT_STATE)]);
    [load, keep(&ESTABLISHED_OR_RELATED.to_ne_bytes()), compare(NOT_EQUAL, &[0; 4])]
}

/// `ip saddr NETWORK`, or `ip6 saddr NETWORK`.
fn source(network: Cidr) -> Vec<Vec<u8>> {
    let mask = |address| Cidr { address, prefix: network.prefix }.network().address;
    let (family, offset, mask) = match network.address {
        IpAddr::V4(_) => (IPV4, 12, mask(IpAddr::from([0xff_u8; 4]))),
        IpAddr::V6(_) => (IPV6, 8, mask(IpAddr::from([0xff_u8; 16]))),
    };
    let (mask, wanted) = (octets(mask), octets(network.network().address));
    let length = u32::try_from(mask.len()).unwrap_or_default();
    // NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN
    let parts = [word(1, REGISTER), word(2, NETWORK_HEADER), word(3, offset), word(4, length)];
    let address = expression("payload", &parts);
    vec![load(NFPROTO), compare(EQUAL, &[family]), address, keep(&mask), compare(EQUAL, &wanted)]
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// `counter drop`.
fn dropped() -> [Vec<u8>; 2] {
    [expression("counter", &[]), verdict(DROP, None)]
}

fn verdict(code: u32, chain: Option<&str>) -> Vec<u8> {
    let mut verdict = word(VERDICT_CODE, code);
    verdict.extend(chain.into_iter().flat_map(|chain| attribute(VERDICT_CHAIN, &name(chain))));
    let verdict = attribute(2 | NESTED, &attribute(DATA_VERDICT | NESTED, &verdict));
    // NFTA_IMMEDIATE_DREG, NFTA_IMMEDIATE_DATA
    expression("immediate", &[word(1, VERDICT), verdict])
}

fn expression(kind: &str, parts: &[Vec<u8>]) -> Vec<u8> {
    let expression =
        [attribute(EXPRESSION_NAME, &name(kind)), attribute(EXPRESSION_DATA | NESTED, &parts.concat())];
    attribute(LIST_ELEMENT | NESTED, &expression.concat())
}

fn data(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, &attribute(DATA_VALUE, value))
}

fn word(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn name(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// FNV-1a of everything that is written, whose result is the same in every build.
fn digest(changes: &[Change<'_>]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let rows = changes.iter().map(|change| change.row(None).0);
    let bytes = rows.flat_map(|row| [row.kind.to_be_bytes().to_vec(), row.attributes].concat());
    bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

/// The table's user data: what it was written for, so that `nft list` shows it as a comment.
fn comment(digest: u64) -> Vec<u8> {
    let mut text = String::from("veth ");
    let _unused: std::fmt::Result = write!(text, "{digest:016x}");
    let value = name(&text);
    let length = u8::try_from(value.len()).unwrap_or_default();
    [&[COMMENT, length][..], &value].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(group: u32, outside: bool, subnets: &[&str]) -> ForwardPath {
        ForwardPath {
            group,
            outside,
            subnets: subnets.iter().map(|subnet| subnet.parse().unwrap()).collect(),
        }
    }

    fn rules(changes: &[Change<'_>], of: &str) -> usize {
        changes.iter().filter(|change| matches!(change, Change::Rule { chain, .. } if *chain == of)).count()
    }

    #[test]
    fn rules_grow_as_paths_do() {
        for count in [1, 2, 50] {
            let paths: Vec<_> =
                (1..=count).map(|group| path(group, true, &["10.0.0.0/8", "fd00::/8"])).collect();
            let changes = changes("veth", &paths);
            let count = usize::try_from(count).unwrap();
            assert_eq!(rules(&changes, FORWARD_CHAIN), 5 * count);
            assert_eq!(rules(&changes, OTHERS_CHAIN), count);
            assert_eq!(rules(&changes, POSTROUTING_CHAIN), 2 * count);
        }
    }

    #[test]
    fn without_outside_there_is_no_nat() {
        for paths in [vec![], vec![path(1, false, &["10.0.0.0/8"])], vec![path(1, true, &[])]] {
            let changes = changes("veth", &paths);
            assert!(!changes.iter().any(|change| matches!(change, Change::Chain { nat: true, .. })));
            assert_eq!(rules(&changes, POSTROUTING_CHAIN), 0);
        }
    }

    #[test]
    fn whatever_matters_changes_the_digest() {
        let of = |paths: &[ForwardPath]| digest(&changes("veth", paths));
        let digests: BTreeSet<u64> = [
            of(&[]),
            of(&[path(1, true, &["10.0.0.0/8"])]),
            of(&[path(1, true, &["10.0.0.0/9"])]),
            of(&[path(1, true, &["10.0.0.0/8", "fd00::/8"])]),
            of(&[path(1, false, &["10.0.0.0/8"])]),
            of(&[path(2, true, &["10.0.0.0/8"])]),
            of(&[path(1, true, &["10.0.0.0/8"]), path(2, true, &[])]),
        ]
        .into();
        assert_eq!(digests.len(), 7);
        // Bits of hosts do not.
        assert_eq!(of(&[path(1, true, &["10.0.0.1/8"])]), of(&[path(1, true, &["10.0.0.0/8"])]));
    }

    #[test]
    fn groups_tell_paths_apart() {
        assert!(check("veth", &[path(1, true, &[]), path(2, true, &[])]).is_ok());
        assert!(check("veth", &[path(1, true, &[]), path(1, false, &[])]).is_err());
        assert!(check("veth", &[path(0, true, &[])]).is_err());
    }

    #[test]
    fn a_verdict_is_encoded_as_nft_does() {
        // As `nft --debug=netlink,mnl add rule … drop` sends it.
        let expected = [
            &[48, 0, 1, 0x80, 14, 0, 1, 0][..],
            b"immediate\0\0\0",
            &[28, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 0],
            &[16, 0, 2, 0x80, 12, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(verdict(DROP, None), expected);
    }

    #[test]
    fn a_comment_is_one_to_nft() {
        let comment = comment(0xab);
        assert_eq!(comment[..2], [COMMENT, 22]);
        assert_eq!(comment.len(), 24);
        assert_eq!(&comment[2..], b"veth 00000000000000ab\0");
    }
}
