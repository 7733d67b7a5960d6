//! The proof: whether what passes is what the policy declares, tried from inside the containers' network namespaces.
//!
//! In: the rights, the containers with what listens in them, the host. Out: a [`plan::Plan`] of probes, each with what
//! [`crate::model::Rights::judge`] declares of it; what became of each; and the cells of a matrix, which agree or differ.
//!
//! | module | does |
//! |---|---|
//! | [`scene`] | who is there, and which of them stand for their service (pure) |
//! | [`ports`] | which ports are tried (pure) |
//! | [`plan`] | which connections are tried, and what is declared of them (pure) |
//! | [`verdict`] | what a probe's evidence says, cells, the policies' own tests (pure) |
//! | [`look`] | reading the scene: engine, namespaces, sockets |
//! | [`probe`] | the probes themselves |

pub mod look;
pub mod plan;
pub mod ports;
pub mod probe;
pub mod scene;
#[cfg(test)]
mod tests;
pub mod verdict;
