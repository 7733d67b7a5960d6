//! Externals: named sets of addresses outside this host, `cidrs` without `except`.

use ipnet::IpNet;

use super::fault::Code;
use super::fields::{self, Fields};
use super::text::{Report, Sited};
use super::yaml::Node;
use crate::net::AddressSet;

/// The addresses of the external `name`, and its `cidrs` as written; what is wrong with them is reported.
pub(super) fn addresses(name: &str, node: &Node, report: &mut Report<'_>) -> (AddressSet, Vec<Sited<IpNet>>) {
    let Some(fields) = Fields::of(node, "an external", &["cidrs", "except"], report) else {
        return Default::default();
    };
    let mut complete = true;
    let mut read = |node: Option<&Node>, field: &str, report: &mut Report<'_>| -> Vec<Sited<IpNet>> {
        let nodes = node.map_or_else(Vec::new, |node| {
            fields::one_or_many(node, &format!("`{field}`"), report)
        });
        let nets: Vec<_> = nodes.iter().filter_map(|one| cidr(one, field, report)).collect();
        complete &= !nodes.is_empty() && nets.len() == nodes.len() || node.is_none();
        nets
    };
    let cidrs_node = fields.need("cidrs", report);
    let cidrs = read(cidrs_node, "cidrs", report);
    let except = read(fields.get("except"), "except", report);
    let include: Vec<IpNet> = cidrs.iter().map(|net| net.value).collect();
    let exclude: Vec<IpNet> = except.iter().map(|net| net.value).collect();
    let addresses = AddressSet::new(&include, &exclude);
    if !complete || cidrs.is_empty() {
        return (addresses, cidrs);
    }
    for net in &except {
        let touches = |other: &IpNet| other.contains(&net.value) || net.value.contains(other);
        if !include.iter().any(touches) {
            report
                .add(
                    Code::ExceptOutside,
                    net.site,
                    format!("`except` {} lies outside the `cidrs` of `{name}`", net.value),
                )
                .help("an exception takes addresses away; remove it or correct the range");
        }
    }
    if addresses.is_empty() {
        report
            .add(
                Code::EmptyExternal,
                node.site,
                format!("nothing is left of external `{name}`: `except` covers all of its `cidrs`"),
            )
            .help("remove the external, or except less");
    }
    (addresses, cidrs)
}

fn cidr(node: &Node, field: &str, report: &mut Report<'_>) -> Option<Sited<IpNet>> {
    let text = fields::text(
        node,
        &format!("`{field}` is a list of CIDRs, texts such as 203.0.113.0/24"),
        report,
    )?;
    let site = text.site;
    let text = text.value.trim();
    let Ok(net) = text.parse::<IpNet>() else {
        let fault = report.add(Code::BadCidr, site, format!("`{text}` is not a CIDR"));
        match text.parse::<std::net::IpAddr>() {
            Ok(address) => fault.help(format!(
                "did you mean the single address `{}`?",
                IpNet::from(address)
            )),
            Err(_) => fault
                .help("write an address and a prefix length, such as `203.0.113.0/24` or \"2001:db8::/32\""),
        };
        return None;
    };
    if net.addr() != net.network() {
        report
            .add(
                Code::BadCidr,
                site,
                format!("`{text}` has bits set behind its prefix"),
            )
            .help(format!(
                "did you mean the network `{}` or the single address `{}`?",
                net.trunc(),
                IpNet::from(net.addr())
            ));
        return None;
    }
    Some(Sited { value: net, site })
}
