//! What of an engine's answer is passed on: not the environment of containers, where passwords are, and with the version the word that a
//! filter answered and for which socket.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::path::Path;

use serde_json::{Value, json};

use super::call::Passed;
use crate::docker::{FILTER_COMPONENT, FILTER_SOCKET};

/// The answer to pass on; `None` where it is no JSON.
pub fn narrowed(passed: Passed, body: &[u8], engine: &Path) -> Option<Vec<u8>> {
    // As everywhere: what is no UTF-8 in a name stays different from every name.
    let mut answer: Value = serde_json::from_str(&String::from_utf8_lossy(body)).ok()?;
    match passed {
        Passed::All | Passed::Created => {}
        Passed::Container => {
            if let Some(config) = answer.get_mut("Config").and_then(Value::as_object_mut) {
                config.remove("Env");
            }
        }
        Passed::Version => {
            let word = json!({
                "Name": FILTER_COMPONENT,
                "Version": env!("CARGO_PKG_VERSION"),
                "Details": { FILTER_SOCKET: engine.to_string_lossy() },
            });
            match answer.get_mut("Components") {
                Some(Value::Array(components)) => components.push(word),
                _ => answer
                    .as_object_mut()?
                    .insert("Components".to_owned(), json!([word]))
                    .map_or((), drop),
            }
        }
    }
    serde_json::to_vec(&answer).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(passed: Passed, answer: &Value) -> Value {
        let engine = Path::new("/run/docker.sock");
        let bytes = narrowed(passed, answer.to_string().as_bytes(), engine).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn a_containers_environment_stays_behind_and_nothing_else() {
        let full = json!({ "Id": "a", "Config": { "Env": ["PASSWORD=x"], "Image": "i", "Labels": {} } });
        let without = json!({ "Id": "a", "Config": { "Image": "i", "Labels": {} } });
        assert_eq!(pass(Passed::Container, &full), without);
        assert_eq!(pass(Passed::All, &full), full);
    }

    #[test]
    fn the_version_says_that_a_filter_answered() {
        let word = |answer: &Value| answer["Components"].as_array().unwrap().last().unwrap().clone();
        let before = json!({ "Version": "20.10", "Components": [{ "Name": "Engine" }] });
        let after = pass(Passed::Version, &before);
        assert_eq!(after["Components"][0]["Name"], "Engine");
        assert_eq!(word(&after)["Details"][FILTER_SOCKET], "/run/docker.sock");
        assert_eq!(word(&pass(Passed::Version, &json!({})))["Name"], FILTER_COMPONENT);
        assert_eq!(narrowed(Passed::Version, b"[]", Path::new("/")), None);
        assert_eq!(narrowed(Passed::Container, b"no JSON", Path::new("/")), None);
    }
}
