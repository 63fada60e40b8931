//! The words that say which frames are meant: a few of those of pcap-filter(7), with the meaning they have there.

use std::net::IpAddr;

use veth_common::{
    ethertype::{ARP, IPV4, IPV6},
    ip_protocol::{ICMP, ICMPV6, TCP, UDP},
    watch::{Filter, HostTerm, PortTerm, Side},
};

/// What can be said, for help texts and errors.
pub const SYNTAX: &str = "terms joined by `and`: arp, ip, ip6, tcp, udp, icmp, icmp6, [src|dst] host ADDRESS, [src|dst] \
                          port NUMBER; two hosts and two ports at most";

/// Why words are no filter.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the filter `{text}`: {what}. A filter is {SYNTAX}")]
pub struct Error {
    text: String,
    what: String,
}

/// Reads a filter. Nothing means every frame.
///
/// # Errors
///
/// When a word is none of those that are known, stands where it makes no sense, or contradicts another.
pub fn parse(text: &str) -> Result<Filter, Error> {
    read(text).map_err(|what| Error { text: text.to_owned(), what })
}

fn read(text: &str) -> Result<Filter, String> {
    let mut filter = Filter::default();
    let mut words = text.split_whitespace();
    let mut is_first = true;
    while let Some(mut word) = words.next() {
        if !is_first && (word == "and" || word == "&&") {
            word = words.next().ok_or("nothing stands behind the last `and`")?;
        }
        is_first = false;
        let side = match word {
            "src" => Side::Source,
            "dst" => Side::Destination,
            _ => Side::Either,
        };
        if side != Side::Either {
            word = words.next().ok_or_else(|| format!("nothing stands behind `{word}`"))?;
        }
        match word {
            "host" | "port" => {
                let value = words.next().ok_or_else(|| format!("nothing stands behind `{word}`"))?;
                if word == "host" {
                    set_host(&mut filter, side, value)?;
                } else {
                    set_port(&mut filter, side, value)?;
                }
            }
            _ if side != Side::Either => {
                return Err(format!("`{word}` stands where `host` or `port` belongs"));
            }
            "arp" => set_ethertype(&mut filter, ARP)?,
            "ip" => set_ethertype(&mut filter, IPV4)?,
            "ip6" => set_ethertype(&mut filter, IPV6)?,
            "tcp" => set_protocol(&mut filter, TCP)?,
            "udp" => set_protocol(&mut filter, UDP)?,
            "icmp" => {
                set_ethertype(&mut filter, IPV4)?;
                set_protocol(&mut filter, ICMP)?;
            }
            "icmp6" => {
                set_ethertype(&mut filter, IPV6)?;
                set_protocol(&mut filter, ICMPV6)?;
            }
            "or" | "||" | "not" | "!" => {
                return Err(format!("`{word}` is not known: every term must be met"));
            }
            _ => return Err(format!("`{word}` is not known")),
        }
    }
    Ok(filter)
}

fn set_ethertype(filter: &mut Filter, ethertype: u16) -> Result<(), String> {
    if filter.ethertype != 0 && filter.ethertype != ethertype {
        return Err("no frame is both of two kinds".to_owned());
    }
    filter.ethertype = ethertype;
    Ok(())
}

fn set_protocol(filter: &mut Filter, protocol: u8) -> Result<(), String> {
    let protocol = Filter::HAS_PROTOCOL | u16::from(protocol);
    if filter.protocol != 0 && filter.protocol != protocol {
        return Err("no packet is of two protocols".to_owned());
    }
    filter.protocol = protocol;
    Ok(())
}

fn set_host(filter: &mut Filter, side: Side, value: &str) -> Result<(), String> {
    let address: IpAddr = value.parse().map_err(|_| format!("`{value}` is no IPv4 or IPv6 address"))?;
    let free = filter.hosts.iter_mut().find(|term| term.side == 0);
    *free.ok_or("it has more than two hosts")? = HostTerm::new(side, address);
    Ok(())
}

fn set_port(filter: &mut Filter, side: Side, value: &str) -> Result<(), String> {
    let port: u16 = value.parse().map_err(|_| format!("`{value}` is no port (0 to 65535)"))?;
    let free = filter.ports.iter_mut().find(|term| term.side == 0);
    *free.ok_or("it has more than two ports")? = PortTerm::new(side, port);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_as_in_pcap() {
        assert_eq!(parse("").unwrap(), Filter::default());
        let filter = parse("tcp and src host 10.0.0.1 and dst port 80").unwrap();
        assert_eq!(filter, parse("tcp src host 10.0.0.1 dst port 80").unwrap());
        assert_eq!(filter.protocol, Filter::HAS_PROTOCOL | 6);
        assert_eq!(filter.hosts[0], HostTerm::new(Side::Source, "10.0.0.1".parse().unwrap()));
        assert_eq!(filter.ports[0], PortTerm::new(Side::Destination, 80));
        assert_eq!(filter.ports[1], PortTerm::default());
        let filter = parse("icmp6 host fd00::1 host fd00::2").unwrap();
        assert_eq!((filter.ethertype, filter.hosts[1].family), (0x86dd_u16.to_be(), 6));
        assert_eq!(parse("arp").unwrap().ethertype, 0x0806_u16.to_be());
    }

    #[test]
    fn errors_say_what_is_wrong_and_what_may_be_said() {
        for (text, what) in [
            ("sctp", "`sctp` is not known"),
            ("tcp or udp", "`or` is not known: every term must be met"),
            ("host", "nothing stands behind `host`"),
            ("src", "nothing stands behind `src`"),
            ("tcp and", "nothing stands behind the last `and`"),
            ("and tcp", "`and` is not known"),
            ("src tcp", "`tcp` stands where `host` or `port` belongs"),
            ("host web", "`web` is no IPv4 or IPv6 address"),
            ("port http", "`http` is no port"),
            ("port 65536", "`65536` is no port"),
            ("host 1.1.1.1 host 1.1.1.2 host 1.1.1.3", "more than two hosts"),
            ("port 1 port 2 port 3", "more than two ports"),
            ("tcp udp", "no packet is of two protocols"),
            ("arp icmp", "no frame is both of two kinds"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("[src|dst] host ADDRESS"), "{text}: {error}");
        }
    }
}
