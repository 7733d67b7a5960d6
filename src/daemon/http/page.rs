//! The page: one document with everything in it, put together once, and the security policy that names its parts by their
//! hashes.

use std::sync::OnceLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

const HTML: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
/// In the order in which they run.
const SCRIPTS: [&str; 6] = [
    include_str!("vendor/dagre.min.js"),
    include_str!("page/dom.js"),
    include_str!("page/graph.js"),
    include_str!("page/panes.js"),
    include_str!("page/audit.js"),
    include_str!("page/page.js"),
];

/// The page and its `Content-Security-Policy`.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) html: String,
    pub(super) policy: String,
}

/// The page, put together.
pub(super) fn assembled() -> &'static Page {
    static PAGE: OnceLock<Page> = OnceLock::new();
    PAGE.get_or_init(|| {
        let scripts: Vec<String> = SCRIPTS.iter().map(|it| format!("<script>{it}</script>")).collect();
        let html = HTML
            .replace("<!-- style -->", &format!("<style>{STYLE}</style>"))
            .replace("<!-- scripts -->", &scripts.join("\n"));
        let scripts: Vec<String> = SCRIPTS.iter().map(|it| hash(it)).collect();
        // Nothing is loaded from anywhere but by the page itself from this server, and nothing that is text becomes code:
        // without a trusted type no string is taken for markup or a script.
        let policy = format!(
            "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
            scripts.join(" "),
            hash(STYLE)
        );
        Page { html, policy }
    })
}

fn hash(text: &str) -> String {
    format!(
        "'sha256-{}'",
        BASE64_STANDARD.encode(Sha256::digest(text.as_bytes()))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_whole_and_asks_nobody_else() {
        let page = assembled();
        assert_eq!(page.html.matches("<script>").count(), SCRIPTS.len());
        assert_eq!(page.html.matches("</script>").count(), SCRIPTS.len());
        assert_eq!(page.html.matches("<style>").count(), 1);
        assert!(!page.html.contains("<!-- style -->") && !page.html.contains("<!-- scripts -->"));
        let ours = [HTML, STYLE].into_iter().chain(SCRIPTS.into_iter().skip(1));
        for text in ours {
            // The name of SVG's elements is no address that anybody asks.
            let rest = text.replace("http://www.w3.org/2000/svg", "");
            for foreign in [
                "http://",
                "https://",
                "src=\"//",
                "@import",
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "style=\"",
            ] {
                assert!(!rest.contains(foreign), "{foreign}");
            }
        }
        assert!(!page.policy.contains("unsafe"), "{}", page.policy);
        assert!(page.html.len() < 200_000, "{}", page.html.len());
    }
}
