//! Who may ask, and what every answer says to the browser.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::settings::http::Hosts;

/// Whether a Host header means this server: a name that somebody else has made to point here does not.
fn is_meant(hosts: &Hosts, host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            return (port.is_empty() || is_port(port)) && address.parse::<Ipv6Addr>().is_ok();
        }
        None => match host.find(':').map(|colon| host.split_at(colon)) {
            Some((name, port)) if is_port(port) => name,
            Some(_) => return false,
            None => host,
        },
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name.parse::<IpAddr>().is_ok() || name == "localhost" || hosts.0.contains(&name)
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':')
        .is_some_and(|port| port.bytes().all(|it| it.is_ascii_digit()))
}

/// Lets through who means this server and is no script, picture or form of another site.
pub(super) async fn check(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    let mut response = match objection(&hosts, &request) {
        None => next.run(request).await,
        Some((status, message)) => (status, message).into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in ALWAYS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// The page has its own security policy; nothing else is a document.
const ALWAYS: [(HeaderName, &str); 7] = [
    (CACHE_CONTROL, "no-store"),
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'",
    ),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
];

fn objection(hosts: &Hosts, request: &Request) -> Option<(StatusCode, &'static str)> {
    let mut given = request.headers().get_all(HOST).iter();
    let host = match (given.next(), given.next()) {
        (Some(host), None) => host.to_str().ok(),
        _ => None,
    };
    let authority = request.uri().authority().map(axum::http::uri::Authority::as_str);
    let meant = |name: &str| is_meant(hosts, name);
    if !host.is_some_and(meant) || !authority.is_none_or(meant) {
        let message =
            "this server is asked by an address, as localhost, or by a name of the setting http-hosts\n";
        return Some((StatusCode::MISDIRECTED_REQUEST, message));
    }
    if !is_own(request.headers()) {
        return Some((StatusCode::FORBIDDEN, "not for other sites\n"));
    }
    None
}

/// Browsers say where a request comes from. A link from elsewhere is fine, anything else from there is not.
fn is_own(headers: &HeaderMap) -> bool {
    let is = |name: &str, values: &[&str]| {
        let value = headers.get(name).and_then(|it| it.to_str().ok());
        value.is_none_or(|value| values.contains(&value))
    };
    let link = headers.get("sec-fetch-mode").is_some_and(|it| it == "navigate")
        && headers.get("sec-fetch-dest").is_some_and(|it| it == "document");
    (is("sec-fetch-site", &["same-origin", "none"]) || link) && is_same_origin(headers)
}

fn is_same_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let host = headers
        .get(HOST)
        .and_then(|it| it.to_str().ok())
        .unwrap_or_default();
    let origin = origin.to_str().unwrap_or_default();
    origin == format!("http://{host}") || origin == format!("https://{host}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn only_addresses_localhost_and_given_names_are_meant() {
        let hosts = Hosts(BTreeSet::from(["cofferdam.example".to_owned()]));
        for meant in [
            "localhost",
            "LOCALHOST:9471",
            "localhost.",
            "127.0.0.1:9471",
            "10.1.2.3",
            "[::1]",
            "[::1]:9471",
            "cofferdam.example:80",
            "Cofferdam.Example",
        ] {
            assert!(is_meant(&hosts, meant), "{meant}");
        }
        for foreign in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example:9471",
            "[::1].evil.example",
            "[evil.example]",
            "localhost:9471@evil.example",
            "127.0.0.1:x",
            "a:b:c",
            "user@localhost",
            "127.1",
            "0x7f000001",
        ] {
            assert!(!is_meant(&hosts, foreign), "{foreign}");
        }
        assert!(!is_meant(&Hosts::default(), "cofferdam.example"));
    }
}
