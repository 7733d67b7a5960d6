//! Bytes as if an engine had answered them, read in every way that an answer is read.

use std::path::PathBuf;

use hyper::StatusCode;
use serde_json::Value;

use super::raw::interpret;
use super::wire::{self, Inspection, NetworkAnswer, NetworkNames, Summary};
use crate::inventory::{Container, Facts, Listing};

/// Reads an answer as a list of containers, as one of networks, as an inspection of each. What comes out is what the
/// inventory would take.
pub(crate) fn read_answer(body: &[u8]) -> Listing {
    let mut listing = Listing::default();
    for status in [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::OK] {
        let read = |text: &str| Ok(text.to_owned());
        let Ok(Some(text)) = interpret(status, body, read) else {
            continue;
        };
        let answer: Option<Value> = serde_json::from_str(&text).ok();
        let names = NetworkNames::default();
        let networks = wire::objects::<NetworkAnswer>(&text).into_iter().flatten();
        let networks = networks.filter_map(wire::network);
        listing.networks.extend(networks.map(|snapshot| snapshot.network));
        let names_of = NetworkNames::new(&listing.networks);
        let summaries = wire::objects::<Summary>(&text).into_iter().flatten();
        let listed = |summary| wire::listed_container(summary, &names, Facts::default());
        listing.containers.extend(summaries.filter_map(listed));
        let one = answer.clone().and_then(wire::object::<NetworkAnswer>);
        let one = one.and_then(wire::network).map(|snapshot| snapshot.network);
        listing.networks.extend(one);
        let sockets = [PathBuf::from("/run/docker.sock")];
        let inspected = |answer: Inspection| -> Option<Container> {
            let _names = answer.needs_names();
            wire::inspected_container(answer, &names_of, &sockets)
        };
        let inspections = wire::objects::<Inspection>(&text).into_iter().flatten();
        listing.containers.extend(inspections.filter_map(inspected));
        let one = answer.and_then(wire::object::<Inspection>);
        listing.containers.extend(one.and_then(inspected));
    }
    listing
}
