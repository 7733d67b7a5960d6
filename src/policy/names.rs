//! Names as they are written: of segments, services and externals, and of the ends of an edge.

use super::Name;
use super::document::PeerText;
use super::fault::{Code, Fault};
use super::text::{Report, Site, Sited};

/// Names with a meaning of their own in an edge.
const RESERVED: [&str; 2] = ["world", "host"];

/// A name where one is declared; what is not a name, or is reserved, is reported.
pub(super) fn declared(text: &Sited<String>, what: &str, report: &mut Report<'_>) -> Option<Sited<Name>> {
    if RESERVED.contains(&text.value.as_str()) && what != "segment" {
        report
            .add(
                Code::ReservedName,
                text.site,
                format!(
                    "no {what} can be called `{}`: the name has a meaning of its own",
                    text.value
                ),
            )
            .help(format!("did you mean `{}-{what}`?", text.value));
        return None;
    }
    name(&text.value, text.site, what, report).map(|value| Sited {
        value,
        site: text.site,
    })
}

fn name(text: &str, site: Site, what: &str, report: &mut Report<'_>) -> Option<Name> {
    match text.parse() {
        Ok(name) => Some(name),
        Err(rule) => {
            let rule: String = rule;
            let fault = report.add(Code::BadName, site, format!("`{text}` is not a {what}'s name"));
            help_with_name(fault, text, &rule);
            None
        }
    }
}

fn help_with_name(fault: &mut Fault, text: &str, rule: &str) {
    let likely: String = text
        .trim()
        .chars()
        .map(|c| {
            if c == '_' || c == '.' || c == ' ' {
                '-'
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect();
    let likely = likely.trim_matches('-');
    if likely.parse::<Name>().is_ok() {
        fault.help(format!("did you mean `{likely}`? {rule}"));
    } else {
        fault.help(rule);
    }
}

/// One end of an edge: `world`, `host`, `*`, `name` or `segment/name`.
pub(super) fn peer(text: &Sited<String>, report: &mut Report<'_>) -> Option<Sited<PeerText>> {
    let site = text.site;
    let value = match text.value.as_str() {
        "world" => PeerText::World,
        "host" => PeerText::Host,
        "*" => PeerText::Every,
        other => match other.split_once('/') {
            Some((segment, "*")) => {
                report
                    .add(Code::BadName, site, format!("`{segment}/*` is not a service's name"))
                    .help("`*` is every service of this segment only: name another segment's services one by one");
                return None;
            }
            Some((segment, service)) => {
                let segment = name(segment, site, "segment", report);
                let service = name(service, site, "service", report);
                PeerText::In(segment?, service?)
            }
            None => PeerText::Here(name(other, site, "service", report)?),
        },
    };
    Some(Sited { value, site })
}
