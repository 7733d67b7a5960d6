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
//! | [`conntrack`] | established flows, and their end |
//! | [`bridge_netfilter`], [`privilege`] | what the host must offer |

pub mod bridge_netfilter;
pub mod conntrack;
pub mod elements;
pub mod generation;
mod keys;
pub mod links;
pub mod neighbour;
mod netlink;
pub mod nflog;
pub mod nft;
pub mod privilege;
pub mod render;
mod statements;
#[cfg(any(test, feature = "testkit"))]
pub(crate) mod untrusted;

pub use netlink::NetlinkError;
