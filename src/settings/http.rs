//! The settings of the HTTP server.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::str::FromStr;

use super::git::Choice;

/// Where metrics and the page are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    pub listen: SocketAddr,
    pub hosts: Hosts,
}

/// Names of the server beside `localhost`. An address needs no name: no other site can be called by it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts(pub BTreeSet<String>);

impl FromStr for Hosts {
    type Err = String;

    /// Names with commas between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut names = BTreeSet::new();
        for name in text.split(',').map(str::trim) {
            let valid = (1..=253).contains(&name.len())
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
            if !valid {
                return Err(format!(
                    "`{name}` is no host name: names without port, with commas between them"
                ));
            }
            names.insert(name.trim_end_matches('.').to_ascii_lowercase());
        }
        Ok(Self(names))
    }
}

/// Puts them together.
///
/// # Errors
/// Others than this host could ask, and nobody said that they may.
pub(super) fn merge(
    listen: Option<Choice<SocketAddr>>,
    remote: bool,
    hosts: Option<Choice<Hosts>>,
) -> Result<Option<HttpSettings>, String> {
    let Some(listen) = listen.and_then(Choice::on) else {
        return Ok(None);
    };
    if !listen.ip().is_loopback() && !remote {
        return Err(format!(
            "http-listen {listen} is not on loopback, and whoever reaches it may read who is called what and who may reach whom, without a \
             password: if that is wanted, set http-remote"
        ));
    }
    Ok(Some(HttpSettings {
        listen,
        hosts: hosts.and_then(Choice::on).unwrap_or_default(),
    }))
}
