//! Entry points for input that nobody vouches for: the fuzz targets under `fuzz/` call them, and so do the bounded tests
//! below. Each takes bytes and panics where a promise is broken. Not part of the product.
#![allow(missing_debug_implementations, reason = "nothing here is kept")]

use std::path::Path;

use crate::daemon::control;
use crate::model::Rights;
use crate::plan::Planner;
use crate::plan::compile::Options;
use crate::policy::{self, Colour, Peer, SourceFile};
use crate::settings::{self, Overrides, Settings};

/// A policy file: it is refused as a whole, or every edge has ports and ends that exist.
pub fn policy_file(bytes: &[u8]) {
    let files = [SourceFile {
        path: "policy.yaml".to_owned(),
        bytes: bytes.to_vec(),
    }];
    // Long ago, so that edges with an end are there.
    let now = jiff::Timestamp::UNIX_EPOCH;
    let reviewed = policy::review(&files, Vec::new(), now);
    let warnings = reviewed.warnings.render(&files, Colour::Plain);
    assert_eq!(
        warnings.is_empty(),
        reviewed.warnings.is_empty(),
        "a warning without a text"
    );
    let loaded = match reviewed.loaded {
        Ok(loaded) => loaded,
        Err(faults) => {
            assert!(faults.iter().len() > 0, "refused without a reason");
            let rendered = faults.render(&files, Colour::Plain);
            assert!(!rendered.is_empty(), "refused without a text");
            return;
        }
    };
    for edge in &loaded.policy.edges {
        assert!(!edge.ports.is_empty(), "an edge without ports");
        for end in [&edge.from, &edge.to] {
            match end {
                Peer::Service(id) => assert!(loaded.policy.services.contains_key(id)),
                Peer::External(id) => assert!(loaded.policy.externals.contains_key(id)),
                Peer::World | Peer::Host => {}
            }
        }
    }
    for test in &loaded.policy.tests {
        let outcome = loaded.policy.outcome(test, now);
        assert_eq!(outcome == policy::Outcome::Holds, outcome.message(test).is_none());
    }
    let rights = Rights {
        policy: loaded.policy,
        ..Rights::default()
    };
    // What is valid can be compiled.
    let mut planner = planner(rights);
    let _plan = planner.plan();
}

/// A settings file: it is refused, or its values make sense.
pub fn settings_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(overrides) = settings::parse(text, Path::new("settings.yaml")) else {
        return;
    };
    if let Ok(settings) = Settings::merge(Overrides::default(), overrides) {
        assert_eq!(settings.options.stamp.count_ones(), 1, "the stamp is one bit");
        let pools = &settings.pools;
        assert!(pools.ipv4_prefix <= 29 && pools.ipv4_prefix >= pools.ipv4.prefix_len());
        let _free = pools.free_subnets([]).take();
    }
}

/// An answer of the engine: whatever it says can be planned.
pub fn engine_answer(bytes: &[u8]) {
    let listing = crate::docker::untrusted::read_answer(bytes);
    let mut planner = planner(Rights::default());
    let now = planner.moment();
    planner.reset(listing, now);
    let _plan = planner.plan();
    planner.kernel_applied();
    let _findings = planner.unenforceable();
}

/// A datagram of the kernel, of any netlink family that is read: what comes out is bounded by what went in.
pub fn netlink_datagram(bytes: &[u8]) {
    let found = crate::kernel::untrusted::read_datagram(bytes);
    assert!(
        found <= 64 * (bytes.len() + 1),
        "{found} objects in {} bytes",
        bytes.len()
    );
}

/// A line on the control socket: it is one of the requests there are, or it is refused in few words.
pub fn control_request(bytes: &[u8]) {
    match control::request(bytes) {
        Ok(
            control::Request::Status
            | control::Request::Policy
            | control::Request::Flows { .. }
            | control::Request::Metrics,
        ) => {}
        Err(message) => assert!(message.len() < 5000),
    }
}

fn planner(rights: Rights) -> Planner {
    let options = Options {
        stamp: 1 << 30,
        nflog_group: 64,
    };
    let settings = Settings::merge(Overrides::default(), Overrides::default());
    match settings {
        Ok(settings) => Planner::new(options, settings.pools, rights),
        Err(error) => panic!("the defaults make sense: {error}"),
    }
}

#[cfg(test)]
mod tests;
