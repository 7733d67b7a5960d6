//! Single values: ids, addresses and whatever else is parsed. What cannot be is left out and warned of.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use tracing::warn;

use crate::docker::raw::{Field, shortened};
use crate::inventory::ContainerId;

/// Ids stand in the paths of requests, and are nothing but hexadecimal digits.
pub(in crate::docker) fn is_id(text: &str) -> bool {
    const LONGEST: usize = 128;
    (1..=LONGEST).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Names of volumes stand there, too: the engine takes these, and no others.
pub(crate) fn is_volume_name(text: &str) -> bool {
    let first = text.bytes().next();
    first.is_some_and(|byte| byte.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

pub(super) fn container_id(id: Field<String>) -> Option<ContainerId> {
    let id = id.get().filter(|id| is_id(id)).map(|id| ContainerId(id.into()));
    if id.is_none() {
        warn!("a container without an id: ignored");
    }
    id
}

pub(super) fn is_empty(text: &Field<String>) -> bool {
    text.as_ref().is_none_or(String::is_empty)
}

/// The value of a field that may be missing or empty; what is malformed is warned of.
pub(super) fn parsed<T>(object: &dyn Display, field: &str, text: &Field<String>) -> Option<T>
where
    T: FromStr,
    T::Err: Display,
{
    if text.is_malformed() {
        warn!(%object, field, "malformed answer of the engine: field ignored");
    }
    parse(object, field, text.as_ref()?)
}

pub(super) fn parse<T>(object: &dyn Display, field: &str, text: &str) -> Option<T>
where
    T: FromStr,
    T::Err: Display,
{
    if text.is_empty() {
        return None;
    }
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => {
            let value = shortened(text);
            warn!(%object, field, value, "malformed answer of the engine: field ignored");
            None
        }
    }
}

/// An address with or without `/prefix`; the engine writes both, and an unspecified one for none.
pub(super) fn address(object: &dyn Display, field: &str, text: &Field<String>) -> Option<IpAddr> {
    let text = text.as_ref()?;
    let text = text.split_once('/').map_or(text.as_str(), |(address, _)| address);
    parse::<IpAddr>(object, field, text).filter(|address| !address.is_unspecified())
}

pub(super) fn ipv4(object: &dyn Display, text: &Field<String>) -> Option<Ipv4Addr> {
    match address(object, "IPv4 address", text)? {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(other) => wrong_family(object, "IPv4 address", other.into()),
    }
}

pub(super) fn ipv6(object: &dyn Display, text: &Field<String>) -> Option<Ipv6Addr> {
    match address(object, "IPv6 address", text)? {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(other) => wrong_family(object, "IPv6 address", other.into()),
    }
}

pub(super) fn wrong_family<T>(object: &dyn Display, field: &str, value: IpAddr) -> Option<T> {
    warn!(%object, field, %value, "malformed answer of the engine: field ignored");
    None
}

/// Docker's own limit for names is far below; what is longer is nonsense and would only fill the memory.
pub(super) const LONGEST_NAME: usize = 4096;

/// Whether the engine's answer has such a field but not as it must be.
pub(super) fn is_odd(field: &Field<String>) -> bool {
    field.is_malformed() || field.as_ref().is_some_and(|text| text.len() > LONGEST_NAME)
}
