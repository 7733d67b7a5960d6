//! Link and route messages that nobody vouches for.

use netlink_packet_route::RouteNetlinkMessage;

use super::parse;
use super::watch::route_messages;

/// Reads every message of a datagram; returns how many there are.
pub(crate) fn read_untrusted(datagram: &[u8]) -> usize {
    let mut found = 0;
    for message in route_messages(datagram) {
        found += 1;
        match message {
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                let _seen = parse::see(&link);
                let (_address, _calls) = (parse::address(&link), parse::netfilter_calls(&link));
                let _isolated = parse::isolated(&link);
            }
            RouteNetlinkMessage::NewRoute(route) => {
                let _route = parse::main_route(&route);
            }
            _ => {}
        }
    }
    found
}
