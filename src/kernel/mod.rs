//! The kernel: nftables structure and inventory, links and bridges, conntrack. Everything here is IO; what to do is
//! decided in [`crate::plan`].
//!
//! | module | owns |
//! |---|---|
//! | [`nft`], [`render`] | structure, through the `nft` program: one document, one transaction |
//! | [`elements`] | inventory, over one netlink socket; counters; whether base chains are hooked |
//! | [`neighbour`] | two rules that nft has no words for |
//! | [`generation`] | who changes nftables |
//! | [`nflog`] | the packets that rules log |
//! | [`links`] | bridges, ports, the container's end of a veth, routes |
//! | [`observe`] | tables that only count, for as long as somebody looks |
//! | [`conntrack`] | established flows, and their end |
//! | [`namespace`] | making sockets in other network namespaces |
//! | [`neighbour_table`] | neighbours that are known, and forgetting them |
//! | [`sockets`] | what listens and is connected in a process's network namespace |
//! | [`bridge_netfilter`], [`privilege`] | what the host must offer |

pub mod bridge_netfilter;
pub mod conntrack;
pub mod elements;
pub mod generation;
mod keys;
pub mod links;
pub mod namespace;
pub mod neighbour;
pub mod neighbour_table;
mod netlink;
pub mod nflog;
pub mod nft;
pub mod observe;
pub mod privilege;
pub mod render;
pub mod sockets;
mod statements;
#[cfg(any(test, feature = "testkit"))]
pub(crate) mod untrusted;

pub use netlink::NetlinkError;
